// Holds the vectorized loops to plain ones, bit by bit: what a machine with another vector width
// computes.
#include "kernels/codec/group_quantizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <string>
#include <vector>

#include "tests/support/error_bound.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

constexpr uint64_t kSeed = 20261122;

std::vector<float> RandomValues(TestRandom& random, int count, double width) {
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(width * random.Normal());
  return values;
}

float PlainError(const std::vector<float>& values, GroupParams params, int bits) {
  const float scale = Float16ToFloat(params.scale), zero = Float16ToFloat(params.zero);
  float sums[kErrorSums] = {};
  for (size_t i = 0; i < values.size(); ++i) {
    const volatile float code = QuantizeOne(values[i], scale, zero, MaxCode(bits));
    const volatile float error = values[i] - DequantizeOne(code, scale, zero);
    const volatile float square = error * error;
    sums[i % kErrorSums] = sums[i % kErrorSums] + square;
  }
  return FoldErrorSums(sums);
}

TEST(GroupQuantizerTest, RangeIsThatOfSortedValues) {
  RecordProperty("seed", static_cast<int>(kSeed));
  TestRandom random(kSeed);
  for (const int count : {1, 7, 64, 128, 129}) {
    std::vector<float> values = RandomValues(random, count, 3);
    const Range range = RangeOf(values.data(), count);
    const auto [min, max] = std::minmax_element(values.begin(), values.end());
    EXPECT_EQ(range.min, *min);
    EXPECT_EQ(range.max, *max);
  }
}

TEST(GroupQuantizerTest, QuantizesARowAsOneByOne) {
  TestRandom random(kSeed);
  const int count = 128;
  const std::vector<float> values = RandomValues(random, count, 2);
  std::vector<float> scales(count), zeros(count);
  for (int i = 0; i < count; ++i) {
    scales[i] = i % 9 == 0 ? 0.0f : static_cast<float>(random.Uniform());
    zeros[i] = static_cast<float>(random.Normal());
  }
  for (const int bits : {2, 4}) {
    std::vector<uint8_t> codes(count);
    QuantizeRow(values.data(), scales.data(), zeros.data(), count, bits, codes.data());
    for (int i = 0; i < count; ++i) {
      ASSERT_EQ(codes[i], QuantizeOne(values[i], scales[i], zeros[i], MaxCode(bits))) << i;
    }
  }
}

TEST(GroupQuantizerTest, ErrorHasTheBitsOfAPlainLoop) {
  TestRandom random(kSeed);
  for (int trial = 0; trial < 300; ++trial) {
    const int count = 32 << random.Below(3), bits = 2 << random.Below(2);
    const std::vector<float> values = RandomValues(random, count, random.Uniform() * 10);
    const GroupChoice choice = ChooseGroup(values.data(), count, bits, Clip::kNone, true);
    const float plain = PlainError(values, choice.params, bits);
    ASSERT_EQ(std::bit_cast<uint32_t>(choice.squared_error), std::bit_cast<uint32_t>(plain))
        << "seed " << kSeed << " trial " << trial;
  }
}

TEST(GroupQuantizerTest, SearchShrinksTheRangeByTheBestRatio) {
  TestRandom random(kSeed);
  bool shrunk_once = false;
  for (int trial = 0; trial < 100; ++trial) {
    const std::vector<float> values = RandomValues(random, 128, 1);
    const Range range = RangeOf(values.data(), 128);
    const GroupChoice choice = ChooseGroup(values.data(), 128, 2, Clip::kSearch, true);
    const int ratio = BestClipRatio({values.data(), 128, 2}, range, kNumShrinkRatios);
    const GroupParams params = ShrunkGroupParams(range.min, range.max, ratio, 2);
    ASSERT_EQ(choice.params.scale, params.scale) << trial;
    ASSERT_EQ(choice.params.zero, params.zero) << trial;
    ASSERT_EQ(choice.squared_error, PlainError(values, params, 2)) << trial;
    shrunk_once |= ratio > 0;
  }
  EXPECT_TRUE(shrunk_once);
}

// Relative squared error of 2-bit Gaussian groups of 128 falls from 0.249 to
// 0.118. The test asks for half.
TEST(GroupQuantizerTest, SearchHalvesTheErrorOfGaussianGroupsAtTwoBits) {
  TestRandom random(kSeed);
  double plain = 0, searched = 0;
  for (int trial = 0; trial < 200; ++trial) {
    const std::vector<float> values = RandomValues(random, 128, 1);
    plain += ChooseGroup(values.data(), 128, 2, Clip::kNone, true).squared_error;
    searched += ChooseGroup(values.data(), 128, 2, Clip::kSearch, true).squared_error;
  }
  EXPECT_LT(searched, plain / 2);
}

// Group sizes behind sinks and before fine tokens are no multiples of 16.
TEST(GroupQuantizerTest, SearchParamsTriesAsManyRatiosAsAsked) {
  TestRandom random(kSeed);
  for (const int count : {1, 2, 15, 16, 17, 28, 64, 96, 112, 124, 128}) {
    for (int trial = 0; trial < 20; ++trial) {
      const std::vector<float> values = RandomValues(random, count, 2);
      const Range range = RangeOf(values.data(), count);
      for (const int num_ratios : {1, 2, 3, kNumShrinkRatios}) {
        const int bits = 2 << random.Below(2);
        const GroupValues group = {values.data(), count, bits};
        const int ratio = BestClipRatio(group, range, num_ratios);
        const GroupParams want = ShrunkGroupParams(range.min, range.max, ratio, bits);
        const GroupParams found = SearchParams(group, num_ratios);
        ASSERT_EQ(found.scale, want.scale) << "seed " << kSeed << " count " << count;
        ASSERT_EQ(found.zero, want.zero) << "seed " << kSeed << " count " << count;
      }
    }
  }
}

