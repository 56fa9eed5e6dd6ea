#ifndef PKV_KERNELS_ATTENTION_DECODE_STATE_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_STATE_CUH_

// Online softmax of one warp over the units that it is given.

#include "kernels/attention/decode_tiles.cuh"

namespace pkv {

// Weights are 2^(score - reference) of at most 2^kSlackBits: the reference follows the largest
// score only when that would be exceeded, so that sums are seldom rescaled.
inline constexpr int kSlackBits = 5;
// Scales below 2^kScaleBits keep every fp16 operand finite: |q| < 2^5, weights <= 2^kSlackBits, the
// largest code weight is 2^8, and 2^(5 + 8 + 3) is the end of fp16.
inline constexpr int kScaleBits = 3;

template <typename C>
struct WarpState {
  static constexpr int kQueryWords = 2 * C::kSteps;
  static constexpr int kLaneValues = 2 * C::kLaneHeads;
  static constexpr int kPatternTiles = C::kHasCodes ? C::kRegisterPatterns / 16 : 1;

  int lane, g, q;
  int num_v_patterns = 0;
  // Shared address of the sums of weights by V pattern from kRegisterPatterns on, fp32 [id][head],
  // this warp's; a lane owns the rows and heads of an mma's sums.
  uint32_t many = 0;
  uint32_t query;                   // shared address of this lane's row, B of the scores
  float score_unit[C::kLaneHeads];  // what a score of 1 is in log2
  float reference[C::kLaneHeads];
  // Sums of one lane's rows g and g + 8 and query heads, [row half][head] as in TileScores.
  float out[C::kSteps][kLaneValues];  // [channel tile]: of weight times code, in code units
  float histogram[kPatternTiles][kLaneValues];    // of weights, by V pattern
  float zero_sum[C::kMaxVGroups][C::kLaneHeads];  // of weight times zero point
  float sum[C::kLaneHeads];                       // of weights

  __device__ __forceinline__ explicit WarpState(int lane_index)
      : lane(lane_index), g(lane_index >> 2), q(lane_index & 3) {}

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) reference[h] = kLowest;
#pragma unroll
    for (int i = 0; i < C::kSteps * kLaneValues; ++i) out[0][i] = 0;
#pragma unroll
    for (int i = 0; i < kPatternTiles * kLaneValues; ++i) histogram[0][i] = 0;
#pragma unroll
    for (int i = 0; i < C::kMaxVGroups * C::kLaneHeads; ++i) zero_sum[0][i] = 0;
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) sum[h] = 0;
    const float none[C::kLaneHeads] = {};
    ScaleMany(none);
  }

  __device__ __forceinline__ uint32_t ManyAddress(int id, int lane_head) const {
    return many + (id * C::kHeads + q * C::kLaneHeads + lane_head) * 4;
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

  __device__ __forceinline__ static void ClearTile(float (&tile)[4]) {
    tile[0] = tile[1] = tile[2] = tile[3] = 0;
  }

  // A lane's scores of one token tile: rows g and g + 8 of its query heads.
  struct TileScores {
    float s[2 * C::kLaneHeads];
  };
  __device__ __forceinline__ static void KeepScores(const float (&acc)[4], TileScores& to) {
    if constexpr (C::kWide) {
      to.s[0] = acc[0], to.s[1] = acc[1], to.s[2] = acc[2], to.s[3] = acc[3];
    } else {
      to.s[0] = acc[0], to.s[1] = acc[2];
    }
  }
  // Of scores times score_unit times `unit`: makes them weights, and moves the reference when
  // needed. `spare_bits`: how far below 2^kSlackBits weights must stay.
  template <int kCount>
  __device__ __forceinline__ void Weigh(TileScores (&scores)[kCount], float unit, int spare_bits) {
    float to_log2[C::kLaneHeads], wanted[C::kLaneHeads];
    bool moves = false;
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      to_log2[h] = score_unit[h] * unit;
      float largest = scores[0].s[h];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        largest = fmaxf(largest, fmaxf(scores[i].s[h], scores[i].s[C::kLaneHeads + h]));
      }
      wanted[h] = MaxOverRows(largest) * to_log2[h] + static_cast<float>(spare_bits);
      moves |= wanted[h] > reference[h] + kSlackBits;
    }
    if (__any_sync(0xffffffffu, moves)) MoveReference(wanted);
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
      for (int k = 0; k < 2 * C::kLaneHeads; ++k) {
        const int h = k % C::kLaneHeads;
        scores[i].s[k] = ptx::Exp2(fmaf(scores[i].s[k], to_log2[h], -reference[h]));
      }
    }
  }

  __device__ __forceinline__ void MoveReference(const float (&wanted)[C::kLaneHeads]) {
    float factor[C::kLaneHeads];
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      const bool moves = wanted[h] > reference[h] + kSlackBits;
      factor[h] = moves ? ptx::Exp2(reference[h] - wanted[h]) : 1.0f;
      if (moves) reference[h] = wanted[h];
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
    }
    ScaleMany(factor);
  }

  // to[..] += unit * what an mma's sums hold of this lane's query heads: in the columns that V was
  // multiplied with, or in those of plain weights (WeightTile).
  __device__ __forceinline__ static void AddScaled(const float (&acc)[4], float unit,
                                                   float (&to)[kLaneValues]) {
#pragma unroll
    for (int k = 0; k < kLaneValues; ++k) {
      to[k] = fmaf(acc[C::kWide ? k : 2 * k], unit, to[k]);
    }
  }
  __device__ __forceinline__ static void AddPlain(const float (&acc)[4], float (&to)[kLaneValues]) {
#pragma unroll
    for (int k = 0; k < kLaneValues; ++k) to[k] += acc[C::kWide ? k : 2 * k + 1];
  }
};

