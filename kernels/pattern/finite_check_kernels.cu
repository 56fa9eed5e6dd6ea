#include "kernels/pattern/finite_check_kernels.h"

#include "proto/base/float16.h"

namespace pkv {
namespace {

constexpr int kThreads = 256;
constexpr int kCtasPerHead = 64;

// Grid: slices of a head x tensors and heads.
__global__ void __launch_bounds__(kThreads)
    FindNonFiniteKernel(KvTensorView kv, unsigned long long* place) {
  const int head = static_cast<int>(blockIdx.y) % kv.num_kv_heads;
  const bool is_v = static_cast<int>(blockIdx.y) >= kv.num_kv_heads;
  const uint16_t* values = (is_v ? kv.v : kv.k) + head * kv.head_stride;
  const int64_t count = int64_t{kv.num_tokens} * kv.head_dim, first = blockIdx.y * count;
  for (int64_t i = blockIdx.x * kThreads + threadIdx.x; i < count; i += gridDim.x * kThreads) {
    if (!IsFiniteFloat16(values[i])) atomicMin(place, static_cast<unsigned long long>(first + i));
  }
}

}  // namespace

cudaError_t LaunchFindNonFinite(const KvTensorView& kv, unsigned long long* place,
                                cudaStream_t stream) {
  FindNonFiniteKernel<<<dim3(kCtasPerHead, 2 * kv.num_kv_heads), kThreads, 0, stream>>>(kv, place);
  return cudaGetLastError();
}

}  // namespace pkv
