#include "pkv/kernels/codec_params.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "pkv/block/digest.h"
#include "pkv/kernels/codec_params_text.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

constexpr int kMaxIterations = 1000;
constexpr int kMaxRecentTokens = 1024;
constexpr size_t kMaxNameBytes = 15;

absl::Status CheckName(const std::string& name) {
  const bool valid_bytes = std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
  });
  if (name.empty() || name.size() > kMaxNameBytes || !valid_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("name \"", name, "\" is not 1..", kMaxNameBytes, " bytes of [a-z0-9_-]"));
  }
  return absl::OkStatus();
}

absl::Status CheckInt(absl::string_view field, int value, int min, int max) {
  if (value >= min && value <= max) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, " ", value, " not in ", min, "..", max));
}

absl::Status CheckPatterns(const CodecParams& p) {
  PKV_RETURN_IF_ERROR(CheckInt("num_patterns_k", p.num_patterns_k, 0, kMaxPatterns));
  PKV_RETURN_IF_ERROR(CheckInt("num_patterns_v", p.num_patterns_v, 0, kMaxPatterns));
  PKV_RETURN_IF_ERROR(CheckInt("kmeans_iterations", p.kmeans_iterations, 1, kMaxIterations));
  if (!(p.kmeans_tolerance >= 0) || !std::isfinite(p.kmeans_tolerance)) {
    return absl::InvalidArgumentError(
        absl::StrCat("kmeans_tolerance ", p.kmeans_tolerance, " is not a finite number >= 0"));
  }
  if (!(p.gate_alpha > 0) || !(p.gate_alpha < 0.5)) {
    return absl::InvalidArgumentError(
        absl::StrCat("gate_alpha ", p.gate_alpha, " not between 0 and 0.5"));
  }
  const bool wants_patterns = p.num_patterns_k > 0 || p.num_patterns_v > 0;
  if (p.encoding.has_patterns != wants_patterns) {
    return absl::InvalidArgumentError(
        absl::StrCat("encoding.has_patterns ", p.encoding.has_patterns ? "true" : "false",
                     " disagrees with num_patterns_k ", p.num_patterns_k, ", num_patterns_v ",
                     p.num_patterns_v));
  }
  if (!wants_patterns && (p.append_k || p.append_v)) {
    return absl::InvalidArgumentError("append_k or append_v true needs num_patterns_k or v > 0");
  }
  return absl::OkStatus();
}

bool Searches(const CodecParams& p) { return p.clip_k != Clip::kNone || p.clip_v != Clip::kNone; }

CodecParams Kivi(absl::string_view name, int bits, int group, const KvShape& shape) {
  CodecParams p;
  p.name = std::string(name);
  p.encoding = {bits, bits, group, std::min(group, shape.head_dim), false};
  return p;
}

// PatternKV as its authors run it, but for what kernels/README.md lists.
CodecParams PatternKv(absl::string_view name, int bits, const KvShape& shape) {
  CodecParams p = Kivi(name, bits, kBlockTokens, shape);
  p.encoding.has_patterns = true;
  p.num_patterns_k = 32;
  p.num_patterns_v = 32;
  p.gate_v = Gate::kZTest;
  p.append_k = true;
  p.append_v = true;
  return p;
}

// Ours: what measured best (kernels/FIDELITY.md).
template <int kBits>
CodecParams Default(absl::string_view name, const KvShape& shape) {
  CodecParams p = PatternKv(name, kBits, shape);
  p.encoding.rotated = true;
  p.kmeans_iterations = 10;
  if (kBits == 2) {
    p.encoding.k_fine_tokens = kFineTokens;
  } else {
    p.num_patterns_k = p.num_patterns_v = 64;
  }
  p.clip_k = Clip::kSearch;
  p.clip_k_floor = kBits == 2 ? 0.8 : 0.9;
  p.clip_v = Clip::kSearch;
  p.unbiased_k = true;
  p.unbiased_v = true;
  p.feedback_k = true;
  p.append_k = false;
  p.num_sinks = 16;
  p.window_rule = WindowRule::kRolling;
  p.recent_tokens = 128;
  return p;
}

struct Preset {
  const char* name;
  CodecParams (*make)(absl::string_view name, const KvShape& shape);
};

template <int kBits, int kGroup>
CodecParams MakeKivi(absl::string_view name, const KvShape& shape) {
  return Kivi(name, kBits, kGroup, shape);
}

