#include "worker/batch/window_shift_kernels.h"

#include "pkv/block/kv_shape.h"

namespace pkv {
namespace {

constexpr int kThreads = 256;
constexpr int kOctet = 8;  // fp16 elements of 16 bytes

// One CTA a (slot, layer, tensor). Rows move 128 at a time, in order: a round reads behind what it
// and the rounds before it write.
__global__ void WindowShiftKernel(WindowShiftArgs args) {
  const int num_tokens = args.num_tokens[blockIdx.x];
  const int row_octets = args.head_dim / kOctet;
  uint4* rows = reinterpret_cast<uint4*>(args.windows + blockIdx.y * args.layer_stride +
                                         args.slots[blockIdx.x] * args.window_stride +
                                         int64_t{blockIdx.z} * args.capacity * args.head_dim);
  const int block = kBlockTokens * row_octets;
  const int end = num_tokens * row_octets;
  for (int first = block; first < end; first += block) {
    const int last = min(first + block, end);
    for (int i = first + threadIdx.x; i < last; i += kThreads) rows[i - block] = rows[i];
    __syncthreads();
  }
}

}  // namespace

cudaError_t LaunchWindowShift(const WindowShiftArgs& args, cudaStream_t stream) {
  if (args.count == 0) return cudaSuccess;
  const dim3 grid(args.count, args.num_layers, args.num_tensors);
  WindowShiftKernel<<<grid, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace pkv
