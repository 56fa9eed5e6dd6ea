#ifndef PKV_KERNELS_DEVICE_EVENT_H_
#define PKV_KERNELS_DEVICE_EVENT_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace pkv {

// Owns a CUDA event without timing: a point in a stream that others wait for. One that was never
// recorded has passed. Movable. Thread-compatible.
class Event {
 public:
  Event() = default;
  // FailedPrecondition: no CUDA device. Internal: the driver failed.
  static absl::StatusOr<Event> Make();
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Event();

  // Streams are cudaStream_t. Internal: the driver failed.
  absl::Status Record(void* stream) const;
  absl::Status MakeWait(void* stream) const;  // work given to `stream` from now on waits
  absl::Status Synchronize() const;           // the caller waits
  void* handle() const { return handle_; }    // a cudaEvent_t

 private:
  void* handle_ = nullptr;  // a cudaEvent_t
};

}  // namespace pkv

#endif  // PKV_KERNELS_DEVICE_EVENT_H_
