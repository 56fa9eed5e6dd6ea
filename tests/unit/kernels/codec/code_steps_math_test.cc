// CodeOf() is QuantizeOne(): at and beside every boundary between codes, for every scale that can
// be stored, and on random values.
#include "kernels/codec/code_steps_math.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <limits>
#include <utility>

#include "pkv/block/kv_shape.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

constexpr Float16Bits kSmallestScale = 0x0400, kLargestScale = 0x7bff;

template <int kBits>
void ExpectEqual(float value, float scale, float zero) {
  const float want = QuantizeOne(value, scale, zero, MaxCode(kBits));
  // A device's reciprocal may be a unit or two in the last place off.
  for (const int off : {0, -2, 2}) {
    CodeSteps steps = MakeCodeSteps(scale, zero, kBits);
    if (scale > 0 && off != 0) {
      const uint32_t inverse = std::bit_cast<uint32_t>(1.0f / scale) + off;
      steps = MakeCodeSteps(scale, zero, kBits, std::bit_cast<float>(inverse));
    }
    ASSERT_EQ(CodeOf<kBits>(value, steps), want)
        << value << " scale " << scale << " zero " << zero << " bits " << kBits << " off " << off;
    ASSERT_EQ(CodeBitsOnBase<kBits>(value, steps) - kCodeBase, static_cast<uint32_t>(want));
  }
  ASSERT_EQ(LevelOf(want, scale, zero), DequantizeOne(want, scale, zero));
}

template <int kBits>
void ExpectEqualAtBoundaries(float scale, float zero) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  for (int k = 0; k <= 1 << kBits; ++k) {
    for (const float h : {static_cast<float>(k) - 0.5f, static_cast<float>(k)}) {
      const float at = h * scale + zero;
      float below = at, above = at;
      ExpectEqual<kBits>(at, scale, zero);
      for (int i = 0; i < 3; ++i) {
        below = std::nextafter(below, -kInfinity);
        above = std::nextafter(above, kInfinity);
        ExpectEqual<kBits>(below, scale, zero);
        ExpectEqual<kBits>(above, scale, zero);
      }
    }
  }
}

TEST(CodeStepsMathTest, GivesTheCodeAtTheBoundariesOfEveryScale) {
  for (int bits = kSmallestScale; bits <= kLargestScale; ++bits) {
    const float scale = Float16ToFloat(static_cast<Float16Bits>(bits));
    for (const float zero : {0.0f, -1.5f * scale}) {
      ExpectEqualAtBoundaries<2>(scale, zero);
      ExpectEqualAtBoundaries<4>(scale, zero);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(CodeStepsMathTest, GivesTheCodeOfRandomValues) {
  TestRandom random(20261122);
  RecordProperty("seed", 20261122);
  for (int i = 0; i < 1000000; ++i) {
    const auto scale_bits =
        static_cast<Float16Bits>(kSmallestScale + random.Below(kLargestScale - kSmallestScale + 1));
    const float scale = i % 64 == 0 ? 0.0f : Float16ToFloat(scale_bits);
    const float zero =
        Float16ToFloat(static_cast<Float16Bits>(random.Below(0x7c00) + 0x8000 * random.Below(2)));
    const float reach = static_cast<float>(random.Uniform() * 22 - 3);
    const float value = i % 3 == 0 ? Float16ToFloat(static_cast<Float16Bits>(random.Below(0x7c00)))
                                   : reach * scale + zero;
    ExpectEqual<2>(value, scale, zero);
    ExpectEqual<4>(value, scale, zero);
    if (HasFatalFailure()) return;
  }
}

TEST(CodeStepsMathTest, GivesTheCodeOfTheLargestValues) {
  for (const float value :
       {65504.0f, -65504.0f, 131008.0f, -131008.0f, 1e30f, -1e30f, 0.0f, -0.0f, 1e-45f, -1e-45f}) {
    for (const Float16Bits scale : {kSmallestScale, kLargestScale, Float16Bits{0x3c00}}) {
      for (const float zero : {65504.0f, -65504.0f, 0.0f}) {
        ExpectEqual<2>(value, Float16ToFloat(scale), zero);
        ExpectEqual<4>(value, Float16ToFloat(scale), zero);
      }
    }
  }
}

TEST(CodeStepsMathTest, GivesTheFineGridOfEveryScale) {
  for (int bits = 0; bits <= kLargestScale; ++bits) {
    const float scale = Float16ToFloat(static_cast<Float16Bits>(bits));
    const FineGrid got = FineGridOf(scale, 0.75f), want = MakeFineGrid(scale, 0.75f);
    ASSERT_EQ(std::bit_cast<uint32_t>(got.step), std::bit_cast<uint32_t>(want.step)) << bits;
    ASSERT_EQ(std::bit_cast<uint32_t>(got.low), std::bit_cast<uint32_t>(want.low)) << bits;
  }
}

TEST(CodeStepsMathTest, GivesTheParametersOfRandomRanges) {
  TestRandom random(20261123);
  RecordProperty("seed", 20261123);
  for (int i = 0; i < 2000000; ++i) {
    // All magnitudes from subnormal ones to twice the largest; and, in every third, halves.
    const double width = std::exp2(random.Uniform() * 40 - 23);
    float low = static_cast<float>(random.Normal() * width);
    float high = static_cast<float>(low + random.Uniform() * width);
    if (i % 3 == 0) {
      low = Float16ToFloat(ToFiniteFloat16(low));
      high = Float16ToFloat(ToFiniteFloat16(high));
    }
    if (high < low) std::swap(low, high);
    for (const int bits : {2, 4}) {
      const GroupParams want = MakeGroupParams(low, high, bits);
      const GroupParams got = bits == 2 ? GroupParamsOf<2>(low, high) : GroupParamsOf<4>(low, high);
      ASSERT_EQ(got.scale, want.scale) << low << " .. " << high;
      ASSERT_EQ(got.zero, want.zero) << low << " .. " << high;
      const int ratio = random.Below(kNumShrinkRatios);
      const GroupParams shrunk =
          bits == 2 ? ShrunkParamsOf<2>(low, high, ratio) : ShrunkParamsOf<4>(low, high, ratio);
      const GroupParams wanted = ShrunkGroupParams(low, high, ratio, bits);
      ASSERT_EQ(shrunk.scale, wanted.scale) << low << " .. " << high << " ratio " << ratio;
      ASSERT_EQ(shrunk.zero, wanted.zero) << low << " .. " << high << " ratio " << ratio;
    }
  }
}

TEST(CodeStepsMathTest, MeansAreTheRoundedQuotients) {
  std::vector<float> sums = {0.0f, 1.0f, 0x1p-149f, 0x1p-91f, 0x1p-90f, 0x1p+100f, 0x1.fffffep+0f};
  TestRandom random(20261130);
  for (int i = 0; i < 100000; ++i) {
    sums.push_back(std::ldexp(static_cast<float>(1 + random.Uniform()), i % 140 - 120));
  }
  for (int count = 1; count <= kBlockTokens; ++count) {
    const auto divisor = static_cast<float>(count);
    const float inverse = 1.0f / divisor;
    for (const float sum : sums) {
      ASSERT_EQ(MeanOf(sum, divisor, inverse), sum / divisor) << sum << " / " << count;
      ASSERT_EQ(MeanOf(-sum, divisor, inverse), -sum / divisor) << sum << " / " << count;
    }
  }
}

}  // namespace
}  // namespace pkv
