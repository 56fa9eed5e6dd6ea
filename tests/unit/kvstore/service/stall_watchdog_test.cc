#include "kvstore/service/stall_watchdog.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>

#include "tests/support/fake_clock.h"

namespace pkv {
namespace {

class StallWatchdogTest : public ::testing::Test {
 protected:
  FakeClock clock_;
  std::atomic<int> stalls_{0};
  std::atomic<int> cancels_{0};
  // The thread looks every 15 minutes of real time: only CancelStalled() acts here.
  StallWatchdog watchdog_{&clock_, absl::Hours(1), [this] { ++stalls_; }};

  std::unique_ptr<StallWatchdog::Ticket> Watch() {
    return watchdog_.Watch([this] { ++cancels_; });
  }
};

TEST_F(StallWatchdogTest, CancelsAtTheTimeoutAndNotBefore) {
  const auto ticket = Watch();
  clock_.Advance(absl::Hours(1) - absl::Nanoseconds(1));
  EXPECT_EQ(watchdog_.CancelStalled(), 0);
  clock_.Advance(absl::Nanoseconds(1));
  EXPECT_EQ(watchdog_.CancelStalled(), 1);
  EXPECT_EQ(cancels_, 1);
  EXPECT_EQ(stalls_, 1);
}

TEST_F(StallWatchdogTest, LeavesAMovingStreamAlone) {
  const auto moving = Watch(), stuck = Watch();
  clock_.Advance(absl::Minutes(40));
  moving->Progress();
  clock_.Advance(absl::Minutes(40));
  EXPECT_EQ(watchdog_.CancelStalled(), 1);
}

TEST_F(StallWatchdogTest, CancelsEachStreamOnce) {
  const auto ticket = Watch();
  clock_.Advance(absl::Hours(2));
  EXPECT_EQ(watchdog_.CancelStalled(), 1);
  EXPECT_EQ(watchdog_.CancelStalled(), 0);
}

TEST_F(StallWatchdogTest, ForgetsAStreamThatEnded) {
  Watch().reset();
  clock_.Advance(absl::Hours(2));
  EXPECT_EQ(watchdog_.CancelStalled(), 0);
}

// As gRPC may do: cancelling ends the stream on the spot.
TEST_F(StallWatchdogTest, AStreamMayEndInsideItsCancel) {
  std::unique_ptr<StallWatchdog::Ticket> ticket;
  ticket = watchdog_.Watch([&ticket] { ticket.reset(); });
  clock_.Advance(absl::Hours(2));
  EXPECT_EQ(watchdog_.CancelStalled(), 1);
  EXPECT_EQ(ticket, nullptr);
}

TEST(StallWatchdogThreadTest, LooksByItself) {
  FakeClock clock;
  StallWatchdog watchdog(&clock, absl::Milliseconds(100), [] {});
  Mutex mu;
  CondVar changed;
  bool cancelled = false;
  const auto ticket = watchdog.Watch([&] {
    MutexLock lock(&mu);
    cancelled = true;
    changed.SignalAll();
  });
  clock.Advance(absl::Seconds(1));
  MutexLock lock(&mu);
  while (!cancelled) changed.Wait(&mu);
  EXPECT_TRUE(cancelled);
}

}  // namespace
}  // namespace pkv
