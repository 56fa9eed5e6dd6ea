#ifndef PKV_PROTO_BASE_FLOAT16_H_
#define PKV_PROTO_BASE_FLOAT16_H_

// IEEE-754 binary16 as its 16 bits, and exact conversions.
//
// Stored scales, zero points, patterns and fp16 windows are these bits. No conversion depends on
// the compiler, its flags or the processor's treatment of subnormal binary32 values: what
// floating-point operations there are have normal operands and, but for one rounding to nearest
// that is wanted, exact results (BLOCK_FORMAT.md, "Rounding").

#include <bit>
#include <cstdint>

#include "proto/base/host_device.h"

namespace pkv {

using Float16Bits = uint16_t;

inline constexpr float kFloat16Max = 65504.0f;
// Smallest normal value, 2^-14. A scale below it is stored as zero (BLOCK_FORMAT.md, "Rounding").
inline constexpr float kFloat16MinNormal = 6.103515625e-05f;

PKV_HOST_DEVICE constexpr bool IsFiniteFloat16(Float16Bits h) { return (h & 0x7c00u) != 0x7c00u; }

// Exact: every binary16 value is a binary32 value. Arithmetic in place of branches, so that loops
// vectorize.
PKV_HOST_DEVICE inline float Float16ToFloat(Float16Bits h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t is_subnormal = (h & 0x7c00u) == 0 ? 1 : 0;
  const uint32_t is_special = (h & 0x7c00u) == 0x7c00u ? 1 : 0;  // infinity, NaN
  // The biases of the exponents, 127 and 15, differ by 112, and so do 255 and 31 + 112. A subnormal
  // is read over the exponent of 2^-14, and is then too large by just that.
  const uint32_t magnitude = (static_cast<uint32_t>(h & 0x7fffu) << 13) + (112u << 23) +
                             is_special * (112u << 23) + is_subnormal * (1u << 23);
  const float excess = std::bit_cast<float>(is_subnormal * 0x38800000u);  // 2^-14 or 0
  const float value = std::bit_cast<float>(magnitude) - excess;
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) | sign);
}

// Rounds to nearest, ties to even. Magnitudes from 65520 up become infinity; NaN stays NaN.
PKV_HOST_DEVICE inline Float16Bits FloatToFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Below 2^-14 the result is subnormal or zero: adding 0.5, whose last place is 2^-24, leaves its
  // integer in those units, rounded, in the low mantissa bits.
  const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
  const uint32_t subnormal = std::bit_cast<uint32_t>(shifted) - 0x3f000000u;
  const uint32_t normal = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;  // from 65536 up
  const uint32_t is_subnormal = magnitude < 0x38800000u ? ~0u : 0;
  const uint32_t is_special = magnitude >= 0x47800000u ? ~0u : 0;
  const uint32_t half =
      (special & is_special) | (subnormal & is_subnormal) | (normal & ~(is_special | is_subnormal));
  return static_cast<Float16Bits>(sign | half);
}

}  // namespace pkv

#endif  // PKV_PROTO_BASE_FLOAT16_H_
