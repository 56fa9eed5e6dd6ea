#include "kvstore/disk/posix_disk.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <string>

#include "tests/support/scratch_folder.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class PosixDiskTest : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Disk>> disk = OpenPosixDisk(folder_.path() + "/ssd");
    ASSERT_THAT(disk, IsOk());
    disk_ = *std::move(disk);
  }
  static DiskBuffer Filled(uint64_t units, char value) {
    DiskBuffer buffer(units * kDiskUnitBytes);
    std::ranges::fill(buffer.span(), static_cast<std::byte>(value));
    return buffer;
  }

  ScratchFolder folder_;
  std::unique_ptr<Disk> disk_;
};

TEST_F(PosixDiskTest, ReadsWhatItWroteInPieces) {
  auto file = disk_->Create("a").value();
  ASSERT_THAT(file->Allocate(8 * kDiskUnitBytes), IsOk());
  DiskBuffer one = Filled(1, 'a'), three = Filled(3, 'b');
  const std::array<std::span<const std::byte>, 2> pieces = {one.span(), three.span()};
  ASSERT_THAT(file->Write(2 * kDiskUnitBytes, pieces), IsOk());
  ASSERT_THAT(file->Sync(), IsOk());
  DiskBuffer read(6 * kDiskUnitBytes);
  ASSERT_THAT(disk_->Open("a").value()->Read(kDiskUnitBytes, read.span()), IsOk());
  const auto at = [&read](int unit) { return static_cast<char>(read.span()[unit * 4096]); };
  EXPECT_EQ(at(0), 0);
  EXPECT_EQ(at(1), 'a');
  EXPECT_EQ(at(2), 'b');
  EXPECT_EQ(at(4), 'b');
  EXPECT_EQ(at(5), 0);
}

TEST_F(PosixDiskTest, SaysWhereAFileEnds) {
  auto file = disk_->Create("a").value();
  ASSERT_THAT(file->Allocate(2 * kDiskUnitBytes), IsOk());
  DiskBuffer buffer(2 * kDiskUnitBytes);
  EXPECT_THAT(file->Read(kDiskUnitBytes, buffer.span()), StatusIs(absl::StatusCode::kOutOfRange));
  ASSERT_THAT(file->Truncate(kDiskUnitBytes), IsOk());
  EXPECT_THAT(file->Size(), IsOkAndHolds(kDiskUnitBytes));
}

TEST_F(PosixDiskTest, ListsAllButItsLock) {
  EXPECT_THAT(disk_->List().value(), IsEmpty());
  ASSERT_THAT(disk_->Create("a"), IsOk());
  ASSERT_THAT(disk_->Create("b"), IsOk());
  EXPECT_THAT(disk_->Create("a"), StatusIs(absl::StatusCode::kUnavailable));
  ASSERT_THAT(disk_->Remove("a"), IsOk());
  EXPECT_THAT(disk_->Remove("a"), StatusIs(absl::StatusCode::kUnavailable));
  ASSERT_THAT(disk_->SyncFolder(), IsOk());
  EXPECT_THAT(disk_->List().value(), UnorderedElementsAre("b"));
}

TEST_F(PosixDiskTest, HasItsFolderToItself) {
  EXPECT_THAT(OpenPosixDisk(folder_.path() + "/ssd"),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("another process")));
  disk_.reset();
  EXPECT_THAT(OpenPosixDisk(folder_.path() + "/ssd"), IsOk());
}

TEST_F(PosixDiskTest, SaysWhatIsWrongWithAFolder) {
  EXPECT_THAT(OpenPosixDisk(folder_.path() + "/no/such"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("cannot be made")));
  const std::string file = folder_.Write("file", "x");
  EXPECT_THAT(OpenPosixDisk(file), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(PosixDiskTest, KnowsTheFileSystemsSize) {
  EXPECT_GT(disk_->TotalBytes().value(), uint64_t{1} << 20);
  auto file = disk_->Create("a").value();
  EXPECT_THAT(file->Allocate(uint64_t{1} << 60), ::testing::Not(IsOk()));
}

}  // namespace
}  // namespace pkv
