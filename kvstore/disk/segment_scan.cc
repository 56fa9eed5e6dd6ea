#include "kvstore/disk/segment_scan.h"

#include <algorithm>
#include <span>
#include <utility>

#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// Read at once when the next record has to be looked for.
constexpr uint64_t kSearchBytes = uint64_t{1} << 20;

// A disk that fails everywhere takes its time for each error.
constexpr int kUnreadableUnitsMax = 64;

// Looks at the units of one file.
class Scan {
 public:
  Scan(const DiskFile& file, const SegmentHead& segment, uint64_t end, DiskBuffer& buffer)
      : file_(file), segment_(segment), end_(end), buffer_(buffer.span()) {}

  // The record that begins at `offset`.
  //   NotFound  only zeros
  //   DataLoss  something else
  //   others    the unit cannot be read
  absl::StatusOr<RecordHead> RecordAt(uint64_t offset) {
    const std::span<std::byte> unit = buffer_.first(kDiskUnitBytes);
    PKV_RETURN_IF_ERROR(Noted(file_.Read(offset, unit)));
    PKV_ASSIGN_OR_RETURN(const RecordHead record, ParseRecordHead(unit, segment_, offset));
    if (record.record_bytes() <= end_ - offset) return record;
    return absl::DataLossError("the record reaches beyond the file");
  }

  // Where the next record begins, at `offset` or behind it; the end when there is none.
  uint64_t FindRecord(uint64_t offset) {
    while (offset < end_ && !has_given_up()) {
      const std::span<std::byte> piece = buffer_.first(std::min(kSearchBytes, end_ - offset));
      const bool is_read = file_.Read(offset, piece).ok();
      for (uint64_t at = 0; at < piece.size() && !has_given_up(); at += kDiskUnitBytes) {
        const std::span<std::byte> unit = piece.subspan(at, kDiskUnitBytes);
        // One bad unit fails the whole piece: each by itself, then.
        if (!is_read && !Noted(file_.Read(offset + at, unit)).ok()) continue;
        if (ParseRecordHead(unit, segment_, offset + at).ok()) return offset + at;
      }
      offset += piece.size();
    }
    return end_;
  }

  bool has_given_up() const { return num_unreadable_ >= kUnreadableUnitsMax; }
  const absl::Status& read_status() const { return read_status_; }

 private:
  absl::Status Noted(absl::Status status) {
    if (!status.ok()) {
      ++num_unreadable_;
      read_status_.Update(status);
    }
    return status;
  }

  const DiskFile& file_;
  const SegmentHead& segment_;
  const uint64_t end_;
  const std::span<std::byte> buffer_;
  int num_unreadable_ = 0;
  absl::Status read_status_;
};

}  // namespace

absl::StatusOr<ScannedSegment> ScanSegment(const DiskFile& file) {
  ScannedSegment scanned;
  PKV_ASSIGN_OR_RETURN(scanned.file_bytes, file.Size());
  uint64_t end = scanned.file_bytes / kDiskUnitBytes * kDiskUnitBytes;
  if (end == 0) return absl::NotFoundError("the file is empty");
  DiskBuffer buffer(std::min(kSearchBytes, end));
  const std::span<std::byte> unit = buffer.span().first(kDiskUnitBytes);
  PKV_RETURN_IF_ERROR(file.Read(0, unit));
  PKV_ASSIGN_OR_RETURN(scanned.head, ParseSegmentHead(unit));
  scanned.end_bytes = kDiskUnitBytes;
  end = std::min(end, scanned.head.segment_bytes);
  Scan scan(file, scanned.head, end, buffer);
  for (uint64_t offset = kDiskUnitBytes; offset < end && !scan.has_given_up();) {
    const absl::StatusOr<RecordHead> record = scan.RecordAt(offset);
    if (record.ok()) {
      scanned.records.push_back(*record);
      offset += record->record_bytes();
      scanned.end_bytes = offset;
      continue;
    }
    if (absl::IsDataLoss(record.status())) ++scanned.num_damaged;
    offset = scan.FindRecord(offset + kDiskUnitBytes);
  }
  scanned.read_status = scan.read_status();
  return scanned;
}

}  // namespace pkv
