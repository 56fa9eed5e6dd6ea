// The integers of V's search against the errors that they stand for.
#include "kernels/codec/value_ratio_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "kernels/codec/group_quantizer.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

constexpr uint64_t kSeed = 20261130;

// 4 (distance - nearest level)^2, levels at odd multiples of scale / 2.
int FourSquares(int distance, int scale, int bits) {
  int least = std::abs(2 * distance - scale);
  for (int level = 3; level < 1 << bits; level += 2) {
    least = std::min(least, std::abs(2 * distance - level * scale));
  }
  return least * least;
}

class ValueRatioMathTest : public testing::TestWithParam<int> {};  // bits

TEST_P(ValueRatioMathTest, WholeRangeEndsAtTheLastLevel) {
  const int bits = GetParam();
  EXPECT_EQ(2 * ValueReachUnits(bits), ((1 << bits) - 1) * ValueScaleUnits(0, bits));
  for (int i = 1; i < kNumValueRatios; ++i) {
    const double ratio = static_cast<double>(ValueScaleUnits(i, bits)) / ValueScaleUnits(0, bits);
    EXPECT_DOUBLE_EQ(ratio, (20 - i * kValueRatioStep) / 20.0);
  }
}

TEST_P(ValueRatioMathTest, FoldsGiveTheSquaredErrors) {
  const int bits = GetParam();
  for (int distance = 0; distance <= ValueReachUnits(bits); ++distance) {
    for (int i = 0; i < kNumValueRatios; ++i) {
      const int scale = ValueScaleUnits(i, bits);
      const int error = ValueRatioError(scale, 1, FoldedDistance(distance, scale, bits), bits);
      ASSERT_EQ(4 * distance * distance + error, FourSquares(distance, scale, bits))
          << distance << " of scale " << scale;
    }
  }
}

TEST_P(ValueRatioMathTest, ErrorsOfAnyGroupLeaveRoomForAnIndex) {
  const int bits = GetParam();
  for (int i = 0; i < kNumValueRatios; ++i) {
    const int scale = ValueScaleUnits(i, bits);
    for (int distance = 0; distance <= ValueReachUnits(bits); ++distance) {
      const int folded = 128 * FoldedDistance(distance, scale, bits);
      ASSERT_LT(std::abs(ValueRatioError(scale, 128, folded, bits)), 1 << 26);
    }
  }
}

TEST_P(ValueRatioMathTest, DistancesReachTheFarthestValueAndNoFurther) {
  const int bits = GetParam();
  TestRandom random(kSeed);
  for (int trial = 0; trial < 2000; ++trial) {
    // Ranges of every size next to what the middle rounds to.
    const double width = std::ldexp(1.0, static_cast<int>(random.Below(36)) - 20);
    const double centre = trial % 3 == 0 ? 0 : 65504 * random.Normal();
    std::vector<float> values(64);
    for (float& x : values) x = static_cast<float>(centre + width * random.Normal());
    const Range range = RangeOf(values.data(), 64);
    const ValueUnits units = ValueUnits::Of(range.min, range.max, bits);
    int farthest = 0;
    for (const float x : values) {
      const auto distance = static_cast<int>(units.DistanceOnBase(x) - 0x1p+23f);
      ASSERT_GE(distance, 0);
      farthest = std::max(farthest, distance);
    }
    ASSERT_EQ(farthest, range.min == range.max ? 0 : ValueReachUnits(bits)) << trial;
  }
}

TEST_P(ValueRatioMathTest, EqualValuesKeepTheWholeRange) {
  // Zeros, too: shrunk about the middle of both signs, the range would lose the first one's.
  for (const float second : {-1.5f, 0.0f}) {
    const std::vector<float> values = {second == 0 ? -0.0f : second, second};
    const Range range = RangeOf(values.data(), 2);
    EXPECT_EQ(BestValueRatio(values.data(), 2, range, GetParam()), 0);
    const auto value_at = [&](int i) { return values[i]; };
    EXPECT_EQ(BestValueRatio(value_at, 2, range.min, range.max, GetParam()), 0);
  }
}

// Against the errors of scales and zero points as stored: what integers leave out decides between
// ratios that are as good.
TEST_P(ValueRatioMathTest, ChoiceIsNextToTheBestOfTheDecodedErrors) {
  const int bits = GetParam();
  TestRandom random(kSeed);
  double best_sum = 0, chosen_sum = 0;
  for (int trial = 0; trial < 400; ++trial) {
    std::vector<float> values(128);
    for (float& x : values) x = static_cast<float>(3 + random.Normal() * (trial % 4 + 1));
    const Range range = RangeOf(values.data(), 128);
    std::vector<double> errors;
    for (int i = 0; i < kNumValueRatios; ++i) {
      const GroupParams params = ShrunkGroupParams(range.min, range.max, i * kValueRatioStep, bits);
      const float scale = Float16ToFloat(params.scale), zero = Float16ToFloat(params.zero);
      double error = 0;
      for (const float x : values) {
        const float code = QuantizeOne(x, scale, zero, MaxCode(bits));
        error += std::pow(double{x} - DequantizeOne(code, scale, zero), 2);
      }
      errors.push_back(error);
    }
    best_sum += *std::min_element(errors.begin(), errors.end());
    chosen_sum += errors[BestValueRatio(values.data(), 128, range, bits)];
  }
  // One unit in rounding moves a square by less than 2 s: a thousandth over many groups.
  const double excess = chosen_sum / best_sum - 1;
  RecordProperty("excess", std::to_string(excess));
  EXPECT_LT(excess, 1.0 / (4 * ValueReachUnits(bits)));
}

TEST_P(ValueRatioMathTest, ValueByValueAndRowsChooseTheSame) {
  const int bits = GetParam();
  TestRandom random(kSeed);
  std::vector<int> chosen(kNumValueRatios);
  for (int trial = 0; trial < 1000; ++trial) {
    const int count = 32 << random.Below(3);
    std::vector<float> values(count);
    for (float& x : values) {
      const double normal = random.Normal();
      x = static_cast<float>(trial % 2 == 0 ? normal : normal * normal * normal);
      if (trial % 7 == 3) x = static_cast<float>(random.Below(5)) * 0.25f;
      if (trial % 50 == 1) x = -1.5f;
    }
    const Range range = RangeOf(values.data(), count);
    const auto value_at = [&](int i) { return values[i]; };
    const int want = BestValueRatio(value_at, count, range.min, range.max, bits);
    ASSERT_EQ(BestValueRatio(values.data(), count, range, bits), want) << trial;
    ++chosen[want];
  }
  // 4 bits hardly ever shrink far.
  for (int i = 0; i < (bits == 2 ? kNumValueRatios : 3); ++i) EXPECT_GT(chosen[i], 0) << i;
}

INSTANTIATE_TEST_SUITE_P(Bits, ValueRatioMathTest, testing::Values(2, 4));

}  // namespace
}  // namespace pkv
