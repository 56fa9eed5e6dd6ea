#include "kvstore/store/reservation.h"

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/store/block_store.h"
#include "pkv/block/object_header.h"
#include "proto/base/checksum.h"
#include "proto/base/status_macros.h"

namespace pkv {

Reservation::Reservation(BlockStore* store, const ReservationSpec& spec,
                         const SlabArena::Extent& extent, std::span<std::byte> bytes)
    : store_(store), spec_(spec), extent_(extent), bytes_(bytes), frames_(spec.num_layers) {}

Reservation::Reservation(Reservation&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)),
      spec_(std::move(other.spec_)),
      extent_(other.extent_),
      bytes_(other.bytes_),
      frames_(std::move(other.frames_)) {}

Reservation& Reservation::operator=(Reservation&& other) noexcept {
  if (this != &other) {
    Release();
    store_ = std::exchange(other.store_, nullptr);
    spec_ = std::move(other.spec_);
    extent_ = other.extent_;
    bytes_ = other.bytes_;
    frames_ = std::move(other.frames_);
  }
  return *this;
}

void Reservation::Release() {
  if (store_ != nullptr) std::exchange(store_, nullptr)->Abandon(extent_);
}

std::span<std::byte> Reservation::FrameBytes(int layer) const {
  return bytes_.subspan(
      FramesOffset(spec_.num_layers) + static_cast<uint64_t>(layer) * spec_.frame_bytes,
      spec_.frame_bytes);
}

std::span<std::byte> Reservation::units() { return {bytes_.data(), extent_.bytes}; }

absl::StatusOr<std::span<std::byte>> Reservation::Prepare(int layer, uint64_t offset,
                                                          uint64_t length) {
  if (layer < 0 || layer >= spec_.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", layer, " not in [0, ", spec_.num_layers, ")"));
  }
  const Frame& frame = frames_[layer];
  if (offset != frame.written_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": piece at offset ", offset,
                                                   ", next byte is ", frame.written_bytes));
  }
  if (length == 0 || length > spec_.frame_bytes - offset) {
    return absl::InvalidArgumentError(absl::StrCat("layer ", layer, ": piece of ", length,
                                                   " bytes at offset ", offset, ", frame has ",
                                                   spec_.frame_bytes));
  }
  return FrameBytes(layer).subspan(offset, length);
}

void Reservation::Finish(int layer, uint64_t length) {
  Frame& frame = frames_[layer];
  frame.crc32c = Crc32c(FrameBytes(layer).subspan(frame.written_bytes, length), frame.crc32c);
  frame.written_bytes += length;
}

absl::Status Reservation::Write(int layer, uint64_t offset, std::span<const std::byte> bytes) {
  PKV_ASSIGN_OR_RETURN(const std::span<std::byte> destination,
                       Prepare(layer, offset, bytes.size()));
  std::memcpy(destination.data(), bytes.data(), bytes.size());
  Finish(layer, bytes.size());
  return absl::OkStatus();
}

}  // namespace pkv
