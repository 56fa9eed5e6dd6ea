#include "tests/bench/sample_summary.h"

#include <gmock/gmock.h>

namespace pkv {
namespace {

TEST(SampleSummaryTest, TakesTheMiddleOfSortedSamples) {
  const SampleSummary odd = Summarize({9, 1, 5});
  EXPECT_EQ(odd.count, 3);
  EXPECT_EQ(odd.min, 1);
  EXPECT_EQ(odd.median, 5);
  EXPECT_EQ(odd.max, 9);
  EXPECT_EQ(Summarize({4, 1, 2, 100}).median, 3);
}

TEST(SampleSummaryTest, SpreadIsAShareOfTheMedian) {
  EXPECT_EQ(Summarize({4, 5, 6}).spread(), 0.4);
  EXPECT_EQ(Summarize({7}).spread(), 0);
}

TEST(SampleSummaryTest, OfNothingIsZero) {
  EXPECT_EQ(Summarize({}).count, 0);
  EXPECT_EQ(Summarize({}).median, 0);
  EXPECT_EQ(Summarize({}).spread(), 0);
}

}  // namespace
}  // namespace pkv
