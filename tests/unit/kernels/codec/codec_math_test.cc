#include "kernels/codec/codec_math.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

TEST(CodecMathTest, RoundsTiesToEven) {
  EXPECT_EQ(RoundHalfEven(0.5f), 0.0f);
  EXPECT_EQ(RoundHalfEven(1.5f), 2.0f);
  EXPECT_EQ(RoundHalfEven(2.5f), 2.0f);
  EXPECT_EQ(RoundHalfEven(std::nextafter(0.5f, 1.0f)), 1.0f);
  EXPECT_EQ(RoundHalfEven(std::nextafter(2.5f, 3.0f)), 3.0f);
}

TEST(CodecMathTest, RoundsAsTheLibraryDoesOverTheRangeOfCodes) {
  TestRandom random(1);
  for (int i = 0; i < 100000; ++i) {
    const auto value = static_cast<float>(15.0 * random.Uniform());
    ASSERT_EQ(RoundHalfEven(value), std::nearbyint(value)) << value;
  }
}

TEST(CodecMathTest, ClampsBeforeItRounds) {
  // 3.4 steps above zero clamps to 3; 0.6 below clamps to 0 and does not round to -1.
  EXPECT_EQ(QuantizeOne(3.4f, 1.0f, 0.0f, 3.0f), 3.0f);
  EXPECT_EQ(QuantizeOne(-0.6f, 1.0f, 0.0f, 3.0f), 0.0f);
  EXPECT_EQ(QuantizeOne(2.4f, 1.0f, 0.0f, 3.0f), 2.0f);
}

TEST(CodecMathTest, ConstantGroupDecodesToItsValueExactly) {
  const GroupParams params = MakeGroupParams(1.25f, 1.25f, 2);
  EXPECT_EQ(params.scale, 0);
  const float zero = Float16ToFloat(params.zero);
  EXPECT_EQ(QuantizeOne(1.25f, 0.0f, zero, 3.0f), 0.0f);
  EXPECT_EQ(DequantizeOne(0.0f, 0.0f, zero), 1.25f);
}

TEST(CodecMathTest, SubnormalScaleIsStoredAsZero) {
  const float smallest = kFloat16MinNormal * 3;
  EXPECT_EQ(MakeGroupParams(0.0f, smallest, 2).scale, 0x0400);
  EXPECT_EQ(MakeGroupParams(0.0f, smallest * 0.99f, 2).scale, 0);
}

TEST(CodecMathTest, ScaleAndZeroPointSaturateAtTheLargestFloat16) {
  const GroupParams params = MakeGroupParams(-131008.0f, 131008.0f, 2);
  EXPECT_EQ(Float16ToFloat(params.scale), kFloat16Max);
  EXPECT_EQ(Float16ToFloat(params.zero), -kFloat16Max);
}

TEST(CodecMathTest, EndsOfAGroupGetTheFirstAndLastCode) {
  for (const int bits : {2, 4}) {
    const GroupParams params = MakeGroupParams(-1.0f, 2.0f, bits);
    const float scale = Float16ToFloat(params.scale), zero = Float16ToFloat(params.zero);
    EXPECT_EQ(QuantizeOne(-1.0f, scale, zero, MaxCode(bits)), 0.0f);
    EXPECT_EQ(QuantizeOne(2.0f, scale, zero, MaxCode(bits)), MaxCode(bits));
  }
}

TEST(CodecMathTest, FirstShrinkRatioIsTheWholeRangeAndTheLastFourTenths) {
  const GroupParams whole = MakeGroupParams(-4.0f, 8.0f, 2);
  const GroupParams first = ShrunkGroupParams(-4.0f, 8.0f, 0, 2);
  EXPECT_EQ(first.scale, whole.scale);
  EXPECT_EQ(first.zero, whole.zero);
  const GroupParams last = ShrunkGroupParams(-4.0f, 8.0f, kNumShrinkRatios - 1, 2);
  EXPECT_EQ(last.scale, FloatToFloat16(1.6f));  // 12 * 0.4 / 3
  EXPECT_EQ(last.zero, FloatToFloat16(-0.4f));  // 2 - 6 * 0.4
}

