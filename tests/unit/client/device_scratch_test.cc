#include "client/device_scratch.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/support/fake_pair_calls.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr uint64_t kMiB = uint64_t{1} << 20;

class DeviceScratchTest : public testing::Test {
 protected:
  std::shared_ptr<FakePairCalls> calls_ =
      std::make_shared<FakePairCalls>(std::make_shared<FakeLink>(), nullptr);
};

TEST_F(DeviceScratchTest, GivesTheSameMemoryAgain) {
  DeviceScratch scratch(calls_, 8 * kMiB);
  std::byte* data;
  {
    const auto piece = scratch.Take(3 * kMiB);
    ASSERT_THAT(piece, IsOk());
    data = (*piece)->data();
  }
  const auto again = scratch.Take(4 * kMiB);
  ASSERT_THAT(again, IsOk());
  EXPECT_EQ((*again)->data(), data);
  const auto other = scratch.Take(4 * kMiB);
  ASSERT_THAT(other, IsOk());
  EXPECT_NE((*other)->data(), data);
}

TEST_F(DeviceScratchTest, RefusesMoreThanItsLimit) {
  DeviceScratch scratch(calls_, 8 * kMiB);
  EXPECT_THAT(scratch.Take(8 * kMiB + 1), StatusIs(absl::StatusCode::kResourceExhausted));
  const auto piece = scratch.Take(5 * kMiB);
  ASSERT_THAT(piece, IsOk());
  EXPECT_THAT(scratch.Take(1), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(DeviceScratchTest, WhatIsIdleDoesNotStandInTheWayOfOtherSizes) {
  DeviceScratch scratch(calls_, 8 * kMiB);
  ASSERT_THAT(scratch.Take(5 * kMiB), IsOk());
  std::vector<std::unique_ptr<DeviceScratch::Piece>> pieces;
  for (int i = 0; i < 8; ++i) {
    auto piece = scratch.Take(kMiB);
    ASSERT_THAT(piece, IsOk()) << i;
    pieces.push_back(*std::move(piece));
  }
  EXPECT_THAT(scratch.Take(1), StatusIs(absl::StatusCode::kResourceExhausted)) << "all in use";
  EXPECT_EQ(calls_->num_alive(), 8);
  pieces.pop_back();
  EXPECT_THAT(scratch.Take(2 * kMiB), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(scratch.Take(kMiB), IsOk()) << "the idle one is still there";
  pieces.clear();
  EXPECT_THAT(scratch.Take(8 * kMiB), IsOk());
  EXPECT_EQ(calls_->num_alive(), 1);
}

TEST_F(DeviceScratchTest, TakesTheSmallestIdlePieceThatIsLargeEnough) {
  DeviceScratch scratch(calls_, 8 * kMiB);
  std::byte* of_two;
  {
    const auto four = scratch.Take(4 * kMiB), two = scratch.Take(2 * kMiB), one = scratch.Take(1);
    ASSERT_THAT(one, IsOk());
    of_two = (*two)->data();
  }
  const auto one = scratch.Take(1), other = scratch.Take(1);
  ASSERT_THAT(other, IsOk());
  EXPECT_EQ((*other)->data(), of_two);
  EXPECT_EQ(calls_->num_alive(), 3);
}

TEST_F(DeviceScratchTest, ALimitThatIsNoPowerOfTwoCanBeUsedUp) {
  DeviceScratch scratch(calls_, 6 * kMiB);
  EXPECT_THAT(scratch.Take(5 * kMiB), IsOk());
  EXPECT_THAT(scratch.Take(6 * kMiB), IsOk());
}

TEST_F(DeviceScratchTest, FreesEverythingAtItsEnd) {
  {
    DeviceScratch scratch(calls_, 8 * kMiB);
    const auto first = scratch.Take(1), second = scratch.Take(2 * kMiB);
    ASSERT_THAT(second, IsOk());
    EXPECT_EQ(calls_->num_alive(), 2);
  }
  EXPECT_EQ(calls_->num_alive(), 0);
}

}  // namespace
}  // namespace pkv
