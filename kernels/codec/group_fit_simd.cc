#include "kernels/device/highway_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/codec/group_fit_simd.cc"
#include "hwy/foreach_target.h"  // includes this file once per instruction set

#include <cmath>
#include <limits>

#include "hwy/highway.h"
#include "kernels/codec/group_fit_simd.h"
#include "kernels/codec/group_quantizer.h"
#include "kernels/codec/key_feedback_math.h"
#include "pkv/block/kv_shape.h"

HWY_BEFORE_NAMESPACE();
namespace pkv {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

using Floats = hn::CappedTag<float, kErrorSums>;
using V = hn::Vec<Floats>;

constexpr int kLanes = hn::MaxLanes(Floats());
// Vectors that hold the 16 interleaved partial sums.
constexpr int kParts = kErrorSums / kLanes;
constexpr int kMaxRatios = 16;  // kNumShrinkRatios and what fills the last vector

// Calls body(index of the first value, part, which lanes count) for all values of a group.
template <class Body>
HWY_INLINE void ForEachVector(int count, const Body& body) {
  const Floats d;
  const auto all = hn::Eq(hn::Zero(d), hn::Zero(d));
  int i = 0;
  for (; i + kErrorSums <= count; i += kErrorSums) {
    for (int part = 0; part < kParts; ++part) body(i + part * kLanes, part, all);
  }
  for (int part = 0; part < kParts && i + part * kLanes < count; ++part) {
    const int first = i + part * kLanes;
    body(first, part, hn::FirstN(d, static_cast<size_t>(count - first)));
  }
}

// The first steps of FoldErrorSums(), down to four sums.
HWY_INLINE void FoldToFour(const V (&sums)[kParts], float* four) {
#if HWY_TARGET == HWY_SCALAR
  float eight[8];
  for (int i = 0; i < 8; ++i) eight[i] = hn::GetLane(sums[i]) + hn::GetLane(sums[i + 8]);
  for (int i = 0; i < 4; ++i) four[i] = eight[i] + eight[i + 4];
#else
  const hn::FixedTag<float, 4> d4;
#if HWY_MAX_BYTES == 16
  hn::StoreU(hn::Add(hn::Add(sums[0], sums[2]), hn::Add(sums[1], sums[3])), d4, four);
#else
#if HWY_MAX_BYTES == 32
  const auto eight = hn::Add(sums[0], sums[1]);
#else
  const hn::FixedTag<float, 8> d8;
  const auto eight = hn::Add(hn::LowerHalf(d8, sums[0]), hn::UpperHalf(d8, sums[0]));
#endif
  hn::StoreU(hn::Add(hn::LowerHalf(d4, eight), hn::UpperHalf(d4, eight)), d4, four);
#endif
#endif
}
HWY_INLINE float FoldFour(const float* four) { return (four[0] + four[2]) + (four[1] + four[3]); }
HWY_INLINE float Fold(const V (&sums)[kParts]) {
  float four[4];
  FoldToFour(sums, four);
  return FoldFour(four);
}

// RangeOf(), where equal zeros of different sign count as in a plain loop: the first one stays.
struct MinMax {
  float min, max;
};
HWY_INLINE float FirstZero(const float* values) {
  while (*values != 0.0f) ++values;
  return *values;
}
HWY_INLINE MinMax RangeOfGroup(const float* values, int count) {
  const Floats d;
  const V first = hn::Set(d, values[0]);
  V min = first, max = first;
  ForEachVector(count, [&](int i, int, auto inside) HWY_ATTR {
    const V v = hn::IfThenElse(inside, hn::LoadU(d, values + i), first);
    min = hn::Min(min, v);
    max = hn::Max(max, v);
  });
  MinMax range = {hn::GetLane(hn::MinOfLanes(d, min)), hn::GetLane(hn::MaxOfLanes(d, max))};
  if (range.min == 0.0f) range.min = FirstZero(values);
  if (range.max == 0.0f) range.max = FirstZero(values);
  return range;
}

// Float16ToFloat(ToFiniteFloat16(v)).
HWY_INLINE V RoundToFloat16(V v) {
  const Floats d;
  const hn::RebindToUnsigned<Floats> bits;
  const V limit = hn::Set(d, kFloat16Max);
  v = hn::Max(hn::Min(v, limit), hn::Neg(limit));
  const V magnitude = hn::Abs(v);
  // As FloatToFloat16() does it: below 2^-14 the sum with 0.5 leaves multiples of 2^-24.
  const V half = hn::Set(d, 0.5f);
  const V subnormal = hn::Sub(hn::Add(magnitude, half), half);
  const auto m = hn::BitCast(bits, magnitude);
  const auto odd = hn::And(hn::ShiftRight<13>(m), hn::Set(bits, 1));
  const auto rounded = hn::Add(hn::Add(m, hn::Set(bits, 0xfff)), odd);
  const V normal = hn::BitCast(d, hn::And(rounded, hn::Set(bits, 0xffffe000u)));
  const V result =
      hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, kFloat16MinNormal)), subnormal, normal);
  return hn::Or(result, hn::And(v, hn::SignBit(d)));
}

