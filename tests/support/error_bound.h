#ifndef PKV_TESTS_SUPPORT_ERROR_BOUND_H_
#define PKV_TESTS_SUPPORT_ERROR_BOUND_H_

// Allowed errors, derived from the arithmetic (kernels/README.md, "Error bounds"). Tests hold no
// tolerance of their own.

#include <algorithm>
#include <cmath>

namespace pkv {

inline constexpr double kFloatUnit = 0x1.0p-24;    // half an ulp of binary32, relative
inline constexpr double kFloat16Unit = 0x1.0p-11;  // half an ulp of binary16, relative
inline constexpr double kFloat16Tiny = 0x1.0p-25;  // half the smallest binary16 step, absolute
inline constexpr double kFloat16Normal = 0x1.0p-14;

// Largest |decoded - original| of a value that was quantized without clipping.
//
// The codes come from the stored scale s' and zero point z', so the nearest code errs by s'/2 at
// most, where codes reach. They may stop short of the group's ends: below by the rounding of z',
// above by that and by the rounding of s' times the largest code. A scale under 2^-14 is stored as
// 0; then the group spans less than (max_code + 1/2) 2^-14 and decodes to z'. Subtracting the
// pattern, the quotient, the product and two sums round in binary32 at magnitudes up to
// |pattern| + |z'| + max_code s' : eight units cover them.
inline double DecodeBound(double stored_scale, double stored_zero, double pattern, int bits) {
  const double max_code = (1 << bits) - 1;
  const double zero_rounding = std::abs(stored_zero) * kFloat16Unit + kFloat16Tiny;
  const double reach = std::abs(pattern) + std::abs(stored_zero) + max_code * stored_scale;
  const double float_rounding = 8 * kFloatUnit * reach;
  if (stored_scale == 0) return (max_code + 0.5) * kFloat16Normal + zero_rounding + float_rounding;
  return stored_scale / 2 + max_code * stored_scale * 2 * kFloat16Unit + zero_rounding +
         float_rounding;
}

// What rounding a value to fp16 adds.
inline double Float16Bound(double value) { return std::abs(value) * kFloat16Unit + kFloat16Tiny; }

// Rounding of a binary32 sum of `terms` products whose absolute values sum to `magnitude`, in any
// order: gamma_n = n u / (1 - n u), Higham, "Accuracy and Stability", 3.1, plus the products' own.
inline double SumBound(int terms, double magnitude) {
  const double n = terms + 1;
  return n * kFloatUnit / (1 - n * kFloatUnit) * magnitude;
}

// Relative error of ExpNonPositive(): k ln 2 leaves f with an error of |f| u + u, the series is cut
// at 2^-27.5, and seven products and sums, halving in size, round about twice each; four ulp, of
// two units each, cover them.
inline constexpr double kExpBound = 8 * kFloatUnit;

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_ERROR_BOUND_H_
