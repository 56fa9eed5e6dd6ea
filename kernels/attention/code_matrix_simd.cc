#include "kernels/device/highway_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/code_matrix_simd.cc"
#include "hwy/foreach_target.h"  // includes this file once per instruction set

#include "hwy/highway.h"
#include "kernels/attention/code_matrix_simd.h"

// Highway 1.0.3 picks this target on processors with AVX-512 VNNI, but does not let the compiler
// use it.
#if HWY_TARGET == HWY_AVX3_DL
#undef HWY_TARGET_STR
#define HWY_TARGET_STR                                                       \
  HWY_TARGET_STR_AVX3                                                        \
  ",vpclmulqdq,avx512vbmi,avx512vbmi2,vaes,avxvnni,avx512bitalg,avx512vnni," \
  "avx512vpopcntdq"
#endif

#ifndef PKV_CODE_PRODUCT
#define PKV_CODE_PRODUCT
namespace pkv {

// What a product reads and writes.
struct CodeProduct {
  const uint8_t* words;
  int first_tile, last_tile;
  const CodeFactors* factors;
  int first_vector;
  const float* offsets;
  float* out;
  int out_stride;
};

}  // namespace pkv
#endif

HWY_BEFORE_NAMESPACE();
namespace pkv {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int kTileRows = 16;
constexpr int kUnits = 8;  // of a tile and class

#if HWY_TARGET == HWY_SCALAR

void RoundFactors(const float* vector, const float* scales, int num_columns, int8_t* high,
                  int8_t* low, float* step) {
  float products[kBlockTokens], largest = 0;
  for (int i = 0; i < num_columns; ++i) {
    products[i] = vector[i] * scales[i];
    const float magnitude = products[i] < 0 ? -products[i] : products[i];
    largest = magnitude > largest ? magnitude : largest;
  }
  const bool negligible = largest < CodeFactors::kNegligible;
  const float factor = negligible ? 0.0f : CodeFactors::kLargest / largest;
  *step = negligible ? 0.0f : largest / CodeFactors::kLargest;
  for (int i = 0; i < num_columns; ++i) {
    constexpr float kIntegersOnly = 0x1.8p+23f;
    const int n = static_cast<int>((products[i] * factor + kIntegersOnly) - kIntegersOnly);
    const int word = i / 4 * 8 + i % 4;
    low[word] = low[word + 4] = static_cast<int8_t>(n);
    high[word] = high[word + 4] = static_cast<int8_t>((n - low[word]) / 256);
  }
}

template <int kBits, int kUnitBytes, int kClasses, int kVectors>
void Multiply(const CodeProduct& p) {
  constexpr int kPlanes = 8 / kBits;
  const uint8_t* tile_words = p.words + p.first_tile * kClasses * kUnits * kUnitBytes;
  for (int tile = p.first_tile; tile < p.last_tile; ++tile) {
    for (int i = 0; i < kVectors; ++i) {
      const int8_t* high = p.factors->high[p.first_vector + i];
      const int8_t* low = p.factors->low[p.first_vector + i];
      for (int row = 0; row < kTileRows; ++row) {
        const int unit = row % 8, half = row / 8;
        int32_t sum = 0;
        for (int byte = 0; byte < kClasses * kUnitBytes; ++byte) {
          if (byte / 4 % 2 != half) continue;
          const int c = byte / kUnitBytes, in_unit = byte % kUnitBytes;
          const int codes = tile_words[(c * kUnits + unit) * kUnitBytes + in_unit];
          for (int plane = 0; plane < kPlanes; ++plane) {
            const int at = (c * kPlanes + plane) * kUnitBytes + in_unit;
            sum += (codes >> (kBits * plane) & ((1 << kBits) - 1)) * (high[at] * 256 + low[at]);
          }
        }
        float& out = p.out[i * p.out_stride + tile * kTileRows + row];
        const float step = p.factors->step[p.first_vector + i];
        out = out + (static_cast<float>(sum) * step + p.offsets[i]);
      }
    }
    tile_words += kClasses * kUnits * kUnitBytes;
  }
}

#else  // vectors of 16 bytes at least

void RoundFactors(const float* vector, const float* scales, int num_columns, int8_t* high,
                  int8_t* low, float* step) {
  const hn::CappedTag<float, 16> d;
  const hn::Rebind<int8_t, decltype(d)> d8;
  alignas(64) float products[kBlockTokens];
  alignas(64) int8_t bytes[2][kBlockTokens];
  auto largest = hn::Zero(d);
  for (int i = 0; i < num_columns; i += hn::Lanes(d)) {
    const auto product = hn::Mul(hn::LoadU(d, vector + i), hn::LoadU(d, scales + i));
    hn::Store(product, d, products + i);
    largest = hn::Max(largest, hn::Abs(product));
  }
  const float max = hn::GetLane(hn::MaxOfLanes(d, largest));
  const bool negligible = max < CodeFactors::kNegligible;
  const auto factor = hn::Set(d, negligible ? 0.0f : CodeFactors::kLargest / max);
  *step = negligible ? 0.0f : max / CodeFactors::kLargest;
  for (int i = 0; i < num_columns; i += hn::Lanes(d)) {
    const auto n = hn::NearestInt(hn::Mul(hn::Load(d, products + i), factor));
    const auto low_byte = hn::ShiftRight<24>(hn::ShiftLeft<24>(n));
    hn::Store(hn::DemoteTo(d8, low_byte), d8, bytes[0] + i);
    hn::Store(hn::DemoteTo(d8, hn::ShiftRight<8>(hn::Sub(n, low_byte))), d8, bytes[1] + i);
  }
  const hn::FixedTag<int32_t, 4> words;
  const auto duplicate = [&](const int8_t* from, int8_t* to) HWY_ATTR {
    for (int i = 0; i < num_columns; i += 16) {
      const auto four = hn::Load(words, reinterpret_cast<const int32_t*>(from + i));
      auto* out = reinterpret_cast<int32_t*>(to + 2 * i);
      hn::Store(hn::InterleaveLower(words, four, four), words, out);
      hn::Store(hn::InterleaveUpper(words, four, four), words, out + 4);
    }
  };
  duplicate(bytes[0], low);
  duplicate(bytes[1], high);
}

// Adds the products of neighbouring bytes to 16-bit lanes. They do not overflow: a product is at
// most 15 * 128, a pair twice that, and at most 8 pairs are added before they are widened (2 planes
// of 4 vectors of 16 bytes; codes of 2 bits are smaller by far).
template <class V16, class V8>
HWY_INLINE V16 AddBytePairs(V16 sum, V8 codes, V8 factors) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_SSE4
  if constexpr (sizeof(codes.raw) == 16) {
    return hn::Add(sum, V16{_mm_maddubs_epi16(codes.raw, factors.raw)});
#if HWY_TARGET <= HWY_AVX2
  } else if constexpr (sizeof(codes.raw) == 32) {
    return hn::Add(sum, V16{_mm256_maddubs_epi16(codes.raw, factors.raw)});
#endif
#if HWY_TARGET <= HWY_AVX3
  } else {
    return hn::Add(sum, V16{_mm512_maddubs_epi16(codes.raw, factors.raw)});
#endif
  }
#else
  const hn::DFromV<V16> d16;
  const auto c = hn::BitCast(d16, codes), f = hn::BitCast(d16, factors);
  const auto even = hn::Mul(hn::And(c, hn::Set(d16, 0xff)), hn::ShiftRight<8>(hn::ShiftLeft<8>(f)));
  const hn::RebindToUnsigned<decltype(d16)> u16;
  const auto upper_codes = hn::BitCast(d16, hn::ShiftRight<8>(hn::BitCast(u16, c)));
  return hn::Add(sum, hn::Add(even, hn::Mul(upper_codes, hn::ShiftRight<8>(f))));
#endif
}

