#ifndef PKV_KERNELS_ATTENTION_SOFTMAX_MATH_H_
#define PKV_KERNELS_ATTENTION_SOFTMAX_MATH_H_

#include <bit>
#include <cstdint>

#include "proto/base/host_device.h"

namespace pkv {

// e^x for x <= 0, within 4 ulp; 0 below -87, where the result would leave the normal range. Written
// out because libraries differ in the last bit, and without a branch so that loops over it
// vectorize. NaN gives 0.
PKV_HOST_DEVICE inline float ExpNonPositive(float x) {
  constexpr float kLowest = -87.0f;
  const float clamped = x > kLowest ? x : kLowest;
  // x = k ln 2 + f, |f| <= ln 2 / 2. Adding kIntegersOnly leaves the integer k in the low bits.
  constexpr float kIntegersOnly = 0x1.8p+23f;
  constexpr float kLog2E = 0x1.715476p+0f;
  const float shifted = clamped * kLog2E + kIntegersOnly;
  const float k = shifted - kIntegersOnly;
  // ln 2 in two parts; the upper has 17 bits, so that its product with k is exact.
  constexpr float kLn2Upper = 0x1.62e4p-1f, kLn2Lower = 0x1.7f7d1cp-20f;
  const float f = (clamped - k * kLn2Upper) - k * kLn2Lower;
  // Taylor's series up to f^7: the rest is below f^8 / 8! = 2^-27.5.
  float sum = 1.0f / 5040.0f;
  sum = sum * f + 1.0f / 720.0f;
  sum = sum * f + 1.0f / 120.0f;
  sum = sum * f + 1.0f / 24.0f;
  sum = sum * f + 1.0f / 6.0f;
  sum = sum * f + 0.5f;
  sum = sum * f + 1.0f;
  sum = sum * f + 1.0f;
  const uint32_t exponent =
      std::bit_cast<uint32_t>(shifted) - std::bit_cast<uint32_t>(kIntegersOnly) + 127u;
  const float power = std::bit_cast<float>(exponent << 23);
  return x > kLowest ? sum * power : 0.0f;
}

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_SOFTMAX_MATH_H_
