#ifndef PKV_KERNELS_ATTENTION_DECODE_QUERY_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_QUERY_CUH_

// Queries as B operands in a warp's shared memory, and their scores against the K patterns of a
// bank.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/attention/decode_ring.cuh"
#include "kernels/attention/decode_state.cuh"

namespace pkv {

// Values of one row, consecutive ones in consecutive lanes: rotated (kernels/README.md, "Rotate").
template <int kChannels>
__device__ __forceinline__ void RotateRow(float (&x)[kChannels], int lane) {
#pragma unroll
  for (int distance = 1; distance < kChannels; distance *= 2) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      if ((i & distance) != 0) continue;
      const float a = x[i], b = x[i + distance];
      x[i] = a + b;
      x[i + distance] = a - b;
    }
  }
#pragma unroll
  for (int mask = 1; mask < 32; mask *= 2) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const float other = __shfl_xor_sync(0xffffffffu, x[i], mask);
      x[i] = (lane & mask) != 0 ? other - x[i] : x[i] + other;
    }
  }
#pragma unroll
  for (int i = 0; i < kChannels; ++i) x[i] *= kChannels == 4 ? 0.088388347648318441f : 0.125f;
}

// Several values of T at once.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Values {
  T x[kCount];
};

// The patterns of one kv head of a request's bank.
struct PatternRows {
  const uint16_t* k = nullptr;
  const uint16_t* v = nullptr;
  int num_k = 0, num_v = 0;
};
template <typename C>
__device__ PatternRows PatternsOf(const DecodeLaunch& launch, const UnitCursor& at) {
  if (!launch.has_patterns) return {};
  const DecodeAttentionArgs& args = launch.args;
  const int64_t rows = int64_t{args.bank_capacity} * C::kHeadDim;
  const uint16_t* k = args.banks + args.bank_ids[at.request] * args.bank_stride + at.kv_head * rows;
  return {k, k + launch.num_kv_heads * rows, args.num_patterns[2 * at.request],
          args.num_patterns[2 * at.request + 1]};
}

template <typename C>
struct QueryMath {
  static constexpr int kChannels = C::kHeadDim / 32;  // of a lane
  static constexpr int kChunks = C::kHeadDim / 32;    // of 16 bytes that a lane has of a row

  const DecodeLaunch& launch;
  uint32_t queries;  // shared address of the warp's rows
  float* table;      // its list of pattern scores
  int lane;

  // What comes from global memory: asked for at once, used later.
  struct Rows {
    Values<uint16_t, kChannels> q[C::kHeads];
  };
  __device__ __forceinline__ Rows Load(int first_head) const {
    Rows rows;
#pragma unroll
    for (int head = 0; head < C::kHeads; ++head) {
      if (head >= launch.heads_per_kv) break;
      rows.q[head] = reinterpret_cast<const Values<uint16_t, kChannels>*>(
          launch.args.q)[int64_t{first_head + head} * 32 + lane];
    }
    return rows;
  }

