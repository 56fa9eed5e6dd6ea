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

// Largest |decoded - target| of a coarse value of a group whose range was searched or whose gain
// was corrected: it may lie anywhere in the group's range, so this bound says little, but it holds
// on any data. target: what was rounded, x less its pattern and, with error feedback, less that.
//
// As searched, the codes decode to values between the group's ends, `range` apart, but for the
// rounding of zero point and scale. Corrected, code c decodes to mean(target) + scale (c -
// mean(code)): the mean lies between the ends but for the rounding of its sum, and codes are
// max_code apart at most. A zero point saturates by what the ends exceed binary16 by.
struct GroupRange {
  double low = 0, high = 0;  // of the targets
  double largest() const { return std::max(std::abs(low), std::abs(high)); }
};
inline double CodedBound(GroupRange targets, double stored_scale, double stored_zero,
                         double pattern, int bits) {
  constexpr int kMaxGroup = 128;
  const double reach = ((1 << bits) - 1) * stored_scale;
  const double saturation = std::max(0.0, targets.largest() - 65504.0);
  const double rounding =
      std::abs(stored_zero) * kFloat16Unit + kFloat16Tiny + 2 * kFloat16Unit * reach +
      (kMaxGroup + 8) * kFloatUnit *
          (std::abs(pattern) + std::abs(stored_zero) + reach + targets.largest());
  return targets.high - targets.low + reach + saturation + rounding;
}

// Largest |decoded - target| of a value with a fine code: a sixth of the group's scale, and
// whatever the target lies outside of the grid, which runs from zero - scale to zero + 4 scale. Its
// step and start, the quotient, the product and two sums round in binary32.
inline double FineBound(double target, double stored_scale, double stored_zero, double pattern) {
  const double outside =
      std::max({0.0, stored_zero - stored_scale - target, target - stored_zero - 4 * stored_scale});
  return outside + stored_scale / 6 +
         16 * kFloatUnit *
             (std::abs(pattern) + std::abs(stored_zero) + 5 * stored_scale + std::abs(target));
}

// What RotateRows() rounds, in the 2-norm and so in any element: log2(head_dim) sums, the product
// with 1 / sqrt(head_dim), and that factor's own root and quotient. Each stage is an orthogonal map
// (times sqrt 2) that rounds its results relatively, so the units add up relative to the row's
// norm.
inline double RotationBound(int head_dim, double norm) {
  return SumBound(static_cast<int>(std::log2(head_dim)) + 2, norm);
}

// Relative error of ExpNonPositive(): k ln 2 leaves f with an error of |f| u + u, the series is cut
// at 2^-27.5, and seven products and sums, halving in size, round about twice each; four ulp, of
// two units each, cover them.
inline constexpr double kExpBound = 8 * kFloatUnit;

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_ERROR_BOUND_H_
