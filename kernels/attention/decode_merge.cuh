#ifndef PKV_KERNELS_ATTENTION_DECODE_MERGE_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_MERGE_CUH_

// Parts of an item: what a warp has of it, and the sum of such parts, in the order of the line:
// equal inputs give equal bits.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/attention/decode_query.cuh"

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

  // All lanes.
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

// Query heads of an item, kCount of them: what parts add up to. Lanes hold consecutive channels.
template <typename C, int kCount>
struct HeadSums {
  static constexpr int kChannels = C::kHeadDim / 32;
  static constexpr int kWeights = C::kHasCodes ? C::kRegisterPatterns / 32 : 1;  // of a lane

  int first_head, lane;
  float reference[kCount], sum[kCount];
  float out[kCount][kChannels];
  float weights[kCount][kWeights];  // of V patterns 32 i + lane

  __device__ HeadSums(int head, int lane_index) : first_head(head), lane(lane_index) { Clear(); }

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int h = 0; h < kCount; ++h) {
      reference[h] = kLowest, sum[h] = 0;
#pragma unroll
      for (int k = 0; k < kChannels; ++k) out[h][k] = 0;
#pragma unroll
      for (int k = 0; k < kWeights; ++k) weights[h][k] = 0;
    }
  }

  // Adds up to 32 parts, after another in the line; lane i names part i.
  __device__ __forceinline__ void AddParts(float* part_of_lane, int count, int num_patterns) {
    float factor_of_lane[kCount];
#pragma unroll
    for (int h = 0; h < kCount; ++h) {
      float its = kLowest, its_sum = 0;
      if (lane < count) {
        const DecodePart<C> part = {part_of_lane};
        its = part.reference(first_head + h), its_sum = part.sum(first_head + h);
      }
      reference[h] = ReduceLanes(its, 1, 16, [](float a, float b) { return fmaxf(a, b); });
      factor_of_lane[h] = ptx::Exp2(its - reference[h]);
      sum[h] =
          ReduceLanes(its_sum * factor_of_lane[h], 1, 16, [](float a, float b) { return a + b; });
    }
#pragma unroll kPartsAtOnce
    for (int i = 0; i < count; ++i) {
      const auto address = reinterpret_cast<uint64_t>(part_of_lane);
      const DecodePart<C> part = {reinterpret_cast<float*>(__shfl_sync(0xffffffffu, address, i))};
#pragma unroll
      for (int h = 0; h < kCount; ++h) {
        const float factor = __shfl_sync(0xffffffffu, factor_of_lane[h], i);
        const auto row = *reinterpret_cast<const Values<float, kChannels>*>(
            part.out(first_head + h) + lane * kChannels);
#pragma unroll
        for (int k = 0; k < kChannels; ++k) out[h][k] = fmaf(row.x[k], factor, out[h][k]);
        if constexpr (C::kHasCodes) {
#pragma unroll
          for (int k = 0; k < kWeights; ++k) {
            const int id = 32 * k + lane;
            if (id < num_patterns) {
              weights[h][k] = fmaf(part.weight(id, first_head + h), factor, weights[h][k]);
            }
          }
        }
      }
    }
  }

  // What V patterns of a bank add, by their weights. shared_rows: the first kRowsInShared of them,
  // or null.
  __device__ __forceinline__ void AddPatterns(const PatternRows& patterns,
                                              const uint16_t* shared_rows) {
    if constexpr (C::kHasCodes) {
      if (patterns.num_v == 0) return;
#pragma unroll
      for (int i = 0; i < kWeights; ++i) {
        const int count = min(patterns.num_v - 32 * i, 32);
        const bool is_shared = 32 * i < C::kRowsInShared && shared_rows != nullptr;
        const uint16_t* rows =
            (is_shared ? shared_rows : patterns.v) + int64_t{32 * i} * C::kHeadDim;
#pragma unroll kRowsAtOnce
        for (int id = 0; id < count; ++id) {
          const auto row = LoadRow(rows + id * C::kHeadDim);
#pragma unroll
          for (int h = 0; h < kCount; ++h) {
            AddRow(row, __shfl_sync(0xffffffffu, weights[h][i], id), out[h]);
          }
        }
      }
    }
  }
  // Takes the rotation off what parts and patterns add up to.
  __device__ __forceinline__ void Rotate() {
#pragma unroll
    for (int h = 0; h < kCount; ++h) RotateRow(out[h], lane);
  }
  using Row = Values<__half, kChannels>;
  __device__ __forceinline__ Row LoadRow(const uint16_t* row) const {
    return *reinterpret_cast<const Row*>(row + lane * kChannels);
  }
  __device__ __forceinline__ static void AddRow(const Row& row, float weight,
                                                float (&x)[kChannels]) {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) x[i] = fmaf(weight, __half2float(row.x[i]), x[i]);
  }

  // out / sum of every head that there is, rounded to the query's type, and the log-sum-exp.
  // first_index: of the item's first head.
  __device__ void Write(const DecodeLaunch& launch, int64_t first_index) const {
#pragma unroll
    for (int h = 0; h < kCount; ++h) {
      if (first_head + h < launch.heads_per_kv) WriteHead(launch, first_index + first_head + h, h);
    }
  }

 private:
  // In flight; more of them would be more registers than the kernel has.
  static constexpr int kPartsAtOnce = kCount == 1 ? 4 : 1;
  static constexpr int kRowsAtOnce = kCount == 1 ? 8 : 4;

  __device__ __forceinline__ void WriteHead(const DecodeLaunch& launch, int64_t index,
                                            int h) const {
    const float scale = sum[h] > 0 ? 1.0f / sum[h] : 0.0f;
    const int64_t at = (index * 32 + lane) * kChannels;
    if (launch.is_bfloat16) {
      Values<__nv_bfloat16, kChannels> row;
#pragma unroll
      for (int i = 0; i < kChannels; ++i) row.x[i] = __float2bfloat16_rn(out[h][i] * scale);
      *reinterpret_cast<Values<__nv_bfloat16, kChannels>*>(
          static_cast<__nv_bfloat16*>(launch.args.out) + at) = row;
    } else {
      Values<__half, kChannels> row;
#pragma unroll
      for (int i = 0; i < kChannels; ++i) row.x[i] = __float2half_rn(out[h][i] * scale);
      *reinterpret_cast<Values<__half, kChannels>*>(static_cast<__half*>(launch.args.out) + at) =
          row;
    }
    if (lane == 0 && launch.args.lse != nullptr) {
      constexpr float kLn2 = 0.69314718055994531f;
      launch.args.lse[index] = sum[h] > 0 ? (reference[h] + log2f(sum[h])) * kLn2 : -INFINITY;
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_MERGE_CUH_
