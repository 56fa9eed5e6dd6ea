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

// Exact: every binary16 value is a binary32 value.
PKV_HOST_DEVICE inline float Float16ToFloat(Float16Bits h) {
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  uint32_t bits;
  if ((h & 0x7c00u) == 0x7c00u) {  // infinity, NaN
    bits = magnitude | 0x7f800000u;
  } else if ((h & 0x7c00u) == 0) {
    // Subnormal or zero: its mantissa over the exponent of 2^-14 is 2^-14 too large.
    bits = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude + 0x38800000u) - 0x1.0p-14f);
  } else {
    bits = magnitude + 0x38000000u;  // the biases of the exponents, 127 and 15, differ by 112
  }
  return std::bit_cast<float>(bits | sign);
}

// Rounds to nearest, ties to even. Magnitudes from 65520 up become infinity; NaN stays NaN.
PKV_HOST_DEVICE inline Float16Bits FloatToFloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude >= 0x47800000u) {  // 65536 and above, infinity, NaN
    half = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  } else if (magnitude < 0x38800000u) {  // below 2^-14: subnormal or zero
    // Adding 0.5, whose last place is 2^-24, leaves the subnormal's integer in those units,
    // rounded, in the low mantissa bits.
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    half = std::bit_cast<uint32_t>(shifted) - 0x3f000000u;
  } else {
    half = (magnitude + 0xc8000fffu + ((magnitude >> 13) & 1u)) >> 13;
  }
  return static_cast<Float16Bits>(sign | half);
}

}  // namespace pkv

#endif  // PKV_PROTO_BASE_FLOAT16_H_
