#include "pkv/kernels/block_codec.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/codec/block_codec_backends.h"
#include "kernels/codec/key_feedback_math.h"
#include "pkv/block/aligned_buffer.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

// A reader loads codes as 32-bit words.
constexpr int64_t kCodeWordBytes = 4;

absl::Status CheckEqual(absl::string_view what, int64_t value, int64_t expected) {
  if (value == expected) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " ", value, " is not ", expected));
}

absl::Status CheckAtLeast(absl::string_view what, int64_t value, int64_t limit) {
  if (value >= limit) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(what, " ", value, " is below ", limit));
}

absl::Status CheckHeader(const KvShape& shape, const CodecParams& params,
                         const ObjectHeader& header, std::span<const std::byte> frame,
                         int64_t alignment) {
  PKV_RETURN_IF_ERROR(CheckEqual("header kind", static_cast<int>(header.kind),
                                 static_cast<int>(ObjectKind::kBlock)));
  PKV_RETURN_IF_ERROR(CheckEqual("header kv heads", header.num_kv_heads, shape.num_kv_heads));
  PKV_RETURN_IF_ERROR(CheckEqual("header head_dim", header.head_dim, shape.head_dim));
  const Encoding want = params.encoding, have = header.encoding();
  PKV_RETURN_IF_ERROR(CheckEqual("header bits_k", have.bits_k, want.bits_k));
  PKV_RETURN_IF_ERROR(CheckEqual("header bits_v", have.bits_v, want.bits_v));
  PKV_RETURN_IF_ERROR(
      CheckEqual("header k_group_tokens", have.k_group_tokens, want.k_group_tokens));
  PKV_RETURN_IF_ERROR(
      CheckEqual("header v_group_channels", have.v_group_channels, want.v_group_channels));
  PKV_RETURN_IF_ERROR(CheckEqual("header has_patterns", have.has_patterns, want.has_patterns));
  PKV_RETURN_IF_ERROR(CheckEqual("header k_fine_tokens", have.k_fine_tokens, want.k_fine_tokens));
  PKV_RETURN_IF_ERROR(CheckEqual("header rotated", have.rotated, want.rotated));
  PKV_RETURN_IF_ERROR(ComputeObjectSizes(header).status());
  PKV_RETURN_IF_ERROR(CheckEqual("frame bytes", static_cast<int64_t>(frame.size()),
                                 PayloadLayout::Of(header).frame_bytes));
  return CheckEqual(absl::StrCat("frame address modulo ", alignment),
                    static_cast<int64_t>(reinterpret_cast<uintptr_t>(frame.data()) % alignment), 0);
}

absl::Status CheckTensor(const KvShape& shape, const KvTensorView& kv) {
  PKV_RETURN_IF_ERROR(CheckEqual("tensor kv heads", kv.num_kv_heads, shape.num_kv_heads));
  PKV_RETURN_IF_ERROR(CheckEqual("tensor tokens", kv.num_tokens, kBlockTokens));
  PKV_RETURN_IF_ERROR(CheckEqual("tensor head_dim", kv.head_dim, shape.head_dim));
  return CheckAtLeast("tensor head_stride", kv.head_stride, int64_t{kBlockTokens} * shape.head_dim);
}

// The bank as it stands once the block has appended to it.
absl::Status CheckBank(const KvShape& shape, const ObjectHeader& header, const Codebook& codebook) {
  if (!header.encoding().has_patterns) return absl::OkStatus();
  const int appended_k = (header.flags & kFlagAppendsK) != 0 ? 1 : 0;
  const int appended_v = (header.flags & kFlagAppendsV) != 0 ? 1 : 0;
  PKV_RETURN_IF_ERROR(CheckEqual("codebook kv heads", codebook.num_kv_heads(), shape.num_kv_heads));
  PKV_RETURN_IF_ERROR(CheckEqual("codebook head_dim", codebook.head_dim(), shape.head_dim));
  PKV_RETURN_IF_ERROR(
      CheckAtLeast("codebook K patterns", codebook.num_k(), header.num_patterns_k + appended_k));
  return CheckAtLeast("codebook V patterns", codebook.num_v(), header.num_patterns_v + appended_v);
}

absl::Status CheckIds(absl::string_view what, const std::vector<uint8_t>& ids, int num_kv_heads,
                      int bank_size, int num_sinks) {
  PKV_RETURN_IF_ERROR(CheckEqual(absl::StrCat(what, " pattern ids"),
                                 static_cast<int64_t>(ids.size()),
                                 int64_t{num_kv_heads} * kBlockTokens));
  for (size_t i = 0; i < ids.size(); ++i) {
    const int token = static_cast<int>(i) % kBlockTokens;
    if (ids[i] == kRawPatternId || (ids[i] < bank_size && token >= num_sinks)) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        what, " pattern id ", ids[i], " at kv head ", i / kBlockTokens, ", token ", token,
        token < num_sinks ? " of a sink is not 255"
                          : absl::StrCat(" not below the bank size ", bank_size, " nor 255")));
  }
  return absl::OkStatus();
}