// Scales and zero points of all shrink ratios, and of 2 bits, what their codes come from and decode
// to. The code of a value is k at least exactly when value - zero reaches from[k]: rne((value -
// zero) / scale) does when the rounded quotient exceeds k - 1/2, or for even k is no less.
// (k - 1/2) scale has 14 bits and is exact, and its quotient is k - 1/2; one place above it is
// (k - 1/2) + 2^-e / m with scale = m 2^i, 1 <= m < 2, more than half a place of the quotient, and
// so is one place below.
struct Grids {
  alignas(64) float scale[kMaxRatios], zero[kMaxRatios];
  alignas(64) float from[4][kMaxRatios];
  alignas(64) float decoded[4][kMaxRatios];
};

// Of every ratio, and of every second one.
static_assert(kValueRatioStep == 2);
alignas(64) constexpr float kRatios[2][kMaxRatios] = {
    {20.0f / 20.0f, 19.0f / 20.0f, 18.0f / 20.0f, 17.0f / 20.0f, 16.0f / 20.0f, 15.0f / 20.0f,
     14.0f / 20.0f, 13.0f / 20.0f, 12.0f / 20.0f, 11.0f / 20.0f, 10.0f / 20.0f, 9.0f / 20.0f,
     8.0f / 20.0f, 7.0f / 20.0f, 6.0f / 20.0f, 5.0f / 20.0f},
    {20.0f / 20.0f, 18.0f / 20.0f, 16.0f / 20.0f, 14.0f / 20.0f, 12.0f / 20.0f, 10.0f / 20.0f,
     8.0f / 20.0f, 6.0f / 20.0f}};

HWY_INLINE void MakeCodeGrid(V scale, V zero, int at, Grids* grids) {
  const Floats d;
  const hn::RebindToUnsigned<Floats> bits;
  const V none = hn::Set(d, std::numeric_limits<float>::infinity());
  for (int k = 0; k < 4; ++k) {
    const V decoded = hn::Add(hn::Mul(hn::Set(d, static_cast<float>(k)), scale), zero);
    hn::Store(decoded, d, grids->decoded[k] + at);
    if (k == 0) continue;
    V from = hn::Mul(hn::Set(d, static_cast<float>(k) - 0.5f), scale);
    if (k % 2 == 1) {
      from = hn::BitCast(d, hn::Add(hn::BitCast(bits, from), hn::Set(bits, 1)));
    }
    from = hn::IfThenElse(hn::Gt(scale, hn::Zero(d)), from, none);
    hn::Store(from, d, grids->from[k] + at);
  }
}

template <int kBits>
HWY_INLINE void MakeGrids(MinMax range, const GroupRule& rule, Grids* grids) {
  const Floats d;
  const V max_code = hn::Set(d, MaxCode(kBits));
  const float middle = (range.min + range.max) * 0.5f, reach = (range.max - range.min) * 0.5f;
  for (int i = 0; i < rule.num_ratios; i += kLanes) {
    const V part = hn::Mul(hn::Set(d, reach), hn::Load(d, kRatios[rule.is_value ? 1 : 0] + i));
    V low = hn::Sub(hn::Set(d, middle), part), high = hn::Add(hn::Set(d, middle), part);
    if (i == 0) {
      const auto whole = hn::FirstN(d, 1);
      low = hn::IfThenElse(whole, hn::Set(d, range.min), low);
      high = hn::IfThenElse(whole, hn::Set(d, range.max), high);
    }
    const V rounded = RoundToFloat16(hn::Div(hn::Sub(high, low), max_code));
    const V scale = hn::IfThenElseZero(hn::Ge(rounded, hn::Set(d, kFloat16MinNormal)), rounded);
    const V zero = RoundToFloat16(low);
    hn::Store(scale, d, grids->scale + i);
    hn::Store(zero, d, grids->zero + i);
    if constexpr (kBits == 2) MakeCodeGrid(scale, zero, i, grids);
  }
}

// QuantizeOne() and DequantizeOne() on one grid.
template <int kBits>
struct Quantizer;
template <>
struct Quantizer<2> {
  V zero, from1, from2, from3, decoded0, decoded1, decoded2, decoded3;