// The sums of neighbouring 16-bit lanes, times `factor`.
template <int kFactor, class D32, class V16>
HWY_INLINE hn::Vec<D32> SumPairs(D32 d32, V16 v) {
#if HWY_ARCH_X86 && HWY_TARGET <= HWY_SSE4
  const auto factor = hn::Set(hn::DFromV<V16>(), static_cast<int16_t>(kFactor));
  if constexpr (sizeof(v.raw) == 16) {
    return hn::Vec<D32>{_mm_madd_epi16(v.raw, factor.raw)};
#if HWY_TARGET <= HWY_AVX2
  } else if constexpr (sizeof(v.raw) == 32) {
    return hn::Vec<D32>{_mm256_madd_epi16(v.raw, factor.raw)};
#endif
#if HWY_TARGET <= HWY_AVX3
  } else {
    return hn::Vec<D32>{_mm512_madd_epi16(v.raw, factor.raw)};
#endif
  }
#else
  const auto pairs = hn::BitCast(d32, v);
  const auto sum = hn::Add(hn::ShiftRight<16>(pairs), hn::ShiftRight<16>(hn::ShiftLeft<16>(pairs)));
  return hn::Mul(sum, hn::Set(d32, kFactor));
#endif
}

#if HWY_TARGET == HWY_AVX3_DL
constexpr bool kHasByteQuads = true;
HWY_INLINE hn::Vec<hn::Full512<int32_t> > AddByteQuads(hn::Vec<hn::Full512<int32_t> > sum,
                                                       hn::Vec<hn::Full512<uint8_t> > codes,
                                                       hn::Vec<hn::Full512<uint8_t> > factors) {
  return hn::Vec<hn::Full512<int32_t> >{_mm512_dpbusd_epi32(sum.raw, codes.raw, factors.raw)};
}
#else
constexpr bool kHasByteQuads = false;
#endif

