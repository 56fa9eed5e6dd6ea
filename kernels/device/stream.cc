#include "kernels/device/stream.h"

#include "kernels/device/cuda_status.h"
#include "proto/base/status_macros.h"

namespace pkv {

absl::StatusOr<Stream> Stream::Make(Priority priority) {
  int least = 0, greatest = 0;  // the smaller number goes first
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetStreamPriorityRange(&least, &greatest), "stream priorities"));
  cudaStream_t stream = nullptr;
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking,
                                              priority == Priority::kHigh ? greatest : least),
                 "create stream"));
  return Stream(stream);
}

Stream::~Stream() {
  // Nothing to do about a failure here; whoever synchronizes sees it.
  if (handle_ != nullptr) static_cast<void>(cudaStreamDestroy(static_cast<cudaStream_t>(handle_)));
}

absl::Status Stream::Synchronize() const {
  return CudaStatus(cudaStreamSynchronize(static_cast<cudaStream_t>(handle_)),
                    "synchronize stream");
}

}  // namespace pkv