  HWY_INLINE Quantizer(const Grids& grids, int at) {
    const Floats d;
    zero = hn::Set(d, grids.zero[at]);
    from1 = hn::Set(d, grids.from[1][at]);
    from2 = hn::Set(d, grids.from[2][at]);
    from3 = hn::Set(d, grids.from[3][at]);
    decoded0 = hn::Set(d, grids.decoded[0][at]);
    decoded1 = hn::Set(d, grids.decoded[1][at]);
    decoded2 = hn::Set(d, grids.decoded[2][at]);
    decoded3 = hn::Set(d, grids.decoded[3][at]);
  }
  HWY_INLINE V Choose(V value, V v0, V v1, V v2, V v3) const {
    const V above = hn::Sub(value, zero);
    V out = hn::IfThenElse(hn::Ge(above, from1), v1, v0);
    out = hn::IfThenElse(hn::Ge(above, from2), v2, out);
    return hn::IfThenElse(hn::Ge(above, from3), v3, out);
  }
  HWY_INLINE V Decoded(V value) const {
    return Choose(value, decoded0, decoded1, decoded2, decoded3);
  }
  HWY_INLINE V Code(V value) const {
    const Floats d;
    return Choose(value, hn::Zero(d), hn::Set(d, 1.0f), hn::Set(d, 2.0f), hn::Set(d, 3.0f));
  }
};
template <>
struct Quantizer<4> {
  V scale, zero, divisor, max_code;

  HWY_INLINE Quantizer(float scale_in, float zero_in) {
    const Floats d;
    scale = hn::Set(d, scale_in);
    zero = hn::Set(d, zero_in);
    divisor = hn::Set(d, scale_in > 0.0f ? scale_in : 1.0f);
    max_code = hn::Set(d, scale_in > 0.0f ? MaxCode(4) : 0.0f);
  }
  HWY_INLINE Quantizer(const Grids& grids, int at) : Quantizer(grids.scale[at], grids.zero[at]) {}
  HWY_INLINE V Code(V value) const {
    const Floats d;
    const V integers_only = hn::Set(d, 0x1.8p+23f);
    const V quotient = hn::Div(hn::Sub(value, zero), divisor);
    const V code = hn::Min(hn::Max(quotient, hn::Zero(d)), max_code);
    return hn::Sub(hn::Add(code, integers_only), integers_only);
  }
  HWY_INLINE V Decoded(V value) const { return hn::Add(hn::Mul(Code(value), scale), zero); }
};

// The ratio of the smallest squared error, of those from `begin` to `end`.
template <int kBits>
HWY_INLINE int Search(const float* values, int count, int begin, int end, const Grids& grids,
                      float* least) {
  const Floats d;
  alignas(64) float sums[kMaxRatios][4];
  int ratio = begin;
  do {
    const Quantizer<kBits> quantizer(grids, ratio);
    V squares[kParts];
    for (V& sum : squares) sum = hn::Zero(d);
    ForEachVector(count, [&](int i, int part, auto inside) HWY_ATTR {
      const V value = hn::LoadU(d, values + i);
      const V error = hn::Sub(value, quantizer.Decoded(value));
      squares[part] = hn::Add(squares[part], hn::IfThenElseZero(inside, hn::Mul(error, error)));
    });
    FoldToFour(squares, sums[ratio]);
  } while (++ratio < end);
  int best = begin;
  *least = FoldFour(sums[begin]);
  for (int i = begin + 1; i < end; ++i) {
    const float error = FoldFour(sums[i]);
    best = error < *least ? i : best;
    *least = error < *least ? error : *least;
  }
  return best;
}

// The codes, as floats and as bytes, where wanted.
template <int kBits>
HWY_INLINE void Codes(const float* values, int count, const Quantizer<kBits>& quantizer,
                      float* as_floats, uint8_t* codes) {
  const Floats d;
  const hn::Rebind<uint8_t, Floats> bytes;
  const hn::RebindToSigned<Floats> integers;
  for (int i = 0; i < count; i += kLanes) {
    const V code = quantizer.Code(hn::LoadU(d, values + i));
    if (as_floats != nullptr) hn::Store(code, d, as_floats + i);
    if (codes != nullptr) {
      hn::StoreU(hn::DemoteTo(bytes, hn::ConvertTo(integers, code)), bytes, codes + i);
    }
  }
}

