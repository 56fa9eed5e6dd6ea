#ifndef PKV_KERNELS_CODEC_KEY_FEEDBACK_MATH_H_
#define PKV_KERNELS_CODEC_KEY_FEEDBACK_MATH_H_

// The arithmetic of error feedback (pkv/kernels/key_feedback.h): errors are counted in a unit of
// their group, so that sums of theirs are sums of integers, equal in any order and on any machine.

#include <bit>
#include <cstdint>

#include "kernels/codec/codec_math.h"
#include "proto/base/host_device.h"

namespace pkv {

// Weights are at most this many times their step's scale, and errors this many units: twelve bits,
// so that a code fits beside them in sixteen. Sixteen times the sum of the products of the 120
// steps that may stand before one is below 2^29. With this scale and more, its product with a unit,
// and a sixteenth of that, is a normal number; less is nothing beside an error, and becomes 0.
inline constexpr int kMaxFeedbackWeight = 127;
inline constexpr int kMaxCountedError = 2047;
inline constexpr float kLeastFeedbackScale = 0x1p-60f;

// What the errors of a group are counted in: a power of two, and its inverse.
struct ErrorUnit {
  float value = 1, inverse = 1;
};

// Of a group whose residuals, rounded to fp16, have this magnitude at most: 2^9 to 2^10 units are
// that. 1 for a group of zeros.
PKV_HOST_DEVICE inline ErrorUnit ErrorUnitFor(Float16Bits largest) {
  const float magnitude = StoredToFloat(largest);
  const uint32_t power = std::bit_cast<uint32_t>(magnitude) & 0x7f800000u;
  if (power == 0) return {};
  const float unit = std::bit_cast<float>(power) * 0x1p-9f;
  return {unit, 1.0f / unit};
}

// An error to the nearest unit. Ties to even; clamped.
PKV_HOST_DEVICE inline int CountedError(float error, ErrorUnit unit) {
  const float limit = static_cast<float>(kMaxCountedError) * unit.value;
  const float clamped = error < -limit ? -limit : error > limit ? limit : error;
  // Adding 1.5 2^23 leaves an integer in the low bits.
  return std::bit_cast<int>(clamped * unit.inverse + 0x1.8p+23f) - 0x4b400000;
}

// What is to be rounded in place of `x`: `sum` of weights times counted errors, `factor` the unit
// times the step's scale.
PKV_HOST_DEVICE inline float FeedbackTarget(float x, float factor, int sum) {
  return x - factor * static_cast<float>(sum);
}

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_KEY_FEEDBACK_MATH_H_
