#include "kvstore/store/slab_arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <iterator>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "proto/base/checked_math.h"
#include "proto/base/log.h"

namespace pkv {
namespace {

absl::Status MappingError(absl::string_view what, uint64_t bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat(what, " of ", bytes, " bytes failed: ", std::strerror(errno)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<SlabArena>> SlabArena::Create(uint64_t capacity_bytes) {
  const uint64_t rounded = capacity_bytes / kArenaUnitBytes * kArenaUnitBytes;
  if (rounded == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("capacity ", capacity_bytes, " bytes is below ", kArenaUnitBytes));
  }
  if (rounded > kArenaBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("capacity ", capacity_bytes, " bytes is above ", kArenaBytesMax));
  }
  const int fd = memfd_create("pkv-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return MappingError("memfd_create", rounded);
  if (ftruncate(fd, static_cast<off_t>(rounded)) != 0) {
    const absl::Status status = MappingError("ftruncate", rounded);
    close(fd);
    return status;
  }
  void* base = mmap(nullptr, rounded, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (base == MAP_FAILED) {
    const absl::Status status = MappingError("mmap", rounded);
    close(fd);
    return status;
  }
  auto arena =
      std::unique_ptr<SlabArena>(new SlabArena(fd, static_cast<std::byte*>(base), rounded));
  // After our own mapping: from here on nobody gets a writable one, we included.
  if (fcntl(fd, F_ADD_SEALS, kArenaSeals | F_SEAL_SEAL) != 0) {
    return MappingError("sealing (Linux 5.1 is needed)", rounded);
  }
  return arena;
}

SlabArena::SlabArena(int fd, std::byte* base, uint64_t capacity_bytes)
    : fd_(fd), base_(base), capacity_bytes_(capacity_bytes) {
  InsertHole(0, capacity_bytes);
}

SlabArena::~SlabArena() {
  munmap(base_, capacity_bytes_);
  close(fd_);
}

absl::Status SlabArena::Populate(ThreadPool& pool) const {
  constexpr uint64_t kPieceBytes = uint64_t{64} << 20;
  const auto num_pieces = static_cast<int>((capacity_bytes_ + kPieceBytes - 1) / kPieceBytes);
  std::atomic<int> error{0};
  pool.ParallelFor(num_pieces, [&](int piece) {
    const uint64_t begin = piece * kPieceBytes;
    const uint64_t bytes = std::min(kPieceBytes, capacity_bytes_ - begin);
    // EINVAL: not known to this kernel.
    if (error == 0 && madvise(base_ + begin, bytes, MADV_POPULATE_WRITE) != 0 && errno != EINVAL) {
      error = errno;
    }
  });
  if (error == 0) return absl::OkStatus();
  errno = error;
  return MappingError("populating the memory", capacity_bytes_);
}

std::optional<SlabArena::Extent> SlabArena::Allocate(uint64_t bytes) {
  if (bytes == 0 || bytes > capacity_bytes_) return std::nullopt;
  const uint64_t rounded = AlignUp(bytes, kArenaUnitBytes);
  const auto fit = holes_by_size_.lower_bound({rounded, 0});
  if (fit == holes_by_size_.end()) return std::nullopt;
  const auto [hole_bytes, offset] = *fit;
  EraseHole(holes_.find(offset));
  if (hole_bytes > rounded) InsertHole(offset + rounded, hole_bytes - rounded);
  used_bytes_ += rounded;
  PKV_CHECK(used_bytes_ <= capacity_bytes_, "used ", used_bytes_, " capacity ", capacity_bytes_);
  return Extent{offset, rounded};
}

void SlabArena::Free(const Extent& extent) {
  PKV_CHECK(extent.bytes > 0 && extent.bytes <= used_bytes_ &&
                extent.bytes <= capacity_bytes_ - extent.offset,
            "offset ", extent.offset, " bytes ", extent.bytes, " used ", used_bytes_);
  uint64_t begin = extent.offset;
  uint64_t end = extent.offset + extent.bytes;
  auto next = holes_.lower_bound(begin);
  PKV_CHECK(next == holes_.end() || end <= next->first, "freed twice: offset ", begin);
  if (next != holes_.end() && next->first == end) {
    end += next->second;
    const auto joined = next++;
    EraseHole(joined);
  }
  if (next != holes_.begin()) {
    const auto previous = std::prev(next);
    const uint64_t previous_end = previous->first + previous->second;
    PKV_CHECK(previous_end <= begin, "freed twice: offset ", begin);
    if (previous_end == begin) {
      begin = previous->first;
      EraseHole(previous);
    }
  }
  InsertHole(begin, end - begin);
  used_bytes_ -= extent.bytes;
}

std::span<std::byte> SlabArena::Bytes(const Extent& extent) const {
  return {base_ + extent.offset, extent.bytes};
}

uint64_t SlabArena::largest_hole_bytes() const {
  return holes_by_size_.empty() ? 0 : holes_by_size_.rbegin()->first;
}

void SlabArena::InsertHole(uint64_t offset, uint64_t bytes) {
  holes_.emplace(offset, bytes);
  holes_by_size_.emplace(bytes, offset);
}

void SlabArena::EraseHole(std::map<uint64_t, uint64_t>::iterator hole) {
  holes_by_size_.erase({hole->second, hole->first});
  holes_.erase(hole);
}

}  // namespace pkv
