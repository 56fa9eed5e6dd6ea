#include "kvstore/disk/segment_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "kvstore/disk/posix_disk.h"
#include "tests/support/scratch_folder.h"
#include "tests/unit/kvstore/disk/log_fixture.h"

namespace pkv {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::SizeIs;

constexpr auto kNotFound = absl::StatusCode::kNotFound;

class SegmentLogTest : public LogFixture {
 protected:
  // Windows of one token: seven to a segment.
  void PutWindows(uint64_t first, uint64_t last) {
    for (uint64_t id = first; id <= last; ++id) {
      ASSERT_THAT(PutInLog(*log_, MakeTestWindow(id, 1)), IsOk()) << id;
    }
  }
  absl::Status Window(uint64_t id) { return CheckInLog(*log_, MakeTestWindow(id, 1)); }
  void FailOn(FakeDisk::Call failing, absl::Status status) {
    disk_->SetFault([failing, status](FakeDisk::Call call) {
      return call == failing ? status : absl::OkStatus();
    });
  }
  // Capacity for this many segments, the spare one included.
  static constexpr uint64_t Segments(uint64_t count) {
    return std::max(kLogBytesMin, count * kSegmentUnits * kDiskUnitBytes);
  }
};

TEST_F(SegmentLogTest, GivesBackWhatWasAppended) {
  ASSERT_THAT(Open(), IsOk());
  PutWindows(1, 20);
  for (uint64_t id = 1; id <= 20; ++id) EXPECT_THAT(Window(id), IsOk());
  EXPECT_THAT(Window(21), StatusIs(kNotFound));
  EXPECT_EQ(log_->stats().num_objects, 20u);
  EXPECT_EQ(log_->stats().num_segments, 3u);
}

TEST_F(SegmentLogTest, ShowsNothingBeforeItIsPublished) {
  ASSERT_THAT(Open(), IsOk());
  const SealedObject object = MakeTestWindow(1, 1);
  DiskBuffer units = UnitsOf(object);
  const auto record = log_->Append(object.key(), DescriptionOf(object), units.span());
  ASSERT_THAT(record, IsOk());
  EXPECT_THAT(Window(1), StatusIs(kNotFound));
  log_->Publish(object.key(), *record);
  EXPECT_THAT(Window(1), IsOk());
  EXPECT_TRUE(log_->Holds(object.key(), *record));
}

TEST_F(SegmentLogTest, FindsEverythingAfterARestart) {
  ASSERT_THAT(Open(), IsOk());
  const SealedObject table = MakeTestTable(1);
  const SealedObject block = MakeTestBlock(50, 1, table.header.id);
  ASSERT_THAT(PutInLog(*log_, table), IsOk());
  ASSERT_THAT(PutInLog(*log_, block), IsOk());
  PutWindows(1, 20);
  ASSERT_THAT(Open(), IsOk());
  for (uint64_t id = 1; id <= 20; ++id) EXPECT_THAT(Window(id), IsOk());
  EXPECT_THAT(CheckInLog(*log_, block), IsOk());
  EXPECT_TRUE(log_->HasDependents(table.key()));
  const LogRecord found = log_->Find(block.key()).value();
  const LogRecord expected = DescriptionOf(block);
  EXPECT_EQ(found.table, expected.table);
  EXPECT_EQ(found.content_crc32c, expected.content_crc32c);
  EXPECT_EQ(found.num_patterns_k, expected.num_patterns_k);
  EXPECT_EQ(found.frame_bytes, expected.frame_bytes);
}

TEST_F(SegmentLogTest, ForgetsForGoodWhatWasErased) {
  ASSERT_THAT(Open(), IsOk());
  PutWindows(1, 10);
  EXPECT_TRUE(log_->Erase(MakeTestWindow(3, 1).key()));
  EXPECT_FALSE(log_->Erase(MakeTestWindow(3, 1).key()));
  EXPECT_THAT(Window(3), StatusIs(kNotFound));
  EXPECT_TRUE(log_->HasTombstones());
  ASSERT_THAT(log_->Sync(), IsOk());
  EXPECT_FALSE(log_->HasTombstones());
  ASSERT_THAT(Open(), IsOk());
  EXPECT_THAT(Window(3), StatusIs(kNotFound));
  EXPECT_THAT(Window(4), IsOk());
}

TEST_F(SegmentLogTest, PrefersTheLaterRecordOfAKey) {
  ASSERT_THAT(Open(), IsOk());
  PutWindows(1, 1);
  log_->Erase(MakeTestWindow(1, 1).key());
  // Other bytes under a key that was deleted.
  ASSERT_THAT(PutInLog(*log_, MakeTestWindow(1, 2)), IsOk());
  EXPECT_THAT(CheckInLog(*log_, MakeTestWindow(1, 2)), IsOk());
  ASSERT_THAT(Open(), IsOk());
  EXPECT_THAT(CheckInLog(*log_, MakeTestWindow(1, 2)), IsOk());
}

TEST_F(SegmentLogTest, DiscardsWhatWasDeletedWhileItWasWritten) {
  ASSERT_THAT(Open(), IsOk());
  const SealedObject object = MakeTestWindow(1, 1);
  DiskBuffer units = UnitsOf(object);
  ASSERT_THAT(log_->Append(object.key(), DescriptionOf(object), units.span()), IsOk());
  log_->Discard(object.key());
  ASSERT_THAT(log_->Sync(), IsOk());
  ASSERT_THAT(Open(), IsOk());
  EXPECT_THAT(Window(1), StatusIs(kNotFound));
}

TEST_F(SegmentLogTest, DropsTheOldestSegmentForRoom) {
  ASSERT_THAT(Open(Segments(16)), IsOk());
  clock_.Advance(absl::Seconds(10));
  PutWindows(1, 15 * 7);
  EXPECT_THAT(Window(1), IsOk());
  clock_.Advance(absl::Seconds(5));
  PutWindows(200, 200);
  for (uint64_t id = 1; id <= 7; ++id) EXPECT_THAT(Window(id), StatusIs(kNotFound));
  EXPECT_THAT(Window(8), IsOk());
  EXPECT_THAT(observer_.evicted_bytes, SizeIs(7));
  EXPECT_THAT(observer_.evicted_idle, Each(absl::Seconds(5)));
  EXPECT_LE(disk_->most_used_bytes(), Segments(16));
}

TEST_F(SegmentLogTest, NeverTakesMoreThanItsCapacity) {
  for (int restart = 0; restart < 6; ++restart) {
    ASSERT_THAT(Open(Segments(16)), IsOk());
    PutWindows(1000 * restart, 1000 * restart + 150);
  }
  EXPECT_LE(disk_->most_used_bytes(), Segments(16));
}

TEST_F(SegmentLogTest, ShrinksToASmallerCapacity) {
  ASSERT_THAT(Open(Segments(32)), IsOk());
  const SealedObject table = MakeTestTable(1);
  ASSERT_THAT(PutInLog(*log_, table), IsOk());
  PutWindows(1, 30 * 7);
  ASSERT_THAT(PutInLog(*log_, MakeTestBlock(500, 1, table.header.id)), IsOk());
  ASSERT_THAT(Open(Segments(16)), IsOk());
  EXPECT_LE(disk_->used_bytes(), Segments(16));
  EXPECT_THAT(Window(1), StatusIs(kNotFound));
  EXPECT_THAT(Window(30 * 7), IsOk());
  EXPECT_THAT(CheckInLog(*log_, table), IsOk());
  ASSERT_THAT(Open(Segments(16)), IsOk());
  EXPECT_THAT(CheckInLog(*log_, table), IsOk());
}

TEST_F(SegmentLogTest, CarriesTablesThatYoungerBlocksNeed) {
  ASSERT_THAT(Open(Segments(16)), IsOk());
  const SealedObject needed = MakeTestTable(1), idle = MakeTestTable(2);
  ASSERT_THAT(PutInLog(*log_, needed), IsOk());
  ASSERT_THAT(PutInLog(*log_, idle), IsOk());
  PutWindows(1, 14 * 7);
  const SealedObject block = MakeTestBlock(500, 1, needed.header.id);
  ASSERT_THAT(PutInLog(*log_, block), IsOk());
  PutWindows(200, 210);
  EXPECT_THAT(CheckInLog(*log_, idle), StatusIs(kNotFound));
  EXPECT_THAT(CheckInLog(*log_, needed), IsOk());
  EXPECT_THAT(CheckInLog(*log_, block), IsOk());
  ASSERT_THAT(Open(Segments(16)), IsOk());
  EXPECT_THAT(CheckInLog(*log_, needed), IsOk());
}

TEST_F(SegmentLogTest, CarriesNoDamagedTable) {
  ASSERT_THAT(Open(Segments(16)), IsOk());
  const SealedObject table = MakeTestTable(1);
  ASSERT_THAT(PutInLog(*log_, table), IsOk());
  disk_->bytes(disk_->names().at(0))[2 * kDiskUnitBytes + 600] ^= std::byte{1};
  PutWindows(1, 14 * 7);
  ASSERT_THAT(PutInLog(*log_, MakeTestBlock(500, 1, table.header.id)), IsOk());
  PutWindows(200, 210);
  EXPECT_THAT(CheckInLog(*log_, table), StatusIs(kNotFound));
}

TEST_F(SegmentLogTest, KnowsWhatWillGoNext) {
  ASSERT_THAT(Open(Segments(16)), IsOk());
  PutWindows(1, 7);
  const LogRecord first = log_->Find(MakeTestWindow(1, 1).key()).value();
  EXPECT_FALSE(log_->IsAging(first));
  PutWindows(8, 14 * 7);
  EXPECT_TRUE(log_->IsAging(first));
  EXPECT_FALSE(log_->IsAging(log_->Find(MakeTestWindow(7 * 7, 1).key()).value()));
}

TEST_F(SegmentLogTest, RefusesWhatIsLargerThanASegment) {
  ASSERT_THAT(Open(), IsOk());
  const SealedObject object = MakeTestWindow(1, 1, 256);
  EXPECT_GT(object.bytes().size(), log_->largest_object_bytes());
  EXPECT_THAT(PutInLog(*log_, object), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(SegmentLogTest, GoesOnInAnotherSegmentAfterAFailedWrite) {
  ASSERT_THAT(Open(), IsOk());
  PutWindows(1, 2);
  FailOn(FakeDisk::Call::kWrite, absl::UnavailableError("EIO"));
  EXPECT_THAT(PutInLog(*log_, MakeTestWindow(3, 1)), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(observer_.num_errors[1], 1);
  disk_->SetFault({});
  PutWindows(4, 5);
  for (const uint64_t id : {1, 2, 4, 5}) EXPECT_THAT(Window(id), IsOk());
  ASSERT_THAT(Open(), IsOk());
  EXPECT_THAT(Window(3), StatusIs(kNotFound));
  for (const uint64_t id : {1, 2, 4, 5}) EXPECT_THAT(Window(id), IsOk());
}

TEST_F(SegmentLogTest, TellsOfAFailedSyncAndTrustsItsSegmentNoMore) {
  ASSERT_THAT(Open(), IsOk());
  PutWindows(1, 1);
  FailOn(FakeDisk::Call::kSync, absl::UnavailableError("EIO"));
  EXPECT_THAT(log_->Sync(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(observer_.num_errors[2], 1);
  disk_->SetFault({});
  PutWindows(2, 2);
  EXPECT_EQ(log_->stats().num_segments, 2u);
  EXPECT_THAT(Window(1), IsOk());
}

TEST_F(SegmentLogTest, MakesDoWithLessWhenOthersFillTheDisk) {
  ASSERT_THAT(Open(), IsOk());
  const SealedObject table = MakeTestTable(1);
  ASSERT_THAT(PutInLog(*log_, table), IsOk());
  PutWindows(1, 3 * 7);
  ASSERT_THAT(PutInLog(*log_, MakeTestBlock(500, 1, table.header.id)), IsOk());
  disk_->SetTotalBytes(disk_->used_bytes());
  PutWindows(100, 100 + 2 * 7);
  EXPECT_THAT(Window(1), StatusIs(kNotFound));
  EXPECT_THAT(CheckInLog(*log_, table), IsOk());
  PutWindows(120, 5 * 7 + 100);
  EXPECT_THAT(Window(5 * 7 + 100), IsOk());
  EXPECT_EQ(observer_.num_errors[1], 0);
}

TEST_F(SegmentLogTest, SaysThatTheDiskIsFull) {
  ASSERT_THAT(Open(), IsOk());
  disk_->SetTotalBytes(kDiskUnitBytes);
  EXPECT_THAT(PutInLog(*log_, MakeTestWindow(1, 1)),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(observer_.num_errors[1], 1);
  EXPECT_THAT(disk_->names(), SizeIs(0));
}

TEST_F(SegmentLogTest, CountsReadsThatFail) {
  ASSERT_THAT(Open(), IsOk());
  PutWindows(1, 1);
  FailOn(FakeDisk::Call::kRead, absl::UnavailableError("EIO"));
  EXPECT_THAT(Window(1), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(observer_.num_errors[0], 1);
}

TEST_F(SegmentLogTest, SuspendsReadsForAWhile) {
  ASSERT_THAT(Open(), IsOk());
  EXPECT_FALSE(log_->reads_suspended());
  log_->SuspendReads(absl::Seconds(10));
  EXPECT_TRUE(log_->reads_suspended());
  clock_.Advance(absl::Seconds(10));
  EXPECT_FALSE(log_->reads_suspended());
}

TEST_F(SegmentLogTest, RefusesAFolderOfOthers) {
  disk_->AddFile("lost+found", {});
  ASSERT_THAT(Open(), IsOk());
  disk_->AddFile("notes.txt", {});
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("notes.txt")));
}

TEST_F(SegmentLogTest, RefusesAnotherVersionAndLeavesItAsItIs) {
  ASSERT_THAT(Open(), IsOk());
  PutWindows(1, 1);
  const std::string name = disk_->names().at(0);
  SegmentHead head = {.version = 2, .number = 1, .segment_bytes = 1 << 20};
  SealSegmentHead(head, std::span(disk_->bytes(name)).first<kDiskUnitBytes>());
  const std::vector<std::byte> before = disk_->bytes(name);
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("version 2")));
  EXPECT_EQ(disk_->bytes(name), before);
}

TEST_F(SegmentLogTest, DropsASegmentWhoseHeadIsDamaged) {
  ASSERT_THAT(Open(), IsOk());
  PutWindows(1, 10);
  disk_->bytes(disk_->names().at(0))[24] ^= std::byte{1};
  ASSERT_THAT(Open(), IsOk());
  EXPECT_THAT(Window(1), StatusIs(kNotFound));
  EXPECT_THAT(Window(10), IsOk());
}

TEST_F(SegmentLogTest, DropsAtStartWhatACrashHasTorn) {
  ASSERT_THAT(Open(), IsOk());
  PutWindows(1, 3);
  disk_->bytes(disk_->names().at(0))[4 * kDiskUnitBytes + 300] ^= std::byte{1};
  ASSERT_THAT(Open(), IsOk());
  EXPECT_THAT(Window(1), IsOk());
  EXPECT_THAT(Window(2), StatusIs(kNotFound));
  EXPECT_THAT(Window(3), IsOk());
  EXPECT_EQ(log_->stats().num_damaged, 0u);
}

TEST_F(SegmentLogTest, KeepsASegmentWhoseHeadCannotBeRead) {
  ASSERT_THAT(Open(), IsOk());
  PutWindows(1, 10);
  const std::string name = disk_->names().at(0);
  const std::vector<std::byte> before = disk_->bytes(name);
  disk_->SpoilUnit(name, 0);
  ASSERT_THAT(Open(), IsOk());
  EXPECT_THAT(Window(1), StatusIs(kNotFound));
  EXPECT_THAT(Window(10), IsOk());
  EXPECT_EQ(log_->stats().num_damaged, 1u);
  EXPECT_EQ(disk_->bytes(name), before);
  disk_->MendUnits(name);
  ASSERT_THAT(Open(), IsOk());
  EXPECT_THAT(Window(1), IsOk());
}

// What a unit that cannot be read hides may be there another time; a tombstone behind it counts.
TEST_F(SegmentLogTest, CutsNothingOffBehindAUnitThatCannotBeRead) {
  ASSERT_THAT(Open(), IsOk());
  PutWindows(1, 4);
  log_->Erase(MakeTestWindow(1, 1).key());
  ASSERT_THAT(log_->Sync(), IsOk());
  const std::string name = disk_->names().at(0);
  const std::vector<std::byte> before = disk_->bytes(name);
  for (const uint64_t unit : {3, 7}) disk_->SpoilUnit(name, unit);
  ASSERT_THAT(Open(), IsOk());
  for (const uint64_t id : {1, 2, 4}) EXPECT_THAT(Window(id), StatusIs(kNotFound)) << id;
  EXPECT_THAT(Window(3), IsOk());
  EXPECT_EQ(disk_->bytes(name), before);
  disk_->MendUnits(name);
  ASSERT_THAT(Open(), IsOk());
  EXPECT_THAT(Window(1), StatusIs(kNotFound));
  for (const uint64_t id : {2, 3, 4}) EXPECT_THAT(Window(id), IsOk()) << id;
}

// An object that a crash may have torn, on a disk that does not say.
TEST_F(SegmentLogTest, DropsNothingAtStartThatCannotBeRead) {
  ASSERT_THAT(Open(), IsOk());
  PutWindows(1, 2);
  const std::string name = disk_->names().at(0);
  disk_->SpoilUnit(name, 2);
  ASSERT_THAT(Open(), IsOk());
  disk_->MendUnits(name);
  EXPECT_THAT(Window(1), IsOk());
  EXPECT_FALSE(log_->HasTombstones());
}

TEST_F(SegmentLogTest, CountsWhatCouldNotBeCutOff) {
  FailOn(FakeDisk::Call::kTruncate, absl::UnavailableError("EIO"));
  for (uint64_t id = 1; id <= 20; ++id) {
    ASSERT_THAT(Open(Segments(16)), IsOk());
    PutWindows(id, id);
  }
  EXPECT_LE(disk_->most_used_bytes(), Segments(16));
  EXPECT_THAT(Window(20), IsOk());
}

TEST_F(SegmentLogTest, RefusesACapacityTheDiskDoesNotHave) {
  disk_->SetTotalBytes(2 * kLogBytesMin);
  EXPECT_THAT(Open(kLogBytesMin - 1), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(Open(2 * kLogBytesMin + 1),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("file system")));
  EXPECT_THAT(Open(2 * kLogBytesMin), IsOk());
}

TEST(SegmentBytesTest, LeaveEightSegmentsAndOpenAtMost256Files) {
  for (const uint64_t capacity :
       {kLogBytesMin, uint64_t{1} << 30, uint64_t{100} << 30, uint64_t{8} << 40}) {
    const uint64_t bytes = SegmentLog::SegmentBytesFor(capacity);
    EXPECT_LE(bytes, capacity / 8) << capacity;
    EXPECT_LE(capacity / bytes, 257u) << capacity;
  }
}

// The file of tests/golden/log-v1, made once: it is written, and read, as it was.
TEST_F(SegmentLogTest, WritesAndReadsTheGoldenSegment) {
  const std::string name = "0000000000000001.pkvlog";
  std::ifstream file(std::string(std::getenv("PKV_SOURCE_DIR")) + "/tests/golden/log-v1/" + name,
                     std::ios::binary);
  const std::string golden{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  salt_ = 0x1122334455667787;
  ASSERT_THAT(Open(), IsOk());
  PutWindows(1, 2);
  log_->Erase(MakeTestWindow(1, 1).key());
  ASSERT_THAT(log_->Sync(), IsOk());
  const std::span<const std::byte> written = std::span(disk_->bytes(name)).first(6 * 4096);
  EXPECT_TRUE(std::ranges::equal(written, std::as_bytes(std::span(golden))));
  disk_ = std::make_unique<FakeDisk>();
  const auto bytes = std::as_bytes(std::span(golden));
  disk_->AddFile(name, {bytes.begin(), bytes.end()});
  ASSERT_THAT(Open(), IsOk());
  EXPECT_THAT(Window(1), StatusIs(kNotFound));
  EXPECT_THAT(Window(2), IsOk());
}

TEST(SegmentLogOnDiskTest, ComesBackFromRealFiles) {
  ScratchFolder folder;
  const SealedObject object = MakeTestBlock(1, 1);
  for (const bool is_first : {true, false}) {
    auto disk = OpenPosixDisk(folder.path()).value();
    auto log = SegmentLog::Open(
        {.disk = disk.get(), .capacity_bytes = kLogBytesMin, .salt = 5, .clock = Clock::Real()});
    ASSERT_THAT(log, IsOk());
    if (is_first) {
      ASSERT_THAT(PutInLog(**log, object), IsOk());
      ASSERT_THAT((*log)->Sync(), IsOk());
    }
    EXPECT_THAT(CheckInLog(**log, object), IsOk());
  }
}

}  // namespace
}  // namespace pkv
