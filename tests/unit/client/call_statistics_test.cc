#include "pkv/client/call_statistics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <utility>

#include "client/call_record.h"
#include "tests/support/fake_clock.h"

namespace pkv {
namespace {

uint64_t NumEnded(const MethodStatistics& statistics) {
  return std::accumulate(statistics.ended.begin(), statistics.ended.end(), uint64_t{0});
}

uint64_t Ended(const CallStatistics& statistics, CallMethod method, absl::StatusCode code) {
  return statistics.Read(method).ended[static_cast<size_t>(code)];
}

class CallStatisticsTest : public testing::Test {
 protected:
  CallRecord Record(CallMethod method) { return {statistics_, method, &clock_}; }

  FakeClock clock_;
  std::shared_ptr<CallStatistics> statistics_ = std::make_shared<CallStatistics>();
};

TEST_F(CallStatisticsTest, StartsAtZeroForEveryMethod) {
  std::set<std::string> names;
  for (int m = 0; m < kNumCallMethods; ++m) {
    const auto method = static_cast<CallMethod>(m);
    names.insert(CallMethodName(method));
    const MethodStatistics read = statistics_->Read(method);
    EXPECT_EQ(NumEnded(read) + read.in_flight + read.retries + read.backing_off, 0u);
    EXPECT_EQ(read.durations, std::vector<uint64_t>(CallDurationBounds().size() + 1, 0));
    EXPECT_EQ(read.duration_sum, 0);
  }
  EXPECT_EQ(names.size(), size_t{kNumCallMethods});
}

TEST_F(CallStatisticsTest, ACallIsInFlightUntilItEndsAndOnlyThenCounted) {
  CallRecord record = Record(CallMethod::kGet);
  EXPECT_EQ(statistics_->Read(CallMethod::kGet).in_flight, 1u);
  EXPECT_EQ(NumEnded(statistics_->Read(CallMethod::kGet)), 0u);
  clock_.Advance(absl::Milliseconds(3));
  record.End(absl::StatusCode::kNotFound);
  record.End(absl::StatusCode::kOk);  // too late
  const MethodStatistics read = statistics_->Read(CallMethod::kGet);
  EXPECT_EQ(read.in_flight, 0u);
  EXPECT_EQ(NumEnded(read), 1u);
  EXPECT_EQ(Ended(*statistics_, CallMethod::kGet, absl::StatusCode::kNotFound), 1u);
  EXPECT_DOUBLE_EQ(read.duration_sum, 3e-3);
  // 1.6 ms < 3 ms <= 3.2 ms
  EXPECT_EQ(read.durations[5], 1u);
  EXPECT_EQ(NumEnded(statistics_->Read(CallMethod::kPut)), 0u);
}

TEST_F(CallStatisticsTest, ARecordThatIsGivenUpIsCancelledAndOneThatMovesIsOneCall) {
  {
    CallRecord first = Record(CallMethod::kPut);
    const CallRecord second = std::move(first);
    EXPECT_EQ(statistics_->Read(CallMethod::kPut).in_flight, 1u);
  }
  EXPECT_EQ(NumEnded(statistics_->Read(CallMethod::kPut)), 1u);
  EXPECT_EQ(Ended(*statistics_, CallMethod::kPut, absl::StatusCode::kCancelled), 1u);
}

TEST_F(CallStatisticsTest, ARetryIsBackingOffDuringItsPause) {
  {
    const RetryPause pause(statistics_.get(), CallMethod::kLookup);
    EXPECT_EQ(statistics_->Read(CallMethod::kLookup).retries, 1u);
    EXPECT_EQ(statistics_->Read(CallMethod::kLookup).backing_off, 1u);
  }
  EXPECT_EQ(statistics_->Read(CallMethod::kLookup).retries, 1u);
  EXPECT_EQ(statistics_->Read(CallMethod::kLookup).backing_off, 0u);
}

TEST_F(CallStatisticsTest, ACodeWithoutANameIsUnknown) {
  Record(CallMethod::kStat).End(static_cast<absl::StatusCode>(99));
  EXPECT_EQ(Ended(*statistics_, CallMethod::kStat, absl::StatusCode::kUnknown), 1u);
}

}  // namespace
}  // namespace pkv
