#ifndef PKV_KERNELS_CODEC_DIRECT_ROWS_CUH_
#define PKV_KERNELS_CODEC_DIRECT_ROWS_CUH_

// The rows of a tile on their way from device memory into the registers of the direct encoder.

#include <cstdint>

#include <cuda_fp16.h>

#include "kernels/codec/layer_encode.h"
#include "kernels/codec/over_lanes.cuh"

namespace pkv {

inline constexpr int kRows = 8;   // of a thread
inline constexpr int kOctet = 8;  // channels of a thread
template <int kHeadDim>
inline constexpr int kThreads = kBlockTokens / kRows* kHeadDim / kOctet;

__device__ inline int Thread() { return static_cast<int>(threadIdx.x); }
__device__ inline int Warp() { return Thread() >> 5; }
__device__ inline int Lane() { return Thread() & 31; }

using Octet = Numbers<kOctet>;

__device__ inline uint4 LoadStreaming(const uint16_t* at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return v;
}

__device__ inline const __half2& Pair(const uint32_t& word) {
  return reinterpret_cast<const __half2&>(word);
}

__device__ inline Octet ToFloats(const uint4& bits) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
  Octet out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __half22float2(Pair(words[i]));
    out.x[2 * i] = pair.x;
    out.x[2 * i + 1] = pair.y;
  }
  return out;
}

// A thread's rows as they stand in memory, kStride rows apart. DirectEncodeCovers(): no slots but
// the rows themselves.
template <int kHeadDim, int kStride>
struct LoadedRows {
  uint4 bits[kRows];
  int ids[kRows];

  __device__ void Load(const SlotRows& source, int first_row, int channel) {
    const uint16_t* first = source.rows + first_row * kHeadDim + channel;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      bits[i] = LoadStreaming(first + i * kStride * kHeadDim);
      ids[i] = kRawPatternId;
    }
    if (source.ids == nullptr) return;
#pragma unroll
    for (int i = 0; i < kRows; ++i) ids[i] = (source.ids + first_row)[i * kStride];
  }

  // A number times 0 is 0, anything else is not a number.
  __device__ void CheckFinite(uint32_t* has_non_finite) const {
    const __half2 zero = __float2half2_rn(0.0f);
    __half2 sums[4] = {zero, zero, zero, zero};
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      sums[0] = __hfma2(Pair(bits[i].x), zero, sums[0]);
      sums[1] = __hfma2(Pair(bits[i].y), zero, sums[1]);
      sums[2] = __hfma2(Pair(bits[i].z), zero, sums[2]);
      sums[3] = __hfma2(Pair(bits[i].w), zero, sums[3]);
    }
    const __half2 sum = __hadd2(__hadd2(sums[0], sums[1]), __hadd2(sums[2], sums[3]));
    if (!__hbeq2(sum, zero) && has_non_finite != nullptr) *has_non_finite = 1;
  }

  // Less their patterns. Without one +0 is taken away, which changes nothing, not even -0.
  __device__ void TakeResiduals(const SlotRows& source, int channel, Octet (&rows)[kRows]) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) rows[i] = ToFloats(bits[i]);
    if (source.ids == nullptr) return;
    uint4 patterns[kRows] = {};
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (ids[i] == kRawPatternId) continue;
      const uint16_t* at = source.patterns + ids[i] * kHeadDim + channel;
      patterns[i] = *reinterpret_cast<const uint4*>(at);
    }
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const Octet pattern = ToFloats(patterns[i]);
#pragma unroll
      for (int j = 0; j < kOctet; ++j) rows[i].x[j] = rows[i].x[j] - pattern.x[j];
    }
  }
};

// The least value and, negative, the largest.
__device__ inline __half2 RangeOf(const uint4& bits) {
  const __half2 low =
      __hmin2(__hmin2(Pair(bits.x), Pair(bits.y)), __hmin2(Pair(bits.z), Pair(bits.w)));
  const __half2 high =
      __hneg2(__hmax2(__hmax2(Pair(bits.x), Pair(bits.y)), __hmax2(Pair(bits.z), Pair(bits.w))));
  return __hmin2(__lows2half2(low, high), __highs2half2(low, high));
}

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_DIRECT_ROWS_CUH_
