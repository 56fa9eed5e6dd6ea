#ifndef PKV_WORKER_BATCH_UPLOAD_RING_H_
#define PKV_WORKER_BATCH_UPLOAD_RING_H_

#include <array>
#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/pinned_buffer.h"

namespace pkv {

// Copies host memory of any kind to the device through pinned memory of a fixed size: a call
// returns when the bytes are staged, and waits only when the ring is full of copies under way.
//
// Thread-compatible.
class UploadRing {
 public:
  // Two halves of `half_bytes` each. `stream` is a cudaStream_t and outlives the ring.
  static absl::StatusOr<UploadRing> Make(size_t half_bytes, void* stream);
  UploadRing(UploadRing&&) noexcept;
  UploadRing& operator=(UploadRing&&) = delete;
  ~UploadRing();

  // Rows of `row_bytes`, `from_pitch` bytes apart in `from` and `to_pitch` on the device.
  struct Rows {
    const std::byte* from = nullptr;
    void* to = nullptr;
    size_t row_bytes = 0, from_pitch = 0, to_pitch = 0;
    size_t count = 0;
  };
  absl::Status Copy(const Rows& rows);
  absl::Status Copy(std::span<const std::byte> from, void* to) {
    return Copy({from.data(), to, from.size(), from.size(), from.size(), 1});
  }

 private:
  UploadRing() = default;
  // Room for `bytes` at *at. REQUIRES: bytes <= half_bytes_.
  absl::Status Reserve(size_t bytes, std::byte** at);

  void* stream_ = nullptr;
  size_t half_bytes_ = 0;
  PinnedBuffer memory_;
  int half_ = 0;
  size_t used_ = 0;                   // of the current half
  std::array<void*, 2> passed_ = {};  // cudaEvent_t: copies from this half are done
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_UPLOAD_RING_H_
