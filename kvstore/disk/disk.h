#ifndef PKV_KVSTORE_DISK_DISK_H_
#define PKV_KVSTORE_DISK_DISK_H_

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace pkv {

// Every offset, length and address given to a DiskFile is a multiple of this: what O_DIRECT asks
// for on every disk there is, and a unit of the arena.
inline constexpr uint64_t kDiskUnitBytes = 4096;

// Memory that a DiskFile can read into and write from, zero at creation.
// Thread-compatible.
class DiskBuffer {
 public:
  // REQUIRES: `bytes` > 0, a multiple of kDiskUnitBytes.
  explicit DiskBuffer(uint64_t bytes)
      : data_(static_cast<std::byte*>(std::aligned_alloc(kDiskUnitBytes, bytes))), bytes_(bytes) {
    std::memset(data_.get(), 0, bytes_);
  }
  std::span<std::byte> span() { return {data_.get(), bytes_}; }

 private:
  struct Free {
    void operator()(std::byte* data) const { std::free(data); }
  };
  std::unique_ptr<std::byte[], Free> data_;
  uint64_t bytes_ = 0;
};

// One file. Errors of every call:
//   ResourceExhausted  no space left
//   Unavailable        the device or the file system failed; names the call and the error
//
// Thread-safe: calls of one file may run at the same time, on ranges that do not overlap.
class DiskFile {
 public:
  virtual ~DiskFile() = default;

  // All of `pieces`, one behind the other. After an error any part of the range may have any bytes.
  virtual absl::Status Write(uint64_t offset,
                             std::span<const std::span<const std::byte>> pieces) = 0;
  // All of `out`. OutOfRange, too: the file ends before.
  virtual absl::Status Read(uint64_t offset, std::span<std::byte> out) const = 0;
  // What was written before is there after a crash (fdatasync).
  virtual absl::Status Sync() = 0;
  // Makes the file this long and takes the space for it.
  virtual absl::Status Allocate(uint64_t bytes) = 0;
  // Cuts off what is behind and gives its space back.
  virtual absl::Status Truncate(uint64_t bytes) = 0;
  virtual absl::StatusOr<uint64_t> Size() const = 0;
};

// A folder of files that this process has to itself.
//
// Thread-safe.
class Disk {
 public:
  virtual ~Disk() = default;

  // Names of all there is but the disk's own lock, in no order.
  virtual absl::StatusOr<std::vector<std::string>> List() const = 0;
  // Unavailable, too: there is one of this name.
  virtual absl::StatusOr<std::unique_ptr<DiskFile>> Create(const std::string& name) = 0;
  virtual absl::StatusOr<std::unique_ptr<DiskFile>> Open(const std::string& name) = 0;
  // A file that is open can be used until it is closed.
  virtual absl::Status Remove(const std::string& name) = 0;
  // Files created and removed before are, or are not, there after a crash.
  virtual absl::Status SyncFolder() = 0;
  // Of the file system: its size, whatever it holds.
  virtual absl::StatusOr<uint64_t> TotalBytes() const = 0;
};

}  // namespace pkv

#endif  // PKV_KVSTORE_DISK_DISK_H_
