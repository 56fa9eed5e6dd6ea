#ifndef PKV_KERNELS_CODEC_OCTET_ROTATION_CUH_
#define PKV_KERNELS_CODEC_OCTET_ROTATION_CUH_

// Rows of fp16 rotated by the lanes that hold them, 8 channels each: equal bits to rotation.cc,
// with fused multiply-add or without, since no product is added to.

#include <cmath>
#include <cstdint>

#include "kernels/codec/codec_math.h"

namespace pkv {

inline constexpr int kOctet = 8;  // channels of a thread: 16 bytes

// Them, as fp16.
struct alignas(16) HalfOctet {
  uint16_t bits[kOctet];

  // Of elements 2 i and 2 i + 1.
  __device__ uint32_t Word(int i) const { return reinterpret_cast<const uint32_t*>(bits)[i]; }
};

// What butterflies are multiplied by.
inline float RotationNorm(int head_dim) { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }

// RotateRow() of rotation.cc: butterflies over distances 1, 2, 4 in a thread, then over those that
// divide lanes. x: channels 8 octet .. 8 octet + 7 before; after, 4 octet .. 4 octet + 3 and as
// many from kHeadDim / 2 + 4 octet on.
//
// A pair of lanes does not compute both halves of a butterfly of 8 values twice over: each gives
// away 4, and does 4 whole ones. The lane's bit and the top bit of the index in x so change places:
// half the shuffles, and rows come out as two runs of 8 bytes a lane.
template <int kHeadDim>
__device__ inline void RotateOctets(float (&x)[kOctet], int octet, float norm) {
#pragma unroll
  for (int half = 1; half < kOctet; half *= 2) {
#pragma unroll
    for (int i = 0; i < kOctet; ++i) {
      if ((i & half) != 0) continue;
      const float a = x[i], b = x[i + half];
      x[i] = a + b;
      x[i + half] = a - b;
    }
  }
#pragma unroll
  for (int step = 1; step < kHeadDim / kOctet; step *= 2) {
    const bool is_upper = (octet & step) != 0;
#pragma unroll
    for (int i = 0; i < kOctet / 2; ++i) {
      const float other = __shfl_xor_sync(~0u, is_upper ? x[i] : x[i + 4], step);
      const float a = is_upper ? other : x[i], b = is_upper ? x[i + 4] : other;
      x[i] = a + b;
      x[i + 4] = a - b;
    }
  }
#pragma unroll
  for (int i = 0; i < kOctet; ++i) x[i] = x[i] * norm;
}

// RotateOctets() of fp16, rounded to it.
template <int kHeadDim>
__device__ inline void RotateHalves(HalfOctet& halves, int octet, float norm) {
  float x[kOctet];
#pragma unroll
  for (int i = 0; i < kOctet; ++i) x[i] = StoredToFloat(halves.bits[i]);
  RotateOctets<kHeadDim>(x, octet, norm);
#pragma unroll
  for (int i = 0; i < kOctet; ++i) halves.bits[i] = ToStored(x[i]);
}

// Stores what RotateOctets() left, as halves: 16 bytes aligned to 8.
template <int kHeadDim, typename Halves>
__device__ inline void StoreRotated(const Halves& halves, int octet, uint16_t* row) {
  static_assert(sizeof(Halves) == kOctet * sizeof(uint16_t) && alignof(Halves) >= alignof(uint2));
  const auto* runs = reinterpret_cast<const uint2*>(&halves);
  *reinterpret_cast<uint2*>(row + 4 * octet) = runs[0];
  *reinterpret_cast<uint2*>(row + kHeadDim / 2 + 4 * octet) = runs[1];
}

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_OCTET_ROTATION_CUH_
