#include "kvstore/store/demoter.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "kvstore/store/pager.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/store/store_fixture.h"

namespace pkv {
namespace {

// Memory for 20 objects of a unit, crowded from the eleventh on, relaxed with five.
class DemoterTest : public StoreFixture {
 protected:
  void SetUp() override {
    MakeLog();
    crowded_units_ = 10;
    MakeStore(20);
    table_ = MakeTestTable(1);
  }
  void TearDown() override { demoter_.reset(); }
  void Start(bool reused_only = false) {
    demoter_ = std::make_unique<Demoter>(Demoter::Options{.store = store_.get(),
                                                          .log = log_.get(),
                                                          .clock = &clock_,
                                                          .relaxed_bytes = 5 * kArenaUnitBytes,
                                                          .reused_only = reused_only});
  }
  // The thread has nothing to wait for but the store: this ends.
  static void Await(const std::function<bool()>& fact) {
    while (!fact()) std::this_thread::yield();
  }
  bool IsRelaxed() const { return store_->stats().resident_bytes <= 5 * kArenaUnitBytes; }
  bool IsOnDisk(const SealedObject& object) const { return log_->Find(object.key()).has_value(); }
  // The table and blocks 1..count, the first one used last. Two units each.
  void PutBlocks(uint64_t count) {
    ASSERT_THAT(Put(table_), IsOk());
    for (uint64_t id = count; id >= 1; --id) {
      clock_.Advance(absl::Seconds(1));
      ASSERT_THAT(Put(Block(id)), IsOk());
    }
  }
  SealedObject Block(uint64_t id) const { return MakeTestBlock(id, 1, table_.header.id); }

