#ifndef PKV_KERNELS_DEVICE_DEVICE_BUFFER_H_
#define PKV_KERNELS_DEVICE_DEVICE_BUFFER_H_

#include <cstddef>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace pkv {

// Owns device memory, aligned to 256 bytes; freed on the stream that it was made on, after the work
// given to that stream before. Movable. Thread-compatible.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // `size` bytes, not initialised; 0 owns nothing. `stream` is a cudaStream_t, null the default
  // one, and outlives the buffer.
  //   ResourceExhausted   out of device memory
  //   FailedPrecondition  no CUDA device
  static absl::StatusOr<DeviceBuffer> Make(size_t size, void* stream);
  // The same, then filled with `bytes`, which must live until the stream passes this point.
  static absl::StatusOr<DeviceBuffer> CopyOf(std::span<const std::byte> bytes, void* stream);
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~DeviceBuffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  std::span<std::byte> span() { return {data_, size_}; }
  template <typename T>
  T* As() {
    return reinterpret_cast<T*>(data_);
  }

  // Copies out and waits. REQUIRES: out.size() <= size(). Internal: earlier work or the copy
  // failed.
  absl::Status CopyToHost(std::span<std::byte> out) const;

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  void* stream_ = nullptr;
};

}  // namespace pkv

#endif  // PKV_KERNELS_DEVICE_DEVICE_BUFFER_H_