// What one unit adds up to: [vector][kStride], a vector register each. Lanes of equal parity are
// parts of the same row.
template <int kBits, int kUnitBytes, int kClasses, int kVectors>
struct UnitProduct {
  static constexpr int kPlanes = 8 / kBits;
  using D8 = hn::CappedTag<uint8_t, kUnitBytes>;
  using D16 = hn::RepartitionToWide<hn::RebindToSigned<D8> >;
  using D32 = hn::RepartitionToWide<D16>;
  static constexpr int kBytes = hn::MaxLanes(D8());
  static constexpr int kLanes = kBytes / 4;
  static constexpr int kStride = kUnits * kLanes;

  // Calls add(codes, place of their factors) for every vector of codes of class c.
  template <class Add>
  static HWY_INLINE void ForEachPlane(const uint8_t* unit, int c, const Add& add) {
    const D8 d8;
    const hn::RebindToUnsigned<D32> words;
    const auto mask = hn::Set(d8, static_cast<uint8_t>((1 << kBits) - 1));
    HWY_UNROLL(4) for (int part = 0; part < kUnitBytes; part += kBytes) {
      auto w = hn::BitCast(words, hn::LoadU(d8, unit + c * kUnits * kUnitBytes + part));
      HWY_UNROLL(4) for (int plane = 0; plane < kPlanes; ++plane) {
        add(hn::And(hn::BitCast(d8, w), mask), (c * kPlanes + plane) * kUnitBytes + part);
        w = hn::ShiftRight<kBits>(w);
      }
    }
  }
  static HWY_INLINE hn::Vec<D8> Factors(const int8_t* at) {
    return hn::Load(D8(), reinterpret_cast<const uint8_t*>(at));
  }

