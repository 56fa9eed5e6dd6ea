#include "kvstore/store/lease.h"

#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/store/block_store.h"
#include "kvstore/store/stored_object.h"
#include "pkv/block/object_view.h"

namespace pkv {

Lease::Lease(Lease&& other) noexcept
    : store_(std::exchange(other.store_, nullptr)),
      object_(std::exchange(other.object_, nullptr)) {}

Lease& Lease::operator=(Lease&& other) noexcept {
  if (this != &other) {
    Release();
    store_ = std::exchange(other.store_, nullptr);
    object_ = std::exchange(other.object_, nullptr);
  }
  return *this;
}

void Lease::Release() {
  if (object_ != nullptr) store_->Unpin(std::exchange(object_, nullptr));
}

const ObjectKey& Lease::key() const { return object_->key; }
int Lease::num_layers() const { return object_->num_layers; }
uint64_t Lease::frame_bytes() const { return object_->frame_bytes; }
std::span<const std::byte> Lease::bytes() const { return object_->bytes; }
uint64_t Lease::arena_offset() const { return object_->extent.offset; }

std::span<const std::byte> Lease::head() const {
  return object_->bytes.first(FramesOffset(object_->num_layers));
}

std::span<const std::byte> Lease::frame(int layer) const {
  return object_->bytes.subspan(
      FramesOffset(object_->num_layers) + static_cast<uint64_t>(layer) * object_->frame_bytes,
      object_->frame_bytes);
}

absl::StatusOr<ObjectHeader> Lease::VerifyHead() const {
  // Whatever is wrong with a header that was right when committed is damage, not a bad argument.
  absl::StatusOr<ObjectHeader> header = ParseHeader(head());
  if (!header.ok()) return absl::DataLossError(header.status().message());
  if (header->key() != object_->key || header->num_layers != object_->num_layers ||
      header->frame_bytes != object_->frame_bytes) {
    return absl::DataLossError(absl::StrCat("the stored header of ", object_->key.id.ToShortHex(),
                                            " names another object"));
  }
  absl::StatusOr<std::vector<uint32_t>> crcs =
      ParseFrameTable(head().subspan(sizeof(ObjectHeader)), object_->num_layers);
  if (!crcs.ok()) return crcs.status();
  return header;
}

absl::Status Lease::VerifyFrame(int layer) const {
  uint32_t expected_crc32c;
  std::memcpy(&expected_crc32c,
              object_->bytes.data() + sizeof(ObjectHeader) + sizeof(uint32_t) * layer,
              sizeof(expected_crc32c));
  return pkv::VerifyFrame(frame(layer), layer, expected_crc32c);
}

}  // namespace pkv
