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

TEST(LogitComparisonTest, IsZeroWithoutTokens) {
  LogitComparison comparison;
  comparison.Add({}, {}, {});
  EXPECT_EQ(comparison.num_tokens(), 0);
  EXPECT_EQ(comparison.mean_nll(), 0);
  EXPECT_EQ(comparison.mean_kl(), 0);
  EXPECT_EQ(comparison.KlPercentile(0.99), 0);
  EXPECT_EQ(comparison.top1_agreement(), 0);
}

TEST(LogitComparisonTest, FindsNoDivergenceBetweenEqualLogits) {
  TestRandom random(1);
  std::vector<float> logits(5 * 97);
  for (float& logit : logits) logit = static_cast<float>(20 * random.Normal());
  LogitComparison comparison;
  comparison.Add(logits, logits, std::vector<int32_t>{0, 1, 2, 3, 96});
  EXPECT_EQ(comparison.num_tokens(), 5);
  EXPECT_EQ(comparison.mean_kl(), 0) << "exactly";
  EXPECT_EQ(comparison.KlPercentile(1), 0);
  EXPECT_EQ(comparison.top1_agreement(), 1);
}

TEST(LogitComparisonTest, EqualsTheSumsOfASmallCase) {
  // KL = 1/2 ln(1/2 / 1/4) + 1/2 ln(1/2 / 3/4); the shifts cancel.
  LogitComparison comparison;
  comparison.Add(Logits({0.5, 0.5}, 3), Logits({0.25, 0.75}, -7), std::vector<int32_t>{0});
  const double expected = 0.5 * std::log(2.0) + 0.5 * std::log(2.0 / 3);
  EXPECT_NEAR(comparison.mean_kl(), expected, Rounding(7));
  EXPECT_NEAR(comparison.mean_nll(), std::log(4.0), Rounding(7));
}

TEST(LogitComparisonTest, MeasuresFromTheReferenceToTheOther) {
  LogitComparison forth, back;
  const std::vector<float> p = Logits({0.5, 0.5}), q = Logits({0.1, 0.9});
  forth.Add(p, q, std::vector<int32_t>{1});
  back.Add(q, p, std::vector<int32_t>{1});
  EXPECT_NEAR(forth.mean_kl(), 0.5 * std::log(5.0) + 0.5 * std::log(5.0 / 9), Rounding(1));
  EXPECT_NEAR(back.mean_kl(), 0.1 * std::log(0.2) + 0.9 * std::log(1.8), Rounding(1));
}

TEST(LogitComparisonTest, TakesLogitsWhoseExponentialsOverflow) {
  LogitComparison comparison;
  const std::vector<float> p = {2000, 1000}, q = {1000, 2000};
  comparison.Add(p, q, std::vector<int32_t>{0});
  EXPECT_NEAR(comparison.mean_kl(), 1000, Rounding(1000));
  EXPECT_NEAR(comparison.mean_nll(), 1000, Rounding(1000));
}

TEST(LogitComparisonTest, AveragesOverAllTokensAdded) {
  LogitComparison comparison;
  const std::vector<float> even = Logits({0.5, 0.5}), one = Logits({0.2, 0.8});
  std::vector<float> reference = even, logits = even;
  reference.insert(reference.end(), even.begin(), even.end());
  logits.insert(logits.end(), one.begin(), one.end());
  comparison.Add(reference, logits, std::vector<int32_t>{0, 1});
  comparison.Add(one, one, std::vector<int32_t>{0});
  EXPECT_EQ(comparison.num_tokens(), 3);
  const double nll = (std::log(2.0) - std::log(0.8) - std::log(0.2)) / 3;
  EXPECT_NEAR(comparison.mean_nll(), nll, Rounding(nll));
}

TEST(LogitComparisonTest, GivesTheSmallestValueThatAShareDoesNotExceed) {
  // KL of token i grows with i: ten tokens, the first with none.
  LogitComparison comparison;
  std::vector<double> kl;
  for (int i = 0; i < 10; ++i) {
    const double p = 0.5 + 0.04 * i;
    comparison.Add(Logits({p, 1 - p}), Logits({0.5, 0.5}), std::vector<int32_t>{0});
    kl.push_back(p * std::log(2 * p) + (1 - p) * std::log(2 * (1 - p)));
  }
  EXPECT_NEAR(comparison.KlPercentile(0.1), kl[0], Rounding(1));
  EXPECT_NEAR(comparison.KlPercentile(0.5), kl[4], Rounding(1));
  EXPECT_NEAR(comparison.KlPercentile(0.51), kl[5], Rounding(1));
  EXPECT_NEAR(comparison.KlPercentile(0.99), kl[9], Rounding(1));
  EXPECT_NEAR(comparison.KlPercentile(1), kl[9], Rounding(1));
  EXPECT_GT(kl[5] - kl[4], 2 * Rounding(1)) << "neighbours can be told apart";
}

TEST(LogitComparisonTest, CountsTokensWithTheSameMostLikelySuccessor) {
  LogitComparison comparison;
  const std::vector<float> a = {3, 2, 1}, b = {2, 3, 1}, a_too = {5, 4, -9};
  for (const std::vector<float>* logits : {&a, &b, &a_too, &a}) {
    comparison.Add(a, *logits, std::vector<int32_t>{2});
  }
  EXPECT_EQ(comparison.top1_agreement(), 0.75);
}

TEST(LogitComparisonDeathTest, TakesOnlyLogitsOfOneSize) {
  LogitComparison comparison;
  const std::vector<float> four(4), six(6);
  EXPECT_DEATH(comparison.Add(four, six, std::vector<int32_t>{0, 0}), "4 6 2");
}

}  // namespace
}  // namespace pkv
