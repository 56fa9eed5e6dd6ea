#include "proto/base/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

namespace pkv {
namespace {

// The indices `body` was called with, in a form in which "each once" is one comparison.
std::vector<int> CallsPerIndex(ThreadPool* pool, int count) {
  std::vector<std::atomic<int>> calls(count);
  ParallelFor(pool, count, [&calls](int i) { calls[i].fetch_add(1); });
  return std::vector<int>(calls.begin(), calls.end());
}

TEST(ThreadPoolTest, CallsEveryIndexOnce) {
  for (const int num_threads : {1, 2, 7}) {
    ThreadPool pool(num_threads);
    EXPECT_EQ(pool.num_threads(), num_threads);
    for (const int count : {1, 2, 3, 64, 1000}) {
      ASSERT_EQ(CallsPerIndex(&pool, count), std::vector<int>(count, 1))
          << num_threads << " threads, " << count;
    }
  }
}

TEST(ThreadPoolTest, EmptyLoopCallsNothing) {
  ThreadPool pool(2);
  for (const int count : {0, -1}) {
    pool.ParallelFor(count, [](int i) { FAIL() << i; });
  }
}

TEST(ThreadPoolTest, WithoutAPoolTheLoopRunsInOrderOnThisThread) {
  std::vector<int> order;
  const std::thread::id caller = std::this_thread::get_id();
  ParallelFor(nullptr, 4, [&order, caller](int i) {
    EXPECT_EQ(std::this_thread::get_id(), caller);
    order.push_back(i);
  });
  EXPECT_EQ(order, (std::vector<int>{0, 1, 2, 3}));
}

// With one thread that is busy itself, nothing but the callers can make progress.
TEST(ThreadPoolTest, LoopsMayNest) {
  ThreadPool pool(1);
  std::atomic<int> calls{0};
  pool.ParallelFor(4, [&pool, &calls](int) {
    pool.ParallelFor(
        4, [&pool, &calls](int) { pool.ParallelFor(4, [&calls](int) { calls.fetch_add(1); }); });
  });
  EXPECT_EQ(calls.load(), 64);
}

// Tasks of a finished loop may still be queued when its body is gone; sanitizers see a late touch.
TEST(ThreadPoolTest, FinishedLoopsAreNotTouchedAgain) {
  ThreadPool pool(3);
  for (int round = 0; round < 500; ++round) {
    std::vector<int> seen(3, 0);
    pool.ParallelFor(3, [&seen](int i) { seen[i] = i + 1; });
    ASSERT_EQ(seen, (std::vector<int>{1, 2, 3}));
  }
}

TEST(ThreadPoolTest, SeveralThreadsMayLoopAtOnce) {
  ThreadPool pool(2);
  std::atomic<int> calls{0};
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) {
    callers.emplace_back(
        [&pool, &calls] { pool.ParallelFor(100, [&calls](int) { calls.fetch_add(1); }); });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(calls.load(), 300);
}

TEST(ThreadPoolTest, RunsEveryScheduledTaskBeforeItEnds) {
  std::atomic<int> runs{0};
  {
    ThreadPool pool(2);
    for (int i = 0; i < 100; ++i) {
      // Also what a task schedules while the pool is ending.
      pool.Schedule([&pool, &runs] {
        runs.fetch_add(1);
        pool.Schedule([&runs] { runs.fetch_add(1); });
      });
    }
  }
  EXPECT_EQ(runs.load(), 200);
}

TEST(ThreadPoolDeathTest, RefusesToHaveNoThread) {
  EXPECT_DEATH(ThreadPool(0), "check failed: num_threads >= 1 0");
}

}  // namespace
}  // namespace pkv
