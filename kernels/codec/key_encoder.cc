#include "kernels/codec/key_encoder.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "kernels/codec/group_quantizer.h"
#include "kernels/codec/key_feedback_math.h"
#include "kernels/device/cpu_clones.h"
#include "pkv/block/kv_shape.h"

namespace pkv {
namespace {

float LargestMagnitude(const std::vector<float>& values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

// FeedbackTarget() of each slot, from `num_earlier` steps: errors [step][num_slots], counted.
PKV_CPU_CLONES void SubtractFeedback(const float* x, const int8_t* weights, const int16_t* errors,
                                     int num_earlier, int num_slots, float factor, float* target) {
  int sums[kBlockTokens] = {};
  for (int j = 0; j < num_earlier; ++j) {
    const int weight = weights[j];
    const int16_t* error = errors + j * num_slots;
    for (int i = 0; i < num_slots; ++i) sums[i] += weight * error[i];
  }
  for (int i = 0; i < num_slots; ++i) target[i] = FeedbackTarget(x[i], factor, sums[i]);
}

// The codes of `count` values on one grid, and what they decode to.
PKV_CPU_CLONES void QuantizeColumn(const float* values, int count, float step, float low,
                                   float max_code, uint8_t* codes) {
  for (int i = 0; i < count; ++i) {
    codes[i] = static_cast<uint8_t>(static_cast<int>(QuantizeOne(values[i], step, low, max_code)));
  }
}

PKV_CPU_CLONES void DecodedErrors(const uint8_t* codes, const float* originals, int count,
                                  float step, float low, float* errors) {
  for (int i = 0; i < count; ++i) {
    errors[i] = DequantizeOne(static_cast<float>(codes[i]), step, low) - originals[i];
  }
}

// Codes one channel: `targets` are what to round, in `errors` comes decoded less `originals`.
GroupParams EncodeChannel(const float* targets, const float* originals, KeyGroup group,
                          const CodecParams& params, uint8_t* codes, float* errors) {
  const int bits = params.encoding.bits_k;
  const GroupValues coarse = {targets, group.num_coarse, bits};
  const GroupParams searched = SearchParams(coarse, NumKeyRatios(params));
  const GroupParams stored = params.unbiased_k ? CorrectGain(coarse, searched) : searched;
  QuantizeColumn(targets, group.num_coarse, Float16ToFloat(searched.scale),
                 Float16ToFloat(searched.zero), MaxCode(bits), codes);
  const float scale = Float16ToFloat(stored.scale), zero = Float16ToFloat(stored.zero);
  DecodedErrors(codes, originals, group.num_coarse, scale, zero, errors);
  const FineGrid fine = MakeFineGrid(scale, zero);
  const int first = group.num_coarse;
  QuantizeColumn(targets + first, group.num_fine, fine.step, fine.low, MaxCode(kFineBits),
                 codes + first);
  DecodedErrors(codes + first, originals + first, group.num_fine, fine.step, fine.low,
                errors + first);
  return stored;
}

}  // namespace

int NumKeyRatios(const CodecParams& params) {
  if (params.clip_k == Clip::kNone) return 1;
  return static_cast<int>((1.0 - params.clip_k_floor) * 10.0 + 0.5) + 1;
}

KeyGroupCodes EncodeKeyGroup(const std::vector<float>& residuals, int head_dim, KeyGroup group,
                             const CodecParams& params, const KeyFeedback* feedback, int kv_head) {
  const int num_slots = group.num_slots();
  KeyGroupCodes out;
  out.params.resize(head_dim);
  out.codes.resize(size_t(head_dim) * num_slots);
  const ErrorUnit unit = ErrorUnitFor(ToFiniteFloat16(LargestMagnitude(residuals)));
  std::vector<int16_t> counted(size_t(head_dim) * num_slots);
  std::vector<float> errors(num_slots), target(num_slots);
  for (int step = 0; step < head_dim; ++step) {
    const int channel = feedback == nullptr ? step : feedback->order_of(kv_head)[step];
    const float* x = residuals.data() + size_t(channel) * num_slots;
    const float* targets = x;
    if (feedback != nullptr) {
      SubtractFeedback(x, feedback->weights_of(kv_head).data() + size_t(step) * head_dim,
                       counted.data(), step / kFeedbackRun * kFeedbackRun, num_slots,
                       unit.value * feedback->scales_of(kv_head)[step], target.data());
      targets = target.data();
    }
    out.params[channel] = EncodeChannel(
        targets, x, group, params, out.codes.data() + size_t(channel) * num_slots, errors.data());
    for (int i = 0; feedback != nullptr && i < num_slots; ++i) {
      counted[size_t(step) * num_slots + i] = static_cast<int16_t>(CountedError(errors[i], unit));
    }
  }
  return out;
}

}  // namespace pkv
