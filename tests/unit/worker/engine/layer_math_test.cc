#include "worker/engine/layer_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "proto/base/thread_pool.h"
#include "tests/support/error_bound.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

std::vector<float> Random(uint64_t seed, size_t size) {
  TestRandom random(seed);
  std::vector<float> values(size);
  for (float& value : values) value = static_cast<float>(random.Normal());
  return values;
}

ModelConfig RopeConfig(int head_dim, double theta) {
  ModelConfig config;
  config.head_dim = head_dim;
  config.rope_theta = theta;
  return config;
}

// A million points, spread over all of the domain and dense near 0.
TEST(ExpNonPositiveTest, ErrsByAtMostFourUnits) {
  double worst = 0;
  for (int i = 0; i <= 1'000'000; ++i) {
    for (const float x : {-static_cast<float>(i) * 8.69e-5f, -static_cast<float>(i) * 1e-6f}) {
      const double exact = std::exp(double{x});
      worst = std::max(worst, std::abs(ExpNonPositive(x) - exact) / exact);
    }
  }
  EXPECT_LE(worst, 4 * kFloatUnit);
}

TEST(ExpNonPositiveTest, IsExactAtZeroAndVanishesFarBelow) {
  EXPECT_EQ(ExpNonPositive(0.0f), 1.0f);
  EXPECT_EQ(ExpNonPositive(-0.0f), 1.0f);
  EXPECT_GT(ExpNonPositive(-86.9f), 0.0f);
  EXPECT_EQ(ExpNonPositive(-87.0f), 0.0f);
  EXPECT_EQ(ExpNonPositive(-1e30f), 0.0f);
  EXPECT_EQ(ExpNonPositive(-std::numeric_limits<float>::infinity()), 0.0f);
}

TEST(RmsNormTest, AgreesWithADefinitionInFp64) {
  constexpr int kRows = 3, kDim = 100;
  const std::vector<float> x = Random(1, kRows * kDim), weight = Random(2, kDim);
  std::vector<float> out(x.size());
  RmsNorm(x.data(), weight.data(), 1e-5, kRows, kDim, out.data(), nullptr);
  for (int row = 0; row < kRows; ++row) {
    double squares = 0;
    for (int i = 0; i < kDim; ++i) squares += double{x[row * kDim + i]} * x[row * kDim + i];
    for (int i = 0; i < kDim; ++i) {
      const double expected =
          x[row * kDim + i] / std::sqrt(squares / kDim + 1e-5) * double{weight[i]};
      // The sum of squares errs by SumBound relative to itself, its root by half of that; rounding
      // the root and two products follow.
      const double bound = std::abs(expected) * (SumBound(kDim, 0.5) + 3 * kFloatUnit);
      EXPECT_NEAR(out[row * kDim + i], expected, bound * (1 + kFloatUnit));
    }
  }
}

TEST(RmsNormTest, KeepsAZeroRowAndWorksInPlace) {
  std::vector<float> rows = Random(3, 64), weight(64, 2.0f), expected(64);
  RmsNorm(rows.data(), weight.data(), 1e-5, 1, 64, expected.data(), nullptr);
  RmsNorm(rows.data(), weight.data(), 1e-5, 1, 64, rows.data(), nullptr);
  EXPECT_EQ(rows, expected);
  std::vector<float> zero(64);
  RmsNorm(zero.data(), weight.data(), 1e-5, 1, 64, zero.data(), nullptr);
  EXPECT_EQ(zero, std::vector<float>(64));
}

TEST(SwiGluTest, AgreesWithADefinitionInFp64) {
  std::vector<float> gate = Random(4, 1000), up = Random(5, 1000);
  gate[0] = 0;
  gate[1] = 100;
  gate[2] = -100;
  gate[3] = 30000;
  gate[4] = -30000;
  std::vector<float> out = gate;
  SwiGlu(out.data(), up.data(), 1000, nullptr);
  for (int i = 0; i < 1000; ++i) {
    const double x = gate[i];
    const double expected = x / (1 + std::exp(-x)) * double{up[i]};
    // e^-|x| errs by 4 units, 1 + e and the quotient by one each, then two products.
    EXPECT_NEAR(out[i], expected, std::abs(expected) * 9 * kFloatUnit + std::exp(-86.0)) << x;
  }
}

