#ifndef PKV_KERNELS_ATTENTION_DECODE_MERGE_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_MERGE_CUH_

// From the states of a CTA's warps to its part of an item, in the order of warps: equal inputs give
// equal bits.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "kernels/attention/decode_state.cuh"

namespace pkv {

// A query head's result so far: in shared memory, because it must outlast units. Query head h of
// the item belongs to warp h % kWarps; its lanes hold consecutive channels.
template <typename C>
struct ItemState {
  static constexpr int kChannels = C::kHeadDim / 32;

  float* head;  // maximum, sum, 2 of padding, output
  int lane;

  __device__ ItemState(std::byte* shared, int head_index, int lane_in)
      : head(reinterpret_cast<float*>(shared + C::kItemAt) + head_index * C::kItemFloats),
        lane(lane_in) {}

  __device__ float reference() const { return head[0]; }
  __device__ float sum() const { return head[1]; }
  __device__ void Read(float (&out)[kChannels]) const {
#pragma unroll
    for (int i = 0; i < kChannels; ++i) out[i] = head[4 + lane * kChannels + i];
  }
  __device__ void Write(float reference, float sum, const float (&out)[kChannels]) const {
    __syncwarp();
    if (lane == 0) head[0] = reference, head[1] = sum;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) head[4 + lane * kChannels + i] = out[i];
    __syncwarp();
  }
  __device__ void Add(float other_reference, float other_sum,
                      const float (&other)[kChannels]) const {
    float out[kChannels];
    Read(out);
    const float top = fmaxf(reference(), other_reference);
    const float mine = ptx::Exp2(reference() - top), its = ptx::Exp2(other_reference - top);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) out[i] = out[i] * mine + other[i] * its;
    Write(top, sum() * mine + other_sum * its, out);
  }
};

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

template <typename C>
struct ItemMerge {
  static constexpr int kChannels = ItemState<C>::kChannels;

  const DecodeLaunch& launch;
  std::byte* shared;
  int warp, lane;

  __device__ float* out_row(int head) const {
    return reinterpret_cast<float*>(shared + C::kOutAt) + head * C::kOutStride;
  }
  __device__ float* histogram() const { return reinterpret_cast<float*>(shared + C::kHistogramAt); }
  // [warp][head] references, then [head] their maximum, then [head] sums.
  __device__ float* states() const { return reinterpret_cast<float*>(shared + C::kStatesAt); }

  // Adds the warps' states of one segment to the item, or starts it. All warps call it.
  __device__ void AddSegment(const WarpState<C>& state, bool is_rotated, bool is_first,
                             const uint16_t* v_patterns, int num_v_patterns) const {
    const int q = state.q;
    if (state.g == 0) {
#pragma unroll
      for (int h = 0; h < C::kLaneHeads; ++h) {
        states()[warp * C::kHeads + q * C::kLaneHeads + h] = state.reference[h];
      }
    }
    __syncthreads();
    float factor[C::kLaneHeads];
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      const int head = q * C::kLaneHeads + h;
      float top = kLowest;
#pragma unroll
      for (int w = 0; w < C::kWarps; ++w) top = fmaxf(top, states()[w * C::kHeads + head]);
      factor[h] = ptx::Exp2(state.reference[h] - top);
      if (warp == 0 && state.g == 0) states()[C::kWarps * C::kHeads + head] = top;
    }
    for (int w = 0; w < C::kWarps; ++w) {
      if (w == warp) AddWarp(state, factor, num_v_patterns);
      __syncthreads();
    }
    for (int head = warp; head < launch.heads_per_kv; head += C::kWarps) {
      AddHead(head, is_rotated, is_first, v_patterns, num_v_patterns);
    }
  }

 private:
  // Warp 0 sets, the others add.
  __device__ void Put(float* to, float value) const { *to = warp == 0 ? value : *to + value; }

  __device__ void AddWarp(const WarpState<C>& state, const float (&factor)[C::kLaneHeads],
                          int num_v_patterns) const {
    const int pairs = C::kMaxVGroups / launch.v_groups;
#pragma unroll
    for (int h = 0; h < C::kLaneHeads; ++h) {
      const int head = state.q * C::kLaneHeads + h;
      float* row = out_row(head);
      float zero = 0;
#pragma unroll
      for (int i = 0; i < C::kSteps; ++i) {
        if (C::kGrouped ? i % 2 == 0 && i / 2 % pairs == 0 : i == 0) {
          zero = state.zero_sum[C::kGrouped ? i / 2 : 0][h];
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float codes = state.out[i][half * C::kLaneHeads + h] * (1.0f / C::kCodeUnit);
          Put(row + 16 * i + 8 * half + state.g, (codes + zero) * factor[h]);
        }
      }
      if (state.g == 0) {
        Put(states() + (C::kWarps + 1) * C::kHeads + head, state.sum[h] * factor[h]);
      }
#pragma unroll
      for (int tile = 0; tile < WarpState<C>::kPatternTiles; ++tile) {
        if (16 * tile >= num_v_patterns) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Put(histogram() + (16 * tile + 8 * half + state.g) * C::kHeads + head,
              state.histogram[tile][half * C::kLaneHeads + h] * factor[h]);
        }
      }
    }
  }

  __device__ __forceinline__ void AddPattern(const uint16_t* v_patterns, int id, float weight,
                                             float (&out)[kChannels]) const {
    using Row = Values<__half, kChannels>;
    const Row row = *reinterpret_cast<const Row*>(v_patterns + id * C::kHeadDim + lane * kChannels);
#pragma unroll
    for (int i = 0; i < kChannels; ++i) out[i] = fmaf(weight, __half2float(row.x[i]), out[i]);
  }

  // Of the warps' lists (WarpState::many), in the order of warps.
  __device__ float WeightOfMany(int id, int head) const {
    float weight = 0;
    for (int w = 0; w < C::kWarps; ++w) {
      const auto* many =
          reinterpret_cast<const float*>(shared + C::kSharedBytes + w * C::kManyBytes);
      const float factor =
          ptx::Exp2(states()[w * C::kHeads + head] - states()[C::kWarps * C::kHeads + head]);
      weight = fmaf(many[id * C::kHeads + head], factor, weight);
    }
    return weight;
  }

  __device__ void AddHead(int head, bool is_rotated, bool is_first, const uint16_t* v_patterns,
                          int num_v_patterns) const {
    float out[kChannels];
#pragma unroll
    for (int i = 0; i < kChannels; ++i) out[i] = out_row(head)[lane * kChannels + i];
    const int in_registers = min(num_v_patterns, C::kRegisterPatterns);
#pragma unroll 16
    for (int id = 0; id < in_registers; ++id) {
      AddPattern(v_patterns, id, histogram()[id * C::kHeads + head], out);
    }
#pragma unroll 1
    for (int id = in_registers; id < num_v_patterns; ++id) {
      AddPattern(v_patterns, id, WeightOfMany(id - in_registers, head), out);
    }
    if (is_rotated) RotateRow(out, lane);
    const ItemState<C> item(shared, head, lane);
    const float reference = states()[C::kWarps * C::kHeads + head];
    const float sum = states()[(C::kWarps + 1) * C::kHeads + head];
    if (is_first) {
      item.Write(reference, sum, out);
    } else {
      item.Add(reference, sum, out);
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_MERGE_CUH_
