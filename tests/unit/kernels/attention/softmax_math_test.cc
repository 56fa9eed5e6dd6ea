#include "kernels/attention/softmax_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/support/error_bound.h"

namespace pkv {
namespace {

TEST(SoftmaxMathTest, ExponentialIsWithinItsBound) {
  double worst = 0;
  for (int i = 0; i <= 870000; ++i) {
    const float x = static_cast<float>(-i) * 1e-4f;
    if (x <= -87.0f) break;
    const double exact = std::exp(static_cast<double>(x));
    worst = std::max(worst, std::abs(ExpNonPositive(x) - exact) / exact);
  }
  EXPECT_LE(worst, kExpBound);
  EXPECT_GT(worst, 0);
}

TEST(SoftmaxMathTest, OfZeroIsOne) { EXPECT_EQ(ExpNonPositive(0.0f), 1.0f); }

TEST(SoftmaxMathTest, EndsInZero) {
  EXPECT_GT(ExpNonPositive(std::nextafter(-87.0f, 0.0f)), 0.0f);
  EXPECT_EQ(ExpNonPositive(-87.0f), 0.0f);
  EXPECT_EQ(ExpNonPositive(-1e30f), 0.0f);
  EXPECT_EQ(ExpNonPositive(-std::numeric_limits<float>::infinity()), 0.0f);
}

}  // namespace
}  // namespace pkv
