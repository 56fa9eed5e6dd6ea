#include "kernels/device/highway_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/codec/group_fit_simd.cc"
#include "hwy/foreach_target.h"  // includes this file once per instruction set

#include <bit>
#include <limits>

#include "hwy/highway.h"
#include "kernels/codec/clip_ratio_math.h"
#include "kernels/codec/group_fit_simd.h"
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

// FoldErrorSums().
HWY_INLINE float Fold(const V (&sums)[kParts]) {
  float four[4];
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
  return (four[0] + four[2]) + (four[1] + four[3]);
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

// Distances from the middle of a range, a byte each (clip_ratio_math.h).
using Bytes = hn::CappedTag<uint8_t, kBlockTokens>;
using Distances = hn::Vec<Bytes>;
using EightsOf = hn::DFromV<decltype(hn::SumsOf8(Distances()))>;

HWY_INLINE Distances AbsDiff(Distances a, int b_in) {
  const Distances b = hn::Set(Bytes(), static_cast<uint8_t>(b_in));
  return hn::Or(hn::SaturatedSub(a, b), hn::SaturatedSub(b, a));
}

// FoldedDistance() but for the distances themselves, eight sums in one.
template <int kBits>
HWY_INLINE hn::Vec<EightsOf> Folded(Distances distances, int scale) {
  if constexpr (kBits == 2) return hn::SumsOf8(AbsDiff(distances, scale));
  const Distances second = AbsDiff(distances, 4 * scale), third = AbsDiff(second, 2 * scale);
  return hn::Add(
      hn::Add(hn::ShiftLeft<2>(hn::SumsOf8(second)), hn::ShiftLeft<1>(hn::SumsOf8(third))),
      hn::SumsOf8(AbsDiff(third, scale)));
}

// BestClipRatio().
template <int kBits>
HWY_INLINE int BestRatio(const float* values, int count, MinMax range, int num_ratios) {
  if (num_ratios == 1 || !(range.min < range.max)) return 0;
  const Floats d;
  const hn::Rebind<uint8_t, Floats> bytes;
  const hn::RebindToSigned<Floats> integers;
  const ClipUnits units = ClipUnits::Of(range.min, range.max, kBits);
  const V middle = hn::Set(d, units.middle), per_value = hn::Set(d, units.per_value);
  alignas(64) uint8_t distances[kBlockTokens] = {};
  for (int i = 0; i < count; i += kLanes) {
    const V distance = hn::Mul(hn::Abs(hn::Sub(hn::LoadU(d, values + i), middle)), per_value);
    const auto on_base = hn::BitCast(integers, hn::Add(distance, hn::Set(d, 0x1p+23f)));
    const auto last_byte = hn::And(on_base, hn::Set(integers, 0xff));
    hn::StoreU(hn::DemoteTo(bytes, last_byte), bytes, distances + i);
  }
  for (int i = count; i % kErrorSums != 0; ++i) distances[i] = 0;
  constexpr int kAtOnce = hn::MaxLanes(Bytes());
  const int num_places = (count + kAtOnce - 1) / kAtOnce * kAtOnce;
  const auto sum_of = [&](const auto& of_vector) HWY_ATTR {
    const EightsOf eights;
    auto sums = hn::Zero(eights);
    for (int i = 0; i < num_places; i += kAtOnce) {
      sums = hn::Add(sums, of_vector(hn::Load(Bytes(), distances + i)));
    }
    return static_cast<int>(hn::GetLane(hn::SumOfLanes(eights, sums)));
  };
  const int unfolded = sum_of([](Distances v) HWY_ATTR { return hn::SumsOf8(v); }) << (kBits - 1);
  int best = 0, least = 0;
  for (int i = 0; i < num_ratios; ++i) {
    const int scale = ClipScaleUnits(i, kBits);
    const int folded =
        unfolded + sum_of([&](Distances v) HWY_ATTR { return Folded<kBits>(v, scale); });
    const int error = ClipRatioError(scale, count, folded, kBits, num_places - count);
    if (i > 0 && error >= least) continue;
    best = i;
    least = error;
  }
  return best;
}

constexpr float kNone = std::numeric_limits<float>::infinity();
// REQUIRES: value > 0.
HWY_INLINE float NextAbove(float value) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(value) + 1);
}

// QuantizeOne() and DequantizeOne() on one grid.
template <int kBits>
struct Quantizer;
// The code of a value is k at least exactly when value - zero reaches from k: rne((value - zero) /
// scale) does when the rounded quotient exceeds k - 1/2, or for even k is no less. (k - 1/2) scale
// has 14 bits and is exact, and its quotient is k - 1/2; one place above it is (k - 1/2) + 2^-e / m
// with scale = m 2^i, 1 <= m < 2, more than half a place of the quotient, and so is one place
// below.
template <>
struct Quantizer<2> {
  V zero, from1, from2, from3, decoded0, decoded1, decoded2, decoded3;

  HWY_INLINE Quantizer(float scale_in, float zero_in) {
    const Floats d;
    const auto level = [&](float code)
                           HWY_ATTR { return hn::Set(d, DequantizeOne(code, scale_in, zero_in)); };
    const bool has_codes = scale_in > 0.0f;
    zero = hn::Set(d, zero_in);
    from1 = hn::Set(d, has_codes ? NextAbove(0.5f * scale_in) : kNone);
    from2 = hn::Set(d, has_codes ? 1.5f * scale_in : kNone);
    from3 = hn::Set(d, has_codes ? NextAbove(2.5f * scale_in) : kNone);
    decoded0 = level(0.0f);
    decoded1 = level(1.0f);
    decoded2 = level(2.0f);
    decoded3 = level(3.0f);
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
  HWY_INLINE V Code(V value) const {
    const Floats d;
    const V integers_only = hn::Set(d, 0x1.8p+23f);
    const V quotient = hn::Div(hn::Sub(value, zero), divisor);
    const V code = hn::Min(hn::Max(quotient, hn::Zero(d)), max_code);
    return hn::Sub(hn::Add(code, integers_only), integers_only);
  }
  HWY_INLINE V Decoded(V value) const { return hn::Add(hn::Mul(Code(value), scale), zero); }
};

template <int kBits>
HWY_INLINE float SquaredError(const float* values, int count, const Quantizer<kBits>& quantizer) {
  const Floats d;
  V squares[kParts];
  for (V& sum : squares) sum = hn::Zero(d);
  ForEachVector(count, [&](int i, int part, auto inside) HWY_ATTR {
    const V value = hn::LoadU(d, values + i);
    const V error = hn::Sub(value, quantizer.Decoded(value));
    squares[part] = hn::Add(squares[part], hn::IfThenElseZero(inside, hn::Mul(error, error)));
  });
  return Fold(squares);
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
  const MinMax range = RangeOfGroup(values, count);
  const int ratio = BestRatio<kBits>(values, count, range, rule.num_ratios);
  GroupFit fit;
  fit.searched = fit.stored = ShrunkGroupParams(range.min, range.max, ratio, kBits);
  const Quantizer<kBits> quantizer(Float16ToFloat(fit.searched.scale),
                                   Float16ToFloat(fit.searched.zero));
  if (rule.with_error) fit.squared_error = SquaredError<kBits>(values, count, quantizer);
  if (codes == nullptr && !rule.unbiased) return fit;
  alignas(64) float as_floats[kBlockTokens];
  Codes<kBits>(values, count, quantizer, rule.unbiased ? as_floats : nullptr, codes);
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
