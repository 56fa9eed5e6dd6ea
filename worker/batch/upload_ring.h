#ifndef PKV_WORKER_BATCH_UPLOAD_RING_H_
#define PKV_WORKER_BATCH_UPLOAD_RING_H_

#include <array>
#include <cstddef>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/device/pinned_buffer.h"
#include "proto/base/thread_pool.h"

namespace pkv {

// Copies host memory of any kind to the device through pinned memory of a fixed size. Threads of a
// pool stage side by side: one alone copies at a fraction of what the bus takes. What is on the
// device already is copied from there, and must stay until the stream has passed.
//
// Thread-compatible.
class UploadRing {
 public:
  // Two halves of `half_bytes` each. `pool` stages; null: the caller alone. `stream` is a
  // cudaStream_t. Both outlive the ring.
  static absl::StatusOr<UploadRing> Make(size_t half_bytes, ThreadPool* pool, void* stream);
  UploadRing(UploadRing&&) noexcept;
  UploadRing& operator=(UploadRing&&) = delete;
  ~UploadRing();

  // Rows of `row_bytes`, `from_pitch` bytes apart in `from` and `to_pitch` on the device.
  struct Rows {
    const std::byte* from = nullptr;
    void* to = nullptr;
    size_t row_bytes = 0, from_pitch = 0, to_pitch = 0;
    size_t count = 0;
    bool from_device = false;
  };
  // Asks for a copy. It is on the stream, and `from` may change, once Flush() has returned; before
  // that only when the ring was full. Waits while it is full of copies under way.
  absl::Status Copy(const Rows& rows);
  absl::Status Copy(std::span<const std::byte> from, void* to, bool from_device = false) {
    return Copy({from.data(), to, from.size(), from.size(), from.size(), 1, from_device});
  }
  absl::Status Flush();

 private:
  // Rows that have their place in pinned memory.
  struct Staged {
    std::byte* at = nullptr;
    Rows rows;
  };

  UploadRing() = default;
  // Room for `bytes` at *at. REQUIRES: bytes <= half_bytes_.
  absl::Status Reserve(size_t bytes, std::byte** at);

  ThreadPool* pool_ = nullptr;
  void* stream_ = nullptr;
  size_t half_bytes_ = 0;
  PinnedBuffer memory_;
  int half_ = 0;
  size_t used_ = 0;                   // of the current half
  std::vector<Staged> pending_;       // in the current half, asked for and not copied yet
  std::array<void*, 2> passed_ = {};  // cudaEvent_t: copies from this half are done
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_UPLOAD_RING_H_
