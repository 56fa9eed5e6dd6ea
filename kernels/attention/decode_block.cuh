#ifndef PKV_KERNELS_ATTENTION_DECODE_BLOCK_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_BLOCK_CUH_

// K of a block of codes: from its codes to the weights of its slots.

#include "kernels/attention/decode_state.cuh"

namespace pkv {

// Where the parameters of a block stand in its K slot (shared addresses), and what else is uniform.
struct BlockParams {
  uint32_t k_scales, k_zeros, v_scales, v_zeros, k_ids, v_ids;
  int k_groups = 1, v_groups = 1;
  int num_masked = 0;  // first slots that hold no token
  bool has_patterns = false;
  uint32_t pattern_scores = 0;  // shared fp32 [id][head], in code units of scores

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
  static constexpr int kTiles = C::kTiles;

  State& state;
  const BlockParams& params;

  // q * scale with code weights, and q . zero and q . scale in code units, of one K group.
  struct KeyGroup {
    uint32_t scaled[State::kQueryWords];
    float zero[C::kLaneHeads], scale_sum[C::kLaneHeads];
  };

  __device__ __forceinline__ void LoadKeyGroup(int group, float shrink, uint32_t shrink2,
                                               const uint4 (&scales)[C::kSteps / 2],
                                               KeyGroup& key) const {
    float z[2][4], sums[2][4];
    State::ClearTile(z[0]), State::ClearTile(z[1]);
    State::ClearTile(sums[0]), State::ClearTile(sums[1]);
    const uint32_t zeros = params.k_zeros + group * 2 * C::kHeadDim;
#pragma unroll
    for (int i = 0; i < C::kSteps / 2; ++i) {
      const uint4 zero = LoadColumns(zeros, C::kHeadDim, state.q, i);
      const uint4 query = LoadColumns(state.query, C::kHeadDim, state.q, i);
      const uint32_t words[4] = {query.x, query.y, query.z, query.w};
      const uint32_t scale[4] = {scales[i].x, scales[i].y, scales[i].z, scales[i].w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int step = k / 2, half = k % 2, place = OperandPlace(step, half);
        uint32_t weighted = ptx::MultiplyHalf2(words[place], C::Weight(2 * i + step, half));
        if (shrink != 1.0f) weighted = ptx::MultiplyHalf2(weighted, shrink2);
        key.scaled[4 * i + place] = ptx::MultiplyHalf2(weighted, scale[k]);
      }
      ptx::Mma(z[0], zero.x, zero.y, zero.z, zero.w, query.x, query.y);
      ptx::Mma(z[1], zero.x, zero.y, zero.z, zero.w, query.z, query.w);
      if constexpr (C::kFine) {
        // Code 1 everywhere: the sum of q * scale in the units of codes.
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t first = 0x10001u << C::FirstBit(2 * i, half);
          const uint32_t second = 0x10001u << C::FirstBit(2 * i + 1, half);
          ptx::Mma(sums[half], first, first, second, second, key.scaled[4 * i + 2 * half],
                   key.scaled[4 * i + 2 * half + 1]);
        }
      }
    }
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      key.zero[h] = (z[0][h] + z[1][2 + h]) * (C::kCodeUnit * shrink);
      key.scale_sum[h] = sums[0][h] + sums[1][h];
    }
  }

  // The scores of tile t without codes: q . zero + q . pattern. ids: row order, this lane's 16.
  __device__ __forceinline__ TileScores StartTile(int t, const KeyGroup& key, const uint4& ids,
                                                  float shrink) const {
    TileScores start;
    const uint32_t words[4] = {ids.x, ids.y, ids.z, ids.w};
    constexpr int kRowShift = C::kWide ? 5 : 4;  // log2 of the bytes of a row of pattern_scores
    static_assert(C::kHeads * 4 == 1 << kRowShift);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first_bit = 16 * (t % 2) + 8 * half;
      const uint32_t word = words[t / 2];
      const uint32_t shifted =
          first_bit < kRowShift ? word << kRowShift : word >> (first_bit - kRowShift);
      const uint32_t at = (shifted & (0xffu << kRowShift)) | (state.q * C::kLaneHeads * 4);
#pragma unroll
      for (int h = 0; h < C::kLaneHeads; ++h) {
        float pattern = 0;
        if (params.has_patterns) {
          pattern = ptx::LoadSharedFloat(params.pattern_scores + at + 4 * h);
        }
        start.s[half * C::kLaneHeads + h] = fmaf(pattern, shrink, key.zero[h]);
      }
    }
    return start;
  }

  template <int kFirst, int kCount>
  __device__ __forceinline__ void ScoreTiles(uint32_t k_codes, const KeyGroup& key,
                                             const uint4& ids, float shrink,
                                             TileScores (&scores)[kTiles]) const {
    float acc[kCount][4];
#pragma unroll
    for (int t = 0; t < kCount; ++t) State::ClearTile(acc[t]);
    MultiplyTiles<C::kBits, C::kHeadDim, kCount>(k_codes, kFirst, state.lane, key.scaled, acc);
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      TileScores& to = scores[kFirst + t];
      to = StartTile(kFirst + t, key, ids, shrink);
      State::AddScaled(acc[t], 1.0f, to.s);
    }
  }

  // The last tile on its finer grid: q . (zero - scale) + q . scale / 3 times codes of 4 bits.
  __device__ __forceinline__ void ScoreFineTile(uint32_t k_codes, const KeyGroup& key,
                                                const uint4& ids, float shrink,
                                                TileScores& scores) const {
    using Fine = DecodeConfig<4, C::kHeadDim, C::kWide, false, false>;
    uint32_t scaled[State::kQueryWords];
#pragma unroll
    for (int i = 0; i < State::kQueryWords; ++i) {
      const int step = i / 2, half = i % 2, place = OperandPlace(step, half);
      const int exponent =
          (Fine::kTopBit - Fine::FirstBit(step, half)) - (C::kTopBit - C::FirstBit(step, half));
      scaled[place] = ptx::MultiplyHalf2(key.scaled[place], C::PowerOfTwo(exponent) * 0x10001u);
    }
    float acc[1][4];
    State::ClearTile(acc[0]);
    MultiplyTiles<kFineBits, C::kHeadDim, 1>(k_codes + C::kFineAt, 0, state.lane, scaled, acc);
    TileScores codes;
    State::KeepScores(acc[0], codes);
    scores = StartTile(kTiles - 1, key, ids, shrink);
    constexpr float kUnits = C::kCodeUnit / Fine::kCodeUnit / 3.0f;
#pragma unroll
    for (int k = 0; k < 2 * C::kLaneHeads; ++k) {
      scores.s[k] = fmaf(codes.s[k], kUnits, scores.s[k] - key.scale_sum[k % C::kLaneHeads]);
    }
  }

  // Weights of all slots, in `scores`.
  __device__ __forceinline__ void Score(uint32_t k_codes, TileScores (&scores)[kTiles]) const {
    uint4 ids = {0, 0, 0, 0};
    if (params.has_patterns) ids = ptx::LoadShared128(params.k_ids + state.g * 16);
    KeyGroup key;
    uint4 scales[C::kSteps / 2];
    float shrink = 1.0f;
    uint32_t shrink2 = kOnes;
    if constexpr (!C::kGrouped) {
      LoadScales(0, scales, shrink, shrink2);
      LoadKeyGroup(0, shrink, shrink2, scales, key);
      ScoreTiles<0, 4>(k_codes, key, ids, shrink, scores);
      ScoreTiles<4, 4 - C::kFineTiles>(k_codes, key, ids, shrink, scores);
      if constexpr (C::kFine) ScoreFineTile(k_codes, key, ids, shrink, scores[kTiles - 1]);
    } else {
      ScoreGroups<0>(k_codes, ids, key, scores);
    }
    Mask(scores);
    // Scales below 2^kScaleBits leave V's products finite, larger ones need smaller weights.
    const int spare = max(0, VScaleExponent() - kScaleBits);
    state.Weigh(scores, (1.0f / C::kCodeUnit) / shrink, spare);
  }

  // Two tiles after another, each with the parameters of its group; scores leave in units of no
  // shrinking.
  template <int kPair>
  __device__ __forceinline__ void ScoreGroups(uint32_t k_codes, const uint4& ids, KeyGroup& key,
                                              TileScores (&scores)[kTiles]) const {
    if constexpr (kPair < kTiles / 2) {
      float shrink = 1.0f;
      uint32_t shrink2 = kOnes;
      uint4 scales[C::kSteps / 2];
      LoadScales(kPair * params.k_groups / 4, scales, shrink, shrink2);
      LoadKeyGroup(kPair * params.k_groups / 4, shrink, shrink2, scales, key);
      ScoreTiles<2 * kPair, 2>(k_codes, key, ids, shrink, scores);
      const float grow = 1.0f / shrink;
#pragma unroll
      for (int k = 0; k < 2 * C::kLaneHeads; ++k) {
        scores[2 * kPair].s[k] *= grow;
        scores[2 * kPair + 1].s[k] *= grow;
      }
      ScoreGroups<kPair + 1>(k_codes, ids, key, scores);
    }
  }

  __device__ __forceinline__ void LoadScales(int group, uint4 (&scales)[C::kSteps / 2],
                                             float& shrink, uint32_t& shrink2) const {
    uint32_t words[State::kQueryWords];
#pragma unroll
    for (int i = 0; i < C::kSteps / 2; ++i) {
      scales[i] = LoadColumns(params.k_scales + group * 2 * C::kHeadDim, C::kHeadDim, state.q, i);
      words[4 * i] = scales[i].x, words[4 * i + 1] = scales[i].y;
      words[4 * i + 2] = scales[i].z, words[4 * i + 3] = scales[i].w;
    }
    const int excess = ScaleExponent<State::kQueryWords>(words, 1, 2) - kScaleBits;
    if (excess <= 0) return;
    shrink = __int_as_float((127 - excess) << 23);
    shrink2 = C::PowerOfTwo(-excess) * 0x10001u;
  }

  __device__ __forceinline__ void Mask(TileScores (&scores)[kTiles]) const {
    if (params.num_masked == 0) return;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int k = 0; k < 2 * C::kLaneHeads; ++k) {
        if (16 * t + k / C::kLaneHeads * 8 + state.g < params.num_masked) scores[t].s[k] = kMasked;
      }
    }
  }

  __device__ __forceinline__ int VScaleExponent() const {
    int exponent = 1;
#pragma unroll
    for (int group = 0; group < C::kMaxVGroups; ++group) {
      if (group >= params.v_groups) break;
      uint32_t scales[kTiles];
      LoadVScales(params, group, state.g, scales);
      exponent = max(exponent, ScaleExponent<kTiles>(scales, 4, 16));
    }
    return exponent;
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_BLOCK_CUH_
