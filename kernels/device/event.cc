#include "kernels/device/event.h"

#include <cuda_runtime_api.h>

#include "kernels/device/cuda_status.h"
#include "proto/base/status_macros.h"

namespace pkv {

absl::StatusOr<Event> Event::Make() {
  cudaEvent_t handle = nullptr;
  // The waiting host sleeps: another thread's kernels are launched meanwhile.
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaEventCreateWithFlags(&handle, cudaEventDisableTiming | cudaEventBlockingSync),
                 "make event"));
  Event event;
  event.handle_ = handle;
  return event;
}

Event::~Event() {
  if (handle_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(handle_));
}

absl::Status Event::Record(void* stream) const {
  return CudaStatus(
      cudaEventRecord(static_cast<cudaEvent_t>(handle_), static_cast<cudaStream_t>(stream)),
      "record event");
}

absl::Status Event::MakeWait(void* stream) const {
  return CudaStatus(
      cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), static_cast<cudaEvent_t>(handle_), 0),
      "wait for event");
}

absl::Status Event::Synchronize() const {
  return CudaStatus(cudaEventSynchronize(static_cast<cudaEvent_t>(handle_)), "wait for event");
}

}  // namespace pkv