TEST(SwiGluTest, GivesEqualBitsWithAnyPool) {
  const std::vector<float> gate = Random(6, 200'000), up = Random(7, 200'000);
  std::vector<float> alone = gate, shared = gate;
  ThreadPool pool(3);
  SwiGlu(alone.data(), up.data(), 200'000, nullptr);
  SwiGlu(shared.data(), up.data(), 200'000, &pool);
  EXPECT_EQ(alone, shared);
}

TEST(AddBiasTest, AddsToEveryRow) {
  std::vector<float> rows = {1, 2, 3, 4};
  const std::vector<float> bias = {10, 20};
  AddBias(bias.data(), 2, 2, rows.data());
  EXPECT_EQ(rows, (std::vector<float>{11, 22, 13, 24}));
}

TEST(RotaryTest, TurnsPairsByThePositionTimesTheFrequency) {
  for (const int head_dim : {64, 128}) {
    constexpr int kPositions = 40, kHeads = 3;
    constexpr int64_t kFirst = 3000;
    const std::vector<float> x = Random(8, size_t(kPositions) * kHeads * head_dim);
    std::vector<float> turned = x;
    Rotary rotary(RopeConfig(head_dim, 500000));
    ThreadPool pool(2);
    rotary.SetPositions(kFirst, kPositions, &pool);
    rotary.Apply(kHeads, turned.data(), &pool);
    for (int row = 0; row < kPositions * kHeads; ++row) {
      for (int c = 0; c < head_dim / 2; ++c) {
        const double a = x[row * head_dim + c], b = x[row * head_dim + c + head_dim / 2];
        const double angle =
            double(kFirst + row / kHeads) * std::pow(500000.0, -2.0 * c / head_dim);
        // Two products with rounded factors and their sum.
        const double bound = 3 * kFloatUnit * (std::abs(a) + std::abs(b)) * (1 + kFloatUnit);
        EXPECT_NEAR(turned[row * head_dim + c], a * std::cos(angle) - b * std::sin(angle), bound);
        EXPECT_NEAR(turned[row * head_dim + c + head_dim / 2],
                    b * std::cos(angle) + a * std::sin(angle), bound);
      }
    }
  }
}

TEST(RotaryTest, LeavesPositionZeroAsItIs) {
  const std::vector<float> x = Random(9, 64);
  std::vector<float> turned = x;
  Rotary rotary(RopeConfig(64, 10000));
  rotary.SetPositions(0, 1, nullptr);
  rotary.Apply(1, turned.data(), nullptr);
  EXPECT_EQ(turned, x);
}

// Llama 3.1: wavelengths below 8192 / 4 stay, those above 8192 / 1 become 8 times longer, and
// between them the frequency is a blend, linear in 8192 / wavelength.
TEST(RotaryTest, StretchesLongWavelengthsAsLlama3Does) {
  ModelConfig config = RopeConfig(128, 500000);
  const Rotary plain(config);
  config.rope_factor = 8;
  config.rope_low_freq_factor = 1;
  config.rope_high_freq_factor = 4;
  config.rope_original_max_position = 8192;
  const Rotary scaled(config);
  int kept = 0, blended = 0, stretched = 0;
  for (int i = 0; i < 64; ++i) {
    const double frequency = plain.frequencies()[i];
    const double wavelength = 2 * std::numbers::pi / frequency;
    if (wavelength < 8192.0 / 4) {
      ++kept;
      EXPECT_DOUBLE_EQ(scaled.frequencies()[i], frequency);
    } else if (wavelength > 8192.0) {
      ++stretched;
      EXPECT_DOUBLE_EQ(scaled.frequencies()[i], frequency / 8);
    } else {
      ++blended;
      const double smooth = (8192 / wavelength - 1) / (4 - 1);
      EXPECT_DOUBLE_EQ(scaled.frequencies()[i], (1 - smooth) * frequency / 8 + smooth * frequency);
    }
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(blended, 0);
  EXPECT_GT(stretched, 0);
}

}  // namespace
}  // namespace pkv
