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

  // The scores of the first `rows` tokens, in log2.
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
#pragma unroll
      for (int k = 0; k < 2 * C::kLaneHeads; ++k) {
        const int half = k / C::kLaneHeads, h = k % C::kLaneHeads;
        const bool is_token = 16 * t + 8 * half + state.g < rows;
        scores[t].s[k] = is_token ? State::SumOf(acc, half, h) * state.score_unit[h] : kMasked;
      }
    }
  }

  // weights: made of those scores. factor: what they count.
  __device__ __forceinline__ void Add(uint32_t v_rows, const WeightTile<C> (&weights)[kTiles],
                                      const float (&factor)[C::kLaneHeads]) const {
    uint2 b[kTiles];
#pragma unroll
    for (int t = 0; t < kTiles; ++t) b[t] = weights[t].Operand();
    const uint32_t from = v_rows + ((state.lane >> 4) * 8 + (state.lane & 7)) * C::kRowStride +
                          (state.lane >> 3 & 1) * 16;
#pragma unroll
    for (int i = 0; i < C::kSteps; ++i) {
      float acc[4];
      State::ClearTile(acc);
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        const uint4 a = ptx::LoadMatricesTransposed(from + 16 * t * C::kRowStride + 32 * i);
        ptx::Mma(acc, a.x, a.y, a.z, a.w, b[t].x, b[t].y);
      }
      State::AddScaled(acc, factor, state.out[i]);
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_ROWS_CUH_
