#ifndef PKV_WORKER_ENGINE_CUDA_WEIGHT_TYPE_CUH_
#define PKV_WORKER_ENGINE_CUDA_WEIGHT_TYPE_CUH_

// The two types of weights, as kernels see them, and how the kernels of a layer are launched.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include "worker/engine/cuda/layer_math_kernels.h"

namespace pkv {

template <typename T>
__device__ __forceinline__ T FromFloat(float x);
template <>
__device__ __forceinline__ __half FromFloat(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 FromFloat(float x) {
  return __float2bfloat16_rn(x);
}
__device__ __forceinline__ float ToFloat(__half x) { return __half2float(x); }
__device__ __forceinline__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ float SwiGlu(float gate, float up) {
  return gate / (1.0f + __expf(-gate)) * up;
}

// Calls launch(T()) with the type that `type` names.
template <typename Launch>
cudaError_t ForType(WeightType type, const Launch& launch) {
  return type == WeightType::kFloat16 ? launch(__half()) : launch(__nv_bfloat16());
}

// Launches a kernel that may start while the one before it on the stream still runs, so that it
// does what does not depend on that one, and then waits (ptx::WaitForPreviousGrid()).
//
// A pass is a chain of such kernels, and every thread of each waits before it touches anything that
// a pass writes. A kernel is done when its threads are, so when the wait of one returns, the one
// before is done, and so, by induction, are all before that: no kernel reads or writes what an
// earlier one still does, however early it was started.
template <typename... Args>
cudaError_t LaunchOverlapping(void (*kernel)(Args...), dim3 grid, int threads, int shared_bytes,
                              cudaStream_t stream, const Args&... args) {
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_CUDA_WEIGHT_TYPE_CUH_
