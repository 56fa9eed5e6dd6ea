#ifndef PKV_KERNELS_ATTENTION_DECODE_BLOCK_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_BLOCK_CUH_

// K of a block of codes: from its codes to the scores of its slots.

#include "kernels/attention/decode_state.cuh"

namespace pkv {

// Where the parameters of a block stand (shared addresses), and what else is uniform.
struct BlockParams {
  uint32_t k_scales, k_zeros, v_scales, v_zeros, k_ids, v_ids;
  int k_groups = 1, v_groups = 1;
  bool has_patterns = false;
  int num_masked = 0;  // first slots that hold no token
  // Shared fp32 [id][head] in log2, of the lane's first head. Its address has no bit of id_mask,
  // which takes an id's place in the list, and 255 to the last one, where 0 is.
  uint32_t pattern_scores = 0, id_mask = 0;

  __device__ BlockParams(const DecodeLaunch& launch, uint32_t params)
      : k_scales(params),
        k_zeros(params + launch.k_zeros - launch.k_scales),
        v_scales(params + launch.v_scales - launch.k_scales),
        v_zeros(params + launch.v_zeros - launch.k_scales),
        k_ids(params + launch.k_ids - launch.k_scales),
        v_ids(params + launch.v_ids - launch.k_scales),
        k_groups(launch.k_groups),
        v_groups(launch.v_groups),
        has_patterns(launch.has_patterns) {}
};

// The V scales of one group that belong to lanes of g: those of rows g and g + 8, by token tile.
__device__ __forceinline__ void LoadVScales(const BlockParams& params, int group, int g,
                                            uint32_t (&scales)[kBlockTokens / 16]) {
  const uint32_t at = params.v_scales + group * 2 * kBlockTokens + g * 32;
  const uint4 a = ptx::LoadShared128(at), b = ptx::LoadShared128(at + 16);
  scales[0] = a.x, scales[1] = a.y, scales[2] = a.z, scales[3] = a.w;
  scales[4] = b.x, scales[5] = b.y, scales[6] = b.z, scales[7] = b.w;
}

template <typename C>
struct KeyMath {
  using State = WarpState<C>;
  using TileScores = typename State::TileScores;
  using Codes = Fragment<C::kBits>;
  static constexpr int kTiles = C::kTiles;
  static constexpr float kFactor = TileWords<C::kBits, C::kHeadDim>::kFactor;

  State& state;
  const BlockParams& params;

  // q * scale as integers, and what follows from the zero points, of one K group.
  struct KeyGroup {
    uint32_t b[C::kSets][C::kSteps];
    float unit[C::kLaneHeads];  // what their products with codes count, in log2
    float zero[C::kLaneHeads];  // q . zero, in log2
  };

