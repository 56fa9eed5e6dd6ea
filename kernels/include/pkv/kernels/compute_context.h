#ifndef PKV_KERNELS_COMPUTE_CONTEXT_H_
#define PKV_KERNELS_COMPUTE_CONTEXT_H_

namespace pkv {

class ThreadPool;

enum class Device { kCpu, kCuda };

// Where a kernel runs. Does not own.
struct ComputeContext {
  Device device = Device::kCpu;
  // CPU: null runs on the calling thread. Results do not depend on the pool.
  ThreadPool* pool = nullptr;
  void* stream = nullptr;  // CUDA: a cudaStream_t
};

}  // namespace pkv

#endif  // PKV_KERNELS_COMPUTE_CONTEXT_H_
