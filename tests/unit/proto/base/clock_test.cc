#include "proto/base/clock.h"

#include <gtest/gtest.h>

namespace pkv {
namespace {

TEST(ClockTest, NeverRunsBackwards) {
  Clock* const clock = Clock::Real();
  absl::Time before = clock->MonotonicNow();
  for (int i = 0; i < 1000; ++i) {
    const absl::Time now = clock->MonotonicNow();
    ASSERT_GE(now, before);
    before = now;
  }
}

TEST(ClockTest, Advances) {
  Clock* const clock = Clock::Real();
  const absl::Time start = clock->MonotonicNow();
  while (clock->MonotonicNow() == start) {
  }
  EXPECT_GT(clock->MonotonicNow(), start);
}

TEST(ClockTest, RealClockIsOneObject) { EXPECT_EQ(Clock::Real(), Clock::Real()); }

}  // namespace
}  // namespace pkv