  // q * scale of step and half, rounded to fp16; fp16 bits of the column's largest.
  __device__ __forceinline__ uint32_t ScaleQuery(uint32_t scales,
                                                 uint32_t (&x)[C::kSteps][2]) const {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < C::kSteps / 2; ++i) {
      const uint4 scale = LoadColumns(scales, C::kHeadDim, state.q, i);
      const uint4 query = LoadColumns(state.query, C::kHeadDim, state.q, i);
      x[2 * i][0] = ptx::MultiplyHalf2(query.x, scale.x);
      x[2 * i][1] = ptx::MultiplyHalf2(query.z, scale.y);
      x[2 * i + 1][0] = ptx::MultiplyHalf2(query.y, scale.z);
      x[2 * i + 1][1] = ptx::MultiplyHalf2(query.w, scale.w);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        largest = ptx::MaxHalf2(largest, ptx::AbsHalf2(x[2 * i + k / 2][k % 2]));
      }
    }
    largest =
        ReduceLanes(largest, 1, 2, [](uint32_t a, uint32_t b) { return ptx::MaxHalf2(a, b); });
    return LargerHalf(largest);
  }

  __device__ __forceinline__ void LoadKeyGroup(int group, KeyGroup& key) const {
    uint32_t x[C::kSteps][2];
    const uint32_t scales = params.k_scales + group * 2 * C::kHeadDim;
    uint32_t largest;
    for (;;) {
      largest = ScaleQuery(scales, x);
      if (!__any_sync(0xffffffffu, IsInfinite(largest))) break;
      state.ShrinkQueries();  // |q| < 2^10 before, < 1 after
    }
    const int exponent = UnitExponent(largest);
    SplitConstants split[2] = {{exponent, 0}, {exponent, C::kHalf1Shift * 0x10001u}};
    if constexpr (!C::kWide) {
      if (state.g % 2 == 0) split[0].TakeHighOnly(), split[1].TakeHighOnly();
    }
#pragma unroll
    for (int f = 0; f < C::kSteps; ++f) {
      const SplitConstants& c = split[Codes::Half(f)];
      const uint32_t first = x[Codes::First(f)][Codes::Half(f)];
      const uint32_t second = x[Codes::Second(f)][Codes::Half(f)];
      const uint32_t first_high = HighBytes(first, c), second_high = HighBytes(second, c);
      if constexpr (C::kWide) key.b[0][f] = EvenBytes(first_high, second_high);
      key.b[C::kSets - 1][f] = EvenBytes(LowBytes(RestOf(first, first_high, c), c),
                                         LowBytes(RestOf(second, second_high, c), c));
    }
    DotZeros(params.k_zeros + group * 2 * C::kHeadDim, key);
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      // Lane 4 c has made the operand of column c.
      const int column = C::kWide ? 2 * state.q + h : 2 * state.q;
      key.unit[h] =
          UnitOf(__shfl_sync(0xffffffffu, exponent, 4 * column)) * (state.score_unit[h] / kFactor);
    }
  }

  __device__ __forceinline__ void DotZeros(uint32_t zeros, KeyGroup& key) const {
    float z[2][4];
    State::ClearTile(z[0]), State::ClearTile(z[1]);
#pragma unroll
    for (int i = 0; i < C::kSteps / 2; ++i) {
      const uint4 zero = LoadColumns(zeros, C::kHeadDim, state.q, i);
      const uint4 query = LoadColumns(state.query, C::kHeadDim, state.q, i);
      ptx::Mma(z[0], zero.x, zero.y, zero.z, zero.w, query.x, query.y);
      ptx::Mma(z[1], zero.x, zero.y, zero.z, zero.w, query.z, query.w);
    }
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      key.zero[h] = (State::SumOf(z[0], 0, h) + State::SumOf(z[1], 1, h)) * state.score_unit[h];
    }
  }

  // What patterns add to the scores of tile t. ids: row order, this lane's 16.
  __device__ __forceinline__ TileScores StartTile(int t, const uint4& ids) const {
    TileScores start;
    const uint32_t words[4] = {ids.x, ids.y, ids.z, ids.w};
    constexpr int kRowShift = C::kWide ? 5 : 4;  // log2 of kIdBytes
    static_assert(C::kIdBytes == 1 << kRowShift);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first_bit = 16 * (t % 2) + 8 * half;
      const uint32_t word = words[t / 2];
      const uint32_t shifted =
          first_bit < kRowShift ? word << kRowShift : word >> (first_bit - kRowShift);
      const uint32_t at = (shifted & params.id_mask) | params.pattern_scores;
#pragma unroll
      for (int h = 0; h < C::kLaneHeads; ++h) {
        start.s[half * C::kLaneHeads + h] = ptx::LoadSharedFloat(at + 4 * h);
      }
    }
    return start;
  }

  template <int kFirst, int kCount>
  __device__ __forceinline__ void ScoreTiles(uint32_t k_codes, const KeyGroup& key,
                                             const uint4& ids, TileScores (&scores)[kTiles]) const {
    ByteSums<kCount, C::kSets> sums;
    MultiplyTiles<C::kBits, C::kHeadDim, C::kBits == 2>(k_codes, kFirst, state.lane, key.b, sums);
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      TileScores& to = scores[kFirst + t];
      to = StartTile(kFirst + t, ids);
#pragma unroll
      for (int k = 0; k < 2 * C::kLaneHeads; ++k) {
        const int half = k / C::kLaneHeads, h = k % C::kLaneHeads;
        to.s[k] = fmaf(sums.Value(t, half, h), key.unit[h], to.s[k]);
      }
    }
  }

  // The last tile on its finer grid: q . (zero - scale) + q . scale / 3 times codes of 4 bits.
  __device__ __forceinline__ void ScoreFineTile(uint32_t k_codes, const KeyGroup& key,
                                                const uint4& ids, TileScores& scores) const {
    uint32_t b[C::kSets][C::kSteps];
    ByteSums<1, C::kSets> sums, ones;
    ones.Clear();
#pragma unroll
    for (int set = 0; set < C::kSets; ++set) {
#pragma unroll
      for (int f = 0; f < C::kSteps; f += 2) {
        // Steps 4 word + {0, 2} and + {1, 3} become those that codes of 4 bits pair.
        const uint32_t* from = key.b[set] + f / 4 * 4;
        b[set][f] = f % 4 == 0 ? EvenBytes(from[0], from[2]) : OddBytes(from[0], from[2]);
        b[set][f + 1] = f % 4 == 0 ? EvenBytes(from[1], from[3]) : OddBytes(from[1], from[3]);
        // Code 1 everywhere.
        ptx::MmaBytes(ones.s[set][0], 0x01010101u, 0x01010101u, 0x04040404u, 0x04040404u,
                      key.b[set][f], key.b[set][f + 1]);
      }
    }
    MultiplyTiles<kFineBits, C::kHeadDim, true>(k_codes + C::kFineAt, 0, state.lane, b, sums);
    constexpr float kFineFactor = TileWords<kFineBits, C::kHeadDim, true>::kFactor;
    scores = StartTile(kTiles - 1, ids);
#pragma unroll
    for (int k = 0; k < 2 * C::kLaneHeads; ++k) {
      const int half = k / C::kLaneHeads, h = k % C::kLaneHeads;
      const float steps =
          fmaf(sums.Value(0, half, h), 1.0f / (3.0f * kFineFactor), -ones.Value(0, half, h));
      scores.s[k] = fmaf(steps, key.unit[h] * kFactor, scores.s[k]);
    }
  }

  // The scores of all slots, in log2, but for what is the same for all: `offset` of each head.
  __device__ __forceinline__ void Score(uint32_t k_codes, TileScores (&scores)[kTiles],
                                        float (&offset)[C::kLaneHeads]) const {
    uint4 ids = {~0u, ~0u, ~0u, ~0u};
    if (params.has_patterns) ids = ptx::LoadShared128(params.k_ids + state.g * 16);
    KeyGroup key;
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) offset[h] = 0;
    if constexpr (!C::kGrouped) {
      LoadKeyGroup(0, key);
      ScoreTiles<0, 4>(k_codes, key, ids, scores);
      ScoreTiles<4, 4 - C::kFineTiles>(k_codes, key, ids, scores);
      if constexpr (C::kFine) ScoreFineTile(k_codes, key, ids, scores[kTiles - 1]);
#pragma unroll
      for (int h = 0; h < C::kLaneHeads; ++h) offset[h] = key.zero[h];
    } else {
      ScoreGroups<0>(k_codes, ids, key, scores);
    }
    if (__builtin_expect(params.num_masked > 0, 0)) Mask(scores);
  }

  // Two tiles after another, each with the parameters of its group.
  template <int kPair>
  __device__ __forceinline__ void ScoreGroups(uint32_t k_codes, const uint4& ids, KeyGroup& key,
                                              TileScores (&scores)[kTiles]) const {
    if constexpr (kPair < kTiles / 2) {
      LoadKeyGroup(kPair * params.k_groups / 4, key);
      ScoreTiles<2 * kPair, 2>(k_codes, key, ids, scores);
#pragma unroll
      for (int k = 0; k < 2 * C::kLaneHeads; ++k) {
        scores[2 * kPair].s[k] += key.zero[k % C::kLaneHeads];
        scores[2 * kPair + 1].s[k] += key.zero[k % C::kLaneHeads];
      }
      ScoreGroups<kPair + 1>(k_codes, ids, key, scores);
    }
  }

  __device__ __forceinline__ void Mask(TileScores (&scores)[kTiles]) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int k = 0; k < 2 * C::kLaneHeads; ++k) {
        if (16 * t + k / C::kLaneHeads * 8 + state.g < params.num_masked) scores[t].s[k] = kMasked;
      }
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_BLOCK_CUH_
