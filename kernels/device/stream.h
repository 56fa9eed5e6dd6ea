#ifndef PKV_KERNELS_DEVICE_STREAM_H_
#define PKV_KERNELS_DEVICE_STREAM_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace pkv {

// Owns a CUDA stream. Movable. Thread-safe as far as CUDA streams are.
class Stream {
 public:
  // kHigh: its waiting thread blocks go first where a device has room, whatever came earlier.
  enum class Priority { kNormal, kHigh };

  // FailedPrecondition: no CUDA device. Internal: the driver failed.
  static absl::StatusOr<Stream> Make(Priority priority = Priority::kNormal);
  // A cudaStream_t made elsewhere, which it destroys.
  static Stream Own(void* handle) { return Stream(handle); }
  Stream(Stream&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Stream& operator=(Stream&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  // Work already given to the stream still runs.
  ~Stream();

  // A cudaStream_t, for ComputeContext::stream.
  void* handle() const { return handle_; }
  // Waits for everything given so far. Internal: some of it failed.
  absl::Status Synchronize() const;

 private:
  explicit Stream(void* handle) : handle_(handle) {}
  void* handle_;
};

}  // namespace pkv

#endif  // PKV_KERNELS_DEVICE_STREAM_H_
