#ifndef PKV_KERNELS_CODEC_LEAST_OVER_LANES_CUH_
#define PKV_KERNELS_CODEC_LEAST_OVER_LANES_CUH_

// Minima of several numbers over lanes, by halving: of its numbers a lane sends half to a neighbour
// and keeps the other half, so that of n numbers over n lanes each lane ends with one.

#include <cuda_fp16.h>

namespace pkv {

template <int kCount, typename T = float>
struct Numbers {
  T x[kCount];
};

// Not a number stays.
__device__ inline float Least(float a, float b) {
  float least;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(a), "f"(b));
  return least;
}
// Not so here: nvcc 13.0 drops it where it merges three of these into one instruction.
__device__ inline __half2 Least(__half2 a, __half2 b) { return __hmin2(a, b); }

// The least of each number over kLanes lanes that are kStride apart. Of the kCount numbers a lane
// gets every kLanes-th part, in the order of the lanes; of fewer than kLanes, neighbours get the
// same. All lanes of the warp come together.
template <int kLanes, int kStride, int kCount, typename T>
__device__ inline auto LeastOverLanes(const Numbers<kCount, T>& v) {
  constexpr int kDistance = kLanes / 2 * kStride;
  if constexpr (kLanes == 1) {
    return v;
  } else if constexpr (kCount == 1) {
    const T other = __shfl_xor_sync(~0u, v.x[0], kDistance);
    return LeastOverLanes<kLanes / 2, kStride>(Numbers<1, T>{{Least(v.x[0], other)}});
  } else {
    const bool is_upper = (threadIdx.x & kDistance) != 0;
    Numbers<kCount / 2, T> kept;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const T low = v.x[i], high = v.x[i + kCount / 2];
      const T other = __shfl_xor_sync(~0u, is_upper ? low : high, kDistance);
      kept.x[i] = Least(is_upper ? high : low, other);
    }
    return LeastOverLanes<kLanes / 2, kStride>(kept);
  }
}

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_LEAST_OVER_LANES_CUH_
