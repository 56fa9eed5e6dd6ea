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

// How a decode attention kernel rounds (tests/support/decode_reference.h adds it up).
struct DecodeArithmetic {
  // Relative rounding of an operand of a product of codes, or of rows, with vectors; 0: binary32,
  // counted by `step`. Up to kDecodeOperandRoundings of them meet in one product.
  double operand = 0;
  // Smallest step of an operand, absolute, when the largest one is about 1.
  double operand_floor = 0;
  // Vectors that meet codes become integers: the step, relative to the vector's largest element,
  // and its least size, relative to the largest of what scales were multiplied with (CodeStep()).
  double code_step = 0;
  double code_step_floor = 0;
  // Relative rounding of one accumulation, and how many products it takes in.
  double step = kFloatUnit;
  int products_per_step = 1;
};

// fp32 throughout.
inline constexpr DecodeArithmetic kCudaCoreArithmetic = {};

// Rotated q, weights p, q * scale and p * scale are rounded to fp16. q and p meet zero points,
// patterns and rows in mma.m16n8k16: products are exact; an instruction adds 16 of them and
// truncates at 2^-22 of the larger of sum and terms. Vectors keep a power of two apart, taken from
// their largest element or 1, so an operand that is small beside the largest has fp16's subnormal
// step, half of 2^-24. A product with a scale has two roundings, its own and that of the rotated q
// or of p; a fine code multiplies a third of the same product.
//
// q * scale and p * scale then become 16-bit integers, in units of a power of two u. With m the
// largest of a block, group and head, m / u is 2^14 (1 - 2^-6) at least: u is 2^-14 64/63 m at
// most. 1 / u is a number of fp16, so u is no less than 2^-15, where the largest q is 2^9 at least
// and the largest p 2^10: 2^-24 of these. Products with codes are exact, later sums are in fp32.
inline constexpr DecodeArithmetic kTensorCoreArithmetic = {
    .operand = kFloat16Unit,
    .operand_floor = 0x1.0p-24,
    .code_step = 0x1.0p-14 * 64 / 63,
    .code_step_floor = 0x1.0p-24,
    .step = 0x1.0p-22,
    .products_per_step = 16,
};
inline constexpr int kDecodeOperandRoundings = 2;

// The most that u is, of a vector with elements of up to `largest`, which are what scales of up to
// `largest_scale` make of numbers of up to `source`. Products of 2^10 with scales of 64 and more
// would exceed fp16: when there are such scales, `source` may be taken 2^10 times smaller.
inline double CodeStep(const DecodeArithmetic& arithmetic, double largest, double source,
                       double largest_scale) {
  const double shrink = largest_scale < 64 ? 1.0 : 1024.0;
  return std::max(arithmetic.code_step * largest, arithmetic.code_step_floor * shrink * source);
}

// How many u apart the integers of an element of the vector are. index: channel of K, slot of V.
// Codes of 2 bits are multiplied where they stand in a byte: half of them, as 4 times themselves,
// meet a quarter of the element.
inline int CodeStepUnits(int bits, int index) { return bits == 2 && index % 16 >= 8 ? 4 : 1; }

// The nearest integer n is 256 h + l, h the nearest too; l may be 128 and is cut to 127. So an
// element moves by one step of its own at most; and by itself at most, as no |n| < 128 is cut.
inline double CodeStepBound(double step, double element) { return std::min(step, element); }

// Even over half a step to both sides. Elements of 2^10 steps and more are multiples of the step in
// fp16 and move only when cut, by a step, one in 32 of them at most: that varies less.
inline double CodeStepVariance(double step) { return step * step / 12; }

// Rounding of a chain of sums over `products` terms, and `others` more, of magnitude 1.
inline double DecodeSumBound(const DecodeArithmetic& arithmetic, int products, int others) {
  const double steps = static_cast<double>(products) / arithmetic.products_per_step + others;
  return steps * arithmetic.step / (1 - steps * arithmetic.step);
}

// Rounding of a stored output: half an ulp, and half of the smallest step.
inline double OutputBound(double value, bool is_bfloat16) {
  return is_bfloat16 ? std::abs(value) * 0x1.0p-8 + 0x1.0p-134 : Float16Bound(value);
}

// What such a chain is expected to be off by: sums that round to nearest err to both sides, and
// grow with the root of their number; truncation errs to one.
inline double DecodeSumDeviation(const DecodeArithmetic& arithmetic, int products, int others) {
  const double bound = DecodeSumBound(arithmetic, products, others);
  return arithmetic.products_per_step > 1 ? bound : bound / std::sqrt(products + others);
}

