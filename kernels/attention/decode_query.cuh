#ifndef PKV_KERNELS_ATTENTION_DECODE_QUERY_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_QUERY_CUH_

// Queries as B operands in a warp's shared memory, and their scores against the K patterns of a
// bank.

#include "kernels/attention/decode_ring.cuh"
#include "kernels/attention/decode_state.cuh"

namespace pkv {

// An mma's A whose product with 16 channels is those channels, or their part of the rotation
// (kernels/README.md, "Rotate"). Of B, lane q has channels 4 q .. 4 q + 3; of the product, lane g
// channels 2 g and 2 g + 1, in rows g and g + 8. Entries are 0, 1 and -1: products are exact.
struct ChannelMatrix {
  uint32_t a[4];

  __device__ __forceinline__ ChannelMatrix(int g, int q, bool is_rotated, bool is_bfloat16) {
    const uint32_t one = is_bfloat16 ? 0x3f80u : 0x3c00u;
    if (is_rotated) {
      // The sign of output c and input d is the parity of c & d.
      const uint32_t first = __popc((g >> 1) & q) & 1, second = first ^ (g & 1);
      const uint32_t plain = one * 0x10001u;
      a[0] = plain ^ first * 0x80008000u;
      a[1] = a[0] ^ 0x80000000u;
      a[2] = plain ^ second * 0x80008000u;
      a[3] = a[2] ^ 0x80000000u;
    } else {
      a[0] = g == 2 * q ? one : 0;
      a[1] = a[0] << 16;
      a[2] = g == 2 * q + 1 ? one : 0;
      a[3] = a[2] << 16;
    }
  }
};

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
  static constexpr int kSixteens = C::kHeadDim / 16;  // of channels
  static constexpr int kChunks = C::kHeadDim / 32;    // of 16 bytes that a lane has of a row

  const DecodeLaunch& launch;
  uint32_t queries;  // shared address of the warp's rows
  float* table;      // its list of pattern scores
  int lane;

  // What comes from global memory: asked for at once, used later. B operands of a ChannelMatrix,
  // [head of the lane that gets it][sixteens of channels, in pairs].
  struct Rows {
    Values<uint32_t, 2> q[C::kLaneHeads][kSixteens / 2];
  };
  __device__ __forceinline__ Rows Load(int first_head) const {
    Rows rows;
    const int column = lane / 4;
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      const int head = column / 2 * C::kLaneHeads + h;
      const auto* from = reinterpret_cast<const Values<uint32_t, 2>*>(launch.args.q) +
                         int64_t{first_head + head} * (C::kHeadDim / 4) + column % 2 * 4 + lane % 4;
#pragma unroll
      for (int i = 0; i < kSixteens / 2; ++i) {
        rows.q[h][i] = {0, 0};
        if (head < launch.heads_per_kv) rows.q[h][i] = from[8 * i];
      }
    }
    return rows;
  }

  // The query heads of an item as fp16, each times the power of two that brings its largest element
  // into [512, 1024), and what that makes of the scores' unit.
  __device__ __forceinline__ void Prepare(const Rows& rows, bool is_rotated,
                                          WarpState<C>& state) const {
    const ChannelMatrix matrix(state.g, state.q, is_rotated, launch.is_bfloat16);
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      float x[kSixteens][2];  // of head h of the lane's: channels 16 i + 2 g and the next
#pragma unroll
      for (int i = 0; i < kSixteens; i += 2) {
        float acc[4];
        WarpState<C>::ClearTile(acc);
        Multiply(matrix, rows.q[h][i / 2], acc);
        x[i][0] = acc[0], x[i][1] = acc[2];
        x[i + 1][0] = acc[1], x[i + 1][1] = acc[3];
      }
      if (C::kRotates && is_rotated) RotateSixteens(x);
      float largest = 0;
#pragma unroll
      for (int i = 0; i < 2 * kSixteens; ++i) largest = fmaxf(largest, fabsf(x[0][i]));
      largest = MaxOverRows(largest);
      // 2^exponent is the power of two at or below the largest, unless that is next to nothing.
      constexpr int kLeast = -40, kQueryBits = 9;
      const int exponent = max((__float_as_int(largest) >> 23) - 127, kLeast);
      const float factor = __int_as_float((127 + kQueryBits - exponent) << 23);
#pragma unroll
      for (int i = 0; i < kSixteens; ++i) {
        ptx::StoreShared32(WordAddress(state.q * C::kLaneHeads + h, 8 * i + state.g),
                           ptx::PackHalf2(x[i][0] * factor, x[i][1] * factor));
      }
      constexpr float kLog2E = 1.4426950408889634f;
      state.score_unit[h] = launch.args.sm_scale * kLog2E / factor;
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
  __device__ __forceinline__ void Multiply(const ChannelMatrix& matrix, Values<uint32_t, 2> b,
                                           float (&acc)[4]) const {
    const auto& a = matrix.a;
    if (launch.is_bfloat16) {
      ptx::MmaBfloat16(acc, a[0], a[1], a[2], a[3], b.x[0], b.x[1]);
    } else {
      ptx::Mma(acc, a[0], a[1], a[2], a[3], b.x[0], b.x[1]);
    }
  }
  // What the rotation does among the sixteens of a row, and its factor.
  __device__ __forceinline__ static void RotateSixteens(float (&x)[kSixteens][2]) {
#pragma unroll
    for (int distance = 2; distance < 2 * kSixteens; distance *= 2) {
#pragma unroll
      for (int i = 0; i < 2 * kSixteens; ++i) {
        if ((i & distance) != 0) continue;
        const float a = x[0][i], b = x[0][i + distance];
        x[0][i] = a + b;
        x[0][i + distance] = a - b;
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * kSixteens; ++i) {
      x[0][i] *= C::kHeadDim == 128 ? 0.088388347648318441f : 0.125f;
    }
  }
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
