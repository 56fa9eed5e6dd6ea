#include "kvstore/store/pager.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/store/store_fixture.h"

namespace pkv {
namespace {

using ::testing::SizeIs;

// Holds reads of the disk back until it is opened.
class Gate {
 public:
  void Close() { Set(false); }
  void Open() { Set(true); }
  void Pass() {
    MutexLock lock(&mu_);
    ++num_waiting_;
    changed_.SignalAll();
    while (!is_open_) changed_.Wait(&mu_);
  }
  void AwaitReads(int count) {
    MutexLock lock(&mu_);
    while (num_waiting_ < count) changed_.Wait(&mu_);
  }
  int num_reads() {
    MutexLock lock(&mu_);
    return num_waiting_;
  }

 private:
  void Set(bool is_open) {
    MutexLock lock(&mu_);
    is_open_ = is_open;
    changed_.SignalAll();
  }
  Mutex mu_;
  CondVar changed_;
  bool is_open_ ABSL_GUARDED_BY(mu_) = true;
  int num_waiting_ ABSL_GUARDED_BY(mu_) = 0;
};

class PagerTest : public StoreFixture {
 protected:
  static constexpr absl::Duration kLong = absl::Hours(1);

  void SetUp() override {
    MakeLog();
    MakeStore(64);
    disk_.SetFault([this](FakeDisk::Call call) {
      if (call == FakeDisk::Call::kRead) {
        gate_.Pass();
        if (reads_fail_) return absl::UnavailableError("EIO");
      }
      return absl::OkStatus();
    });
    MakePager({});
  }
  void TearDown() override {
    gate_.Open();
    pager_.reset();
  }
  void MakePager(Pager::Options options) {
    options.store = store_.get();
    options.log = log_.get();
    options.clock = &clock_;
    pager_ = std::make_unique<Pager>(options);
  }

  // Windows on disk alone.
  std::vector<ObjectKey> MakeWindows(uint64_t first, uint64_t last) {
    std::vector<ObjectKey> keys;
    for (uint64_t id = first; id <= last; ++id) {
      const SealedObject window = MakeTestWindow(id, 1);
      EXPECT_THAT(Put(window), IsOk());
      MoveToDisk(window);
      keys.push_back(window.key());
    }
    return keys;
  }

