#ifndef PKV_KERNELS_ATTENTION_DECODE_VALUES_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_VALUES_CUH_

// V of a block of codes: weights times codes, zero points and patterns.

#include "kernels/attention/decode_block.cuh"

namespace pkv {

template <typename C>
struct ValueMath {
  using State = WarpState<C>;
  using Weights = WeightTile<C>;
  using Codes = Fragment<C::kBits>;
  static constexpr int kTiles = C::kTiles;
  static constexpr uint32_t kShrink = 0x14001400u;  // fp16x2 of 2^-10

  State& state;
  const BlockParams& params;
  const float (&factor)[C::kLaneHeads];  // what this block's weights count

  // Weight times scale of one V group as integers, and what one of them counts.
  struct ValueGroup {
    uint32_t b[C::kSets][kTiles];
    float unit[C::kLaneHeads];
  };

  // Weight times scale, rounded to fp16; fp16 bits of the largest.
  __device__ __forceinline__ uint32_t ScaleWeights(int h, const Weights (&weights)[kTiles],
                                                   const uint32_t (&scales)[kTiles],
                                                   uint32_t (&y)[kTiles]) const {
    uint32_t largest = 0;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      y[t] = ptx::MultiplyHalf2(weights[t].w[h], scales[t]);
      largest = ptx::MaxHalf2(largest, y[t]);
    }
    largest =
        ReduceLanes(largest, 4, 16, [](uint32_t a, uint32_t b) { return ptx::MaxHalf2(a, b); });
    return LargerHalf(largest);
  }

  template <int kGroup>
  __device__ __forceinline__ void LoadValueGroup(int group, const Weights (&weights)[kTiles],
                                                 ValueGroup& value) const {
    uint32_t scales[kTiles], bytes[2][C::kLaneHeads][kTiles];
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      LoadVScales(params, group, state.g, scales);
      uint32_t y[kTiles], largest;
      float unit = factor[h];
      for (;;) {
        largest = ScaleWeights(h, weights, scales, y);
        if (!__any_sync(0xffffffffu, IsInfinite(largest))) break;
#pragma unroll
        for (int t = 0; t < kTiles; ++t) scales[t] = ptx::MultiplyHalf2(scales[t], kShrink);
        unit *= 1024.0f;
      }
      const int exponent = UnitExponent(largest);
      // Halves of a step are the halves of a word.
      const SplitConstants c(exponent, C::kHalf1Shift << 16);
      uint32_t lost = 0;
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        bytes[0][h][t] = HighBytes(y[t], c);
        const uint32_t rest = RestOf(y[t], bytes[0][h][t], c);
        bytes[1][h][t] = LowBytes(rest, c);
        lost = ptx::AddHalf2(lost, LostUnits(rest, bytes[1][h][t], c));
      }
      unit *= UnitOf(exponent);
      value.unit[h] = unit / TileWords<C::kBits, kBlockTokens>::kFactor;
      // Weights below half a unit all become 0. What they lose, codes of the mean give back.
      constexpr float kMeanCode = ((1 << C::kBits) - 1) / 2.0f;
      const float2 halves = __half22float2(*reinterpret_cast<const __half2*>(&lost));
      const float units = fmaf(halves.y, C::kBits == 2 ? 4.0f : 1.0f, halves.x);
      state.lost[kGroup][h] = fmaf(units * kMeanCode, unit, state.lost[kGroup][h]);
    }
    // Of a tile, of row g columns 2 q and 2 q + 1, then of row g + 8.
    uint32_t pairs[C::kSets][kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      if constexpr (C::kWide) {
        pairs[0][t] = EvenBytes(bytes[0][0][t], bytes[0][1][t]);
        pairs[1][t] = EvenBytes(bytes[1][0][t], bytes[1][1][t]);
      } else {
        pairs[0][t] = EvenBytes(bytes[0][0][t], bytes[1][0][t]);
      }
    }
