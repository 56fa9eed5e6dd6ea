#ifndef PKV_KERNELS_DEVICE_CUDA_STATUS_H_
#define PKV_KERNELS_DEVICE_CUDA_STATUS_H_

#include <cuda_runtime_api.h>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace pkv {

// OK for cudaSuccess. `what` says which call failed.
//   ResourceExhausted   out of device memory
//   FailedPrecondition  no CUDA device, or no driver for this runtime
//   Internal            anything else: the context may be lost, drain and exit
absl::Status CudaStatus(cudaError_t error, absl::string_view what);

}  // namespace pkv

#endif  // PKV_KERNELS_DEVICE_CUDA_STATUS_H_
