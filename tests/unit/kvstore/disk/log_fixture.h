#ifndef PKV_TESTS_UNIT_KVSTORE_DISK_LOG_FIXTURE_H_
#define PKV_TESTS_UNIT_KVSTORE_DISK_LOG_FIXTURE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "kvstore/disk/segment_log.h"
#include "proto/base/checked_math.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_disk.h"
#include "tests/support/sealed_object.h"
#include "tests/support/status_matchers.h"

namespace pkv {

// Remembers what a log told. Thread-compatible.
class RecordingLogObserver : public LogObserver {
 public:
  void OnDiskIo(DiskOp op, uint64_t bytes, absl::Duration) override {
    ++num_calls[static_cast<int>(op)];
    num_bytes[static_cast<int>(op)] += bytes;
  }
  void OnDiskError(DiskOp op) override { ++num_errors[static_cast<int>(op)]; }
  void OnLogEviction(uint64_t object_bytes, absl::Duration idle) override {
    evicted_bytes.push_back(object_bytes);
    evicted_idle.push_back(idle);
  }

  int num_calls[3] = {};
  uint64_t num_bytes[3] = {};
  int num_errors[3] = {};
  std::vector<uint64_t> evicted_bytes;
  std::vector<absl::Duration> evicted_idle;
};

inline LogRecord DescriptionOf(const SealedObject& object) {
  return DescribeObject(object.header, object.head());
}

// An object in whole units, as it lies in the arena.
inline DiskBuffer UnitsOf(const SealedObject& object) {
  DiskBuffer units(AlignUp(object.bytes().size(), kDiskUnitBytes));
  std::ranges::copy(object.bytes(), units.span().begin());
  return units;
}

inline absl::Status PutInLog(SegmentLog& log, const SealedObject& object) {
  DiskBuffer units = UnitsOf(object);
  const auto record = log.Append(object.key(), DescriptionOf(object), units.span());
  if (record.ok()) log.Publish(object.key(), *record);
  return record.status();
}

// What the log has of an object. NotFound; DataLoss: other bytes than it should.
inline absl::Status CheckInLog(const SegmentLog& log, const SealedObject& object) {
  const std::optional<LogRecord> record = log.Find(object.key());
  if (!record) return absl::NotFoundError("not in the index");
  DiskBuffer units(AlignUp(record->object_bytes, kDiskUnitBytes));
  if (const absl::Status read = log.Read(*record, units.span()); !read.ok()) return read;
  const bool equal = std::ranges::equal(units.span().first(record->object_bytes), object.bytes());
  return equal ? absl::OkStatus() : absl::DataLossError("other bytes");
}

// Logs on a disk in memory. A test window of one token takes one unit and its head one: a segment
// of 16 units holds seven.
class LogFixture : public ::testing::Test {
 protected:
  static constexpr uint64_t kSegmentUnits = 16;

  void SetUp() override { disk_ = std::make_unique<FakeDisk>(); }

  absl::Status Open(uint64_t capacity_bytes = kLogBytesMin) {
    log_.reset();
    absl::StatusOr<std::unique_ptr<SegmentLog>> log =
        SegmentLog::Open({.disk = disk_.get(),
                          .capacity_bytes = capacity_bytes,
                          .segment_bytes = kSegmentUnits * kDiskUnitBytes,
                          .salt = ++salt_,
                          .clock = &clock_,
                          .observer = &observer_});
    if (log.ok()) log_ = *std::move(log);
    return log.status();
  }

  FakeClock clock_;
  RecordingLogObserver observer_;
  std::unique_ptr<FakeDisk> disk_;
  std::unique_ptr<SegmentLog> log_;
  uint64_t salt_ = 40;
};

}  // namespace pkv

#endif  // PKV_TESTS_UNIT_KVSTORE_DISK_LOG_FIXTURE_H_
