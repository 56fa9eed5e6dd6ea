#ifndef PKV_KERNELS_CODEC_KEY_FEEDBACK_KERNELS_H_
#define PKV_KERNELS_CODEC_KEY_FEEDBACK_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

namespace pkv {

// MakeKeyFeedback() on the device, of moment_sums over their weight, rotated first when is_rotated.
struct KeyFeedbackLaunch {
  const float* moment_sums = nullptr;  // [kv_head][head_dim][head_dim]
  float inverse_weight = 0;            // 1 / what the sums weigh
  bool is_rotated = false;
  double damping = 0;
  uint8_t* order = nullptr;   // [kv_head][step]
  int8_t* weights = nullptr;  // [kv_head][step][earlier step]
  float* scales = nullptr;    // [kv_head][step]
};

// Lets the kernel use the shared memory that it needs on the current device.
cudaError_t PrepareKeyFeedback(int head_dim);
// REQUIRES: PrepareKeyFeedback() was called, head_dim is 64 or 128
cudaError_t EnqueueKeyFeedback(const KeyFeedbackLaunch& launch, int num_kv_heads, int head_dim,
                               cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_KEY_FEEDBACK_KERNELS_H_
