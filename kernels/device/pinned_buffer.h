#ifndef PKV_KERNELS_DEVICE_PINNED_BUFFER_H_
#define PKV_KERNELS_DEVICE_PINNED_BUFFER_H_

#include <cstddef>
#include <utility>

#include "absl/status/statusor.h"

namespace pkv {

// Owns host memory that the device copies from and to without staging. Movable. Thread-compatible.
class PinnedBuffer {
 public:
  PinnedBuffer() = default;
  // `size` bytes, zeroed; 0 owns nothing.
  //   ResourceExhausted   out of memory
  //   FailedPrecondition  no CUDA device
  static absl::StatusOr<PinnedBuffer> Make(size_t size);
  PinnedBuffer(PinnedBuffer&& other) noexcept { *this = std::move(other); }
  PinnedBuffer& operator=(PinnedBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  // No copy from or to it may be under way.
  ~PinnedBuffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace pkv

#endif  // PKV_KERNELS_DEVICE_PINNED_BUFFER_H_
