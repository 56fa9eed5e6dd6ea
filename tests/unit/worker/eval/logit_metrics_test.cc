#include "worker/eval/logit_metrics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/support/error_bound.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

// Sums and logarithms in double of a few float values: a few units of binary32 cover them.
double Rounding(double value) { return SumBound(16, std::abs(value) + 1); }

// Logits of a distribution.
std::vector<float> Logits(std::vector<double> probabilities, double shift = 0) {
  std::vector<float> logits;
  for (const double p : probabilities) logits.push_back(static_cast<float>(std::log(p) + shift));
  return logits;
}

std::vector<TokenComparison> Compare(const std::vector<float>& reference,
                                     const std::vector<float>& logits,
                                     const std::vector<int32_t>& targets) {
  const int vocab_size = static_cast<int>(reference.size() / targets.size());
  return CompareLogits(ReferenceLogits(reference, vocab_size), logits, targets);
}

TEST(LogitMetricsTest, IsZeroWithoutTokens) {
  const LogitSummary summary = Summarise(CompareLogits(ReferenceLogits({}, 7), {}, {}));
  EXPECT_EQ(summary.nll, 0);
  EXPECT_EQ(summary.kl, 0);
  EXPECT_EQ(summary.kl_p99, 0);
  EXPECT_EQ(summary.top1_agreement, 0);
  EXPECT_EQ(KlPercentile({}, 0.99), 0);
}

TEST(LogitMetricsTest, FindsNoDivergenceBetweenEqualLogits) {
  TestRandom random(1);
  std::vector<float> logits(5 * 97);
  for (float& logit : logits) logit = static_cast<float>(20 * random.Normal());
  const auto tokens = Compare(logits, logits, {0, 1, 2, 3, 96});
  ASSERT_EQ(tokens.size(), 5u);
  const LogitSummary summary = Summarise(tokens);
  EXPECT_EQ(summary.kl, 0) << "exactly";
  EXPECT_EQ(summary.nll, summary.reference_nll);
  EXPECT_EQ(KlPercentile(tokens, 1), 0);
  EXPECT_EQ(summary.top1_agreement, 1);
  EXPECT_EQ(summary.top5_agreement, 1);
}

TEST(LogitMetricsTest, EqualsTheSumsOfASmallCase) {
  // KL = 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4); the shifts cancel.
  const auto tokens = Compare(Logits({0.5, 0.5}, 3), Logits({0.25, 0.75}, -7), {0});
  const double expected = 0.5 * std::log(2.0) + 0.5 * std::log(2.0 / 3);
  EXPECT_NEAR(tokens[0].kl, expected, Rounding(7));
  EXPECT_NEAR(tokens[0].nll, std::log(4.0), Rounding(7));
  EXPECT_NEAR(tokens[0].reference_nll, std::log(2.0), Rounding(7));
}

TEST(LogitMetricsTest, MeasuresFromTheReferenceToTheOther) {
  const std::vector<float> p = Logits({0.5, 0.5}), q = Logits({0.1, 0.9});
  EXPECT_NEAR(Compare(p, q, {1})[0].kl, 0.5 * std::log(5.0) + 0.5 * std::log(5.0 / 9), Rounding(1));
  EXPECT_NEAR(Compare(q, p, {1})[0].kl, 0.1 * std::log(0.2) + 0.9 * std::log(1.8), Rounding(1));
}

TEST(LogitMetricsTest, TakesLogitsWhoseExponentialsOverflow) {
  const auto tokens = Compare({2000, 1000}, {1000, 2000}, {0});
  EXPECT_NEAR(tokens[0].kl, 1000, Rounding(1000));
  EXPECT_NEAR(tokens[0].nll, 1000, Rounding(1000));
}