// CorrectGain(), from the group's codes.
HWY_INLINE GroupParams Correct(const float* values, const float* codes, int count,
                               GroupParams searched) {
  const Floats d;
  V first[kParts], second[kParts];
  for (int part = 0; part < kParts; ++part) first[part] = second[part] = hn::Zero(d);
  ForEachVector(count, [&](int i, int part, auto inside) HWY_ATTR {
    first[part] = hn::Add(first[part], hn::IfThenElseZero(inside, hn::Load(d, codes + i)));
    second[part] = hn::Add(second[part], hn::IfThenElseZero(inside, hn::LoadU(d, values + i)));
  });
  const float mean_code = Fold(first) / static_cast<float>(count);
  const float mean_value = Fold(second) / static_cast<float>(count);
  const V of_code = hn::Set(d, mean_code), of_value = hn::Set(d, mean_value);
  for (int part = 0; part < kParts; ++part) first[part] = second[part] = hn::Zero(d);
  ForEachVector(count, [&](int i, int part, auto inside) HWY_ATTR {
    const V code = hn::Sub(hn::Load(d, codes + i), of_code);
    const V centred = hn::Sub(hn::LoadU(d, values + i), of_value);
    first[part] = hn::Add(first[part], hn::IfThenElseZero(inside, hn::Mul(code, centred)));
    second[part] = hn::Add(second[part], hn::IfThenElseZero(inside, hn::Mul(centred, centred)));
  });
  const float covariance = Fold(first), variance = Fold(second);
  return UnbiasedParams(searched, mean_code, mean_value, covariance, variance);
}

template <int kBits>
GroupFit Fit(const float* values, int count, const GroupRule& rule, uint8_t* codes) {
  Grids grids;
  const MinMax range = RangeOfGroup(values, count);
  MakeGrids<kBits>(range, rule, &grids);
  GroupFit fit;
  int best = 0;
  if (rule.is_value && rule.num_ratios > 1) {
    best = BestValueRatio(values, count, {range.min, range.max}, kBits);
    if (rule.with_error) {
      Search<kBits>(values, count, best, best + 1, grids, &fit.squared_error);
    }
  } else if (rule.num_ratios > 1 || rule.with_error) {
    best = Search<kBits>(values, count, 0, rule.num_ratios, grids, &fit.squared_error);
  }
  fit.searched = {FloatToFloat16(grids.scale[best]), FloatToFloat16(grids.zero[best])};
  fit.stored = fit.searched;
  if (codes == nullptr && !rule.unbiased) return fit;
  alignas(64) float as_floats[kBlockTokens];
  Codes<kBits>(values, count, Quantizer<kBits>(grids, best), rule.unbiased ? as_floats : nullptr,
               codes);
  if (rule.unbiased) fit.stored = Correct(values, as_floats, count, fit.searched);
  return fit;
}

void FitOn(const float* values, int count, const GroupRule& rule, uint8_t* codes, GroupFit* fit) {
  *fit = rule.bits == 2 ? Fit<2>(values, count, rule, codes) : Fit<4>(values, count, rule, codes);
}

void QuantizeFineOn(const float* values, FineGrid grid, uint8_t* codes) {
  Codes<4>(values, kErrorSums, Quantizer<4>(grid.step, grid.low), nullptr, codes);
}

void DecodedErrorsOn(const uint8_t* codes, const float* originals, int count, float scale,
                     float zero, float* errors) {
  const Floats d;
  const hn::Rebind<uint8_t, Floats> bytes;
  const hn::RebindToSigned<Floats> integers;
  const V s = hn::Set(d, scale), z = hn::Set(d, zero);
  for (int i = 0; i < count; i += kLanes) {
    const V code = hn::ConvertTo(d, hn::PromoteTo(integers, hn::LoadU(bytes, codes + i)));
    hn::StoreU(hn::Sub(hn::Add(hn::Mul(code, s), z), hn::LoadU(d, originals + i)), d, errors + i);
  }
}

void CountErrorsOn(const float* errors, float inverse_unit, int step, ErrorPair* counted) {
  const Floats d;
  const hn::RebindToSigned<Floats> integers;
  const V limit = hn::Set(d, static_cast<float>(kMaxCountedError));
  const V inverse = hn::Set(d, inverse_unit);
  for (int i = 0; i < kBlockTokens; i += kLanes) {
    const V units = hn::Mul(hn::LoadU(d, errors + i), inverse);
    // As CountedError() rounds: in the low bits of a sum.
    const V rounded =
        hn::Add(hn::Max(hn::Min(units, limit), hn::Neg(limit)), hn::Set(d, 0x1.8p+23f));
    const auto count = hn::And(hn::BitCast(integers, rounded), hn::Set(integers, 0xffff));
    int32_t* pairs = counted + i;
    hn::StoreU(step % 2 == 0 ? count : hn::Or(hn::LoadU(integers, pairs), hn::ShiftLeft<16>(count)),
               integers, pairs);
  }
}

