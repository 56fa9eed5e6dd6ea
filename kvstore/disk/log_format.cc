#include "kvstore/disk/log_format.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"
#include "pkv/block/object_header.h"
#include "proto/base/checked_math.h"
#include "proto/base/checksum.h"
#include "proto/base/log.h"

namespace pkv {
namespace {

template <typename Head>
uint32_t ChecksumOf(const Head& head) {
  return Crc32c(std::as_bytes(std::span(&head, 1)).first(offsetof(Head, crc32c)));
}

template <typename Head>
void Seal(Head& head, std::span<std::byte, kDiskUnitBytes> unit) {
  head.crc32c = ChecksumOf(head);
  std::memset(unit.data(), 0, unit.size());
  std::memcpy(unit.data(), &head, sizeof(head));
}

bool IsZero(std::span<const std::byte> bytes) {
  return std::ranges::all_of(bytes, [](std::byte b) { return b == std::byte{0}; });
}

// The fields of an object's record that its reader computes with.
absl::Status CheckObject(const RecordHead& head, const SegmentHead& segment) {
  if (head.num_layers < 1 || head.num_layers > kMaxLayers || head.frame_bytes == 0 ||
      head.frame_bytes > segment.segment_bytes ||
      head.object_bytes != FramesOffset(head.num_layers) + head.num_layers * head.frame_bytes) {
    return absl::DataLossError(absl::StrCat("a record of ", head.num_layers, " layers of ",
                                            head.frame_bytes, " bytes has ", head.object_bytes));
  }
  if (head.record_bytes() > segment.segment_bytes - head.offset) {
    return absl::DataLossError(absl::StrCat("a record of ", head.record_bytes(), " bytes at ",
                                            head.offset, " reaches beyond the segment's ",
                                            segment.segment_bytes));
  }
  return absl::OkStatus();
}

}  // namespace

ObjectKey RecordHead::key() const {
  const auto end = std::ranges::find(variant_name, '\0');
  return {object_kind, id, {std::string(variant_name.begin(), end), params_digest}};
}

uint64_t RecordHead::record_bytes() const {
  return kDiskUnitBytes + (kind == RecordKind::kObject ? AlignUp(object_bytes, kDiskUnitBytes) : 0);
}

void SealSegmentHead(SegmentHead head, std::span<std::byte, kDiskUnitBytes> unit) {
  Seal(head, unit);
}
void SealRecordHead(RecordHead head, std::span<std::byte, kDiskUnitBytes> unit) {
  Seal(head, unit);
}

absl::StatusOr<SegmentHead> ParseSegmentHead(std::span<const std::byte> unit) {
  PKV_CHECK(unit.size() == kDiskUnitBytes, unit.size());
  SegmentHead head;
  std::memcpy(&head, unit.data(), sizeof(head));
  if (head.magic != kSegmentMagic) {
    if (IsZero(unit)) return absl::NotFoundError("the segment has no head yet");
    return absl::FailedPreconditionError("it does not begin as a segment of pkvd does");
  }
  // Of every version to come, too: a flipped bit is not another version.
  if (head.crc32c != ChecksumOf(head)) return absl::DataLossError("the head's checksum is wrong");
  if (head.version != kLogVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("its format has version ", head.version, ", read is ", kLogVersion));
  }
  if (head.segment_bytes < 2 * kDiskUnitBytes || head.segment_bytes % kDiskUnitBytes != 0 ||
      head.segment_bytes > kSegmentBytesMax) {
    return absl::DataLossError(absl::StrCat("a segment of ", head.segment_bytes, " bytes"));
  }
  return head;
}

absl::StatusOr<RecordHead> ParseRecordHead(std::span<const std::byte> unit,
                                           const SegmentHead& segment, uint64_t offset) {
  PKV_CHECK(unit.size() == kDiskUnitBytes, unit.size());
  RecordHead head;
  std::memcpy(&head, unit.data(), sizeof(head));
  if (head.magic != kRecordMagic) {
    if (IsZero(unit)) return absl::NotFoundError("nothing was written here");
    return absl::DataLossError("no record begins here");
  }
  if (head.crc32c != ChecksumOf(head)) return absl::DataLossError("the record's checksum is wrong");
  if (head.salt != segment.salt || head.segment != segment.number || head.offset != offset) {
    return absl::DataLossError("the record belongs elsewhere");
  }
  if (head.variant_name.back() != '\0' || head.object_kind < ObjectKind::kBlock ||
      head.object_kind > ObjectKind::kTable) {
    return absl::DataLossError("the record has no key");
  }
  if (head.kind == RecordKind::kTombstone) return head;
  if (head.kind != RecordKind::kObject) {
    return absl::DataLossError(absl::StrCat("a record of kind ", static_cast<int>(head.kind)));
  }
  if (const absl::Status status = CheckObject(head, segment); !status.ok()) return status;
  return head;
}

RecordHead RecordHeadOf(RecordKind kind, const ObjectKey& key) {
  RecordHead head;
  PKV_CHECK(key.variant.name.size() < head.variant_name.size(), key.variant.name);
  head.kind = kind;
  head.object_kind = key.kind;
  head.params_digest = key.variant.params_digest;
  std::ranges::copy(key.variant.name, head.variant_name.begin());
  head.id = key.id;
  return head;
}

}  // namespace pkv