TEST(LogitMetricsTest, AveragesOverAllTokens) {
  const std::vector<float> even = Logits({0.5, 0.5}), one = Logits({0.2, 0.8});
  std::vector<TokenComparison> tokens = Compare(even, one, {0});
  for (const TokenComparison& token : Compare(one, one, {0})) tokens.push_back(token);
  for (const TokenComparison& token : Compare(one, even, {1})) tokens.push_back(token);
  const LogitSummary summary = Summarise(tokens);
  const double nll = (-std::log(0.2) - std::log(0.2) + std::log(2.0)) / 3;
  EXPECT_NEAR(summary.nll, nll, Rounding(nll));
  const double reference_nll = (std::log(2.0) - std::log(0.2) - std::log(0.8)) / 3;
  EXPECT_NEAR(summary.reference_nll, reference_nll, Rounding(reference_nll));
}

TEST(LogitMetricsTest, GivesTheSmallestValueThatAShareDoesNotExceed) {
  // KL of token i grows with i: ten tokens, the first with none.
  std::vector<TokenComparison> tokens;
  std::vector<double> kl;
  for (int i = 0; i < 10; ++i) {
    const double p = 0.5 + 0.04 * i;
    tokens.push_back(Compare(Logits({p, 1 - p}), Logits({0.5, 0.5}), {0})[0]);
    kl.push_back(p * std::log(2 * p) + (1 - p) * std::log(2 * (1 - p)));
  }
  EXPECT_NEAR(KlPercentile(tokens, 0.1), kl[0], Rounding(1));
  EXPECT_NEAR(KlPercentile(tokens, 0.5), kl[4], Rounding(1));
  EXPECT_NEAR(KlPercentile(tokens, 0.51), kl[5], Rounding(1));
  EXPECT_NEAR(KlPercentile(tokens, 0.99), kl[9], Rounding(1));
  EXPECT_NEAR(KlPercentile(tokens, 1), kl[9], Rounding(1));
  EXPECT_GT(kl[5] - kl[4], 2 * Rounding(1)) << "neighbours can be told apart";
}

TEST(LogitMetricsTest, CountsTokensWithTheSameMostLikelySuccessor) {
  std::vector<TokenComparison> tokens;
  const std::vector<float> a = {3, 2, 1}, b = {2, 3, 1}, a_too = {5, 4, -9};
  for (const std::vector<float>& logits : {a, b, a_too, a}) {
    tokens.push_back(Compare(a, logits, {2})[0]);
  }
  EXPECT_EQ(Summarise(tokens).top1_agreement, 0.75);
}

TEST(LogitMetricsTest, SharesAsManyOfFiveAsBothHold) {
  const std::vector<float> p = {9, 8, 7, 6, 5, 4, 3, 2};
  EXPECT_EQ(Compare(p, {5, 6, 7, 8, 9, 0, 0, 0}, {0})[0].top5_shared, 1) << "in any order";
  EXPECT_EQ(Compare(p, {9, 8, 7, 0, 0, 6, 5, 1}, {0})[0].top5_shared, 0.6);
  EXPECT_EQ(Compare(p, {0, 0, 0, 0, 9, 9, 9, 9}, {0})[0].top5_shared, 0.4)
      << "of equals the lowest id";
  EXPECT_EQ(Compare({1, 2}, {2, 1}, {0})[0].top5_shared, 1) << "a vocabulary of fewer";
}

TEST(ReferenceLogitsTest, OrdersTheMostLikelyTokens) {
  const ReferenceLogits logits({1, 7, 3, 7, 2, 9, 0}, 7);
  const std::vector<int32_t> top(logits.top(0).begin(), logits.top(0).end());
  EXPECT_EQ(top, (std::vector<int32_t>{5, 1, 3, 2, 4}));
}

TEST(LogitMetricsDeathTest, TakesOnlyLogitsOfOneSize) {
  const ReferenceLogits reference(std::vector<float>(4), 2);
  EXPECT_DEATH(CompareLogits(reference, std::vector<float>(6), std::vector<int32_t>{0, 0}),
               "2 6 2");
}

}  // namespace
}  // namespace pkv