  Gate gate_;
  std::atomic<bool> reads_fail_{false};
  std::unique_ptr<Pager> pager_;
};

TEST_F(PagerTest, BringsInWhatIsOnDisk) {
  const std::vector<ObjectKey> keys = MakeWindows(1, 10);
  EXPECT_TRUE(pager_->IsNeeded(keys));
  const Pager::Result result = pager_->FetchAndWait(keys, kLong);
  EXPECT_EQ(result.num_paged_in, 10);
  EXPECT_THAT(result.held, SizeIs(10));
  EXPECT_FALSE(pager_->IsNeeded(keys));
  for (uint64_t id = 1; id <= 10; ++id) {
    const Lease lease = store_->Find(keys[id - 1]);
    ASSERT_TRUE(lease);
    EXPECT_TRUE(std::ranges::equal(lease.bytes(), MakeTestWindow(id, 1).bytes()));
  }
}

TEST_F(PagerTest, HasNothingToDoForWhatIsInMemoryOrNowhere) {
  ASSERT_THAT(Put(MakeTestWindow(1, 1)), IsOk());
  const std::vector<ObjectKey> keys = {MakeTestWindow(1, 1).key(), MakeTestWindow(2, 1).key()};
  EXPECT_FALSE(pager_->IsNeeded(keys));
  bool is_done = false;
  pager_->Fetch(keys, kLong, [&is_done](const Pager::Result& result) {
    is_done = true;
    EXPECT_EQ(result.num_paged_in, 0);
  });
  EXPECT_TRUE(is_done);
}

TEST_F(PagerTest, BringsInTheTablesThatBlocksNeed) {
  const SealedObject table = MakeTestTable(1);
  const SealedObject block = MakeTestBlock(11, 1, table.header.id);
  ASSERT_THAT(Put(table), IsOk());
  ASSERT_THAT(Put(block), IsOk());
  WriteToDisk(table);
  MoveToDisk(block);
  MoveToDisk(table);
  const Pager::Result result = pager_->FetchAndWait(std::vector{block.key()}, kLong);
  EXPECT_EQ(result.num_paged_in, 1);
  EXPECT_THAT(result.held, SizeIs(2));
  EXPECT_TRUE(Has(block));
  EXPECT_TRUE(Has(table));
}

TEST_F(PagerTest, ReadsEachObjectOnceHoweverManyAsk) {
  const std::vector<ObjectKey> keys = MakeWindows(1, 2);
  gate_.Close();
  std::atomic<int> num_done{0}, num_paged_in{0};
  for (int i = 0; i < 5; ++i) {
    pager_->Fetch(keys, kLong, [&](const Pager::Result& result) {
      num_paged_in += result.num_paged_in;
      ++num_done;
    });
  }
  gate_.Open();
  while (num_done < 5) std::this_thread::yield();
  EXPECT_EQ(num_paged_in, 10);
  EXPECT_EQ(gate_.num_reads(), 2);
}

TEST_F(PagerTest, KeepsWhatWasAskedForUntilAllIsThere) {
  // Memory for four, all of which are wanted: none of them makes room for another.
  MakeStore(4);
  MakePager({});
  const std::vector<ObjectKey> keys = MakeWindows(1, 4);
  EXPECT_EQ(pager_->FetchAndWait(keys, kLong).num_paged_in, 4);
  const std::vector<ObjectKey> more = MakeWindows(5, 6);
  std::vector<ObjectKey> all = keys;
  all.insert(all.end(), more.begin(), more.end());
  const Pager::Result result = pager_->FetchAndWait(all, kLong);
  EXPECT_THAT(result.held, SizeIs(4));
}

TEST_F(PagerTest, TakesNoRoomForAMiss) {
  MakeStore(2);
  MakePager({});
  const std::vector<ObjectKey> keys = MakeWindows(1, 1);
  ASSERT_THAT(Put(MakeTestWindow(7, 1)), IsOk());
  ASSERT_THAT(Put(MakeTestWindow(8, 1)), IsOk());
  const Lease first = store_->Find(MakeTestWindow(7, 1).key());
  const Lease second = store_->Find(MakeTestWindow(8, 1).key());
  EXPECT_THAT(pager_->FetchAndWait(keys, kLong).held, SizeIs(0));
  EXPECT_TRUE(log_->Find(keys[0]).has_value());
}

TEST_F(PagerTest, EndsWhatTheDiskIsTooSlowFor) {
  const std::vector<ObjectKey> keys = MakeWindows(1, 1);
  ASSERT_THAT(Put(MakeTestWindow(2, 1)), IsOk());
  gate_.Close();
  std::atomic<int> num_held{-1};
  const std::vector<ObjectKey> both = {keys[0], MakeTestWindow(2, 1).key()};
  pager_->Fetch(both, absl::Seconds(5), [&num_held](const Pager::Result& result) {
    num_held = static_cast<int>(result.held.size());
  });
  gate_.AwaitReads(1);
  clock_.Advance(absl::Seconds(4));
  EXPECT_EQ(pager_->EndOverdue(), 0);
  EXPECT_EQ(num_held, -1);
  clock_.Advance(absl::Seconds(1));
  pager_->EndOverdue();
  while (num_held < 0) std::this_thread::yield();
  EXPECT_EQ(num_held, 1);
  // A read that takes seconds is no help to anybody: for a while nothing is on disk.
  EXPECT_TRUE(log_->reads_suspended());
  EXPECT_FALSE(pager_->IsNeeded(keys));
  // As long as it is under way, that is.
  clock_.Advance(2 * Pager::kDiskRest);
  EXPECT_FALSE(log_->reads_suspended());
  pager_->EndOverdue();
  EXPECT_TRUE(log_->reads_suspended());
  gate_.Open();
  pager_.reset();
  EXPECT_TRUE(Has(MakeTestWindow(1, 1)));  // it came all the same, late
}

// Nobody waits any more for what waited behind a read that hangs: it takes no place among those
// that wait, and is not read.
TEST_F(PagerTest, ForgetsWhatNobodyWaitsFor) {
  const std::vector<ObjectKey> keys = MakeWindows(1, 6);
  MakePager({.num_threads = 1, .max_waiting = 2});
  gate_.Close();
  std::atomic<int> num_done{0}, num_paged_in{0};
  const auto done = [&](const Pager::Result& result) {
    num_paged_in += result.num_paged_in;
    ++num_done;
  };
  pager_->Fetch(std::vector{keys[0]}, absl::Milliseconds(500), done);
  gate_.AwaitReads(1);
  pager_->Fetch(std::span(keys).subspan(1, 2), absl::Milliseconds(500), done);
  EXPECT_EQ(num_done, 0);
  clock_.Advance(absl::Milliseconds(500));
  pager_->EndOverdue();
  while (num_done < 2) std::this_thread::yield();
  pager_->Fetch(std::span(keys).subspan(3, 2), kLong, done);
  EXPECT_EQ(num_done, 2);
  gate_.Open();
  while (num_done < 3) std::this_thread::yield();
  EXPECT_EQ(num_paged_in, 2);
  EXPECT_EQ(gate_.num_reads(), 3);
}

TEST_F(PagerTest, StatsAndOthersThatBringInCountAsNoUse) {
  ASSERT_THAT(Put(MakeTestWindow(1, 1)), IsOk());
  clock_.Advance(absl::Seconds(5));
  pager_->Fetch(std::vector{MakeTestWindow(1, 1).key()}, kLong, [](const Pager::Result&) {});
  EXPECT_EQ(store_->Stat(MakeTestWindow(1, 1).key())->idle, absl::Seconds(5));
}

// Else the room for the block could be made of it, and the block would come for nothing.
TEST_F(PagerTest, HoldsATableInMemoryWhileItsBlockComes) {
  const SealedObject table = MakeTestTable(1);
  const SealedObject block = MakeTestBlock(11, 1, table.header.id);
  ASSERT_THAT(Put(table), IsOk());
  ASSERT_THAT(Put(block), IsOk());
  WriteToDisk(table);
  MoveToDisk(block);
  gate_.Close();
  std::atomic<int> num_paged_in{-1};
  pager_->Fetch(std::vector{block.key()}, kLong,
                [&num_paged_in](const Pager::Result& r) { num_paged_in = r.num_paged_in; });
  gate_.AwaitReads(1);
  EXPECT_FALSE(store_->NextToDemote().has_value());
  gate_.Open();
  while (num_paged_in < 0) std::this_thread::yield();
  EXPECT_EQ(num_paged_in, 1);
}

TEST_F(PagerTest, MissesWhatCannotBeReadAndForgetsIt) {
  const std::vector<ObjectKey> keys = MakeWindows(1, 3);
  reads_fail_ = true;
  EXPECT_THAT(pager_->FetchAndWait(std::vector{keys[0]}, kLong).held, SizeIs(0));
  EXPECT_FALSE(log_->Find(keys[0]).has_value());
  EXPECT_FALSE(log_->reads_suspended());
  EXPECT_THAT(pager_->FetchAndWait(std::vector{keys[1]}, kLong).held, SizeIs(0));
  EXPECT_THAT(pager_->FetchAndWait(std::vector{keys[2]}, kLong).held, SizeIs(0));
  EXPECT_TRUE(log_->reads_suspended());
}

TEST_F(PagerTest, MissesWhatIsDamagedAndTheRestComes) {
  const std::vector<ObjectKey> keys = MakeWindows(1, 3);
  FlipBitOnDisk(MakeTestWindow(2, 1), 300);
  const Pager::Result result = pager_->FetchAndWait(keys, kLong);
  EXPECT_EQ(result.num_paged_in, 2);
  EXPECT_FALSE(Has(MakeTestWindow(2, 1)));
  EXPECT_THAT(observer_.failures, testing::ElementsAre(IntegrityStage::kSsd));
}

TEST_F(PagerTest, BoundsWhatWaits) {
  const std::vector<ObjectKey> keys = MakeWindows(1, 10);
  MakePager({.num_threads = 1, .max_waiting = 3});
  gate_.Close();
  std::atomic<int> num_paged_in{-1};
  pager_->Fetch(keys, kLong,
                [&num_paged_in](const Pager::Result& r) { num_paged_in = r.num_paged_in; });
  gate_.Open();
  pager_->FetchAndWait(keys, kLong);
  pager_.reset();
  EXPECT_GE(num_paged_in, 3);
  EXPECT_LE(num_paged_in, 4);
}

TEST_F(PagerTest, EndsEveryFetchWithItself) {
  const std::vector<ObjectKey> keys = MakeWindows(1, 30);
  gate_.Close();
  std::atomic<int> num_done{0};
  for (const ObjectKey& key : keys) {
    pager_->Fetch(std::vector{key}, kLong, [&num_done](const Pager::Result&) { ++num_done; });
  }
  gate_.AwaitReads(4);
  EXPECT_EQ(num_done, 0);
  gate_.Open();
  pager_.reset();
  EXPECT_EQ(num_done, 30);
}

// Fetches, puts, deletes and evictions side by side; what they find is right or not there.
TEST_F(PagerTest, StandsUpToManyThreads) {
  MakeStore(12);
  MakePager({});
  const std::vector<ObjectKey> keys = MakeWindows(1, 20);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const std::vector<ObjectKey> some = {keys[(t + i) % 20], keys[(t + 3 * i) % 20],
                                             keys[(7 * t + i) % 20]};
        const Pager::Result result = pager_->FetchAndWait(some, absl::Seconds(10));
        for (const Lease& lease : result.held) {
          EXPECT_THAT(lease.VerifyHead(), IsOk());
          EXPECT_THAT(lease.VerifyFrame(1), IsOk());
        }
        if (t == 0 && i % 10 == 9) store_->Delete(keys[i % 20]);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  pager_.reset();
  EXPECT_EQ(store_->stats().pinned_bytes, 0u);
  EXPECT_EQ(store_->stats().reserved_bytes, 0u);
}

}  // namespace
}  // namespace pkv
