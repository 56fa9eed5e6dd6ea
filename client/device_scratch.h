#ifndef PKV_CLIENT_DEVICE_SCRATCH_H_
#define PKV_CLIENT_DEVICE_SCRATCH_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "proto/base/sync.h"
#include "proto/transport/nccl/pair_calls.h"

namespace pkv {

// Device memory for frames that nobody named a place for, used again from get to get: to free some
// waits for whatever the GPU does, so it is done only when what is idle stands in the way of more.
//
// Thread-safe.
class DeviceScratch {
 public:
  // At most `max_bytes` are in use or kept; what is being freed comes on top for that moment.
  // shared_ptr: as NcclPair.
  DeviceScratch(std::shared_ptr<PairCalls> calls, uint64_t max_bytes)
      : calls_(std::move(calls)), max_bytes_(max_bytes) {}
  // REQUIRES: every piece is gone.
  ~DeviceScratch();
  DeviceScratch(const DeviceScratch&) = delete;
  DeviceScratch& operator=(const DeviceScratch&) = delete;

  // Given back when destroyed: nothing on the GPU uses it any more then.
  class Piece {
   public:
    Piece(DeviceScratch* scratch, std::byte* data, uint64_t bytes)
        : scratch_(scratch), data_(data), bytes_(bytes) {}
    ~Piece() { scratch_->GiveBack({data_, bytes_}); }
    Piece(const Piece&) = delete;
    Piece& operator=(const Piece&) = delete;
    std::byte* data() const { return data_; }  // aligned to 256 bytes

   private:
    DeviceScratch* const scratch_;
    std::byte* const data_;
    const uint64_t bytes_;
  };
  // At least `bytes` > 0, whatever stood there before.
  //   ResourceExhausted  above max_bytes with the pieces in use, or the device has no room
  absl::StatusOr<std::unique_ptr<Piece>> Take(uint64_t bytes);

 private:
  struct Memory {
    std::byte* data = nullptr;
    uint64_t bytes = 0;
  };
  void GiveBack(const Memory& memory);
  // The smallest idle piece of at least `bytes` that is not far too large for them.
  std::vector<Memory>::iterator FindIdle(uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::shared_ptr<PairCalls> calls_;
  const uint64_t max_bytes_;

  Mutex mu_;
  std::vector<Memory> idle_ ABSL_GUARDED_BY(mu_);
  uint64_t allocated_bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace pkv

#endif  // PKV_CLIENT_DEVICE_SCRATCH_H_
