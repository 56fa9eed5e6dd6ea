#include "worker/engine/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <vector>

#include "tests/support/error_bound.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

Sampler MakeSampler(const SamplingParams& params) { return *Sampler::Make(params); }

std::vector<int32_t> Draws(const SamplingParams& params, const std::vector<float>& logits, int n) {
  Sampler sampler = MakeSampler(params);
  std::vector<int32_t> ids;
  for (int i = 0; i < n; ++i) ids.push_back(sampler.Sample(logits)->token_id);
  return ids;
}

TEST(SamplerTest, RefusesParametersOutOfRange) {
  for (const float temperature : {-0.1f, kInfinity, std::nanf("")}) {
    EXPECT_THAT(Sampler::Make({.temperature = temperature}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("temperature")));
  }
  for (const float top_p : {0.0f, -1.0f, 1.001f, std::nanf("")}) {
    EXPECT_THAT(Sampler::Make({.top_p = top_p}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("top_p")));
  }
  EXPECT_THAT(Sampler::Make({.temperature = 0, .top_p = 1}), IsOk());
  EXPECT_THAT(Sampler::Make({.temperature = 5, .top_p = 0.001f}), IsOk());
}

TEST(SamplerTest, RefusesLogitsWithoutAnOrder) {
  for (const float temperature : {0.0f, 1.0f}) {
    Sampler sampler = MakeSampler({.temperature = temperature});
    EXPECT_THAT(sampler.Sample(std::vector<float>{1, std::nanf(""), 2}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("logit 1 is nan")));
    EXPECT_THAT(sampler.Sample(std::vector<float>{1, 2, kInfinity}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("logit 2 is inf")));
    EXPECT_THAT(sampler.Sample(std::vector<float>{-kInfinity, -kInfinity}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("none of 2")));
    EXPECT_THAT(sampler.Sample({}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("none of 0")));
  }
}

TEST(SamplerTest, TakesTheLargestAndTheLowestIdOfEqualsAtTemperatureZero) {
  EXPECT_EQ(Draws({}, {1, 3, 2}, 1)[0], 1);
  EXPECT_EQ(Draws({}, {1, 3, 3}, 1)[0], 1);
  EXPECT_EQ(Draws({}, {-kInfinity, -2, -kInfinity}, 1)[0], 1);
}

TEST(SamplerTest, ReportsTheLogProbabilityOfTheUntemperedDistribution) {
  const std::vector<float> logits = {0, std::log(2.0f), std::log(5.0f)};
  for (const float temperature : {0.0f, 0.5f, 3.0f}) {
    Sampler sampler = MakeSampler({.temperature = temperature, .seed = 3});
    for (int i = 0; i < 20; ++i) {
      const auto token = sampler.Sample(logits);
      ASSERT_THAT(token, IsOk());
      const double exact[] = {std::log(1 / 8.0), std::log(2 / 8.0), std::log(5 / 8.0)};
      // The logits were rounded to fp32, and so is the answer.
      EXPECT_NEAR(token->logprob, exact[token->token_id], 4 * kFloatUnit * std::log(8.0));
    }
  }
}

// Chi-squared against e^(logit / temperature): with 7 degrees of freedom a value above 40 has
// probability 1.3e-6, and the seed is fixed.
TEST(SamplerTest, DrawsInProportionToTheTemperedProbabilities) {
  constexpr int kDraws = 20'000;
  const std::vector<float> logits = {0, 1, 2, -1, 0.5, 1.5, -2, 0};
  for (const float temperature : {0.7f, 1.0f, 2.0f}) {
    double total = 0;
    for (const float logit : logits) total += std::exp(logit / temperature);
    std::vector<int> counts(logits.size());
    for (const int32_t id : Draws({.temperature = temperature, .seed = 99}, logits, kDraws)) {
      ++counts[id];
    }
    double chi_squared = 0;
    for (size_t i = 0; i < logits.size(); ++i) {
      const double expected = kDraws * std::exp(logits[i] / temperature) / total;
      chi_squared += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    EXPECT_LT(chi_squared, 40) << "temperature " << temperature;
  }
}

TEST(SamplerTest, KeepsTheSmallestSetThatReachesTopP) {
  // Probabilities 0.5, 0.3, 0.15, 0.05, out of order.
  const std::vector<float> logits = {std::log(0.15f), std::log(0.5f), std::log(0.05f),
                                     std::log(0.3f)};
  const auto drawn = [&](float top_p) {
    const std::vector<int32_t> ids =
        Draws({.temperature = 1, .top_p = top_p, .seed = 5}, logits, 2000);
    return std::set<int32_t>(ids.begin(), ids.end());
  };
  EXPECT_THAT(drawn(0.0001f), ElementsAre(1));
  EXPECT_THAT(drawn(0.45f), ElementsAre(1));
  EXPECT_THAT(drawn(0.55f), ElementsAre(1, 3));
  EXPECT_THAT(drawn(0.85f), ElementsAre(0, 1, 3));
  EXPECT_THAT(drawn(0.97f), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(drawn(1.0f), ElementsAre(0, 1, 2, 3));
}

TEST(SamplerTest, PrefersLowerIdsAmongEqualsAtTheEdgeOfTopP) {
  const std::vector<float> logits(10, 1.0f);
  for (const int32_t id : Draws({.temperature = 1, .top_p = 0.25f, .seed = 8}, logits, 500)) {
    EXPECT_LT(id, 3);
  }
}

TEST(SamplerTest, NeverDrawsATokenOfProbabilityZero) {
  const std::vector<float> logits = {-kInfinity, 0, -kInfinity, 0, -1e30f};
  for (const float top_p : {0.5f, 1.0f}) {
    for (const int32_t id : Draws({.temperature = 1, .top_p = top_p, .seed = 2}, logits, 500)) {
      EXPECT_TRUE(id == 1 || id == 3) << id;
    }
  }
}

TEST(SamplerTest, RepeatsWithTheSameSeedOnly) {
  const std::vector<float> logits = {0, 0, 0, 0, 0, 0, 0, 0};
  const SamplingParams params = {.temperature = 1, .seed = 1234};
  EXPECT_EQ(Draws(params, logits, 50), Draws(params, logits, 50));
  EXPECT_NE(Draws(params, logits, 50), Draws({.temperature = 1, .seed = 1235}, logits, 50));
}

// Frozen: another machine, compiler or release must draw these tokens. The draws are SplitMix64's
// first outputs for seed 1234567, published with its reference code: 6457827717110365317,
// 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821; over 2^64,
// times 1000: 350.08, 173.64, 532.21, 249.01, 889.53.
TEST(SamplerTest, DrawsFrozenTokens) {
  const std::vector<float> logits(1000, 0.25f);
  EXPECT_THAT(Draws({.temperature = 1, .seed = 1234567}, logits, 5),
              ElementsAre(350, 173, 532, 249, 889));
}

TEST(SamplerTest, DoesNotDrawAtTemperatureZero) {
  Sampler sampler = MakeSampler({.temperature = 0, .seed = 1});
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(sampler.Sample(std::vector<float>{0, 0.001f, 0})->token_id, 1);
  }
}

}  // namespace
}  // namespace pkv
