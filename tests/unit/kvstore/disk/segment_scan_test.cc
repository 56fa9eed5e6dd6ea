#include "kvstore/disk/segment_scan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "tests/unit/kvstore/disk/log_fixture.h"

namespace pkv {
namespace {

using ::testing::ElementsAre;

// A segment of its own with windows 1, 2 and 3 and a tombstone of 1: units 1..2, 3..4, 5..6, 7.
class SegmentScanTest : public LogFixture {
 protected:
  void SetUp() override {
    LogFixture::SetUp();
    ASSERT_THAT(Open(), IsOk());
    for (uint64_t id = 1; id <= 3; ++id)
      ASSERT_THAT(PutInLog(*log_, MakeTestWindow(id, 1)), IsOk());
    log_->Erase(MakeTestWindow(1, 1).key());
    ASSERT_THAT(log_->Sync(), IsOk());
    name_ = disk_->names().at(0);
  }
  std::span<std::byte> Unit(int unit) {
    return std::span(disk_->bytes(name_)).subspan(unit * kDiskUnitBytes, kDiskUnitBytes);
  }
  absl::StatusOr<ScannedSegment> Scan() { return ScanSegment(*disk_->Open(name_).value()); }
  static std::vector<uint64_t> Offsets(const ScannedSegment& scanned) {
    std::vector<uint64_t> offsets;
    for (const RecordHead& record : scanned.records) offsets.push_back(record.offset / 4096);
    return offsets;
  }

  std::string name_;
};

TEST_F(SegmentScanTest, FindsAllRecordsInOrder) {
  const absl::StatusOr<ScannedSegment> scanned = Scan();
  ASSERT_THAT(scanned, IsOk());
  EXPECT_THAT(Offsets(*scanned), ElementsAre(1, 3, 5, 7));
  EXPECT_EQ(scanned->records[3].kind, RecordKind::kTombstone);
  EXPECT_EQ(scanned->end_bytes, 8 * kDiskUnitBytes);
  EXPECT_EQ(scanned->num_damaged, 0u);
  EXPECT_THAT(scanned->read_status, IsOk());
}

TEST_F(SegmentScanTest, EndsBeforeATornTail) {
  std::memset(Unit(7).data() + 128, 0, 4096 - 128);
  const absl::StatusOr<ScannedSegment> scanned = Scan();
  ASSERT_THAT(scanned, IsOk());
  EXPECT_THAT(Offsets(*scanned), ElementsAre(1, 3, 5));
  EXPECT_EQ(scanned->end_bytes, 7 * kDiskUnitBytes);
  EXPECT_EQ(scanned->num_damaged, 1u);
}

TEST_F(SegmentScanTest, LosesOneRecordToADamagedHead) {
  Unit(3)[100] ^= std::byte{1};
  const absl::StatusOr<ScannedSegment> scanned = Scan();
  ASSERT_THAT(scanned, IsOk());
  EXPECT_THAT(Offsets(*scanned), ElementsAre(1, 5, 7));
  EXPECT_EQ(scanned->num_damaged, 1u);
}

TEST_F(SegmentScanTest, LooksBeyondAWriteThatNeverCame) {
  std::memset(Unit(3).data(), 0, 2 * kDiskUnitBytes);
  const absl::StatusOr<ScannedSegment> scanned = Scan();
  ASSERT_THAT(scanned, IsOk());
  EXPECT_THAT(Offsets(*scanned), ElementsAre(1, 5, 7));
  EXPECT_EQ(scanned->num_damaged, 0u);
}

// An object that holds the copy of a record, in front of which the record's head was damaged.
TEST_F(SegmentScanTest, TakesNoObjectForARecord) {
  std::memcpy(Unit(4).data(), Unit(1).data(), kDiskUnitBytes);
  Unit(3)[100] ^= std::byte{1};
  EXPECT_THAT(Offsets(Scan().value()), ElementsAre(1, 5, 7));
  // Nor one whose author knew the place, but not the salt.
  RecordHead head = Scan().value().records[1];
  head.offset = 4 * kDiskUnitBytes;
  ++head.salt;
  SealRecordHead(head, Unit(4).first<kDiskUnitBytes>());
  EXPECT_THAT(Offsets(Scan().value()), ElementsAre(1, 5, 7));
}

TEST_F(SegmentScanTest, StopsWhereARecordReachesBeyondTheFile) {
  disk_->bytes(name_).resize(6 * kDiskUnitBytes);
  const absl::StatusOr<ScannedSegment> scanned = Scan();
  ASSERT_THAT(scanned, IsOk());
  EXPECT_THAT(Offsets(*scanned), ElementsAre(1, 3));
  EXPECT_EQ(scanned->end_bytes, 5 * kDiskUnitBytes);
}

TEST_F(SegmentScanTest, SaysWhatAFileIs) {
  Unit(0)[20] ^= std::byte{1};
  EXPECT_THAT(Scan(), StatusIs(absl::StatusCode::kDataLoss));
  Unit(0)[0] = std::byte{'x'};
  EXPECT_THAT(Scan(), StatusIs(absl::StatusCode::kFailedPrecondition));
  std::memset(Unit(0).data(), 0, kDiskUnitBytes);
  EXPECT_THAT(Scan(), StatusIs(absl::StatusCode::kNotFound));
  disk_->bytes(name_).resize(100);
  EXPECT_THAT(Scan(), StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(SegmentScanTest, StepsOverAUnitThatCannotBeRead) {
  disk_->SpoilUnit(name_, 3);
  const absl::StatusOr<ScannedSegment> scanned = Scan();
  ASSERT_THAT(scanned, IsOk());
  EXPECT_THAT(Offsets(*scanned), ElementsAre(1, 5, 7));
  EXPECT_EQ(scanned->file_bytes, kSegmentUnits * kDiskUnitBytes);
  EXPECT_THAT(scanned->read_status, StatusIs(absl::StatusCode::kUnavailable));
  disk_->SpoilUnit(name_, 0);
  EXPECT_THAT(Scan(), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(SegmentScanTest, KeepsWhatItReadBeforeTheDiskFailed) {
  int num_reads = 0;
  disk_->SetFault([&num_reads](FakeDisk::Call call) {
    const bool fails = call == FakeDisk::Call::kRead && ++num_reads > 3;
    return fails ? absl::UnavailableError("EIO") : absl::OkStatus();
  });
  const absl::StatusOr<ScannedSegment> scanned = Scan();
  ASSERT_THAT(scanned, IsOk());
  EXPECT_THAT(Offsets(*scanned), ElementsAre(1, 3));
  EXPECT_THAT(scanned->read_status, StatusIs(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace pkv
