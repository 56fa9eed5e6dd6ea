#ifndef PKV_KERNELS_ATTENTION_DECODE_KERNEL_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_KERNEL_CUH_

// Fused decode attention on tensor cores: one launch plans, reads every block, sink and window
// token once, and merges (kernels/PERFORMANCE.md).
//
// One CTA an SM. A warp owns a slice of the line of units (decode_plan_math.h); no warp waits for
// another before the CTA merges what its warps have of the items that they share.

#include "kernels/attention/decode_cta_merge.cuh"
#include "kernels/attention/decode_warp.cuh"

namespace pkv {

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    DecodeKernel(const __grid_constant__ DecodeLaunch launch) {
  extern __shared__ __align__(128) std::byte shared[];
  ptx::LetNextGridStart();
  DecodeWarp<C>(launch, shared).Run();
  __syncthreads();
  CtaMerge<C>(launch, shared).Run();
}

// The plans of launches to come, on as many CTAs and warps as they have.
template <typename C>
__global__ void __launch_bounds__(C::kThreads)
    DecodePlanKernel(const __grid_constant__ DecodeLaunch launch) {
  __shared__ alignas(WarpPlan) std::byte memory[C::kWarps * sizeof(WarpPlan)];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const SlicePlanner<C> planner = {launch, reinterpret_cast<WarpPlan*>(memory) + warp, warp, lane,
                                   static_cast<int>(blockDim.x) / 32};
  planner.Make();
  __syncwarp();
  planner.Keep();
}

template <typename C>
DecodeKernelInfo InfoOf() {
  return {reinterpret_cast<const void*>(&DecodeKernel<C>),
          reinterpret_cast<const void*>(&DecodePlanKernel<C>),
          sizeof(WarpPlan),
          C::kWarps,
          C::kWarpBytes,
          C::kIdBytes,
          C::kRegisterPatterns,
          C::kTileTokens,
          C::kHeads,
          C::kPartFloats};
}

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_KERNEL_CUH_
