#ifndef PKV_KERNELS_ATTENTION_DECODE_STATE_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_STATE_CUH_

// Online softmax of one warp over the units that it is given.

#include "kernels/attention/decode_tiles.cuh"

namespace pkv {

// The weights of a unit are 2^(score - top + kWeightBits), top its largest score: so they, and
// their products with scales from 2^-11 to 2^6, are in fp16's normal range. Sums over units are
// relative to a reference, which follows the largest top only when that exceeds it by kSlackBits:
// so sums are seldom rescaled.
inline constexpr int kWeightBits = 10;
inline constexpr int kSlackBits = 16;

template <typename C>
struct WarpState {
  static constexpr int kLaneValues = 2 * C::kLaneHeads;
  static constexpr int kPatternTiles = C::kHasCodes ? C::kRegisterPatterns / 16 : 1;

  int lane, g, q;
  int num_v_patterns = 0;
  uint32_t query;                   // shared address of this lane's row, B of the scores
  float score_unit[C::kLaneHeads];  // what a score of 1 is in log2
  float reference[C::kLaneHeads];   // in log2
  // Sums of one lane's rows g and g + 8 and query heads, [row half][head] as in TileScores.
  float out[C::kSteps][kLaneValues];  // [channel tile]: of weight times code times scale, or row
  float histogram[kPatternTiles][kLaneValues];    // of weights, by V pattern
  float zero_sum[C::kMaxVGroups][C::kLaneHeads];  // of weight times zero point
  // Of this lane's rows alone: sum of weights, and what rounding weights took from the output.
  float sum[C::kLaneHeads], lost[C::kMaxVGroups][C::kLaneHeads];

  __device__ __forceinline__ explicit WarpState(int lane_index)
      : lane(lane_index), g(lane_index >> 2), q(lane_index & 3) {}

  // REQUIRES: query is there.
  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) reference[h] = kLowest;
#pragma unroll
    for (int i = 0; i < C::kSteps * kLaneValues; ++i) out[0][i] = 0;
#pragma unroll
    for (int i = 0; i < kPatternTiles * kLaneValues; ++i) histogram[0][i] = 0;
#pragma unroll
    for (int i = 0; i < C::kMaxVGroups * C::kLaneHeads; ++i) zero_sum[0][i] = lost[0][i] = 0;
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) sum[h] = 0;
    const float none[C::kLaneHeads] = {};
    ScaleMany(none);
  }

  // Shared address of the warp's queries.
  __device__ __forceinline__ uint32_t queries() const {
    return query - g / (C::kWide ? 1 : 2) * C::kQueryStride * 2;
  }
  // Of the weights of V patterns from kRegisterPatterns on, fp32 [id][head], behind the warp's
  // other memory; a lane owns the rows and heads of an mma's sums.
  __device__ __forceinline__ uint32_t ManyAddress(int id, int lane_head) const {
    return queries() + C::kWarpBytes - C::kQueriesAt +
           (id * C::kHeads + q * C::kLaneHeads + lane_head) * 4;
  }
  // 0 clears, whatever was there.
  __device__ __forceinline__ void ScaleMany(const float (&factor)[C::kLaneHeads]) {
#pragma unroll 1
    for (int id = g; id < num_v_patterns - C::kRegisterPatterns; id += 8) {
#pragma unroll
      for (int h = 0; h < C::kLaneHeads; ++h) {
        const uint32_t at = ManyAddress(id, h);
        ptx::StoreSharedFloat(at, factor[h] == 0 ? 0 : ptx::LoadSharedFloat(at) * factor[h]);
      }
    }
  }

  // Takes 10 bits off the queries: products with scales from 64 on would not be finite.
  __device__ void ShrinkQueries() {
    __syncwarp();
    const uint32_t row = queries();
#pragma unroll 1
    for (int i = lane; i < C::kHeads * C::kQueryStride / 2; i += 32) {
      ptx::StoreShared32(row + 4 * i,
                         ptx::MultiplyHalf2(ptx::LoadShared32(row + 4 * i), 0x14001400u));
    }
    __syncwarp();
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) score_unit[h] *= 1024.0f;
  }

  __device__ __forceinline__ static void ClearTile(float (&tile)[4]) {
    tile[0] = tile[1] = tile[2] = tile[3] = 0;
  }

  // A lane's scores of one token tile, in log2: rows g and g + 8 of its query heads.
  struct TileScores {
    float s[2 * C::kLaneHeads];
  };

  // Makes scores weights. offset: what all of a head have on top. factor: what weights count in the
  // sums.
  template <int kCount>
  __device__ __forceinline__ void Weigh(TileScores (&scores)[kCount],
                                        const float (&offset)[C::kLaneHeads],
                                        float (&factor)[C::kLaneHeads]) {
    float top[C::kLaneHeads], wanted[C::kLaneHeads];
    bool moves = false;
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      float largest = kLowest;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        largest = fmaxf(largest, fmaxf(scores[i].s[h], scores[i].s[C::kLaneHeads + h]));
      }
      top[h] = MaxOverRows(largest);
      wanted[h] = top[h] + offset[h];
      moves |= wanted[h] > reference[h] + kSlackBits;
    }
    if (__builtin_expect(__any_sync(0xffffffffu, moves), 0)) MoveReference(wanted);
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      const float base = top[h] - kWeightBits;
      factor[h] = ptx::Exp2(wanted[h] - kWeightBits - reference[h]);
      float total = 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        float& low = scores[i].s[h];
        float& high = scores[i].s[C::kLaneHeads + h];
        low = ptx::Exp2(low - base);
        high = ptx::Exp2(high - base);
        total += low + high;
      }
      sum[h] = fmaf(total, factor[h], sum[h]);
    }
  }

  __device__ __forceinline__ void MoveReference(const float (&top)[C::kLaneHeads]) {
    float factor[C::kLaneHeads];
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      const bool moves = top[h] > reference[h] + kSlackBits;
      factor[h] = moves ? ptx::Exp2(reference[h] - top[h]) : 1.0f;
      if (moves) reference[h] = top[h];
      sum[h] *= factor[h];
    }