#pragma unroll
    for (int set = 0; set < C::kSets; ++set) {
#pragma unroll
      for (int f = 0; f < kTiles; ++f) {
        const uint32_t first = pairs[set][Codes::First(f)], second = pairs[set][Codes::Second(f)];
        value.b[set][f] =
            ptx::Transpose(__byte_perm(first, second, Codes::Half(f) == 0 ? 0x5140 : 0x7362));
      }
    }
  }

  // Weights as B of sums in fp16.
  struct PlainWeights {
    uint32_t b[2 * kTiles];

    __device__ __forceinline__ explicit PlainWeights(const Weights (&weights)[kTiles]) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const uint2 operand = weights[t].Operand();
        b[OperandPlace(t, 0)] = operand.x, b[OperandPlace(t, 1)] = operand.y;
      }
    }
  };

  // Of weight times zero point, of one V group.
  template <int kGroup>
  __device__ __forceinline__ void AddZeros(int group, const PlainWeights& plain) const {
    float zeros[2][4];
    State::ClearTile(zeros[0]), State::ClearTile(zeros[1]);
#pragma unroll
    for (int i = 0; i < kTiles / 2; ++i) {
      const uint4 zero =
          LoadColumns(params.v_zeros + group * 2 * kBlockTokens, kBlockTokens, state.q, i);
      const uint32_t* p = plain.b + 4 * i;
      ptx::Mma(zeros[0], zero.x, zero.y, zero.z, zero.w, p[0], p[1]);
      ptx::Mma(zeros[1], zero.x, zero.y, zero.z, zero.w, p[2], p[3]);
    }
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      const float sum = State::SumOf(zeros[0], 0, h) + State::SumOf(zeros[1], 1, h);
      state.zero_sum[kGroup][h] = fmaf(sum, factor[h], state.zero_sum[kGroup][h]);
    }
  }

  __device__ __forceinline__ void AddPatterns(const PlainWeights& plain) const {
    if (state.num_v_patterns > 0) AddToHistogram<0>(plain);
    if constexpr (C::kRegisterPatterns > 32) {
      if (state.num_v_patterns > 32) AddToHistogram<2>(plain);
    }
    if (__builtin_expect(state.num_v_patterns > C::kRegisterPatterns, 0)) {
#pragma unroll 1
      for (int id = C::kRegisterPatterns; id < state.num_v_patterns; id += 32) AddToMany(id, plain);
    }
  }

  // The weights of 32 V patterns from `first` on: their ids' one-hot rows times weights.
  __device__ __forceinline__ void SumPatterns(int first_id, const PlainWeights& plain,
                                              float (&acc)[2][4]) const {
    State::ClearTile(acc[0]), State::ClearTile(acc[1]);
    // 0x6400 + id is 1024 + id in fp16.
    const uint32_t row = (0x6400u + first_id + state.g) * 0x10001u;
#pragma unroll
    for (int i = 0; i < kTiles; i += 4) {
      const uint4 four = ptx::LoadShared128(params.v_ids + state.q * 32 + 4 * i);
      const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int k = 0; k < 4; k += 2) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int selector = half == 0 ? 0x4140 : 0x4342;
          const uint32_t low = __byte_perm(words[k], 0x64646464u, selector);
          const uint32_t high = __byte_perm(words[k + 1], 0x64646464u, selector);
          const uint32_t* p = plain.b + 2 * (i + k) + 2 * half;
#pragma unroll
          for (int tile = 0; tile < 2; ++tile) {
            const uint32_t first = row + 16 * tile * 0x10001u, second = first + 8 * 0x10001u;
            ptx::Mma(acc[tile], ptx::EqualHalf2(low, first), ptx::EqualHalf2(low, second),
                     ptx::EqualHalf2(high, first), ptx::EqualHalf2(high, second), p[0], p[1]);
          }
        }
      }
    }
  }
  template <int kTile>
  __device__ __forceinline__ void AddToHistogram(const PlainWeights& plain) const {
    float acc[2][4];
    SumPatterns(16 * kTile, plain, acc);
    State::AddScaled(acc[0], factor, state.histogram[kTile]);
    State::AddScaled(acc[1], factor, state.histogram[kTile + 1]);
  }
  __device__ __forceinline__ void AddToMany(int first_id, const PlainWeights& plain) const {
    float acc[2][4];
    SumPatterns(first_id, plain, acc);
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
      for (int k = 0; k < State::kLaneValues; ++k) {
        const int half = k / C::kLaneHeads, h = k % C::kLaneHeads;
        const int id = first_id + 16 * tile + 8 * half + state.g;
        if (id >= state.num_v_patterns) continue;
        const uint32_t at = state.ManyAddress(id - C::kRegisterPatterns, h);
        const float sum = State::SumOf(acc[tile], half, h);
        ptx::StoreSharedFloat(at, fmaf(sum, factor[h], ptx::LoadSharedFloat(at)));
      }
    }
  }

  // Codes of V times weights, of kCount channel tiles.
  template <int kCount>
  __device__ __forceinline__ void AddTiles(uint32_t v_codes, int first,
                                           const ValueGroup& value) const {
    ByteSums<kCount, C::kSets> sums;
    MultiplyTiles<C::kBits, kBlockTokens, C::kBits == 2>(v_codes, first, state.lane, value.b, sums);
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
#pragma unroll
      for (int k = 0; k < State::kLaneValues; ++k) {
        const int half = k / C::kLaneHeads, h = k % C::kLaneHeads;
        float& to = state.out[first + t][k];
        to = fmaf(sums.Value(t, half, h), value.unit[h], to);
      }
    }
  }
  __device__ __forceinline__ void AddCodes(uint32_t v_codes, const ValueGroup& value) const {
    constexpr int kBatch = C::kBits == 2 ? 4 : 2;
#pragma unroll
    for (int i = 0; i < C::kSteps; i += kBatch) AddTiles<kBatch>(v_codes, i, value);
  }

  // Groups of 32 channels or more: two channel tiles after another.
  template <int kPair = 0>
  __device__ __forceinline__ void AddGroups(uint32_t v_codes, const Weights (&weights)[kTiles],
                                            const PlainWeights& plain, ValueGroup& value) const {
    if constexpr (C::kGrouped && kPair < C::kMaxVGroups) {
      const int pairs = C::kMaxVGroups / params.v_groups;  // of one group
      if (kPair % pairs == 0) {
        LoadValueGroup<kPair>(kPair / pairs, weights, value);
        AddZeros<kPair>(kPair / pairs, plain);
      }
      AddTiles<2>(v_codes, 2 * kPair, value);
      AddGroups<kPair + 1>(v_codes, weights, plain, value);
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_VALUES_CUH_
