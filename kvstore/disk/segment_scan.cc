#include "kvstore/disk/segment_scan.h"

#include <algorithm>
#include <span>
#include <utility>

#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// Read at once when the next record has to be looked for.
constexpr uint64_t kSearchBytes = uint64_t{1} << 20;

// Finds records behind `offset`, unit by unit. Returns where one begins, or `file_bytes`.
absl::StatusOr<uint64_t> FindRecord(const DiskFile& file, const SegmentHead& segment,
                                    uint64_t offset, uint64_t file_bytes, DiskBuffer& buffer) {
  while (offset < file_bytes) {
    const std::span<std::byte> piece =
        buffer.span().first(std::min(kSearchBytes, file_bytes - offset));
    PKV_RETURN_IF_ERROR(file.Read(offset, piece));
    for (uint64_t at = 0; at < piece.size(); at += kDiskUnitBytes) {
      if (ParseRecordHead(piece.subspan(at, kDiskUnitBytes), segment, offset + at).ok()) {
        return offset + at;
      }
    }
    offset += piece.size();
  }
  return file_bytes;
}

}  // namespace

absl::StatusOr<ScannedSegment> ScanSegment(const DiskFile& file) {
  PKV_ASSIGN_OR_RETURN(uint64_t file_bytes, file.Size());
  file_bytes = file_bytes / kDiskUnitBytes * kDiskUnitBytes;
  if (file_bytes == 0) return absl::NotFoundError("the file is empty");
  DiskBuffer buffer(std::min(kSearchBytes, file_bytes));
  const std::span<std::byte> unit = buffer.span().first(kDiskUnitBytes);
  PKV_RETURN_IF_ERROR(file.Read(0, unit));
  ScannedSegment scanned;
  PKV_ASSIGN_OR_RETURN(scanned.head, ParseSegmentHead(unit));
  scanned.end_bytes = kDiskUnitBytes;
  file_bytes = std::min(file_bytes, scanned.head.segment_bytes);
  for (uint64_t offset = kDiskUnitBytes; offset < file_bytes;) {
    scanned.read_status = file.Read(offset, unit);
    if (!scanned.read_status.ok()) return scanned;
    const absl::StatusOr<RecordHead> record = ParseRecordHead(unit, scanned.head, offset);
    if (record.ok() && record->record_bytes() <= file_bytes - offset) {
      scanned.records.push_back(*record);
      offset += record->record_bytes();
      scanned.end_bytes = offset;
      continue;
    }
    if (!absl::IsNotFound(record.status())) ++scanned.num_damaged;
    const absl::StatusOr<uint64_t> next =
        FindRecord(file, scanned.head, offset + kDiskUnitBytes, file_bytes, buffer);
    scanned.read_status = next.status();
    if (!next.ok()) return scanned;
    offset = *next;
  }
  return scanned;
}

}  // namespace pkv
