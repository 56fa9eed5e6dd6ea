#include "kvstore/disk/log_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/sealed_object.h"

namespace pkv {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

class LogIndexTest : public ::testing::Test {
 protected:
  static ObjectKey Key(ObjectKind kind, uint64_t id) { return {kind, TestDigest(id), {"test", 7}}; }
  static ObjectKey Block(uint64_t id) { return Key(ObjectKind::kBlock, id); }
  static ObjectKey Table(uint64_t id) { return Key(ObjectKind::kTable, id); }
  void Insert(const ObjectKey& key, uint64_t segment, uint64_t table = 0) {
    LogRecord record{.segment = segment, .offset = 4096, .object_bytes = 100};
    if (table != 0) record.table = TestDigest(table);
    index_.Insert(key, record, absl::UnixEpoch());
  }

  LogIndex index_;
};

TEST_F(LogIndexTest, FindsWhatWasInsertedLast) {
  Insert(Block(1), 1);
  Insert(Block(1), 2);
  ASSERT_NE(index_.Find(Block(1)), nullptr);
  EXPECT_EQ(index_.Find(Block(1))->record.segment, 2u);
  EXPECT_EQ(index_.size(), 1u);
  EXPECT_THAT(index_.DropSegment(1), IsEmpty());
}

TEST_F(LogIndexTest, ForgetsWhatWasErased) {
  Insert(Block(1), 1);
  Insert(Block(2), 1);
  Insert(Block(3), 1);
  EXPECT_TRUE(index_.Erase(Block(1)));
  EXPECT_FALSE(index_.Erase(Block(1)));
  EXPECT_EQ(index_.Find(Block(1)), nullptr);
  EXPECT_THAT(index_.DropSegment(1), SizeIs(2));
  EXPECT_EQ(index_.size(), 0u);
}

TEST_F(LogIndexTest, DropsOneSegmentAndNoOther) {
  Insert(Block(1), 1);
  Insert(Block(2), 2);
  index_.Touch(Block(1), absl::UnixEpoch() + absl::Seconds(5));
  const auto dropped = index_.DropSegment(1);
  ASSERT_THAT(dropped, SizeIs(1));
  EXPECT_EQ(dropped[0].object_bytes, 100u);
  EXPECT_EQ(dropped[0].last_use, absl::UnixEpoch() + absl::Seconds(5));
  EXPECT_EQ(index_.Find(Block(1)), nullptr);
  EXPECT_NE(index_.Find(Block(2)), nullptr);
}

TEST_F(LogIndexTest, ListsWhatStandsBehindAPlace) {
  index_.Insert(Block(1), {.segment = 1, .offset = 4096}, absl::UnixEpoch());
  index_.Insert(Block(2), {.segment = 1, .offset = 8192}, absl::UnixEpoch());
  index_.Insert(Block(3), {.segment = 2, .offset = 8192}, absl::UnixEpoch());
  const auto behind = index_.RecordsBehind(1, 8192);
  ASSERT_THAT(behind, SizeIs(1));
  EXPECT_EQ(behind[0].first, Block(2));
}

TEST_F(LogIndexTest, CountsTheBlocksOfATable) {
  EXPECT_FALSE(index_.HasDependents(Table(9)));
  Insert(Block(1), 1, 9);
  Insert(Block(2), 2, 9);
  EXPECT_TRUE(index_.HasDependents(Table(9)));
  index_.Erase(Block(1));
  EXPECT_TRUE(index_.HasDependents(Table(9)));
  index_.DropSegment(2);
  EXPECT_FALSE(index_.HasDependents(Table(9)));
}

TEST_F(LogIndexTest, NamesTablesThatOtherSegmentsNeed) {
  Insert(Table(7), 1);
  Insert(Table(8), 1);
  Insert(Table(9), 1);
  Insert(Block(1), 1, 7);
  Insert(Block(2), 1, 8);
  Insert(Block(3), 2, 8);
  const auto needed = index_.NeededTables(1);
  ASSERT_THAT(needed, SizeIs(1));
  EXPECT_EQ(needed[0].first, Table(8));
  EXPECT_THAT(index_.NeededTables(2), IsEmpty());
}

TEST_F(LogIndexTest, DescribesWhatFollowsABlock) {
  SealedObject block = MakeTestBlock(1, 1, TestDigest(5));
  block.header.flags |= kFlagAppendsV;
  const LogRecord record = DescribeObject(block.header, block.head());
  EXPECT_EQ(record.num_patterns_k, 2);
  EXPECT_EQ(record.num_patterns_v, 3);
  EXPECT_EQ(record.table, TestDigest(5));
  EXPECT_EQ(record.object_bytes, block.bytes().size());
}

// The head ends with a checksum of its own: a CRC over all of it would be the same for every
// object.
TEST_F(LogIndexTest, TellsContentsApartByTheirHeads) {
  const SealedObject object = MakeTestWindow(1, 1), other = MakeTestWindow(1, 2);
  const LogRecord record = DescribeObject(object.header, object.head());
  EXPECT_TRUE(IsHeadOf(object.head(), record));
  EXPECT_FALSE(IsHeadOf(other.head(), record));
  EXPECT_FALSE(IsHeadOf(object.head().first(256), record));
}

}  // namespace
}  // namespace pkv