// The standard deviation of kDecodeOperandRoundings roundings, each even over its interval.
inline double DecodeOperandDeviation(const DecodeArithmetic& arithmetic) {
  return arithmetic.operand * std::sqrt(kDecodeOperandRoundings / 3.0);
}

// Bounds that add up magnitudes are far above what independent errors add up to. Random numbers are
// therefore also held to this many standard deviations of the 2-norm of an output row. Were a row's
// error normal and in one direction, which is the worst, one row in 5e8 would exceed six.
inline constexpr double kDecodeDeviations = 6;

// The relative error, in the Frobenius norm, that the tensor-core kernel is to keep over a case of
// model-like numbers with fp16 output: 2^-11 = 4.9e-4 by rounding a score's operands when scores
// have deviation 1, as much by rounding weights, and half as much by rounding the output, to which
// the steps of integers, patterns and rotation add. Twice the sum of 1e-3.
inline constexpr double kDecodeFrobenius = 2e-3;

// Prefill attention on tensor cores (prefill_attention_kernels.cu). Products of fp16 numbers are
// exact; sums truncate as kTensorCoreArithmetic says. ex2.approx and lg2.approx err by 2^-22.
struct PrefillArithmetic {
  // A query in bf16 is exact in fp16 but for elements below 2^-28 of its largest: half a subnormal
  // step of 2^-24, where the largest element is 2^14 at least.
  static constexpr double kBfloat16Query = 0x1.0p-39;  // of the largest
  // Weights become fp16 relative to 2^15, the largest weight's place.
  static constexpr double kWeight = kFloat16Unit;         // relative
  static constexpr double kWeightFloor = 0x1.0p-40;       // of the largest weight
  static constexpr double kExponential = 4 * kFloatUnit;  // relative
  static constexpr int kTileTokens = 128;

  // Of a score whose products' magnitudes add up to `magnitude`: its sum, and sm_scale's two
  // roundings.
  static double Score(int head_dim, double magnitude) {
    return DecodeSumBound(kTensorCoreArithmetic, head_dim, 0) * magnitude + SumBound(2, magnitude);
  }
  // Relative, of a weight and of what earlier sums are rescaled by, when scores err by
  // `score_error` and none exceeds `largest_score` in magnitude. An exponent is a difference of
  // scores in log2 plus 15: its fused product and the maximum's product round once each, at
  // magnitudes of twice the largest score. So do the differences of maxima, which add up to no more
  // than that over all tiles but for their roundings; each tile has one exponential and one product
  // more.
  static double Weight(double score_error, double largest_score, int num_tiles) {
    const double exponent = 2 * score_error + 4 * kFloatUnit * (2 * largest_score + 16) +
                            num_tiles * kFloatUnit * (2 * largest_score + 16);
    return std::expm1(exponent) + (num_tiles + 1) * (kExponential + 2 * kFloatUnit);
  }
};

// Sums of q q^T on tensor cores, of products whose magnitudes add up to `magnitude`: each part of
// the rows sums 16 products a step; parts are added up, and chunks.
inline double MomentBound(int num_vectors, int num_sums, double magnitude) {
  return DecodeSumBound(kTensorCoreArithmetic, num_vectors, num_sums) * magnitude;
}

// A sampled query's weight on a token, e^(score - lse), at most 1, when the score errs by
// `score_error`: lse in log2 rounds twice, the exponent once, at magnitudes up to |score| + |lse|;
// below 2^-126 the exponential is 0.
inline double SampledWeightBound(double weight, double score, double lse, double score_error) {
  const double exponent = score_error + 4 * kFloatUnit * (std::abs(score) + std::abs(lse));
  return weight * (std::expm1(exponent) + PrefillArithmetic::kExponential) + 0x1.0p-126;
}

// How far apart the weights of two eliminations of the same damped moment may be, in binary64
// with sums in different orders, before they are rounded to bytes. Each is exact for a matrix that
// is off by head_dim units of its norm (Higham, 10.1), which moves weights by that times the
// condition, (head_dim + damping) / damping at most, and by a weight's largest, the root of the
// same.
inline double FeedbackWeightBound(int head_dim, double damping) {
  const double condition = (head_dim + damping) / damping;
  return 4 * head_dim * 0x1.0p-53 * condition * std::sqrt(condition);
}

// The relative error, in the Frobenius norm, that prefill attention is to keep with fp16 output on
// random numbers: rounding weights and rounding outputs move each by 2^-11 / sqrt(3) = 2.8e-4 at
// most, in any direction; 4e-4 together. Twice that.
inline constexpr double kPrefillFrobenius = 8e-4;

