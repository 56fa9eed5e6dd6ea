#include "kernels/codec/key_feedback_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

TEST(KeyFeedbackMathTest, UnitsAreTheTenthPowerOfTwoBelow) {
  for (int bits = 1; bits <= 0x7bff; ++bits) {
    const auto largest = static_cast<Float16Bits>(bits);
    const ErrorUnit unit = ErrorUnitFor(largest);
    const double in_units = Float16ToFloat(largest) / double{unit.value};
    ASSERT_GE(in_units, 512) << bits;
    ASSERT_LT(in_units, 1024) << bits;
    ASSERT_EQ(std::ilogb(unit.value), std::log2(unit.value)) << bits;
    ASSERT_EQ(unit.value * unit.inverse, 1) << bits;
  }
  EXPECT_EQ(ErrorUnitFor(0).value, 1);
}

TEST(KeyFeedbackMathTest, CountsErrorsToTheNearestUnit) {
  TestRandom random(1);
  for (const float unit : {0x1p-33f, 0x1p-6f, 1.0f, 128.0f}) {
    for (int i = 0; i < 20000; ++i) {
      // Every second one in quarters of a unit, ties among them.
      double units = 1200 * random.Normal();
      if (i % 2 == 0) units = std::floor(units * 4) / 4;
      const auto error = static_cast<float>(units * unit);
      const double want = std::clamp(std::nearbyint(double{error} / unit), -2047.0, 2047.0);
      ASSERT_EQ(CountedError(error, {unit, 1 / unit}), want) << error << " in " << unit;
    }
    EXPECT_EQ(CountedError(65504.0f * 3e4f, {unit, 1 / unit}), 2047);
    EXPECT_EQ(CountedError(-65504.0f * 3e4f, {unit, 1 / unit}), -2047);
  }
}

TEST(KeyFeedbackMathTest, TargetsRoundFactorTimesSumOnce) {
  TestRandom random(2);
  for (int i = 0; i < 20000; ++i) {
    const auto x = static_cast<float>(random.Normal());
    const auto factor = static_cast<float>(1e-6 * random.Normal());
    const int sum = static_cast<int>(1e8 * (2 * random.Uniform() - 1));
    const volatile float product = factor * static_cast<float>(sum);
    ASSERT_EQ(FeedbackTarget(x, factor, sum), x - product);
  }
  EXPECT_EQ(std::signbit(FeedbackTarget(-0.0f, 0.0f, 0)), true) << "none: not even of a zero";
}

}  // namespace
}  // namespace pkv
