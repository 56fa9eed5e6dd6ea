#ifndef PKV_KERNELS_ATTENTION_DECODE_MERGE_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_MERGE_CUH_

// Parts of an item: what a warp has of it, and the sum of such parts, in the order of the line:
// equal inputs give equal bits.

#include "kernels/attention/decode_query.cuh"

namespace pkv {

// What a warp has of an item, in shared or global memory (DecodeConfig::kPartFloats).
template <typename C>
struct DecodePart {
  float* memory;

  __device__ float& reference(int head) const { return memory[head]; }
  __device__ float& sum(int head) const { return memory[C::kHeads + head]; }
  __device__ float* out(int head) const { return memory + C::kPartOutAt + head * C::kOutStride; }
  __device__ float& weight(int id, int head) const {  // of a V pattern
    return memory[C::kPartHistogramAt + id * C::kHeads + head];
  }

  // All lanes. The output of codes and rows leaves the rotation.
  __device__ void Write(WarpState<C>& state) const {
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      const int head = state.q * C::kLaneHeads + h;
      const float total = SumOverRows(state.sum[h]);
      if (state.g == 0) reference(head) = state.reference[h], sum(head) = total;
#pragma unroll
      for (int i = 0; i < C::kSteps; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          out(head)[16 * i + 8 * half + state.g] = state.out[i][half * C::kLaneHeads + h];
        }
      }
      if constexpr (C::kHasCodes) {
#pragma unroll
        for (int tile = 0; tile < WarpState<C>::kPatternTiles; ++tile) {
          if (16 * tile >= state.num_v_patterns) continue;
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            weight(16 * tile + 8 * half + state.g, head) =
                state.histogram[tile][half * C::kLaneHeads + h];
          }
        }
      }
    }
    __syncwarp();
  }
};

// One query head of an item: what parts add up to. Lanes hold consecutive channels.
template <typename C>
struct HeadSum {
  static constexpr int kChannels = C::kHeadDim / 32;
  static constexpr int kWeights = C::kHasCodes ? C::kRegisterPatterns / 32 : 1;  // of a lane

  int head, lane;
  float reference = kLowest, sum = 0;
  float out[kChannels] = {};
  float weights[kWeights] = {};  // of V patterns 32 i + lane

  __device__ HeadSum(int head_index, int lane_index) : head(head_index), lane(lane_index) {}

  // Adds up to 32 parts, after another in the line; lane i names part i.
  __device__ __forceinline__ void AddParts(float* part_of_lane, int count, int num_patterns) {
    float its = kLowest, its_sum = 0;
    if (lane < count) {
      const DecodePart<C> part = {part_of_lane};
      its = part.reference(head), its_sum = part.sum(head);
    }
    reference = ReduceLanes(its, 1, 16, [](float a, float b) { return fmaxf(a, b); });
    const float factor_of_lane = ptx::Exp2(its - reference);
    sum = ReduceLanes(its_sum * factor_of_lane, 1, 16, [](float a, float b) { return a + b; });
#pragma unroll 4
    for (int i = 0; i < count; ++i) {
      const auto address = reinterpret_cast<uint64_t>(part_of_lane);
      const DecodePart<C> part = {reinterpret_cast<float*>(__shfl_sync(0xffffffffu, address, i))};
      const float factor = __shfl_sync(0xffffffffu, factor_of_lane, i);
      const auto row =
          *reinterpret_cast<const Values<float, kChannels>*>(part.out(head) + lane * kChannels);
#pragma unroll
      for (int k = 0; k < kChannels; ++k) out[k] = fmaf(row.x[k], factor, out[k]);
      if constexpr (C::kHasCodes) {
#pragma unroll
        for (int k = 0; k < kWeights; ++k) {
          const int id = 32 * k + lane;
          if (id < num_patterns) weights[k] = fmaf(part.weight(id, head), factor, weights[k]);
        }
      }
    }
  }

  // What V patterns of a bank add, by their weights.
  __device__ __forceinline__ void AddPatterns(const PatternRows& patterns, bool is_rotated) {
    if constexpr (C::kHasCodes) {
      if (patterns.num_v == 0) return;
      float x[kChannels] = {};
#pragma unroll
      for (int i = 0; i < kWeights; ++i) {
        const int count = min(patterns.num_v - 32 * i, 32);
#pragma unroll 16
        for (int id = 0; id < count; ++id) {
          AddRow(patterns.v + int64_t{32 * i + id} * C::kHeadDim,
                 __shfl_sync(0xffffffffu, weights[i], id), x);
        }
      }
      if (is_rotated) RotateRow(x, lane);
#pragma unroll
      for (int i = 0; i < kChannels; ++i) out[i] += x[i];
    }
  }
  __device__ __forceinline__ void AddRow(const uint16_t* row, float weight,
                                         float (&x)[kChannels]) const {
    const auto values = *reinterpret_cast<const Values<__half, kChannels>*>(row + lane * kChannels);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) x[i] = fmaf(weight, __half2float(values.x[i]), x[i]);
  }

  // out / sum, rounded to the query's type, and the log-sum-exp.
  __device__ void Write(const DecodeLaunch& launch, int64_t index) const {
    const float scale = sum > 0 ? 1.0f / sum : 0.0f;
    const int64_t at = (index * 32 + lane) * kChannels;
    if (launch.is_bfloat16) {
      Values<__nv_bfloat16, kChannels> row;
#pragma unroll
      for (int i = 0; i < kChannels; ++i) row.x[i] = __float2bfloat16_rn(out[i] * scale);
      *reinterpret_cast<Values<__nv_bfloat16, kChannels>*>(
          static_cast<__nv_bfloat16*>(launch.args.out) + at) = row;
    } else {
      Values<__half, kChannels> row;
#pragma unroll
      for (int i = 0; i < kChannels; ++i) row.x[i] = __float2half_rn(out[i] * scale);
      *reinterpret_cast<Values<__half, kChannels>*>(static_cast<__half*>(launch.args.out) + at) =
          row;
    }
    if (lane == 0 && launch.args.lse != nullptr) {
      constexpr float kLn2 = 0.69314718055994531f;
      launch.args.lse[index] = sum > 0 ? (reference + log2f(sum)) * kLn2 : -INFINITY;
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_MERGE_CUH_