absl::Status CheckFeedbackOrder(const KeyFeedback& feedback, int head) {
  const auto order = feedback.order_of(head);
  std::vector<bool> is_taken(feedback.head_dim);
  for (int step = 0; step < feedback.head_dim; ++step) {
    const int channel = order[step];
    const bool is_channel = channel < feedback.head_dim;
    if (!is_channel || is_taken[channel]) {
      return absl::InvalidArgumentError(
          absl::StrCat("feedback channel ", channel, " at kv head ", head, ", step ", step,
                       is_channel ? " came before"
                                  : absl::StrCat(" is not below head_dim ", feedback.head_dim)));
    }
    is_taken[channel] = true;
  }
  return absl::OkStatus();
}

// Every block is encoded with a check of all weights, so rows are looked at whole, without
// branches.
absl::Status CheckFeedbackRow(const KeyFeedback& feedback, int head, int step) {
  const int d = feedback.head_dim, run = step / kFeedbackRun * kFeedbackRun;
  const auto weights = feedback.weights_of(head).subspan(static_cast<size_t>(step) * d, d);
  const float scale = feedback.scales_of(head)[step];
  int least = 0, ahead = 0;
  for (int i = 0; i < run; ++i) least = std::min<int>(least, weights[i]);
  for (int i = run; i < d; ++i) ahead |= weights[i];
  const bool is_scale =
      scale == 0 || (scale >= kLeastFeedbackScale && scale <= 1 / kLeastFeedbackScale);
  if (is_scale && ahead == 0 && least >= -kMaxFeedbackWeight) return absl::OkStatus();
  const std::string at = absl::StrCat(" at kv head ", head, ", step ", step);
  if (!is_scale) {
    return absl::InvalidArgumentError(
        absl::StrCat("feedback scale ", scale, at, " is neither 0 nor in 2^-60..2^60"));
  }
  if (ahead != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("feedback weights", at, " are not 0 from its run on, step ", run));
  }
  return absl::InvalidArgumentError(absl::StrCat("feedback weight ", least, at, " is below -127"));
}

absl::Status CheckFeedback(const KvShape& shape, const KeyFeedback& feedback) {
  const int64_t num_steps = int64_t{shape.num_kv_heads} * shape.head_dim;
  PKV_RETURN_IF_ERROR(CheckEqual("feedback head_dim", feedback.head_dim, shape.head_dim));
  PKV_RETURN_IF_ERROR(
      CheckEqual("feedback steps", static_cast<int64_t>(feedback.order.size()), num_steps));
  PKV_RETURN_IF_ERROR(CheckEqual("feedback weights", static_cast<int64_t>(feedback.weights.size()),
                                 num_steps * shape.head_dim));
  PKV_RETURN_IF_ERROR(
      CheckEqual("feedback scales", static_cast<int64_t>(feedback.scales.size()), num_steps));
  for (int head = 0; head < shape.num_kv_heads; ++head) {
    PKV_RETURN_IF_ERROR(CheckFeedbackOrder(feedback, head));
    for (int step = 0; step < shape.head_dim; ++step) {
      PKV_RETURN_IF_ERROR(CheckFeedbackRow(feedback, head, step));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckEncodeArguments(const KvShape& shape, const CodecParams& params,
                                  const ObjectHeader& header, const KvTensorView& kv,
                                  const PatternAssignment& assignment, const Codebook& codebook,
                                  std::span<const std::byte> frame) {
  PKV_RETURN_IF_ERROR(CheckHeader(shape, params, header, frame, kFrameAlignment));
  PKV_RETURN_IF_ERROR(CheckTensor(shape, kv));
  if (assignment.feedback != nullptr) {
    PKV_RETURN_IF_ERROR(CheckFeedback(shape, *assignment.feedback));
  }
  if (!params.encoding.has_patterns) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(CheckBank(shape, header, codebook));
  const int appended_k = (header.flags & kFlagAppendsK) != 0 ? 1 : 0;
  const int appended_v = (header.flags & kFlagAppendsV) != 0 ? 1 : 0;
  // What is appended is the codebook's last pattern, so here nothing may stand behind it.
  PKV_RETURN_IF_ERROR(
      CheckEqual("codebook K patterns", codebook.num_k(), header.num_patterns_k + appended_k));
  PKV_RETURN_IF_ERROR(
      CheckEqual("codebook V patterns", codebook.num_v(), header.num_patterns_v + appended_v));
  PKV_RETURN_IF_ERROR(
      CheckIds("K", assignment.k, shape.num_kv_heads, codebook.num_k(), header.num_sinks));
  return CheckIds("V", assignment.v, shape.num_kv_heads, codebook.num_v(), header.num_sinks);
}

absl::Status CheckDecodeArguments(const KvShape& shape, const CodecParams& params,
                                  const ObjectHeader& header, std::span<const std::byte> frame,
                                  const Codebook& codebook, const MutableKvTensorView& kv_out) {
  PKV_RETURN_IF_ERROR(CheckHeader(shape, params, header, frame, kCodeWordBytes));
  PKV_RETURN_IF_ERROR(CheckTensor(shape, kv_out));
  return CheckBank(shape, header, codebook);
}

absl::StatusOr<std::unique_ptr<BlockCodec>> MakeBlockCodec(const KvShape& shape,
                                                           const CodecParams& params,
                                                           Device device) {
  PKV_RETURN_IF_ERROR(params.Validate(shape));
  if (device == Device::kCpu) return MakeBlockCodecCpu(shape, params, CodecLoops::kSimd);
#ifdef PKV_WITH_CUDA
  return MakeBlockCodecCuda(shape, params);
#else
  return absl::UnimplementedError("device CUDA: this build has no CUDA");
#endif
}

}  // namespace pkv