#pragma unroll
    for (int i = 0; i < C::kSteps * kLaneValues; ++i) out[0][i] *= factor[i % C::kLaneHeads];
#pragma unroll
    for (int i = 0; i < kPatternTiles * kLaneValues; ++i) {
      histogram[0][i] *= factor[i % C::kLaneHeads];
    }
#pragma unroll
    for (int i = 0; i < C::kMaxVGroups * C::kLaneHeads; ++i) {
      zero_sum[0][i] *= factor[i % C::kLaneHeads];
      lost[0][i] *= factor[i % C::kLaneHeads];
    }
    ScaleMany(factor);
  }

  // What an mma's sums hold of row g + 8 half and head h of the lane's: columns 2 q and 2 q + 1 are
  // one head twice, or two.
  __device__ __forceinline__ static float SumOf(const float (&acc)[4], int half, int h) {
    return acc[2 * half + h];
  }
  // to += acc * factor.
  __device__ __forceinline__ static void AddScaled(const float (&acc)[4],
                                                   const float (&factor)[C::kLaneHeads],
                                                   float (&to)[kLaneValues]) {
#pragma unroll
    for (int k = 0; k < kLaneValues; ++k) {
      const int half = k / C::kLaneHeads, h = k % C::kLaneHeads;
      to[k] = fmaf(SumOf(acc, half, h), factor[h], to[k]);
    }
  }

  // The sum so far, rotated (kernels/README.md, "Rotate"): channels are 16 tile +
  // 8 half + g, so three distances lie between lanes.
  __device__ __forceinline__ void RotateOut() {
#pragma unroll
    for (int mask = 4; mask <= 16; mask *= 2) {
#pragma unroll
      for (int i = 0; i < C::kSteps * kLaneValues; ++i) {
        const float other = __shfl_xor_sync(0xffffffffu, out[0][i], mask);
        out[0][i] = (lane & mask) != 0 ? other - out[0][i] : out[0][i] + other;
      }
    }
#pragma unroll
    for (int distance = C::kLaneHeads; distance < C::kSteps * kLaneValues; distance *= 2) {
#pragma unroll
      for (int i = 0; i < C::kSteps * kLaneValues; ++i) {
        if ((i & distance) != 0) continue;
        const float a = out[0][i], b = out[0][i + distance];
        out[0][i] = a + b;
        out[0][i + distance] = a - b;
      }
    }
    constexpr float kNorm = C::kHeadDim == 128 ? 0.088388347648318441f : 0.125f;
#pragma unroll
    for (int i = 0; i < C::kSteps * kLaneValues; ++i) out[0][i] *= kNorm;
  }
  // Zero points become part of the output. v_groups: of a block.
  __device__ __forceinline__ void AddZeros(int v_groups) {
    const int pairs =
        C::kMaxVGroups / v_groups;  // of channel tiles, with the zero points of a group
    float zero[C::kLaneHeads];
#pragma unroll
    for (int tile = 0; tile < C::kSteps; ++tile) {
#pragma unroll
      for (int h = 0; h < C::kLaneHeads; ++h) {
        if (C::kGrouped ? tile % 2 == 0 && tile / 2 % pairs == 0 : tile == 0) {
          constexpr int kGroups = C::kGrouped ? 2 : C::kSteps;  // tiles
          zero[h] = zero_sum[tile / kGroups][h] + SumOverRows(lost[tile / kGroups][h]);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) out[tile][half * C::kLaneHeads + h] += zero[h];
      }
    }
#pragma unroll
    for (int i = 0; i < C::kMaxVGroups * C::kLaneHeads; ++i) zero_sum[0][i] = lost[0][i] = 0;
  }
};

// Weights of one token tile: a query head a word, rows g and g + 8.
template <typename C>
struct WeightTile {
  uint32_t w[C::kLaneHeads];

  WeightTile() = default;
  __device__ __forceinline__ explicit WeightTile(const typename WarpState<C>::TileScores& p) {
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      w[h] = ptx::PackHalf2(p.s[h], p.s[C::kLaneHeads + h]);
    }
  }
  // As B of sums in fp16: (b0, b1).
  __device__ __forceinline__ uint2 Operand() const {
    constexpr int kSecond = C::kLaneHeads - 1;
    return {ptx::Transpose(__byte_perm(w[0], w[kSecond], 0x5410)),
            ptx::Transpose(__byte_perm(w[0], w[kSecond], 0x7632))};
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_STATE_CUH_
