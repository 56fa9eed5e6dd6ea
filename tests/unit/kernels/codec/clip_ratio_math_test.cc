// The integers of the clip search against the errors that they stand for.
#include "kernels/codec/clip_ratio_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
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

class ClipRatioMathTest : public testing::TestWithParam<int> {};  // bits

TEST_P(ClipRatioMathTest, WholeRangeEndsAtTheLastLevel) {
  const int bits = GetParam();
  EXPECT_EQ(2 * ClipReachUnits(bits), ((1 << bits) - 1) * ClipScaleUnits(0, bits));
  for (int i = 1; i < kNumShrinkRatios; ++i) {
    const double ratio = static_cast<double>(ClipScaleUnits(i, bits)) / ClipScaleUnits(0, bits);
    EXPECT_DOUBLE_EQ(ratio, (10 - i) / 10.0);
  }
}

TEST_P(ClipRatioMathTest, FoldsGiveTheSquaredErrors) {
  const int bits = GetParam();
  for (int distance = 0; distance <= ClipReachUnits(bits); ++distance) {
    for (int i = 0; i < kNumShrinkRatios; ++i) {
      const int scale = ClipScaleUnits(i, bits);
      const int error = ClipRatioError(scale, 1, FoldedDistance(distance, scale, bits), bits);
      ASSERT_EQ(4 * distance * distance + error, FourSquares(distance, scale, bits))
          << distance << " of scale " << scale;
    }
  }
}

TEST_P(ClipRatioMathTest, DistancesOfNoValueDoNotCount) {
  const int bits = GetParam();
  for (int i = 0; i < kNumShrinkRatios; ++i) {
    const int scale = ClipScaleUnits(i, bits), folded = 3 * FoldedDistance(100, scale, bits);
    const int others = 13 * FoldedDistance(0, scale, bits);
    EXPECT_EQ(ClipRatioError(scale, 3, folded + others, bits, 13),
              ClipRatioError(scale, 3, folded, bits));
  }
}

// From any inverse within a place of the exact one.
TEST_P(ClipRatioMathTest, UnitsPerValueAreTheRoundedQuotient) {
  const auto units = static_cast<float>(ClipReachUnits(GetParam()));
  for (uint32_t mantissa = 0; mantissa < 1u << 23; ++mantissa) {
    const float reach = std::bit_cast<float>(0x3f800000u + mantissa), rounded = 1.0f / reach;
    const float quotient = units / reach;
    for (const float inverse :
         {std::nextafter(rounded, 0.0f), rounded, std::nextafter(rounded, 2.0f)}) {
      ASSERT_EQ(UnitsPerValue(units, reach, inverse), quotient) << reach << " by " << inverse;
    }
  }
}

TEST_P(ClipRatioMathTest, ErrorsOfAnyGroupLeaveRoomForAnIndex) {
  const int bits = GetParam();
  for (int i = 0; i < kNumShrinkRatios; ++i) {
    const int scale = ClipScaleUnits(i, bits);
    for (int distance = 0; distance <= ClipReachUnits(bits); ++distance) {
      const int folded = 128 * FoldedDistance(distance, scale, bits);
      ASSERT_LT(std::abs(ClipRatioError(scale, 128, folded, bits)), 1 << 26);
    }
  }
}

TEST_P(ClipRatioMathTest, DistancesReachTheFarthestValueAndNoFurther) {
  const int bits = GetParam();
  TestRandom random(kSeed);
  for (int trial = 0; trial < 2000; ++trial) {
    // Ranges of every size next to what the middle rounds to.
    const double width = std::ldexp(1.0, static_cast<int>(random.Below(36)) - 20);
    const double centre = trial % 3 == 0 ? 0 : 65504 * random.Normal();
    std::vector<float> values(64);
    for (float& x : values) x = static_cast<float>(centre + width * random.Normal());
    const Range range = RangeOf(values.data(), 64);
    const ClipUnits units = ClipUnits::Of(range.min, range.max, bits);
    int farthest = 0;
    for (const float x : values) {
      const auto distance = static_cast<int>(units.DistanceOnBase(x) - 0x1p+23f);
      ASSERT_GE(distance, 0);
      farthest = std::max(farthest, distance);
    }
    ASSERT_EQ(farthest, range.min == range.max ? 0 : ClipReachUnits(bits)) << trial;
  }
}

