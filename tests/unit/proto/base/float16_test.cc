#include "proto/base/float16.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

// Goal: both conversions are those of IEEE-754. Method: a reference in double, which holds every
// binary16 value and every tie between two of them exactly, over all 65,536 patterns and over
// floats at, below and above every tie.

namespace pkv {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

bool IsNan(Float16Bits h) { return (h & 0x7fffu) > 0x7c00u; }

// The value of finite bits: (-1)^s 2^(max(e, 1) - 25) (m + 1024 [e > 0]).
double ValueByDefinition(Float16Bits h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const double magnitude =
      std::ldexp(exponent == 0 ? mantissa : mantissa + 1024, std::max(exponent, 1) - 25);
  return (h & 0x8000u) != 0 ? -magnitude : magnitude;
}

// Nearest, ties to even, of a finite value. std::nearbyint rounds so in the default mode.
Float16Bits RoundByDefinition(float value) {
  const unsigned sign = std::signbit(value) ? 0x8000u : 0;
  const double magnitude = std::fabs(static_cast<double>(value));
  if (magnitude >= 65520.0) return static_cast<Float16Bits>(sign | 0x7c00u);
  if (magnitude == 0) return static_cast<Float16Bits>(sign);
  const int exponent = std::max(std::ilogb(magnitude), -14);
  // The count of units 2^(exponent - 10). 2048 of them are the first value of the next binade, and
  // the bits then carry into the exponent by themselves.
  const auto units = static_cast<unsigned>(std::nearbyint(std::ldexp(magnitude, 10 - exponent)));
  return static_cast<Float16Bits>(sign | (((exponent + 14) << 10) + units));
}

TEST(Float16Test, EveryFinitePatternHasItsValue) {
  for (unsigned h = 0; h < 65536; ++h) {
    const auto bits = static_cast<Float16Bits>(h);
    if (!IsFiniteFloat16(bits)) continue;
    ASSERT_EQ(static_cast<double>(Float16ToFloat(bits)), ValueByDefinition(bits)) << h;
    ASSERT_EQ(std::signbit(Float16ToFloat(bits)), (h & 0x8000u) != 0) << h;
  }
}

TEST(Float16Test, EveryPatternComesBack) {
  for (unsigned h = 0; h < 65536; ++h) {
    const auto bits = static_cast<Float16Bits>(h);
    if (IsNan(bits)) continue;
    ASSERT_EQ(FloatToFloat16(Float16ToFloat(bits)), bits) << h;
  }
}

TEST(Float16Test, InfinityAndNanStayWhatTheyAre) {
  EXPECT_EQ(Float16ToFloat(0x7c00), kInfinity);
  EXPECT_EQ(Float16ToFloat(0xfc00), -kInfinity);
  EXPECT_EQ(FloatToFloat16(kInfinity), 0x7c00);
  EXPECT_EQ(FloatToFloat16(-kInfinity), 0xfc00);
  for (unsigned h = 0; h < 65536; ++h) {
    const auto bits = static_cast<Float16Bits>(h);
    if (!IsNan(bits)) continue;
    ASSERT_TRUE(std::isnan(Float16ToFloat(bits))) << h;
    ASSERT_TRUE(IsNan(FloatToFloat16(Float16ToFloat(bits)))) << h;
  }
}

TEST(Float16Test, OnlyInfinityAndNanAreNotFinite) {
  int num_finite = 0;
  for (unsigned h = 0; h < 65536; ++h) {
    num_finite += IsFiniteFloat16(static_cast<Float16Bits>(h)) ? 1 : 0;
  }
  EXPECT_EQ(num_finite, 2 * 31 * 1024);  // one of 32 exponents is theirs
}

TEST(Float16Test, RoundsEveryTieToEvenAndItsNeighboursToTheNearer) {
  for (unsigned h = 0; h < 0x7c00u; ++h) {
    const double low = ValueByDefinition(static_cast<Float16Bits>(h));
    // After the largest finite value comes 65536 in the sense of rounding.
    const double high = h == 0x7bffu ? 65536.0 : ValueByDefinition(static_cast<Float16Bits>(h + 1));
    const auto tie = static_cast<float>((low + high) / 2);  // exact: 12 significant bits
    const auto even = static_cast<Float16Bits>(h + (h & 1));
    ASSERT_EQ(FloatToFloat16(tie), even) << h;
    ASSERT_EQ(FloatToFloat16(std::nextafterf(tie, 0)), h) << h;
    ASSERT_EQ(FloatToFloat16(std::nextafterf(tie, kInfinity)), h + 1) << h;
    ASSERT_EQ(FloatToFloat16(-tie), even | 0x8000u) << h;
  }
}

TEST(Float16Test, RoundsRandomFloatsAsTheDefinitionDoes) {
  constexpr uint32_t kSeed = 16;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  for (int i = 0; i < 1'000'000; ++i) {
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (!std::isfinite(value)) continue;
    ASSERT_EQ(FloatToFloat16(value), RoundByDefinition(value)) << std::hexfloat << value;
  }
  // Where the results are subnormal, normal or just too large: 2^-26 to 2^17.
  std::uniform_real_distribution<float> exponent(-26, 17);
  for (int i = 0; i < 1'000'000; ++i) {
    const float value = std::exp2(exponent(random)) * ((random() & 1) != 0 ? 1.0f : -1.0f);
    ASSERT_EQ(FloatToFloat16(value), RoundByDefinition(value)) << std::hexfloat << value;
  }
}

TEST(Float16Test, NamedConstantsAreTheLargestAndTheSmallestNormalValue) {
  EXPECT_EQ(FloatToFloat16(kFloat16Max), 0x7bff);
  EXPECT_EQ(FloatToFloat16(kFloat16MinNormal), 0x0400);
}

}  // namespace
}  // namespace pkv
