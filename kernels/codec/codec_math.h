#ifndef PKV_KERNELS_CODEC_CODEC_MATH_H_
#define PKV_KERNELS_CODEC_CODEC_MATH_H_

// The codec's arithmetic on scalars, built by both compilers (BLOCK_FORMAT.md, "Rounding").
//
// Every operation is one IEEE-754 binary32 operation, rounded to nearest even. Files that include
// this are compiled without contraction (-ffp-contract=off, --fmad=false), so that CPU and
// GPU write equal bytes.

#include <cstdint>

#include "proto/base/float16.h"
#include "proto/base/host_device.h"

namespace pkv {

// Scale and zero point of one group, as stored.
struct GroupParams {
  Float16Bits scale = 0;
  Float16Bits zero = 0;
};

// Largest code: 3 or 15.
PKV_HOST_DEVICE constexpr float MaxCode(int bits) { return static_cast<float>((1 << bits) - 1); }

// Saturates, so that every stored number is finite.
PKV_HOST_DEVICE inline Float16Bits ToFiniteFloat16(float value) {
  if (value > kFloat16Max) value = kFloat16Max;
  if (value < -kFloat16Max) value = -kFloat16Max;
  return FloatToFloat16(value);
}

// Float16ToFloat() of a number, and ToFiniteFloat16(): a GPU converts in one instruction.
PKV_HOST_DEVICE inline float StoredToFloat(Float16Bits stored) {
#ifdef __CUDA_ARCH__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(stored));
  return value;
#else
  return Float16ToFloat(stored);
#endif
}
PKV_HOST_DEVICE inline Float16Bits ToStored(float value) {
#ifdef __CUDA_ARCH__
  Float16Bits stored;
  const float finite = fminf(fmaxf(value, -kFloat16Max), kFloat16Max);
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(stored) : "f"(finite));
  return stored;
#else
  return ToFiniteFloat16(value);
#endif
}

// scale = fp16((max - min) / max code), zero point = fp16(min). A scale that would be zero or
// subnormal in fp16 is stored as zero: such a group decodes to its zero point.
PKV_HOST_DEVICE inline GroupParams MakeGroupParams(float min, float max, int bits) {
  const Float16Bits scale = ToFiniteFloat16((max - min) / MaxCode(bits));
  constexpr Float16Bits kSmallestNormal = 0x0400;
  return {scale < kSmallestNormal ? Float16Bits{0} : scale, ToFiniteFloat16(min)};
}

// Rounds to the nearest integer, ties to even. REQUIRES: 0 <= value < 2^22.
PKV_HOST_DEVICE inline float RoundHalfEven(float value) {
  constexpr float kIntegersOnly = 0x1.8p+23f;  // floats of this size have no fraction bits
  return (value + kIntegersOnly) - kIntegersOnly;
}

// The code of `value`, from the stored scale and zero point: clamped, then rounded.
PKV_HOST_DEVICE inline float QuantizeOne(float value, float scale, float zero, float max_code) {
  const float divisor = scale > 0.0f ? scale : 1.0f;
  float code = (value - zero) / divisor;
  code = code > 0.0f ? code : 0.0f;
  code = code < max_code ? code : max_code;
  code = RoundHalfEven(code);
  return scale > 0.0f ? code : 0.0f;
}

// The value of a code, pattern not added.
PKV_HOST_DEVICE inline float DequantizeOne(float code, float scale, float zero) {
  return code * scale + zero;
}

// The clip search tries the whole range first, then ranges shrunk about its middle by these ratios:
// 1.0, 0.9, ..., 0.4, or as far as asked. The smallest squared error wins (clip_ratio_math.h), ties
// the wider range.
inline constexpr int kNumShrinkRatios = 7;
PKV_HOST_DEVICE inline GroupParams ShrunkGroupParams(float min, float max, int ratio_index,
                                                     int bits) {
  if (ratio_index == 0) return MakeGroupParams(min, max, bits);
  const float ratio = static_cast<float>(10 - ratio_index) / 10.0f;
  const float middle = (min + max) * 0.5f;
  const float reach = ((max - min) * 0.5f) * ratio;
  return MakeGroupParams(middle - reach, middle + reach, bits);
}

// The finer grid of a block's last k_fine_tokens slots, from the scale and zero point of the group:
// codes 0..15 over 5/3 of the coarse codes' range, about the same middle.
struct FineGrid {
  float step = 0;
  float low = 0;
};
PKV_HOST_DEVICE inline FineGrid MakeFineGrid(float scale, float zero) {
  return {scale / 3.0f, zero - scale};
}

// What is stored in place of a group's searched scale and zero point so that decoding keeps the
// group's gain and mean: the regression of decoded on original values has slope 1. Quantizing for
// the smallest squared error alone shrinks values, which flattens the softmax (TurboQuant,
// arXiv:2504.19874, makes the same point for inner products). Means, and sums of products about the
// means, are over the group's codes and values.
PKV_HOST_DEVICE inline GroupParams UnbiasedParams(GroupParams searched, float mean_code,
                                                  float mean_value, float covariance,
                                                  float variance) {
  if (!(covariance > 0.0f)) return searched;
  const float scale = StoredToFloat(searched.scale), corrected = variance / covariance;
  if (!(corrected >= scale * 0.5f) || !(corrected <= scale * 2.0f)) return searched;
  const Float16Bits stored = ToStored(corrected);
  constexpr Float16Bits kSmallestNormal = 0x0400;
  if (stored < kSmallestNormal) return searched;
  return {stored, ToStored(mean_value - StoredToFloat(stored) * mean_code)};
}

// Sums over a group run in this many interleaved partial sums (element i in sum i mod 16), then
// fold in halves: 8 + 8, 4 + 4, 2 + 2, 1 + 1.
inline constexpr int kErrorSums = 16;
PKV_HOST_DEVICE inline float FoldErrorSums(float (&sums)[kErrorSums]) {
  for (int half = kErrorSums / 2; half >= 1; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] = sums[i] + sums[i + half];
  }
  return sums[0];
}

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_CODEC_MATH_H_