// What the product of a row of codes and a vector loses when the vector's elements, `largest` at
// most, are rounded to 16 bits (kernels/attention/code_matrix_simd.h). An element becomes n steps
// of largest / 32639 and moves by half a step. Step, inverse, quotient and n step round once each:
// four units of 32639 steps. A negligible element, below 2^-110, moves by all of itself. Its code
// multiplies that.
inline double IntegerProductBound(double largest, double sum_of_codes) {
  constexpr double kSteps = 32639, kNegligible = 0x1p-110;
  return ((0.5 + 4 * kSteps * kFloatUnit) * largest / kSteps + kNegligible) * sum_of_codes;
}

// Relative error of ExpNonPositive(): k ln 2 leaves f with an error of |f| u + u, the series is cut
// at 2^-27.5, and seven products and sums, halving in size, round about twice each; four ulp, of
// two units each, cover them.
inline constexpr double kExpBound = 8 * kFloatUnit;

// How much farther, in |c|^2 / 2 - x.c, the pattern that a search on tensor cores names may be than
// the nearest one of NearestL2(). `magnitude` is the largest |c|^2 / 2 + sum |x_j c_j| of a
// pattern.
//
// Both searches compare sums of head_dim products and the bias. In binary32, in order: SumBound().
// Tensor cores take exact products, 16 at a time and the sum so far, aligned to the largest of them
// and cut off at 24 bits (Fasi et al., "Numerical behavior of NVIDIA tensor cores", 2021): each of
// 17 terms loses a unit 2^-23 of the magnitude at most, in head_dim / 16 steps. The bias is |c|^2 /
// 2 in binary32 on both sides. Each of two scores that are compared errs by that.
inline double NearestL2Gap(int head_dim, double magnitude) {
  const double tensor_cores = head_dim / 16.0 * 17 * 2 * kFloatUnit * magnitude;
  return 2 * (tensor_cores + 2 * SumBound(head_dim, magnitude));
}

// K-means of one tensor on the device, against the CPU's: relative difference of the inertia. The
// devices round centroids that tokens are compared with differently (fp16, binary32), so some
// tokens near the border of two clusters take other ways, and so may what follows: this is what is
// asked for, not what could happen on data made to that end.
inline constexpr double kInertiaDifference = 0.01;

// How much an iteration of K-means on the device may add to the inertia, with patterns as stored,
// on data whose sums are exact. Exact, it adds nothing. A token may be assigned to a pattern that
// is farther, in half the squared distance, by NearestL2Gap(); and each coordinate of a mean is
// rounded to binary32, then to fp16.
inline double InertiaGrowthBound(int num_tokens, int head_dim, double largest_value,
                                 double magnitude) {
  const double error = Float16Bound(largest_value) + kFloatUnit * largest_value;
  return num_tokens * (2 * NearestL2Gap(head_dim, magnitude) + head_dim * error * error);
}

// Root mean square of what an executor whose matrix products take operands rounded to fp16 differs
// by in its logits, relative to their own. Each operand is off by at most 2^-11 of itself, each
// independently, so each product by about that much of its norm; seven products a layer and the
// head's add up in the residual stream like independent errors.
inline double LogitDeviation(int num_layers) {
  return std::sqrt(7 * num_layers + 1) * kFloat16Unit;
}
// Attention over codes amplifies: a score's error, of the query's rounding, weighs with the spread
// of the values. Deviations that are allowed for that.
inline constexpr double kLogitDeviations = 6;

// silu(gate) * up in binary32, of arguments that are off by gate_error and up_error. silu' is 1.1
// at most, and |silu(x)| <= |x|. The exponential's argument in log2 rounds twice at up to 1.5
// |gate|, itself to 2^-22; sum, quotient and product round once each, the quotient to two ulp.
inline double ActivationBound(double gate, double gate_error, double up, double up_error) {
  const double silu = std::abs(gate / (1 + std::exp(-gate)));
  const double exponential = 4 * kFloatUnit * (1.5 * std::abs(gate) + 1) + 4 * kFloatUnit;
  return 1.1 * gate_error * (std::abs(up) + up_error) + silu * up_error +
         (exponential + 8 * kFloatUnit) * silu * std::abs(up);
}

// Float and exp on a device: sums of `terms` terms, relative.
inline double ReductionBound(int terms) { return 4 * kExpBound + SumBound(terms, 1); }

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_ERROR_BOUND_H_
