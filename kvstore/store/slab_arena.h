#ifndef PKV_KVSTORE_STORE_SLAB_ARENA_H_
#define PKV_KVSTORE_STORE_SLAB_ARENA_H_

#include <fcntl.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/base/thread_pool.h"

namespace pkv {

// Extents are multiples of this: one page, so that an extent can be mapped by another process.
inline constexpr uint64_t kArenaUnitBytes = 4096;
// Half of what a process of x86-64 can map.
inline constexpr uint64_t kArenaBytesMax = uint64_t{1} << 46;

// What keeps the arena's file as it is: it neither shrinks nor grows, and no mapping made and no
// write() called from now on may change its bytes, whoever gets hold of the descriptor.
inline constexpr int kArenaSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE;

// The store's whole memory: one anonymous file (memfd), mapped once, never grown. Its descriptor
// can be passed to processes of the same host, which then read extents without a copy and cannot
// write any (kArenaSeals).
//
// Best fit: the smallest hole that is large enough, the first of equal ones. Neighbouring holes are
// joined when freed, so two holes never touch.
//
//   | used 8K |  hole 4K  | used 12K |  hole 40K ...  |
//
// Thread-compatible. Bytes of different extents may be read and written from different threads.
class SlabArena {
 public:
  struct Extent {
    uint64_t offset = 0;
    uint64_t bytes = 0;  // multiple of kArenaUnitBytes
  };

  // `capacity_bytes` is rounded down to kArenaUnitBytes.
  //   InvalidArgument    less than one unit
  //   ResourceExhausted  the kernel gives no such mapping, or cannot seal it
  static absl::StatusOr<std::unique_ptr<SlabArena>> Create(uint64_t capacity_bytes);
  ~SlabArena();
  SlabArena(const SlabArena&) = delete;
  SlabArena& operator=(const SlabArena&) = delete;

  // Has the kernel give all pages now, on the pool's threads, which takes it much longer when they
  // are first used, or pinned, by one. Content stays. Where the kernel cannot (before Linux 5.14)
  // nothing happens.
  //   ResourceExhausted  there is not so much memory
  absl::Status Populate(ThreadPool& pool) const;

  // At least `bytes` > 0, rounded up to kArenaUnitBytes; nothing when no hole is large enough. The
  // content is whatever stood there before.
  std::optional<Extent> Allocate(uint64_t bytes);
  // REQUIRES: `extent` came from Allocate() and was not freed since.
  void Free(const Extent& extent);

  // Valid until the extent is freed. Starts at a multiple of kArenaUnitBytes.
  std::span<std::byte> Bytes(const Extent& extent) const;

  // All of it, whatever is allocated.
  std::span<std::byte> memory() const { return {base_, capacity_bytes_}; }
  uint64_t capacity_bytes() const { return capacity_bytes_; }
  uint64_t used_bytes() const { return used_bytes_; }
  uint64_t largest_hole_bytes() const;
  // Of the anonymous file; owned by the arena.
  int fd() const { return fd_; }

 private:
  SlabArena(int fd, std::byte* base, uint64_t capacity_bytes);
  void InsertHole(uint64_t offset, uint64_t bytes);
  void EraseHole(std::map<uint64_t, uint64_t>::iterator hole);

  const int fd_;
  std::byte* const base_;
  const uint64_t capacity_bytes_;
  uint64_t used_bytes_ = 0;
  std::map<uint64_t, uint64_t> holes_;                     // offset -> bytes
  std::set<std::pair<uint64_t, uint64_t>> holes_by_size_;  // {bytes, offset}
};

}  // namespace pkv

#endif  // PKV_KVSTORE_STORE_SLAB_ARENA_H_