  // The query heads of an item as fp16, each times the power of two that brings its largest element
  // into [512, 1024), and what that makes of the scores' unit.
  __device__ __forceinline__ void Prepare(const Rows& rows, bool is_rotated,
                                          WarpState<C>& state) const {
#pragma unroll
    for (int head = 0; head < C::kHeads; ++head) {
      float x[kChannels] = {};
      if (head < launch.heads_per_kv) {
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
          x[i] = launch.is_bfloat16 ? __uint_as_float(uint32_t{rows.q[head].x[i]} << 16)
                                    : __half2float(__ushort_as_half(rows.q[head].x[i]));
        }
      }
      if (C::kRotates && is_rotated) RotateRow(x, lane);
      float largest = 0;
#pragma unroll
      for (int i = 0; i < kChannels; ++i) largest = fmaxf(largest, fabsf(x[i]));
      largest = ReduceLanes(largest, 1, 16, [](float a, float b) { return fmaxf(a, b); });
      // 2^exponent is the power of two at or below the largest, unless that is next to nothing.
      constexpr int kLeast = -40, kQueryBits = 9;
      const int exponent = max((__float_as_int(largest) >> 23) - 127, kLeast);
      const float factor = __int_as_float((127 + kQueryBits - exponent) << 23);
#pragma unroll
      for (int i = 0; i < kChannels; i += 2) {
        ptx::StoreShared32(WordAddress(head, (lane * kChannels + i) / 2),
                           ptx::PackHalf2(x[i] * factor, x[i + 1] * factor));
      }
      constexpr float kLog2E = 1.4426950408889634f;
      if (head / C::kLaneHeads == state.q) {
        state.score_unit[head % C::kLaneHeads] = launch.args.sm_scale * kLog2E / factor;
      }
    }
    __syncwarp();
    state.query = RowAddress(RowOf(state));
  }

  // The fragments of 16 K patterns, as A operands; of an id that there is not: zeros. A lane has 8
  // channels at a time, 32 chunk + 8 q .., in place of those that an operand usually holds: a sum
  // over channels has no order.
  struct PatternTile {
    uint4 low[kChunks], high[kChunks];
  };
  __device__ __forceinline__ PatternTile LoadPatterns(const WarpState<C>& state,
                                                      const PatternRows& patterns, int tile) const {
    const int id = 16 * tile + state.g;
    PatternTile rows;
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      rows.low[chunk] = LoadPattern(patterns, id, chunk, state.q);
      rows.high[chunk] = LoadPattern(patterns, id + 8, chunk, state.q);
    }
    return rows;
  }

  // Their scores, in log2.
  __device__ __forceinline__ void ScorePatterns(const WarpState<C>& state, const PatternTile& rows,
                                                int tile) const {
    float acc[2][4] = {};
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      uint32_t b[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        b[i] = ptx::LoadShared32(WordAddress(RowOf(state), 16 * chunk + 4 * state.q + i));
      }
      const uint4 low = rows.low[chunk], high = rows.high[chunk];
      ptx::Mma(acc[0], low.x, high.x, low.y, high.y, b[0], b[1]);
      ptx::Mma(acc[1], low.z, high.z, low.w, high.w, b[2], b[3]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int h = 0; h < C::kLaneHeads; ++h) {
        const int id = 16 * tile + 8 * half + state.g;
        const float sum =
            WarpState<C>::SumOf(acc[0], half, h) + WarpState<C>::SumOf(acc[1], half, h);
        table[id * C::kHeads + state.q * C::kLaneHeads + h] = sum * state.score_unit[h];
      }
    }
  }

  // Where an id of 255 leads.
  __device__ void ClearRaw() const {
    __syncwarp();
    if (lane < C::kHeads) table[(launch.table_ids - 1) * C::kHeads + lane] = 0;
    __syncwarp();
  }

 private:
  __device__ __forceinline__ static int RowOf(const WarpState<C>& state) {
    return C::kWide ? state.g : state.g / 2;
  }
  __device__ __forceinline__ uint32_t RowAddress(int row) const {
    return queries + row * C::kQueryStride * 2;
  }
  // Of channels 2 pair and 2 pair + 1, in the order of B operands.
  __device__ __forceinline__ uint32_t WordAddress(int row, int pair) const {
    const int step = pair / 8, half = pair / 4 % 2;
    return RowAddress(row) + 4 * (pair % 4 * (C::kHeadDim / 8) + OperandPlace(step, half));
  }
  __device__ __forceinline__ uint4 LoadPattern(const PatternRows& patterns, int id, int chunk,
                                               int q) const {
    if (id >= patterns.num_k) return {0, 0, 0, 0};
    return reinterpret_cast<const uint4*>(patterns.k + int64_t{id} * C::kHeadDim)[4 * chunk + q];
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_QUERY_CUH_