template <int kBits>
CodecParams MakePatternKv(absl::string_view name, const KvShape& shape) {
  return PatternKv(name, kBits, shape);
}

CodecParams MakeFp16(absl::string_view name, const KvShape&) {
  CodecParams p;
  p.name = std::string(name);
  return p;
}

constexpr Preset kPresets[] = {
    {"fp16", MakeFp16},
    {"kivi2", MakeKivi<2, 128>},
    {"kivi2-g64", MakeKivi<2, 64>},
    {"kivi2-g32", MakeKivi<2, 32>},
    {"kivi4", MakeKivi<4, 128>},
    {"kivi4-g64", MakeKivi<4, 64>},
    {"kivi4-g32", MakeKivi<4, 32>},
    {"pkv2", MakePatternKv<2>},
    {"pkv4", MakePatternKv<4>},
    {"default", Default<2>},
    {"default4", Default<4>},
};

}  // namespace

absl::Status CodecParams::Validate(const KvShape& shape) const {
  PKV_RETURN_IF_ERROR(CheckName(name));
  PKV_RETURN_IF_ERROR(ValidateShape(shape));
  PKV_RETURN_IF_ERROR(ValidateEncoding(shape, encoding));
  PKV_RETURN_IF_ERROR(CheckPatterns(*this));
  if (num_sinks != 0 && num_sinks != 4 && num_sinks != 16 && num_sinks != 64) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_sinks ", num_sinks, " not in {0, 4, 16, 64}"));
  }
  if (encoding.is_fp16() && (num_sinks > 0 || gate_v != Gate::kNone || Searches(*this) ||
                             unbiased_k || unbiased_v || feedback_k)) {
    return absl::InvalidArgumentError(
        "fp16 takes no num_sinks, gate_v, clip_k, clip_v, unbiased_k, unbiased_v or feedback_k");
  }
  const double ratios = clip_k_floor * 10.0;
  if (!(ratios >= 3.9) || !(ratios <= 10.1) || std::abs(ratios - std::round(ratios)) > 1e-6) {
    return absl::InvalidArgumentError(
        absl::StrCat("clip_k_floor ", clip_k_floor, " not in 0.4, 0.5, .., 1.0"));
  }
  if (!(feedback_damping > 0) || !(feedback_damping <= 10)) {
    return absl::InvalidArgumentError(
        absl::StrCat("feedback_damping ", feedback_damping, " not above 0 and up to 10"));
  }
  const int recent_max = window_rule == WindowRule::kRolling ? kMaxRecentTokens : 0;
  return CheckInt("recent_tokens", recent_tokens, 0, recent_max);
}

uint64_t CodecParams::Digest() const {
  std::string text = "codec=pkv.codec.v2\n";
  for (const auto& [key, value] : ListCodecParams(*this)) {
    absl::StrAppend(&text, key, "=", value, "\n");
  }
  const pkv::Digest digest = Sha256({std::as_bytes(std::span(text.data(), text.size()))});
  uint64_t first;
  std::memcpy(&first, digest.bytes.data(), sizeof(first));
  return first;
}

absl::StatusOr<CodecParams> PresetByName(absl::string_view name, const KvShape& shape) {
  for (const Preset& preset : kPresets) {
    if (name != preset.name) continue;
    CodecParams params = preset.make(name, shape);
    PKV_RETURN_IF_ERROR(params.Validate(shape));
    return params;
  }
  return absl::NotFoundError(
      absl::StrCat("preset \"", name, "\" not in {", absl::StrJoin(PresetNames(), ", "), "}"));
}

std::vector<std::string> PresetNames() {
  std::vector<std::string> names;
  for (const Preset& preset : kPresets) names.emplace_back(preset.name);
  return names;
}

int BlockTokensAfterPrefill(const CodecParams& params, int num_tokens) {
  const int kept = params.window_rule == WindowRule::kRolling ? params.recent_tokens : 0;
  return std::max(num_tokens - kept, 0) / kBlockTokens * kBlockTokens;
}

int BlockTokensAfterDecodeStep(const CodecParams& params, int num_tokens, int in_blocks) {
  const int kept = params.window_rule == WindowRule::kRolling ? params.recent_tokens : 0;
  const bool full = num_tokens - in_blocks >= kept + kBlockTokens;
  return full ? in_blocks + kBlockTokens : in_blocks;
}

}  // namespace pkv