// Weights of one token tile as B operands. Wide: columns are heads. Not wide: column 2 h is what V
// is multiplied with, 2 h + 1 the weights themselves, so one operand serves V and the sums.
template <typename C>
struct WeightTile {
  uint32_t low[C::kLaneHeads];  // fp16x2. Wide: heads of row g, of row g + 8; else rows g, g + 8

  WeightTile() = default;
  __device__ __forceinline__ explicit WeightTile(const typename WarpState<C>::TileScores& p) {
    if constexpr (C::kWide) {
      low[0] = ptx::PackHalf2(p.s[0], p.s[1]);
      low[1] = ptx::PackHalf2(p.s[2], p.s[3]);
    } else {
      low[0] = ptx::PackHalf2(p.s[0], p.s[1]);
    }
  }
  // B of the sums: (b0, b1).
  __device__ __forceinline__ uint2 Plain() const {
    if constexpr (C::kWide) {
      return {ptx::Transpose(low[0]), ptx::Transpose(low[1])};
    } else {
      return {ptx::Transpose(__byte_perm(low[0], 0, 0x1010)),
              ptx::Transpose(__byte_perm(low[0], 0, 0x3232))};
    }
  }
  // B of V's codes: times `weights` (rows g, g + 8: powers of two), then times `scales` of rows g
  // and g + 8.
  __device__ __forceinline__ uint2 Scaled(uint32_t weights, uint32_t scales) const {
    if constexpr (C::kWide) {
      const uint32_t row =
          ptx::MultiplyHalf2(ptx::MultiplyHalf2(low[0], __byte_perm(weights, 0, 0x1010)),
                             __byte_perm(scales, 0, 0x1010));
      const uint32_t row8 =
          ptx::MultiplyHalf2(ptx::MultiplyHalf2(low[1], __byte_perm(weights, 0, 0x3232)),
                             __byte_perm(scales, 0, 0x3232));
      return {ptx::Transpose(row), ptx::Transpose(row8)};
    } else {
      const uint32_t scaled = ptx::MultiplyHalf2(ptx::MultiplyHalf2(low[0], weights), scales);
      return {ptx::Transpose(__byte_perm(scaled, low[0], 0x5410)),
              ptx::Transpose(__byte_perm(scaled, low[0], 0x7632))};
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_STATE_CUH_