  SealedObject table_;
  std::unique_ptr<Demoter> demoter_;
};

TEST_F(DemoterTest, MovesWhatWasUsedLeastRecentlyToDisk) {
  PutBlocks(6);
  Start();
  Await([this] { return IsRelaxed(); });
  demoter_.reset();
  EXPECT_TRUE(IsOnDisk(Block(6)));
  EXPECT_TRUE(IsOnDisk(table_));  // before its blocks
  EXPECT_FALSE(Has(Block(6)));
  EXPECT_TRUE(Has(Block(1)));
  EXPECT_FALSE(IsOnDisk(Block(1)));
  EXPECT_EQ(store_->stats().num_evictions, 0u);
  for (const auto& eviction : observer_.evictions) {
    EXPECT_EQ(eviction.reason, EvictionReason::kDemoted);
  }
}

TEST_F(DemoterTest, WritesNothingTwice) {
  PutBlocks(6);
  WriteToDisk(table_);
  for (uint64_t id = 1; id <= 6; ++id) WriteToDisk(Block(id));
  const uint64_t before = log_->stats().resident_bytes;
  Start();
  Await([this] { return IsRelaxed(); });
  EXPECT_EQ(log_->stats().resident_bytes, before);
  EXPECT_EQ(log_->stats().num_objects, 7u);
}

TEST_F(DemoterTest, WritesNoWindows) {
  for (uint64_t id = 1; id <= 11; ++id) ASSERT_THAT(Put(MakeTestWindow(id, 1)), IsOk());
  Start();
  Await([this] { return IsRelaxed(); });
  EXPECT_EQ(log_->stats().num_objects, 0u);
  EXPECT_GT(store_->stats().num_evictions, 0u);
}

TEST_F(DemoterTest, WritesOnRequestOnlyWhatWasGotTwice) {
  PutBlocks(6);
  for (uint64_t id = 1; id <= 6; ++id) store_->Find(Block(id).key());
  store_->Find(Block(5).key());
  Start(/*reused_only=*/true);
  Await([this] { return IsRelaxed(); });
  demoter_->WriteAll(absl::InfiniteFuture());
  EXPECT_TRUE(IsOnDisk(Block(5)));
  EXPECT_TRUE(IsOnDisk(table_));
  EXPECT_FALSE(IsOnDisk(Block(6)));
}

TEST_F(DemoterTest, LeavesEvictionToTheStoreWhileTheDiskFails) {
  std::atomic<int> num_tries{0};
  disk_.SetFault([&num_tries](FakeDisk::Call call) {
    if (call != FakeDisk::Call::kAllocate) return absl::OkStatus();
    ++num_tries;
    return absl::UnavailableError("EIO");
  });
  PutBlocks(6);
  Start();
  Await([&num_tries] { return num_tries == 1; });
  // Puts go on; nothing is written before the disk has rested.
  for (uint64_t id = 100; id < 140; ++id) ASSERT_THAT(Put(MakeTestWindow(id, 1)), IsOk());
  EXPECT_EQ(num_tries, 1);
  disk_.SetFault({});
  clock_.Advance(absl::Seconds(1));
  Await([this] { return IsRelaxed(); });
  const SealedObject later = MakeTestTable(2);
  ASSERT_THAT(Put(later), IsOk());
  demoter_->WriteAll(absl::InfiniteFuture());
  EXPECT_TRUE(IsOnDisk(later));
}

TEST_F(DemoterTest, WritesEverythingBeforeTheEnd) {
  PutBlocks(3);
  ASSERT_THAT(Put(MakeTestWindow(50, 1)), IsOk());
  Start();
  demoter_->WriteAll(absl::InfiniteFuture());
  EXPECT_EQ(log_->stats().num_objects, 4u);
  EXPECT_FALSE(IsOnDisk(MakeTestWindow(50, 1)));
  EXPECT_TRUE(Has(Block(1)));
  // Synced: a crash takes nothing of it.
  const std::unique_ptr<FakeDisk> crashed = disk_.Crash(1);
  const auto log =
      SegmentLog::Open(
          {.disk = crashed.get(), .capacity_bytes = 4 * kLogBytesMin, .clock = &clock_})
          .value();
  EXPECT_EQ(log->stats().num_objects, 4u);
}

// The log loses its oldest first: that should not be what was used last, or a chain's beginning.
TEST_F(DemoterTest, WritesWhatWasUsedLastBehindTheRest) {
  PutBlocks(4);
  Start();
  demoter_->WriteAll(absl::InfiniteFuture());
  for (uint64_t id = 1; id < 4; ++id) {
    EXPECT_GT(log_->Find(Block(id).key())->offset, log_->Find(Block(id + 1).key())->offset) << id;
  }
  // And what has come since.
  ASSERT_THAT(Put(Block(9)), IsOk());
  demoter_->WriteAll(absl::InfiniteFuture());
  EXPECT_TRUE(IsOnDisk(Block(9)));
}

TEST_F(DemoterTest, WritesNothingAfterItsDeadline) {
  PutBlocks(3);
  Start();
  demoter_->WriteAll(clock_.MonotonicNow());
  EXPECT_EQ(log_->stats().num_objects, 0u);
}

TEST_F(DemoterTest, MakesNothingLastThatHasRotted) {
  PutBlocks(1);
  FlipBit(store_->Find(Block(1).key()), 1000);
  Start();
  demoter_->WriteAll(absl::InfiniteFuture());
  EXPECT_FALSE(IsOnDisk(Block(1)));
  EXPECT_FALSE(Has(Block(1)));
  EXPECT_THAT(observer_.failures, testing::ElementsAre(IntegrityStage::kDram));
}

TEST_F(DemoterTest, WritesTombstonesSoon) {
  PutBlocks(1);
  WriteToDisk(table_);
  MoveToDisk(Block(1));
  store_->Delete(Block(1).key());
  Start();
  Await([this] { return !log_->HasTombstones(); });
}

// Puts outrun the disk, or do not; readers find what they put, or nothing.
TEST_F(DemoterTest, StandsBesidePutsAndFetches) {
  Start();
  Pager pager({.store = store_.get(), .log = log_.get(), .clock = &clock_});
  ASSERT_THAT(Put(table_), IsOk());
  const Lease table = store_->Find(table_.key());
  std::thread reader([&] {
    for (uint64_t i = 0; i < 200; ++i) {
      const ObjectKey key = Block(1 + i % 60).key();
      const Pager::Result result = pager.FetchAndWait(std::vector{key}, absl::Seconds(10));
      if (const Lease lease = store_->Find(key)) {
        const SealedObject expected = Block(1 + i % 60);
        EXPECT_TRUE(std::ranges::equal(lease.bytes(), expected.bytes()));
      }
    }
  });
  for (uint64_t id = 1; id <= 60; ++id) {
    const auto put = Put(Block(id));
    EXPECT_TRUE(put.ok() || absl::IsAlreadyExists(put.status())) << put.status();
  }
  reader.join();
}

}  // namespace
}  // namespace pkv
