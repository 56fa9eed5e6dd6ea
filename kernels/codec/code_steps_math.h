#ifndef PKV_KERNELS_CODEC_CODE_STEPS_MATH_H_
#define PKV_KERNELS_CODEC_CODE_STEPS_MATH_H_

// QuantizeOne() of codec_math.h without a division a value, bit for bit.
//
// QuantizeOne() rounds the rounded quotient (value - zero) / scale to an integer. Only where the
// quotient stands to the boundaries h = k - 1/2 between codes matters. With d = value - zero, as
// rounded, and B = h * scale, exact in binary32 since scale has 11 bits and h five:
//   - d = B: the quotient is h, a tie, which goes to the even code.
//   - else d is at least one binary32 step away from B, and so the exact quotient at least 0.5002
//     steps from h: rounding the quotient never reaches h.
// So any approximation of d / scale that is exact in a tie and errs by less than 2^-13 of a step
// elsewhere gives the same code. That is d * inverse + d * residue, fused, where inverse + residue
// is 1 / scale to 2^-46: it rounds once, to nearest.

#include <bit>
#include <cmath>

#include "kernels/codec/codec_math.h"

namespace pkv {

PKV_HOST_DEVICE inline float FusedMultiplyAdd(float a, float b, float c) {
#ifdef __CUDA_ARCH__
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

// To [0, 1]; NaN to 0.
PKV_HOST_DEVICE inline float Saturate(float value) {
#ifdef __CUDA_ARCH__
  return __saturatef(value);
#else
  return value > 0.0f ? (value < 1.0f ? value : 1.0f) : 0.0f;
#endif
}

// The codes of one group: what is computed once a group. Scaled by 2^-bits, so that a saturating
// multiply-add clamps from below, and from above but for the last step.
struct CodeSteps {
  float zero = 0;
  float inverse = 0;  // 2^-bits / scale, rounded; 0 for scale 0, which makes all codes 0
  float residue = 0;  // 2^-bits / scale less that, rounded
};

// From 1 / scale to 2^-22 of it: what is missing of it comes as the residue.
PKV_HOST_DEVICE inline CodeSteps MakeCodeSteps(float scale, float zero, int bits, float inverse) {
  const float shift = bits == 2 ? 0.25f : 0.0625f;
  const float residue = inverse * FusedMultiplyAdd(-scale, inverse, 1.0f);
  return {zero, inverse * shift, residue * shift};
}
// scale: 0 or in [2^-14, 65504] with at most 11 significant bits.
PKV_HOST_DEVICE inline CodeSteps MakeCodeSteps(float scale, float zero, int bits) {
  if (!(scale > 0.0f)) return {zero, 0.0f, 0.0f};
#ifdef __CUDA_ARCH__
  return MakeCodeSteps(scale, zero, bits, __fdividef(1.0f, scale));
#else
  return MakeCodeSteps(scale, zero, bits, 1.0f / scale);
#endif
}

// MakeGroupParams() without a division: the quotient by the largest code, corrected once by its
// exact remainder, is the rounded one, since 1 / max code is rounded to nearest (Markstein).
template <int kBits>
PKV_HOST_DEVICE inline GroupParams GroupParamsOf(float min, float max) {
  constexpr float kMaxCode = static_cast<float>((1 << kBits) - 1), kInverse = 1.0f / kMaxCode;
  const float range = max - min, quotient = range * kInverse;
  const float remainder = FusedMultiplyAdd(-kMaxCode, quotient, range);
  const Float16Bits scale = ToStored(FusedMultiplyAdd(remainder, kInverse, quotient));
  constexpr Float16Bits kSmallestNormal = 0x0400;
  return {scale < kSmallestNormal ? Float16Bits{0} : scale, ToStored(min)};
}
// ShrunkGroupParams().
template <int kBits>
PKV_HOST_DEVICE inline GroupParams ShrunkParamsOf(float min, float max, int ratio_index) {
  // (10 - i) / 10 as the division rounds it: by Markstein's correction again.
  constexpr float kInverse = 1.0f / 10.0f;
  const auto numerator = static_cast<float>(10 - ratio_index);
  const float quotient = numerator * kInverse;
  const float ratio =
      FusedMultiplyAdd(FusedMultiplyAdd(-10.0f, quotient, numerator), kInverse, quotient);
  const float middle = (min + max) * 0.5f;
  const float reach = ((max - min) * 0.5f) * ratio;
  const bool is_whole = ratio_index == 0;
  return GroupParamsOf<kBits>(is_whole ? min : middle - reach, is_whole ? max : middle + reach);
}

// sum / count for a count of 1 to 128, by its rounded inverse: Markstein's correction again. It is
// exact where the remainder is, for all but tiny sums (checked for every mantissa and count).
PKV_HOST_DEVICE inline float MeanOf(float sum, float count, float inverse) {
  if (sum != 0.0f && std::fabs(sum) < 0x1p-90f) return sum / count;
  const float quotient = sum * inverse;
  return FusedMultiplyAdd(FusedMultiplyAdd(-count, quotient, sum), inverse, quotient);
}

// MakeFineGrid() of a stored scale without a division: Markstein's correction again.
PKV_HOST_DEVICE inline FineGrid FineGridOf(float scale, float zero) {
  constexpr float kInverse = 1.0f / 3.0f;
  const float quotient = scale * kInverse;
  const float remainder = FusedMultiplyAdd(-3.0f, quotient, scale);
  return {FusedMultiplyAdd(remainder, kInverse, quotient), zero - scale};
}

// 2^23 plus the code: its bits are kCodeBase plus the code.
inline constexpr uint32_t kCodeBase = 0x4b000000u;
template <int kBits>
PKV_HOST_DEVICE inline float CodeOnBase(float value, const CodeSteps& steps) {
  constexpr float kBase = 0x1p+23f;
  const float d = value - steps.zero;
  const float part = Saturate(FusedMultiplyAdd(d, steps.inverse, d * steps.residue));
  const float code = FusedMultiplyAdd(part, static_cast<float>(1 << kBits), kBase);
  constexpr float kLast = kBase + static_cast<float>((1 << kBits) - 1);
  return code < kLast ? code : kLast;
}

template <int kBits>
PKV_HOST_DEVICE inline uint32_t CodeBitsOnBase(float value, const CodeSteps& steps) {
  return std::bit_cast<uint32_t>(CodeOnBase<kBits>(value, steps));
}

// The code as a number: QuantizeOne(value, scale, zero, MaxCode(kBits)).
template <int kBits>
PKV_HOST_DEVICE inline float CodeOf(float value, const CodeSteps& steps) {
  return CodeOnBase<kBits>(value, steps) - 0x1p+23f;
}

// DequantizeOne() in one rounding: code * scale is exact, with four and eleven bits.
PKV_HOST_DEVICE inline float LevelOf(float code, float scale, float zero) {
  return FusedMultiplyAdd(code, scale, zero);
}

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_CODE_STEPS_MATH_H_
