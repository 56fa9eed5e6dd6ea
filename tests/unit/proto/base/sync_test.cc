#include "proto/base/sync.h"

#include <gtest/gtest.h>

#include <thread>
#include <vector>

namespace pkv {
namespace {

// What two threads agree through: a flag behind a mutex, and its condition.
struct Gate {
  void Open() {
    MutexLock lock(&mu);
    open = true;
    changed.SignalAll();
  }

  Mutex mu;
  CondVar changed;
  bool open ABSL_GUARDED_BY(mu) = false;
};

TEST(MutexTest, LetsOneThreadInAtATime) {
  constexpr int kThreads = 4, kRounds = 1000;
  Mutex mu;
  int counter = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&mu, &counter] {
      for (int round = 0; round < kRounds; ++round) {
        MutexLock lock(&mu);
        ++counter;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(counter, kThreads * kRounds);
}

TEST(CondVarTest, WaitEndsWhenTheConditionHolds) {
  Gate gate;
  std::thread opener([&gate] { gate.Open(); });
  {
    MutexLock lock(&gate.mu);
    while (!gate.open) gate.changed.Wait(&gate.mu);
    EXPECT_TRUE(gate.open);
  }
  opener.join();
}

TEST(CondVarTest, WaitWithoutBoundEndsByTheSignalOnly) {
  Gate gate;
  bool always_notified = true;
  std::thread opener([&gate] { gate.Open(); });
  {
    MutexLock lock(&gate.mu);
    while (!gate.open) {
      always_notified &= gate.changed.WaitWithTimeout(&gate.mu, absl::InfiniteDuration());
    }
  }
  opener.join();
  EXPECT_TRUE(always_notified);
}

TEST(CondVarTest, WaitGivesUpWhenTheTimeHasPassed) {
  Gate gate;
  MutexLock lock(&gate.mu);
  for (const absl::Duration timeout : {absl::ZeroDuration(), absl::Microseconds(50),
                                       -absl::Seconds(1), -absl::InfiniteDuration()}) {
    // A wake-up without cause is allowed, but not one after another without end.
    while (gate.changed.WaitWithTimeout(&gate.mu, timeout)) {
    }
    EXPECT_FALSE(gate.open);
  }
}

}  // namespace
}  // namespace pkv
