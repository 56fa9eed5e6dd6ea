#include "proto/transport/nccl/crc32c_math.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <random>
#include <span>

#include "proto/base/checksum.h"

namespace pkv {
namespace {

constexpr uint32_t kSeed = 11;

TEST(Crc32cMathTest, MultiplicationHasAOneAndCommutesAndDistributes) {
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  for (int i = 0; i < 1000; ++i) {
    const uint32_t a = random(), b = random(), c = random();
    ASSERT_EQ(Crc32cMultiply(a, kCrc32cOne), a);
    ASSERT_EQ(Crc32cMultiply(a, b), Crc32cMultiply(b, a));
    ASSERT_EQ(Crc32cMultiply(a, b ^ c), Crc32cMultiply(a, b) ^ Crc32cMultiply(a, c));
  }
}

TEST(Crc32cMathTest, APowerOfXIsThatManyStepsOfX) {
  uint32_t power = kCrc32cOne;
  for (uint64_t n = 0; n < 200; ++n, power = Crc32cTimesX(power)) {
    ASSERT_EQ(Crc32cPowerOfX(n), power) << n;
  }
  EXPECT_EQ(Crc32cPowerOfX(1'000'003),
            Crc32cMultiply(Crc32cPowerOfX(1'000'000), Crc32cPowerOfX(3)));
}

// The equation in the header, on a message of one word.
TEST(Crc32cMathTest, AWordTimesXTo32IsItsChecksum) {
  const std::array<uint32_t, 1> word = {0x12345678};
  const uint32_t expected = Crc32c(std::as_bytes(std::span(word)));
  EXPECT_EQ(~(Crc32cMultiply(word[0], Crc32cPowerOfX(32)) ^
              Crc32cMultiply(0xffffffffu, Crc32cPowerOfX(32))),
            expected);
}

TEST(Crc32cMathTest, NibbleTablesMultiply) {
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  for (int i = 0; i < 100; ++i) {
    const uint32_t factor = random(), a = random();
    ASSERT_EQ(Crc32cNibbles::Of(factor).Times(a), Crc32cMultiply(factor, a));
  }
}

}  // namespace
}  // namespace pkv
