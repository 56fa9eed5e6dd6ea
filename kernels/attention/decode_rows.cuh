#ifndef PKV_KERNELS_ATTENTION_DECODE_ROWS_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_ROWS_CUH_

// A unit of fp16 rows: sinks, window, new token, or part of a page of rows.

#include "kernels/attention/decode_state.cuh"

namespace pkv {

// A tile of fp16 rows.
template <typename C>
struct RowMath {
  using State = WarpState<C>;
  using TileScores = typename State::TileScores;
  static constexpr int kTiles = C::kTileTokens / 16;

  State& state;

  // Weights of the first `rows` tokens, 0 of the others.
  __device__ __forceinline__ void Score(uint32_t k_rows, int rows,
                                        TileScores (&scores)[kTiles]) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      float acc[4];
      State::ClearTile(acc);
      const uint32_t from =
          k_rows + (16 * t + (state.lane & 15)) * C::kRowStride + (state.lane >> 4) * 16;
#pragma unroll
      for (int i = 0; i < C::kSteps; i += 2) {
        const uint4 query = LoadColumns(state.query, C::kHeadDim, state.q, i / 2);
        const uint4 a = ptx::LoadMatrices(from + 32 * i);
        ptx::Mma(acc, a.x, a.y, a.z, a.w, query.x, query.z);
        const uint4 next = ptx::LoadMatrices(from + 32 * i + 32);
        ptx::Mma(acc, next.x, next.y, next.z, next.w, query.y, query.w);
      }
      State::KeepScores(acc, scores[t]);
#pragma unroll
      for (int k = 0; k < 2 * C::kLaneHeads; ++k) {
        if (16 * t + k / C::kLaneHeads * 8 + state.g >= rows) scores[t].s[k] = kMasked;
      }
    }
    state.Weigh(scores, 1.0f, 0);
  }

  // B operands of V, and the sum of weights.
  __device__ __forceinline__ void Prepare(const TileScores (&scores)[kTiles], uint32_t* b) const {
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
      const uint2 plain = WeightTile<C>(scores[t]).Plain();
      b[2 * t] = plain.x, b[2 * t + 1] = plain.y;
      float sums[4];
      State::ClearTile(sums);
      ptx::Mma(sums, kOnes, kOnes, kOnes, kOnes, plain.x, plain.y);
#pragma unroll
      for (int h = 0; h < C::kLaneHeads; ++h) state.sum[h] += sums[C::kWide ? h : 1];
    }
  }

  __device__ __forceinline__ void Add(uint32_t v_rows, const uint32_t* b) const {
    const uint32_t from = v_rows + ((state.lane >> 4) * 8 + (state.lane & 7)) * C::kRowStride +
                          (state.lane >> 3 & 1) * 16;
#pragma unroll
    for (int i = 0; i < C::kSteps; ++i) {
      float acc[4];
      State::ClearTile(acc);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const uint4 a = ptx::LoadMatricesTransposed(from + 16 * t * C::kRowStride + 32 * i);
        ptx::Mma(acc, a.x, a.y, a.z, a.w, b[2 * t], b[2 * t + 1]);
      }
      State::AddScaled(acc, C::kCodeUnit, state.out[i]);
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_ROWS_CUH_
