// Goal: no bytes in a segment file make the recovery of a log fail, read outside the file or take
// one record for two. Method: each input is laid out as a segment whose head is right, one record
// head's bytes a unit; then again with place and checksum of each made right, so that the checks
// behind the checksum are reached; and the log is opened on it.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kvstore/disk/segment_log.h"
#include "kvstore/disk/segment_scan.h"
#include "proto/base/checked_math.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_disk.h"

namespace pkv {
namespace {

constexpr uint64_t kUnits = 64;

std::vector<std::byte> MakeSegment(std::span<const uint8_t> input, bool fix_up) {
  std::vector<std::byte> file(kUnits * kDiskUnitBytes);
  const SegmentHead head = {.number = 1, .salt = 7, .segment_bytes = file.size()};
  SealSegmentHead(head, std::span(file).first<kDiskUnitBytes>());
  for (uint64_t unit = 1; unit < kUnits && !input.empty(); ++unit) {
    const size_t taken = std::min(input.size(), sizeof(RecordHead));
    RecordHead record;
    std::memcpy(&record, input.data(), taken);
    input = input.subspan(taken);
    const auto at = std::span(file).subspan(unit * kDiskUnitBytes).first<kDiskUnitBytes>();
    if (fix_up) {
      record.magic = kRecordMagic;
      record.salt = head.salt;
      record.segment = head.number;
      record.offset = unit * kDiskUnitBytes;
      SealRecordHead(record, at);
    } else {
      std::memcpy(at.data(), &record, sizeof(record));
    }
  }
  return file;
}

void CheckScan(const DiskFile& file) {
  const absl::StatusOr<ScannedSegment> scanned = ScanSegment(file);
  PKV_CHECK(scanned.ok() && scanned->read_status.ok());
  uint64_t end_bytes = kDiskUnitBytes;
  for (const RecordHead& record : scanned->records) {
    PKV_CHECK(record.offset >= end_bytes, record.offset, " before ", end_bytes);
    end_bytes = record.offset + record.record_bytes();
  }
  PKV_CHECK(end_bytes == scanned->end_bytes && end_bytes <= kUnits * kDiskUnitBytes);
}

void Check(std::span<const uint8_t> input, bool fix_up) {
  FakeDisk disk;
  FakeClock clock;
  disk.AddFile("0000000000000001.pkvlog", MakeSegment(input, fix_up));
  CheckScan(*disk.Open("0000000000000001.pkvlog").value());
  const auto log =
      SegmentLog::Open({.disk = &disk, .capacity_bytes = kLogBytesMin, .salt = 8, .clock = &clock});
  PKV_CHECK(log.ok(), log.status().ToString());
}

}  // namespace
}  // namespace pkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  for (const bool fix_up : {false, true}) pkv::Check({data, size}, fix_up);
  return 0;
}
