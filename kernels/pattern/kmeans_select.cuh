#ifndef PKV_KERNELS_PATTERN_KMEANS_SELECT_CUH_
#define PKV_KERNELS_PATTERN_KMEANS_SELECT_CUH_

// Which iteration's patterns are those of a layer (kmeans_kernels.cu).

#include "kernels/codec/octet_rotation.cuh"
#include "kernels/pattern/kmeans_cluster.cuh"

namespace pkv {

// Grid: problems. Copies the patterns of the iteration after which the heads of a tensor stop.
template <int kHeadDim>
__global__ void __launch_bounds__(kMineThreads)
    SelectKernel(const __grid_constant__ MineTask task) {
  __shared__ int stop;
  const KMeansKernelArgs& args = task.args;
  const int problem = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const bool is_v = problem >= args.num_kv_heads;
  const int wanted = is_v ? args.num_patterns_v : args.num_patterns_k;
  const int num_patterns = min(wanted, args.num_tokens);
  if (num_patterns == 0) return;
  if (thread == 0) stop = args.iterations - 1;
  __syncthreads();
  const float* moves = task.moves + int64_t{is_v ? args.num_kv_heads : 0} * args.iterations;
  for (int i = 1 + thread; i < args.iterations; i += kMineThreads) {
    bool still = true;
    for (int head = 0; head < args.num_kv_heads; ++head) {
      still = still && moves[head * args.iterations + i] <= args.tolerance;
    }
    if (still) atomicMin(&stop, i);
  }
  __syncthreads();
  const int iteration = min(stop, task.iterations[problem] - 1);
  const int64_t from = int64_t{problem} * args.iterations + iteration;
  const uint16_t* source = task.history + from * task.max_patterns * kHeadDim;
  uint16_t* out = args.bank + int64_t{problem} * args.bank_capacity * kHeadDim;
  constexpr int kLanes = kHeadDim / kOctet;
  const int count = num_patterns * kLanes;
  // Whole warps go round together.
  for (int first = 0; first < count; first += kMineThreads) {
    const int i = first + thread, octet = i % kLanes;
    HalfOctet halves = {};
    if (i < count) halves = *reinterpret_cast<const HalfOctet*>(source + i * kOctet);
    if (args.is_bank_rotated) {
      RotateHalves<kHeadDim>(halves, octet, task.rotation_norm);
      if (i < count) StoreRotated<kHeadDim>(halves, octet, out + i / kLanes * kHeadDim);
    } else if (i < count) {
      *reinterpret_cast<HalfOctet*>(out + i * kOctet) = halves;
    }
  }
}

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_KMEANS_SELECT_CUH_