// Adds the products of a pair of errors in each lane with a pair of weights. Only the two sums
// together have a meaning.
using Sums = hn::RebindToSigned<Floats>;
HWY_INLINE void AddProducts(hn::Vec<Sums> errors, hn::Vec<Sums> weights, hn::Vec<Sums>& first,
                            hn::Vec<Sums>& second) {
#if HWY_TARGET == HWY_SCALAR
  const int32_t e = hn::GetLane(errors), w = hn::GetLane(weights);
  const int of_pair = static_cast<int16_t>(e) * static_cast<int16_t>(w) + (e >> 16) * (w >> 16);
  first = hn::Add(first, hn::Set(Sums(), of_pair));
#else
  const hn::Repartition<int16_t, Sums> halves;
  first = hn::ReorderWidenMulAccumulate(Sums(), hn::BitCast(halves, errors),
                                        hn::BitCast(halves, weights), first, second);
#endif
}
HWY_INLINE hn::Vec<Sums> Total(hn::Vec<Sums> first, hn::Vec<Sums> second) {
#if HWY_TARGET == HWY_SCALAR
  return first;
#else
  return hn::RearrangeToOddPlusEven(first, second);
#endif
}

void SubtractFeedbackOn(const float* x, const int8_t* weights, const ErrorPair* counted,
                        int num_earlier, float factor, float* target) {
  // As many sums at a time as registers hold, next to the weights.
  constexpr int kSums = kBlockTokens / kLanes < 8 ? kBlockTokens / kLanes : 8;
  const Floats d;
  const Sums integers;
  for (int begin = 0; begin < kBlockTokens; begin += kSums * kLanes) {
    hn::Vec<Sums> first[kSums], second[kSums];
    for (int i = 0; i < kSums; ++i) first[i] = second[i] = hn::Zero(integers);
    for (int pair = 0; pair < num_earlier / 2; ++pair) {
      const auto both = hn::Set(integers, (weights[2 * pair] & 0xffff) |
                                              (static_cast<uint32_t>(weights[2 * pair + 1]) << 16));
      const ErrorPair* errors = counted + pair * kBlockTokens + begin;
      for (int i = 0; i < kSums; ++i) {
        AddProducts(hn::LoadU(integers, errors + i * kLanes), both, first[i], second[i]);
      }
    }
    for (int i = 0; i < kSums; ++i) {
      const int at = begin + i * kLanes;
      const V sum = hn::ConvertTo(d, Total(first[i], second[i]));
      const V feedback = hn::Mul(hn::Set(d, factor), sum);
      hn::StoreU(hn::Sub(hn::LoadU(d, x + at), feedback), d, target + at);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pkv {
namespace {

HWY_EXPORT(FitOn);
HWY_EXPORT(QuantizeFineOn);
HWY_EXPORT(DecodedErrorsOn);
HWY_EXPORT(CountErrorsOn);
HWY_EXPORT(SubtractFeedbackOn);

}  // namespace

GroupFit FitGroup(const float* values, int count, const GroupRule& rule, uint8_t* codes) {
  GroupFit fit;
  HWY_DYNAMIC_DISPATCH(FitOn)(values, count, rule, codes, &fit);
  return fit;
}

float RowError(const float* values, int head_dim, int group_channels, const GroupRule& rule) {
  float error = 0;
  for (int first = 0; first < head_dim; first += group_channels) {
    error = error + FitGroup(values + first, group_channels, rule, nullptr).squared_error;
  }
  return error;
}

void QuantizeFine(const float* values, FineGrid grid, uint8_t* codes) {
  HWY_DYNAMIC_DISPATCH(QuantizeFineOn)(values, grid, codes);
}

void DecodedErrors(const uint8_t* codes, const float* originals, int count, float scale, float zero,
                   float* errors) {
  HWY_DYNAMIC_DISPATCH(DecodedErrorsOn)(codes, originals, count, scale, zero, errors);
}

void CountErrors(const float* errors, float inverse_unit, int step, ErrorPair* counted) {
  HWY_DYNAMIC_DISPATCH(CountErrorsOn)
  (errors, inverse_unit, step, counted + step / 2 * kBlockTokens);
}

void SubtractFeedback(const float* x, const int8_t* weights, const ErrorPair* counted,
                      int num_earlier, float factor, float* target) {
  HWY_DYNAMIC_DISPATCH(SubtractFeedbackOn)(x, weights, counted, num_earlier, factor, target);
}

}  // namespace pkv
#endif  // HWY_ONCE