  static HWY_INLINE void Sum(const uint8_t* unit, const CodeProduct& p, int32_t* sums) {
    const D32 d32;
    const CodeFactors& f = *p.factors;
    const int first = p.first_vector;
    hn::Vec<D32> total[kVectors], low_total[kVectors];
    for (int i = 0; i < kVectors; ++i) total[i] = low_total[i] = hn::Zero(d32);
    for (int c = 0; c < kClasses; ++c) {
      if constexpr (kHasByteQuads && kBytes == 64) {
#if HWY_TARGET == HWY_AVX3_DL
        ForEachPlane(unit, c, [&](hn::Vec<D8> codes, int at) HWY_ATTR {
          for (int i = 0; i < kVectors; ++i) {
            total[i] = AddByteQuads(total[i], codes, Factors(f.high[first + i] + at));
            low_total[i] = AddByteQuads(low_total[i], codes, Factors(f.low[first + i] + at));
          }
        });
#endif
      } else {
        const D16 d16;
        hn::Vec<D16> high[kVectors], low[kVectors];
        for (int i = 0; i < kVectors; ++i) high[i] = low[i] = hn::Zero(d16);
        ForEachPlane(unit, c, [&](hn::Vec<D8> codes, int at) HWY_ATTR {
          for (int i = 0; i < kVectors; ++i) {
            high[i] = AddBytePairs(high[i], codes, Factors(f.high[first + i] + at));
            low[i] = AddBytePairs(low[i], codes, Factors(f.low[first + i] + at));
          }
        });
        for (int i = 0; i < kVectors; ++i) {
          total[i] = hn::Add(total[i], SumPairs<1>(d32, high[i]));
          low_total[i] = hn::Add(low_total[i], SumPairs<1>(d32, low[i]));
        }
      }
    }
    for (int i = 0; i < kVectors; ++i) {
      hn::Store(hn::Add(hn::ShiftLeft<8>(total[i]), low_total[i]), d32, sums + i * kStride);
    }
  }
};

// Folds a pair of units, in which lanes or blocks of lanes belong together, into one vector.
template <class D, class V = hn::Vec<D> >
HWY_INLINE V FoldLanePairs(D d, V a, V b) {
  const hn::Repartition<int64_t, D> pairs;
  const auto x = hn::BitCast(pairs, a), y = hn::BitCast(pairs, b);
  return hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, x, y)),
                 hn::BitCast(d, hn::InterleaveUpper(pairs, x, y)));
}
template <class V>
HWY_INLINE V FoldBlocks(V a, V b) {
  return hn::Add(hn::OddEvenBlocks(b, a), hn::SwapAdjacentBlocks(hn::OddEvenBlocks(a, b)));
}

// Folds the sums of a tile's units, [unit][lane], into [unit][half] and adds them, times the step,
// plus the offset, to the tile's rows.
template <class D>
HWY_INLINE void AddRows(D d, const int32_t* sums, float step, float offset, float* out) {
  constexpr int kLanes = hn::MaxLanes(d);
  alignas(64) int32_t folded[kTileRows];
  const auto unit = [&](int i) HWY_ATTR { return hn::Load(d, sums + i * kLanes); };
  if constexpr (kLanes == 16) {
    const auto halves = [&](int i) HWY_ATTR {
      return hn::Add(hn::ConcatLowerLower(d, unit(i + 4), unit(i)),
                     hn::ConcatUpperUpper(d, unit(i + 4), unit(i)));
    };
    hn::Store(FoldLanePairs(d, FoldBlocks(halves(0), halves(2)), FoldBlocks(halves(1), halves(3))),
              d, folded);
  } else if constexpr (kLanes == 8) {
    for (int i = 0; i < kUnits; i += 4) {
      hn::Store(
          FoldLanePairs(d, FoldBlocks(unit(i), unit(i + 2)), FoldBlocks(unit(i + 1), unit(i + 3))),
          d, folded + 2 * i);
    }
  } else {
    for (int i = 0; i < kUnits; i += 2) {
      hn::Store(FoldLanePairs(d, unit(i), unit(i + 1)), d, folded + 2 * i);
    }
  }
  const hn::CappedTag<int32_t, kUnits> rows;
  const hn::RebindToFloat<decltype(rows)> floats;
  const auto add = [&](hn::Vec<decltype(rows)> sum, float* to) HWY_ATTR {
    const auto product = hn::Mul(hn::ConvertTo(floats, sum), hn::Set(floats, step));
    hn::StoreU(hn::Add(hn::LoadU(floats, to), hn::Add(product, hn::Set(floats, offset))), floats,
               to);
  };
  for (int i = 0; i < kUnits; i += hn::MaxLanes(rows)) {
    hn::Vec<decltype(rows)> upper, lower;
    hn::LoadInterleaved2(rows, folded + 2 * i, upper, lower);
    add(upper, out + i);
    add(lower, out + i + kUnits);
  }
}