TEST_P(ClipRatioMathTest, EqualValuesKeepTheWholeRange) {
  // Zeros, too: shrunk about the middle of both signs, the range would lose the first one's.
  for (const float second : {-1.5f, 0.0f}) {
    const std::vector<float> values = {second == 0 ? -0.0f : second, second};
    const Range range = RangeOf(values.data(), 2);
    EXPECT_EQ(BestClipRatio({values.data(), 2, GetParam()}, range, kNumShrinkRatios), 0);
    const auto value_at = [&](int i) { return values[i]; };
    EXPECT_EQ(BestClipRatio(value_at, 2, range.min, range.max, GetParam(), kNumShrinkRatios), 0);
  }
}

// Against the errors of scales and zero points as stored: what integers leave out decides between
// ratios that are as good.
TEST_P(ClipRatioMathTest, ChoiceIsNextToTheBestOfTheDecodedErrors) {
  const int bits = GetParam();
  TestRandom random(kSeed);
  double best_sum = 0, chosen_sum = 0;
  for (int trial = 0; trial < 400; ++trial) {
    std::vector<float> values(128);
    for (float& x : values) x = static_cast<float>(3 + random.Normal() * (trial % 4 + 1));
    const Range range = RangeOf(values.data(), 128);
    std::vector<double> errors;
    for (int i = 0; i < kNumShrinkRatios; ++i) {
      const GroupParams params = ShrunkGroupParams(range.min, range.max, i, bits);
      const float scale = Float16ToFloat(params.scale), zero = Float16ToFloat(params.zero);
      double error = 0;
      for (const float x : values) {
        const float code = QuantizeOne(x, scale, zero, MaxCode(bits));
        error += std::pow(double{x} - DequantizeOne(code, scale, zero), 2);
      }
      errors.push_back(error);
    }
    best_sum += *std::min_element(errors.begin(), errors.end());
    chosen_sum += errors[BestClipRatio({values.data(), 128, bits}, range, kNumShrinkRatios)];
  }
  // One unit in rounding moves a square by less than 2 s: a thousandth over many groups.
  const double excess = chosen_sum / best_sum - 1;
  RecordProperty("excess", std::to_string(excess));
  EXPECT_LT(excess, 1.0 / (4 * ClipReachUnits(bits)));
}

TEST_P(ClipRatioMathTest, ValueByValueAndRowsChooseTheSame) {
  const int bits = GetParam();
  TestRandom random(kSeed);
  std::vector<int> chosen(kNumShrinkRatios);
  for (int trial = 0; trial < 1000; ++trial) {
    const int count = trial % 2 == 0 ? 32 << random.Below(3) : 1 + random.Below(128);
    std::vector<float> values(count);
    for (float& x : values) {
      const double normal = random.Normal();
      x = static_cast<float>(trial % 3 == 0 ? normal : normal * normal * normal);
      if (trial % 7 == 3) x = static_cast<float>(random.Below(5)) * 0.25f;
      if (trial % 50 == 1) x = -1.5f;
    }
    const Range range = RangeOf(values.data(), count);
    const auto value_at = [&](int i) { return values[i]; };
    for (int num_ratios = 1; num_ratios <= kNumShrinkRatios; ++num_ratios) {
      const int want = BestClipRatio(value_at, count, range.min, range.max, bits, num_ratios);
      ASSERT_LT(want, num_ratios) << trial;
      ASSERT_EQ(BestClipRatio({values.data(), count, bits}, range, num_ratios), want) << trial;
      if (num_ratios == kNumShrinkRatios) ++chosen[want];
    }
  }
  // 4 bits hardly ever shrink far.
  for (int i = 0; i < (bits == 2 ? kNumShrinkRatios : 3); ++i) EXPECT_GT(chosen[i], 0) << i;
}

INSTANTIATE_TEST_SUITE_P(Bits, ClipRatioMathTest, testing::Values(2, 4));

}  // namespace
}  // namespace pkv
