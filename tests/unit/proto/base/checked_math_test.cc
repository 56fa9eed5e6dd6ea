#include "proto/base/checked_math.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;

constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();

TEST(CheckedMathTest, MultipliesUpToTheLargestNumber) {
  EXPECT_THAT(CheckedMultiply(0, kMax), IsOkAndHolds(uint64_t{0}));
  EXPECT_THAT(CheckedMultiply(1, kMax), IsOkAndHolds(kMax));
  // 2^64 - 1 = (2^32 - 1) (2^32 + 1).
  EXPECT_THAT(CheckedMultiply(0xffffffffu, 0x100000001u), IsOkAndHolds(kMax));
}

TEST(CheckedMathTest, RefusesTheFirstProductThatOverflows) {
  EXPECT_THAT(CheckedMultiply(uint64_t{1} << 32, uint64_t{1} << 32),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("4294967296 * 4294967296")));
  EXPECT_THAT(CheckedMultiply(kMax, 2), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(CheckedMathTest, AddsUpToTheLargestNumber) {
  EXPECT_THAT(CheckedAdd(kMax, 0), IsOkAndHolds(kMax));
  EXPECT_THAT(CheckedAdd(kMax - 1, 1), IsOkAndHolds(kMax));
}

TEST(CheckedMathTest, RefusesTheFirstSumThatOverflows) {
  EXPECT_THAT(CheckedAdd(kMax, 1),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("18446744073709551615 + 1")));
}

TEST(CheckedMathTest, AlignsUpToTheNextMultiple) {
  EXPECT_EQ(AlignUp(0, 128), 0u);
  EXPECT_EQ(AlignUp(1, 128), 128u);
  EXPECT_EQ(AlignUp(128, 128), 128u);
  EXPECT_EQ(AlignUp(129, 128), 256u);
  EXPECT_EQ(AlignUp(uint64_t{1} << 63, 128), uint64_t{1} << 63);
}

}  // namespace
}  // namespace pkv