template <int kBits, int kUnitBytes, int kClasses, int kVectors>
void Multiply(const CodeProduct& p) {
  using Unit = UnitProduct<kBits, kUnitBytes, kClasses, kVectors>;
  constexpr int kTileBytes = kClasses * kUnits * kUnitBytes;
  alignas(64) int32_t sums[kVectors * Unit::kStride];
  for (int tile = p.first_tile; tile < p.last_tile; ++tile) {
    const uint8_t* words = p.words + tile * kTileBytes;
    for (int unit = 0; unit < kUnits; ++unit) {
      Unit::Sum(words + unit * kUnitBytes, p, sums + unit * Unit::kLanes);
    }
    for (int i = 0; i < kVectors; ++i) {
      AddRows(typename Unit::D32(), sums + i * Unit::kStride, p.factors->step[p.first_vector + i],
              p.offsets[i], p.out + i * p.out_stride + tile * kTileRows);
    }
  }
}

#endif

template <int kBits, int kUnitBytes, int kClasses>
void MultiplyAll(CodeProduct p, int count) {
  while (count > 0) {
    const int step = count >= 4 ? 4 : count >= 2 ? 2 : 1;
    switch (step) {
      case 4:
        Multiply<kBits, kUnitBytes, kClasses, 4>(p);
        break;
      case 2:
        Multiply<kBits, kUnitBytes, kClasses, 2>(p);
        break;
      default:
        Multiply<kBits, kUnitBytes, kClasses, 1>(p);
    }
    count -= step;
    p.first_vector += step;
    p.offsets += step;
    p.out += step * p.out_stride;
  }
}

void MultiplyOn(const ByteOrder& order, const CodeProduct& p, int count) {
  if (order.bits == 2) {
    order.num_columns == 128 ? MultiplyAll<2, 64, 1>(p, count) : MultiplyAll<2, 32, 1>(p, count);
  } else {
    order.num_columns == 128 ? MultiplyAll<4, 64, 2>(p, count) : MultiplyAll<4, 64, 1>(p, count);
  }
}

void RoundAll(const ByteOrder& order, const float* vectors, int stride, int count,
              const float* scales, CodeFactors* out) {
  for (int i = 0; i < count; ++i) {
    RoundFactors(vectors + static_cast<int64_t>(i) * stride, scales, order.num_columns,
                 out->high[i], out->low[i], &out->step[i]);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pkv {

HWY_EXPORT(MultiplyOn);
HWY_EXPORT(RoundAll);

void MakeCodeFactors(const ByteOrder& order, const float* vectors, int stride, int count,
                     const float* scales, CodeFactors* out) {
  HWY_DYNAMIC_DISPATCH(RoundAll)(order, vectors, stride, count, scales, out);
}

void MultiplyCodes(const ByteOrder& order, const uint32_t* words, int first_tile, int last_tile,
                   const CodeFactors& factors, int count, const float* offsets, float* out,
                   int out_stride) {
  const CodeProduct product = {reinterpret_cast<const uint8_t*>(words),
                               first_tile,
                               last_tile,
                               &factors,
                               0,
                               offsets,
                               out,
                               out_stride};
  HWY_DYNAMIC_DISPATCH(MultiplyOn)(order, product, count);
}

}  // namespace pkv
#endif  // HWY_ONCE
