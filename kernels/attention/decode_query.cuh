#ifndef PKV_KERNELS_ATTENTION_DECODE_QUERY_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_QUERY_CUH_

// Queries as B operands in shared memory, and their scores against the K patterns of a bank.

#include "kernels/attention/decode_merge.cuh"
#include "kernels/attention/decode_ring.cuh"

namespace pkv {

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
  const DecodeLaunch& launch;
  std::byte* shared;
  int warp, lane;

  // One query head as fp16 in shared memory, times the power of two that brings its largest element
  // into [16, 32), and what that makes of the score's unit.
  __device__ void Prepare(int head, int index, bool is_rotated) const {
    constexpr int kChannels = ItemState<C>::kChannels;
    float x[kChannels] = {};
    if (head < launch.heads_per_kv) {
      const int64_t at = (int64_t{index} * 32 + lane) * kChannels;
      if (launch.is_bfloat16) {
        const auto row = *reinterpret_cast<const Values<__nv_bfloat16, kChannels>*>(
            static_cast<const __nv_bfloat16*>(launch.args.q) + at);
#pragma unroll
        for (int i = 0; i < kChannels; ++i) x[i] = __bfloat162float(row.x[i]);
      } else {
        const auto row = *reinterpret_cast<const Values<__half, kChannels>*>(
            static_cast<const __half*>(launch.args.q) + at);
#pragma unroll
        for (int i = 0; i < kChannels; ++i) x[i] = __half2float(row.x[i]);
      }
    }
    if (is_rotated) RotateRow(x, lane);
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) largest = fmaxf(largest, fabsf(x[i]));
    largest = ReduceLanes(largest, 1, 16, [](float a, float b) { return fmaxf(a, b); });
    // 2^exponent is the power of two at or below the largest, unless that is next to nothing.
    constexpr int kLeast = -40;
    const int exponent = max((__float_as_int(largest) >> 23) - 127, kLeast);
    const float factor = __int_as_float((127 + 4 - exponent) << 23);
    auto* row = reinterpret_cast<uint32_t*>(shared + C::kQueriesAt) + head * C::kQueryStride / 2;
#pragma unroll
    for (int i = 0; i < kChannels; i += 2) {
      const int channel = lane * kChannels + i, step = channel / 16, half = channel / 8 % 2;
      row[channel % 8 / 2 * (C::kHeadDim / 8) + OperandPlace(step, half)] =
          ptx::PackHalf2(x[i] * factor, x[i + 1] * factor);
    }
    constexpr float kLog2E = 1.4426950408889634f;
    if (lane == 0) {
      reinterpret_cast<float*>(shared + C::kQueryScalesAt)[head] =
          launch.args.sm_scale * kLog2E / factor;
    }
  }

  __device__ void Load(WarpState<C>& state) const {
    // Of columns 2 h and 2 h + 1 the second stays 0.
    const int row = C::kWide ? state.g : state.g % 2 == 0 ? state.g / 2 : C::kHeads;
    state.query = ptx::SharedAddress(shared + C::kQueriesAt) + row * C::kQueryStride * 2;
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      state.score_unit[h] =
          reinterpret_cast<const float*>(shared + C::kQueryScalesAt)[state.q * C::kLaneHeads + h];
    }
  }

  // q . pattern of every K pattern, in the units of scores of codes.
  __device__ void ScorePatterns(const WarpState<C>& state, const uint16_t* patterns,
                                int num_patterns) const {
    auto* scores = reinterpret_cast<float*>(shared + C::kPatternScoresAt);
    for (int tile = warp; 16 * tile < num_patterns; tile += C::kWarps) {
      const int id = 16 * tile + state.g;
      const auto* row = reinterpret_cast<const uint32_t*>(patterns + id * C::kHeadDim) + state.q;
      const bool has_low = id < num_patterns, has_high = id + 8 < num_patterns;
      float acc[4] = {};
#pragma unroll
      for (int i = 0; i < C::kSteps; ++i) {
        const uint32_t* low = row + 8 * i;
        const uint32_t* high = low + 8 * C::kHeadDim / 2;
        const uint4 query = LoadColumns(state.query, C::kHeadDim, state.q, i / 2);
        ptx::Mma(acc, has_low ? low[0] : 0, has_high ? high[0] : 0, has_low ? low[4] : 0,
                 has_high ? high[4] : 0, i % 2 == 0 ? query.x : query.y,
                 i % 2 == 0 ? query.z : query.w);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int h = 0; h < C::kLaneHeads; ++h) {
          scores[(id + 8 * half) * C::kHeads + state.q * C::kLaneHeads + h] =
              acc[2 * half + h] * C::kCodeUnit;
        }
      }
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_QUERY_CUH_
