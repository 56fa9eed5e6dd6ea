#include "client/device_scratch.h"

#include <gtest/gtest.h>

#include <memory>

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
