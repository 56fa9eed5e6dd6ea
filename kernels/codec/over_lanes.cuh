#ifndef PKV_KERNELS_CODEC_OVER_LANES_CUH_
#define PKV_KERNELS_CODEC_OVER_LANES_CUH_

// Several numbers combined over lanes, by halving: of its numbers a lane sends half to a neighbour
// and keeps the other half, so that of n numbers over n lanes each lane ends with one.

#include <cuda_fp16.h>

namespace pkv {

template <int kCount, typename T = float>
struct Numbers {
  T x[kCount];
};

// Each number combined over kLanes lanes that are kStride apart. Of the kCount numbers a lane gets
// every kLanes-th part, in the order of the lanes; of fewer than kLanes, neighbours get the same.
// All lanes of the warp come together.
template <int kLanes, int kStride, int kCount, typename T, typename Combine>
__device__ inline auto OverLanes(const Numbers<kCount, T>& v, const Combine& combine) {
  constexpr int kDistance = kLanes / 2 * kStride;
  if constexpr (kLanes == 1) {
    return v;
  } else if constexpr (kCount == 1) {
    const T other = __shfl_xor_sync(~0u, v.x[0], kDistance);
    const Numbers<1, T> both = {{combine(v.x[0], other)}};
    return OverLanes<kLanes / 2, kStride>(both, combine);
  } else {
    const bool is_upper = (threadIdx.x & kDistance) != 0;
    Numbers<kCount / 2, T> kept;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const T low = v.x[i], high = v.x[i + kCount / 2];
      const T other = __shfl_xor_sync(~0u, is_upper ? low : high, kDistance);
      kept.x[i] = combine(is_upper ? high : low, other);
    }
    return OverLanes<kLanes / 2, kStride>(kept, combine);
  }
}

// Not a number stays.
__device__ inline float Least(float a, float b) {
  float least;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(a), "f"(b));
  return least;
}
// Not so here: nvcc 13.0 drops it where it merges three of these into one instruction.
__device__ inline __half2 Least(__half2 a, __half2 b) { return __hmin2(a, b); }

template <int kLanes, int kStride, int kCount, typename T>
__device__ inline auto LeastOverLanes(const Numbers<kCount, T>& v) {
  return OverLanes<kLanes, kStride>(v, [](T a, T b) { return Least(a, b); });
}

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_OVER_LANES_CUH_