// Means and products as CorrectGain defines them, in plain loops.
GroupParams PlainGain(const std::vector<float>& values, GroupParams searched, int bits) {
  const float scale = Float16ToFloat(searched.scale), zero = Float16ToFloat(searched.zero);
  const auto fold = [&](const auto& term) {
    float sums[kErrorSums] = {};
    for (size_t i = 0; i < values.size(); ++i) {
      const volatile float product = term(values[i]);
      sums[i % kErrorSums] = sums[i % kErrorSums] + product;
    }
    return FoldErrorSums(sums);
  };
  const auto code = [&](float x) { return QuantizeOne(x, scale, zero, MaxCode(bits)); };
  const auto count = static_cast<float>(values.size());
  const float mean_code = fold(code) / count, mean = fold([](float x) { return x; }) / count;
  return UnbiasedParams(searched, mean_code, mean,
                        fold([&](float x) { return (code(x) - mean_code) * (x - mean); }),
                        fold([&](float x) { return (x - mean) * (x - mean); }));
}

TEST(GroupQuantizerTest, GainHasTheBitsOfAPlainLoop) {
  TestRandom random(kSeed);
  int corrected = 0;
  for (int trial = 0; trial < 300; ++trial) {
    const int count = 1 + random.Below(128), bits = 2 << random.Below(2);
    const std::vector<float> values = RandomValues(random, count, random.Uniform() * 10);
    const GroupValues group = {values.data(), count, bits};
    const GroupParams searched = SearchParams(group, kNumShrinkRatios);
    const GroupParams found = CorrectGain(group, searched);
    const GroupParams want = PlainGain(values, searched, bits);
    ASSERT_EQ(found.scale, want.scale) << "seed " << kSeed << " trial " << trial;
    ASSERT_EQ(found.zero, want.zero) << "seed " << kSeed << " trial " << trial;
    corrected += found.scale != searched.scale ? 1 : 0;
  }
  EXPECT_GT(corrected, 200);
}

TEST(GroupQuantizerTest, GainOfAConstantGroupAndOfOneValueStaysAsSearched) {
  for (const int count : {1, 7, 128}) {
    const std::vector<float> values(count, 1.3f);
    const GroupValues group = {values.data(), count, 2};
    const GroupParams searched = SearchParams(group, kNumShrinkRatios);
    const GroupParams corrected = CorrectGain(group, searched);
    EXPECT_EQ(corrected.scale, searched.scale);
    EXPECT_EQ(corrected.zero, searched.zero);
  }
}

// A least-squares quantizer returns less variance than it got; corrected, the regression of decoded
// values on the values has slope 1.
TEST(GroupQuantizerTest, GainUndoesTheShrinkageOfTheSearch) {
  TestRandom random(kSeed);
  double searched_slope = 0, corrected_slope = 0;
  constexpr int kTrials = 200;
  for (int trial = 0; trial < kTrials; ++trial) {
    const std::vector<float> values = RandomValues(random, 112, 1);
    const GroupValues group = {values.data(), 112, 2};
    const GroupParams searched = SearchParams(group, kNumShrinkRatios);
    double mean_code = 0, mean = 0, covariance = 0, variance = 0;
    const auto code = [&](float x) {
      return double{
          QuantizeOne(x, Float16ToFloat(searched.scale), Float16ToFloat(searched.zero), 3)};
    };
    for (const float x : values) {
      mean_code += code(x) / 112;
      mean += double{x} / 112;
    }
    for (const float x : values) {
      covariance += (code(x) - mean_code) * (x - mean);
      variance += (x - mean) * (x - mean);
    }
    const GroupParams corrected = CorrectGain(group, searched);
    searched_slope += Float16ToFloat(searched.scale) * covariance / variance / kTrials;
    const double slope = Float16ToFloat(corrected.scale) * covariance / variance;
    ASSERT_LE(std::abs(slope - 1), kFloat16Unit + SumBound(112 + 8, 4)) << trial;
    corrected_slope += slope / kTrials;
  }
  EXPECT_LT(searched_slope, 1 - 2 * std::abs(corrected_slope - 1));
  RecordProperty("slope_searched", std::to_string(searched_slope));
}

TEST(GroupQuantizerTest, EqualErrorsKeepTheWiderRange) {
  // Codes 0 and 3 hit both values exactly at the whole range; nothing is smaller than no error.
  std::vector<float> values(32, -3.0f);
  values[5] = 3.0f;
  const GroupChoice choice = ChooseGroup(values.data(), 32, 2, Clip::kSearch, true);
  EXPECT_EQ(choice.params.scale, FloatToFloat16(2.0f));
  EXPECT_EQ(choice.squared_error, 0.0f);
}

TEST(GroupQuantizerTest, GroupsOfATokenAreChosenApart) {
  TestRandom random(kSeed);
  std::vector<float> values = RandomValues(random, 128, 1);
  for (int i = 64; i < 128; ++i) values[i] *= 100;
  GroupParams params[2];
  const float error = ChooseGroups(values.data(), 128, 64, 2, Clip::kNone, true, params);
  const GroupChoice low = ChooseGroup(values.data(), 64, 2, Clip::kNone, true);
  const GroupChoice high = ChooseGroup(values.data() + 64, 64, 2, Clip::kNone, true);
  EXPECT_EQ(params[0].scale, low.params.scale);
  EXPECT_EQ(params[1].scale, high.params.scale);
  EXPECT_EQ(error, low.squared_error + high.squared_error);
}

}  // namespace
}  // namespace pkv
