#include "pkv/kernels/codec_params_text.h"

#include <cmath>
#include <iterator>
#include <type_traits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace pkv {
namespace {

// The table: every field but the name, in the order of the digest. `Params` is CodecParams or const
// CodecParams. A line more changes every preset's digest.
template <typename Params, typename Visitor>
void VisitFields(Params& p, Visitor& visit) {
  visit("bits_k", p.encoding.bits_k);
  visit("bits_v", p.encoding.bits_v);
  visit("k_group_tokens", p.encoding.k_group_tokens);
  visit("v_group_channels", p.encoding.v_group_channels);
  visit("has_patterns", p.encoding.has_patterns);
  visit("k_fine_tokens", p.encoding.k_fine_tokens);
  visit("rotated", p.encoding.rotated);
  visit("num_patterns_k", p.num_patterns_k);
  visit("num_patterns_v", p.num_patterns_v);
  visit("kmeans_iterations", p.kmeans_iterations);
  visit("kmeans_tolerance", p.kmeans_tolerance);
  visit("assign_k_prefill", p.assign_k_prefill);
  visit("assign_v_prefill", p.assign_v_prefill);
  visit("assign_k_decode", p.assign_k_decode);
  visit("assign_v_decode", p.assign_v_decode);
  visit("gate_v", p.gate_v);
  visit("gate_alpha", p.gate_alpha);
  visit("clip_k", p.clip_k);
  visit("clip_k_floor", p.clip_k_floor);
  visit("clip_v", p.clip_v);
  visit("unbiased_k", p.unbiased_k);
  visit("unbiased_v", p.unbiased_v);
  visit("feedback_k", p.feedback_k);
  visit("feedback_damping", p.feedback_damping);
  visit("append_k", p.append_k);
  visit("append_v", p.append_v);
  visit("num_sinks", p.num_sinks);
  visit("window_rule", p.window_rule);
  visit("recent_tokens", p.recent_tokens);
}

template <typename Enum>
struct Choice {
  Enum value;
  const char* name;
};

// The names of each choice's values.
constexpr Choice<AssignMetric> kAssignMetrics[] = {{AssignMetric::kL2, "l2"},
                                                   {AssignMetric::kMinMax, "minmax"}};
constexpr Choice<Gate> kGates[] = {
    {Gate::kNone, "none"}, {Gate::kZTest, "ztest"}, {Gate::kExactMse, "exactmse"}};
constexpr Choice<Clip> kClips[] = {{Clip::kNone, "none"}, {Clip::kSearch, "search"}};
constexpr Choice<WindowRule> kWindowRules[] = {{WindowRule::kTail, "tail"},
                                               {WindowRule::kRolling, "rolling"}};

constexpr auto& ChoicesOf(AssignMetric) { return kAssignMetrics; }
constexpr auto& ChoicesOf(Gate) { return kGates; }
constexpr auto& ChoicesOf(Clip) { return kClips; }
constexpr auto& ChoicesOf(WindowRule) { return kWindowRules; }

std::string TextOf(int value) { return absl::StrCat(value); }
std::string TextOf(bool value) { return value ? "1" : "0"; }
std::string TextOf(double value) { return absl::StrFormat("%.17g", value); }
template <typename Enum, typename = std::enable_if_t<std::is_enum_v<Enum>>>
std::string TextOf(Enum value) {
  for (const auto& choice : ChoicesOf(value)) {
    if (choice.value == value) return choice.name;
  }
  return "";
}

absl::Status Refuse(absl::string_view key, absl::string_view value, absl::string_view allowed) {
  return absl::InvalidArgumentError(absl::StrCat(key, " \"", value, "\" is not ", allowed));
}

absl::Status Parse(absl::string_view key, absl::string_view text, int& value) {
  int parsed;
  if (!absl::SimpleAtoi(text, &parsed)) return Refuse(key, text, "an integer");
  value = parsed;
  return absl::OkStatus();
}

absl::Status Parse(absl::string_view key, absl::string_view text, bool& value) {
  if (text != "0" && text != "1" && text != "false" && text != "true") {
    return Refuse(key, text, "in {0, 1, false, true}");
  }
  value = text == "1" || text == "true";
  return absl::OkStatus();
}

absl::Status Parse(absl::string_view key, absl::string_view text, double& value) {
  double parsed;
  if (!absl::SimpleAtod(text, &parsed) || !std::isfinite(parsed)) {
    return Refuse(key, text, "a finite number");
  }
  value = parsed;
  return absl::OkStatus();
}

template <typename Enum, typename = std::enable_if_t<std::is_enum_v<Enum>>>
absl::Status Parse(absl::string_view key, absl::string_view text, Enum& value) {
  std::vector<std::string> names;
  for (const auto& choice : ChoicesOf(value)) {
    if (text == choice.name) {
      value = choice.value;
      return absl::OkStatus();
    }
    names.emplace_back(choice.name);
  }
  return Refuse(key, text, absl::StrCat("in {", absl::StrJoin(names, ", "), "}"));
}

}  // namespace

std::vector<CodecParamText> ListCodecParams(const CodecParams& params) {
  std::vector<CodecParamText> fields;
  const auto visit = [&](const char* key, const auto& value) {
    fields.push_back({key, TextOf(value)});
  };
  VisitFields(params, visit);
  return fields;
}

absl::Status SetCodecParam(CodecParams& params, absl::string_view key, absl::string_view value) {
  bool found = false;
  absl::Status status;
  std::vector<std::string> keys;
  const auto visit = [&](const char* name, auto& field) {
    keys.emplace_back(name);
    if (key != name) return;
    found = true;
    status = Parse(key, value, field);
  };
  VisitFields(params, visit);
  if (found) return status;
  return absl::NotFoundError(
      absl::StrCat("codec parameter \"", key, "\" not in {", absl::StrJoin(keys, ", "), "}"));
}

}  // namespace pkv
