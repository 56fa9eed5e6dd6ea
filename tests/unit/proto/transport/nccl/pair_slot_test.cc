#include "proto/transport/nccl/pair_slot.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "proto/base/checksum.h"
#include "tests/support/fake_pair_calls.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr uint64_t kGroupBytes = 1 << 20;

class PairSlotTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_THAT(slot_.Allocate(calls_, kGroupBytes), IsOk());
    auto stream = calls_.MakeStream(0);
    ASSERT_THAT(stream, IsOk());
    stream_ = *stream;
    for (size_t i = 0; i < memory_.size(); ++i) memory_[i] = static_cast<std::byte>(i * 31 >> 4);
  }
  void TearDown() override {
    slot_.Free(calls_);
    calls_.DestroyStream(stream_);
    EXPECT_EQ(calls_.num_alive(), 0);
  }

  // A span of 100 kB and one of 48 bytes, apart from each other, in one group.
  TransferPlan Plan() {
    spans_ = {{memory_.data(), 100'000}, {memory_.data() + 150'000, 48}};
    auto plan = TransferPlan::Make(std::vector{LayerSpans{.spans = spans_}}, kGroupBytes);
    EXPECT_THAT(plan, IsOk());
    return *std::move(plan);
  }
  void Finish() { EXPECT_THAT(calls_.StreamIsIdle(stream_), IsOkAndHolds(true)); }

  FakePairCalls calls_{std::make_shared<FakeLink>(), nullptr};
  PairSlot slot_;
  DigestItemCutter cutter_;
  void* stream_ = nullptr;
  std::vector<std::byte> memory_ = std::vector<std::byte>(200'000);
  std::vector<DeviceSpan> spans_;
};

TEST_F(PairSlotTest, GathersSpansInTheirOrder) {
  const TransferPlan plan = Plan();
  slot_.Fill(plan.groups[0], true, true, false, cutter_);
  ASSERT_THAT(slot_.Launch(calls_, stream_), IsOk());
  Finish();
  EXPECT_EQ(std::memcmp(slot_.staging(), memory_.data(), 100'000), 0);
  EXPECT_EQ(std::memcmp(slot_.staging() + 100'000, memory_.data() + 150'000, 48), 0);
  EXPECT_TRUE(slot_.digests().empty());
}

TEST_F(PairSlotTest, ScattersAndTakesDigestsOfWhatArrived) {
  const std::vector<std::byte> before = memory_;
  const TransferPlan plan = Plan();
  std::memcpy(slot_.staging(), memory_.data(), 100'000);
  std::memcpy(slot_.staging() + 100'000, memory_.data() + 150'000, 48);
  std::memset(memory_.data(), 0, 100'000);
  std::memset(memory_.data() + 150'000, 0, 48);
  slot_.Fill(plan.groups[0], false, true, true, cutter_);
  ASSERT_THAT(slot_.Launch(calls_, stream_), IsOk());
  Finish();
  EXPECT_EQ(memory_, before);
  ASSERT_EQ(slot_.digests().size(), 2u);
  EXPECT_EQ(slot_.digests()[0], Crc32c(std::span(before).first(100'000)));
  EXPECT_EQ(slot_.digests()[1], Crc32c(std::span(before).subspan(150'000, 48)));
}

TEST_F(PairSlotTest, KeepsRoomForLongLists) {
  spans_.clear();
  for (size_t i = 0; i < 12'000; ++i) spans_.push_back({memory_.data() + 16 * i, 16});
  std::swap(spans_[3], spans_[4]);
  const auto plan = TransferPlan::Make(std::vector{LayerSpans{.spans = spans_}}, kGroupBytes);
  ASSERT_THAT(plan, IsOk());
  ASSERT_THAT(slot_.Reserve(calls_, PairSlot::ListBytes(plan->groups[0])), IsOk());
  slot_.Fill(plan->groups[0], true, true, true, cutter_);
  ASSERT_THAT(slot_.Launch(calls_, stream_), IsOk());
  Finish();
  ASSERT_EQ(slot_.digests().size(), spans_.size());
  for (size_t i = 0; i < spans_.size(); ++i) {
    ASSERT_EQ(slot_.digests()[i], Crc32c(std::span(spans_[i].data, 16))) << i;
  }
}

TEST_F(PairSlotTest, ChecksNumbersWhereThereAreRules) {
  FrameRules first, second;
  first.num_sections = second.num_sections = 1;
  first.sections[0] = {.num_heads = 1, .head_bytes = 64, .rule = NumberRule::kId, .bank_size = 9};
  second.sections[0] = {.num_heads = 1, .head_bytes = 32, .rule = NumberRule::kId, .bank_size = 9};
  spans_ = {{memory_.data(), 64}, {memory_.data() + 64, 64}, {memory_.data() + 128, 64}};
  std::memset(memory_.data(), 8, 192);
  memory_[64 + 32] = memory_[128 + 31] = std::byte{9};
  const std::vector<const FrameRules*> rules = {&first, &second, &second};
  const auto plan = TransferPlan::Make(
      std::vector{LayerSpans{.spans = spans_, .rules = rules}, LayerSpans{.spans = spans_}},
      kGroupBytes);
  ASSERT_THAT(plan, IsOk());
  slot_.Fill(plan->groups[0], false, false, true, cutter_);
  ASSERT_THAT(slot_.Launch(calls_, stream_), IsOk());
  Finish();
  // Beyond what the rules name, and spans without rules, anything may stand.
  EXPECT_EQ(std::vector(slot_.flags().begin(), slot_.flags().end()),
            (std::vector<uint32_t>{0, 0, 1, 0, 0, 0}));
}

TEST_F(PairSlotTest, ListsTakeNoMoreThanSaid) {
  const TransferPlan plan = Plan();
  // 100,000 bytes: 4 copies, 7 digest items; 48: one each; two digests and flags.
  EXPECT_EQ(PairSlot::ListBytes(plan.groups[0]), 5 * 24u + 8 * 24u + 2 * 8u);
}

}  // namespace
}  // namespace pkv
