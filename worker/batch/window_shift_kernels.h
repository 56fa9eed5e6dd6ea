#ifndef PKV_WORKER_BATCH_WINDOW_SHIFT_KERNELS_H_
#define PKV_WORKER_BATCH_WINDOW_SHIFT_KERNELS_H_

#include <cstdint>

#include <cuda_runtime_api.h>

namespace pkv {

// Windows as cuda_pools.h lays them out. All pointers are on the device.
struct WindowShiftArgs {
  uint16_t* windows = nullptr;
  int64_t layer_stride = 0, window_stride = 0;  // elements
  int num_layers = 0;
  int num_tensors = 0;  // kv heads of K and of V
  int capacity = 0;     // rows of one
  int head_dim = 0;
  const int32_t* slots = nullptr;       // [count]
  const int32_t* num_tokens = nullptr;  // [count], before
  int count = 0;
};

// Rows [128, num_tokens) of every tensor of these slots move to the front.
cudaError_t LaunchWindowShift(const WindowShiftArgs& args, cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_WINDOW_SHIFT_KERNELS_H_
