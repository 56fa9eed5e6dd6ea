#include "proto/base/histogram.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <cmath>
#include <latch>
#include <thread>
#include <vector>

namespace pkv {
namespace {

using ::testing::ElementsAre;

// Of those that this process may use, the one with this index; the last of fewer.
void KeepOnProcessor(int index) {
  cpu_set_t allowed, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && index >= 0; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    --index;
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
}

TEST(HistogramTest, StartsAtZeroWithABucketAboveTheLastBound) {
  const Histogram::Counts counts = Histogram({1, 2}).Read();
  EXPECT_THAT(counts.buckets, ElementsAre(0u, 0u, 0u));
  EXPECT_EQ(counts.sum, 0);
}

TEST(HistogramTest, ABoundBelongsToItsBucket) {
  Histogram histogram({1, 2});
  for (const double value : {-1.0, 1.0, std::nextafter(1.0, 2.0), 2.0, 2.5}) {
    histogram.Observe(value);
  }
  EXPECT_THAT(histogram.Read().buckets, ElementsAre(2u, 2u, 1u));
  EXPECT_DOUBLE_EQ(histogram.Read().sum, 5.5);
}

TEST(HistogramTest, AddsUpWhatMoreThreadsThanShardsObserve) {
  // 40 bounds are several cache lines a shard. The sums are of whole numbers, exact in any order.
  Histogram histogram(ExponentialBounds(1, 2, 40));
  constexpr int kThreads = 24, kEach = 500;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&histogram, t] {
      for (int i = 0; i < kEach; ++i) histogram.Observe(std::ldexp(1.0, t));
    });
  }
  for (std::thread& thread : threads) thread.join();
  const Histogram::Counts counts = histogram.Read();
  for (int t = 0; t < 41; ++t) {
    EXPECT_EQ(counts.buckets[t], t < kThreads ? uint64_t{kEach} : 0u) << t;
  }
  EXPECT_EQ(counts.sum, kEach * (std::ldexp(1.0, kThreads) - 1));
}

// Two threads add to one bucket and one sum, each on a processor of its own if there are two: on a
// busy machine they might take turns on one. The bucket is on another cache line than the sum, on
// which they would wait for each other.
TEST(HistogramTest, LosesNothingOfTwoThreadsThatShareACopy) {
  Histogram histogram(ExponentialBounds(1, 2, 20));
  constexpr int kBucket = 15, kEach = 1'000'000;
  const double value = std::ldexp(1.0, kBucket);
  std::latch is_numbered(1), start(2);
  const auto observe_many = [&](int index) {
    KeepOnProcessor(index);
    start.arrive_and_wait();
    for (int i = 0; i < kEach; ++i) histogram.Observe(value);
  };
  std::thread first([&] {
    histogram.Observe(value);
    is_numbered.count_down();
    observe_many(0);
  });
  is_numbered.wait();
  for (size_t i = 1; i < Histogram::kNumShards; ++i) {
    std::thread([&] { histogram.Observe(value); }).join();
  }
  std::thread second(observe_many, 1);
  first.join();
  second.join();
  const uint64_t num_values = 2 * kEach + Histogram::kNumShards;
  EXPECT_EQ(histogram.Read().buckets[kBucket], num_values);
  EXPECT_EQ(histogram.Read().sum, value * static_cast<double>(num_values));
}

TEST(HistogramTest, BoundsAreGeometric) {
  EXPECT_THAT(ExponentialBounds(3, 10, 3), ElementsAre(3, 30, 300));
  EXPECT_THAT(ExponentialBounds(3, 10, 0), ElementsAre());
  EXPECT_EQ(LatencyBounds().size(), 17u);
  EXPECT_DOUBLE_EQ(LatencyBounds().front(), 1e-4);
  EXPECT_DOUBLE_EQ(LatencyBounds().back(), 6.5536);
  EXPECT_DOUBLE_EQ(LongBounds().front(), 1e-3);
  EXPECT_DOUBLE_EQ(LongBounds().back(), 524.288);
}

}  // namespace
}  // namespace pkv
