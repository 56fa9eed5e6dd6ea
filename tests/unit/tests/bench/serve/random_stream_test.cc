#include "tests/bench/serve/random_stream.h"

#include <gmock/gmock.h>

#include <set>

namespace pkv {
namespace {

constexpr int kDraws = 100000;
// A mean of n draws is within so many of its standard errors for all but one seed in a million.
constexpr double kStandardErrors = 5;

TEST(RandomStreamTest, IsSplitMix64) {
  // The first outputs of the reference program for seed 1234567.
  RandomStream random(1234567);
  EXPECT_EQ(random.Next(), 6457827717110365317u);
  EXPECT_EQ(random.Next(), 3203168211198807973u);
  EXPECT_EQ(random.Next(), 9817491932198370423u);
}

TEST(RandomStreamTest, BelowStaysBelowAndReachesEveryValue) {
  RandomStream random(1);
  std::set<uint64_t> seen;
  for (int i = 0; i < 1000; ++i) seen.insert(random.Below(7));
  EXPECT_EQ(seen, (std::set<uint64_t>{0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(random.Below(1), 0);
}

TEST(RandomStreamTest, MeansAreThoseOfTheDistributions) {
  RandomStream random(2);
  double uniform = 0, exponential = 0, normal = 0, square = 0;
  for (int i = 0; i < kDraws; ++i) {
    uniform += random.Uniform() / kDraws;
    exponential += random.Exponential() / kDraws;
    const double draw = random.Normal();
    normal += draw / kDraws;
    square += draw * draw / kDraws;
  }
  const double error = kStandardErrors / std::sqrt(kDraws);
  EXPECT_NEAR(uniform, 0.5, error / std::sqrt(12));
  EXPECT_NEAR(exponential, 1, error);
  EXPECT_NEAR(normal, 0, error);
  EXPECT_NEAR(square, 1, error * std::sqrt(2));
}

TEST(ChildSeedTest, DependsOnEveryStepOfThePathAndTheirOrder) {
  const std::set<uint64_t> seeds = {ChildSeed(1, {1, 2}), ChildSeed(1, {2, 1}), ChildSeed(1, {1}),
                                    ChildSeed(1, {1, 3}), ChildSeed(2, {1, 2}), ChildSeed(1, {})};
  EXPECT_EQ(seeds.size(), 6);
  EXPECT_EQ(ChildSeed(1, {1, 2}), ChildSeed(1, {1, 2}));
}

}  // namespace
}  // namespace pkv
