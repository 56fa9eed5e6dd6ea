#include "tests/bench/serve/length_distribution.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

std::vector<int> Draws(const char* text, int count) {
  const auto lengths = LengthDistribution::Parse(text);
  EXPECT_THAT(lengths, IsOk());
  RandomStream random(3);
  std::vector<int> draws(count);
  for (int& draw : draws) draw = lengths->Draw(random);
  return draws;
}

TEST(LengthDistributionTest, FixedIsAlwaysTheSame) {
  EXPECT_THAT(Draws("fixed:7", 100), testing::Each(7));
}

TEST(LengthDistributionTest, UniformReachesBothEndsAndNothingBeyond) {
  const std::vector<int> draws = Draws("uniform:5:8", 1000);
  EXPECT_EQ(std::set<int>(draws.begin(), draws.end()), (std::set<int>{5, 6, 7, 8}));
  EXPECT_THAT(Draws("uniform:5:5", 10), testing::Each(5));
}

// Goal: MEDIAN is the median, SIGMA the spread of the logarithm. Method: of a normal distribution
// 50 % are above the mean and 15.87 % more than one sigma above it; the count of each is binomial.
TEST(LengthDistributionTest, LognormalHasItsMedianAndSigma) {
  constexpr int kDraws = 20000;
  const std::vector<int> draws = Draws("lognormal:1000:0.5", kDraws);
  for (const auto& [bound, share] : {std::pair(1000.0, 0.5), std::pair(1000 * 1.6487, 0.15866)}) {
    const auto above =
        std::count_if(draws.begin(), draws.end(), [bound = bound](int d) { return d > bound; });
    const double standard_error = std::sqrt(share * (1 - share) / kDraws);
    EXPECT_NEAR(double(above) / kDraws, share, 5 * standard_error) << bound;
  }
}

TEST(LengthDistributionTest, LognormalStaysWithinTheLimits) {
  const std::vector<int> draws = Draws("lognormal:1000:10", 1000);
  EXPECT_EQ(*std::min_element(draws.begin(), draws.end()), 1);
  EXPECT_EQ(*std::max_element(draws.begin(), draws.end()), kMaxRequestTokens);
}

TEST(LengthDistributionTest, TraceIsNotDrawn) {
  EXPECT_TRUE(LengthDistribution::Parse("trace")->from_trace());
  EXPECT_FALSE(LengthDistribution::Parse("fixed:1")->from_trace());
}

TEST(LengthDistributionTest, RefusesWhatIsNoDistributionByName) {
  for (const char* text :
       {"", "7", "fixed", "fixed:", "fixed:0", "fixed:-1", "fixed:1:2", "fixed:1048577",
        "fixed:1.5", "uniform:5", "uniform:8:5", "uniform:0:5", "lognormal:5", "lognormal:0:1",
        "lognormal:5:0", "lognormal:5:11", "lognormal:5:nan", "normal:1:2", "trace:1"}) {
    const auto lengths = LengthDistribution::Parse(text);
    EXPECT_THAT(lengths, StatusIs(absl::StatusCode::kInvalidArgument)) << text;
    EXPECT_THAT(std::string(lengths.status().message()),
                testing::HasSubstr(absl::StrCat("'", text, "'")));
  }
  EXPECT_THAT(LengthDistribution::Parse("fixed:1048576"), IsOk());
}

}  // namespace
}  // namespace pkv