TEST(CodecMathTest, FineGridIsAThirdAsWideAndStartsOneScaleLower) {
  const FineGrid fine = MakeFineGrid(3.0f, -1.0f);
  EXPECT_EQ(fine.step, 1.0f);
  EXPECT_EQ(fine.low, -4.0f);
  // Every third fine code from 3 on is a coarse one; the last stands one scale above them.
  for (int code = 0; code <= 3; ++code) {
    EXPECT_EQ(DequantizeOne(static_cast<float>(3 + 3 * code), fine.step, fine.low),
              DequantizeOne(static_cast<float>(code), 3.0f, -1.0f));
  }
  EXPECT_EQ(DequantizeOne(15.0f, fine.step, fine.low), 11.0f);
  const FineGrid constant = MakeFineGrid(0.0f, 1.25f);
  EXPECT_EQ(constant.step, 0.0f);
  EXPECT_EQ(constant.low, 1.25f);
}

TEST(CodecMathTest, UnbiasedParamsHaveSlopeOneAndTheMean) {
  const GroupParams searched = {FloatToFloat16(1.0f), FloatToFloat16(-2.0f)};
  const GroupParams stored = UnbiasedParams(searched, 1.5f, 0.25f, 4.0f, 5.0f);
  EXPECT_EQ(stored.scale, FloatToFloat16(1.25f));  // 5 / 4
  EXPECT_EQ(stored.zero, FloatToFloat16(0.25f - 1.25f * 1.5f));
}

TEST(CodecMathTest, UnbiasedParamsStayAsSearchedWhereTheyWouldMakeNoSense) {
  const GroupParams searched = {FloatToFloat16(1.0f), FloatToFloat16(-2.0f)};
  const auto expect_kept = [](GroupParams kept, float covariance, float variance) {
    const GroupParams stored = UnbiasedParams(kept, 1.5f, 0.25f, covariance, variance);
    EXPECT_EQ(stored.scale, kept.scale) << variance << " / " << covariance;
    EXPECT_EQ(stored.zero, kept.zero) << variance << " / " << covariance;
  };
  expect_kept(searched, 0.0f, 5.0f);
  expect_kept(searched, -4.0f, 5.0f);
  expect_kept(searched, NAN, 5.0f);
  expect_kept(searched, 4.0f, NAN);
  expect_kept(searched, INFINITY, INFINITY);
  expect_kept(searched, 4.0f, 4.0f * 2.001f);
  expect_kept(searched, 4.0f, 4.0f * 0.499f);
  EXPECT_EQ(UnbiasedParams(searched, 0, 0, 4.0f, 8.0f).scale, FloatToFloat16(2.0f));
  EXPECT_EQ(UnbiasedParams(searched, 0, 0, 4.0f, 2.0f).scale, FloatToFloat16(0.5f));
  // A scale of 2^-14 is the smallest that is stored.
  const GroupParams smallest = {0x0400, 0};
  expect_kept(smallest, 4.0f, 3.9f * kFloat16MinNormal);
  expect_kept({0, 0}, 4.0f, 4.0f);
}

TEST(CodecMathTest, UnbiasedParamsSaturate) {
  const GroupParams searched = {FloatToFloat16(60000.0f), FloatToFloat16(0.0f)};
  const GroupParams stored = UnbiasedParams(searched, 3.0f, 1.0f, 1.0f, 1e5f);
  EXPECT_EQ(Float16ToFloat(stored.scale), kFloat16Max);
  EXPECT_EQ(Float16ToFloat(stored.zero), -kFloat16Max);
}

TEST(CodecMathTest, FoldsErrorSumsInHalves) {
  float sums[kErrorSums];
  for (int i = 0; i < kErrorSums; ++i) sums[i] = static_cast<float>(1 << i);
  EXPECT_EQ(FoldErrorSums(sums), 65535.0f);
}

}  // namespace
}  // namespace pkv
