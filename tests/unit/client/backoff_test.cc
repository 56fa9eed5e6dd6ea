#include "client/backoff.h"

#include <gtest/gtest.h>

#include <set>

namespace pkv {
namespace {

TEST(BackoffTest, DoublesUpToTheMaximumTimesAFactorOfHalfToOne) {
  for (uint64_t seed = 0; seed < 100; ++seed) {
    Backoff backoff(absl::Milliseconds(20), absl::Milliseconds(100), seed);
    for (const int full_ms : {20, 40, 80, 100, 100}) {
      const absl::Duration pause = backoff.Next();
      EXPECT_GE(pause, absl::Milliseconds(full_ms) / 2) << "seed " << seed;
      EXPECT_LE(pause, absl::Milliseconds(full_ms)) << "seed " << seed;
    }
  }
}

TEST(BackoffTest, SpreadsClientsThatFailedTogether) {
  std::set<absl::Duration> pauses;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    pauses.insert(Backoff(absl::Seconds(1), absl::Seconds(1), seed).Next());
  }
  EXPECT_GT(pauses.size(), 90u);
}

TEST(BackoffTest, RetriesOnlyWhatMayPass) {
  for (int code = 0; code <= 16; ++code) {
    const absl::Status status(static_cast<absl::StatusCode>(code), "x");
    const bool expected = code == static_cast<int>(absl::StatusCode::kUnavailable) ||
                          code == static_cast<int>(absl::StatusCode::kResourceExhausted);
    EXPECT_EQ(IsRetryable(status), expected) << status;
  }
}

}  // namespace
}  // namespace pkv
