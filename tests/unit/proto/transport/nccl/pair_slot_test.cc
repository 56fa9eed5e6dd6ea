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

  TransferGroup GroupOf(const std::vector<LayerSpans>& layers) {
    const auto source = LayerSource::Of(layers);
    EXPECT_THAT(source, IsOk());
    TransferPlan plan(*source, kGroupBytes);
    TransferGroup group;
    EXPECT_THAT(plan.Next(group), IsOk());
    return group;
  }
  // A span of 100 kB and one of 48 bytes, apart from each other.
  TransferGroup TwoSpans() {
    spans_ = {{memory_.data(), 100'000}, {memory_.data() + 150'000, 48}};
    return GroupOf({{.spans = spans_}});
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
  ASSERT_THAT(slot_.Fill(calls_, TwoSpans(), SlotWork::kGather, cutter_), IsOk());
  ASSERT_THAT(slot_.Launch(calls_, stream_), IsOk());
  Finish();
  EXPECT_EQ(std::memcmp(slot_.staging(), memory_.data(), 100'000), 0);
  EXPECT_EQ(std::memcmp(slot_.staging() + 100'000, memory_.data() + 150'000, 48), 0);
  EXPECT_TRUE(slot_.digests().empty());
}

TEST_F(PairSlotTest, ScattersAndTakesDigestsOfWhatArrived) {
  const std::vector<std::byte> before = memory_;
  const TransferGroup group = TwoSpans();
  std::memcpy(slot_.staging(), memory_.data(), 100'000);
  std::memcpy(slot_.staging() + 100'000, memory_.data() + 150'000, 48);
  std::memset(memory_.data(), 0, 100'000);
  std::memset(memory_.data() + 150'000, 0, 48);
  ASSERT_THAT(slot_.Fill(calls_, group, SlotWork::kScatter, cutter_), IsOk());
  ASSERT_THAT(slot_.Launch(calls_, stream_), IsOk());
  Finish();
  EXPECT_EQ(memory_, before);
  ASSERT_EQ(slot_.digests().size(), 2u);
  EXPECT_EQ(slot_.digests()[0], Crc32c(std::span(before).first(100'000)));
  EXPECT_EQ(slot_.digests()[1], Crc32c(std::span(before).subspan(150'000, 48)));
}

// Two groups, one slot after the other: the first ends within a span.
TEST_F(PairSlotTest, DigestsOfASpansPiecesAddUp) {
  std::vector<std::byte> large(kGroupBytes + 80'000);
  for (size_t i = 0; i < large.size(); ++i) large[i] = static_cast<std::byte>(i * 7 >> 3);
  spans_ = {{large.data(), kGroupBytes - 1600}, {large.data() + kGroupBytes - 1600, 81'600}};
  const std::vector<LayerSpans> layers = {{.spans = spans_}};
  const auto source = LayerSource::Of(layers);
  ASSERT_THAT(source, IsOk());
  TransferPlan plan(*source, kGroupBytes);
  uint32_t digest = 0;
  for (size_t g = 0; g < 2; ++g) {
    TransferGroup group;
    ASSERT_THAT(plan.Next(group), IsOk());
    ASSERT_THAT(slot_.Fill(calls_, group, SlotWork::kDigest, cutter_), IsOk());
    ASSERT_THAT(slot_.Launch(calls_, stream_), IsOk());
    Finish();
    digest ^= slot_.digests().back();
  }
  EXPECT_EQ(digest, Crc32c(std::span(large).subspan(kGroupBytes - 1600)));
}

TEST_F(PairSlotTest, MakesRoomForLongListsAndKeepsTheOld) {
  spans_.clear();
  for (size_t i = 0; i < 12'400; ++i) spans_.push_back({memory_.data() + 16 * i, 16});
  std::swap(spans_[3], spans_[4]);
  const int before = calls_.num_alive();
  const TransferGroup group = GroupOf({{.spans = spans_}});
  ASSERT_THAT(slot_.Fill(calls_, TwoSpans(), SlotWork::kGather, cutter_), IsOk());
  ASSERT_EQ(calls_.num_alive(), before);
  // Of 40 bytes each, with digests and flags: more than the 512 KiB of the beginning, if twice.
  TransferGroup twice = group;
  twice.pieces.insert(twice.pieces.end(), group.pieces.begin(), group.pieces.end());
  ASSERT_THAT(slot_.Fill(calls_, twice, SlotWork::kDigest, cutter_), IsOk());
  EXPECT_EQ(calls_.num_alive(), before + 2);
  ASSERT_THAT(slot_.Launch(calls_, stream_), IsOk());
  Finish();
  ASSERT_EQ(slot_.digests().size(), twice.pieces.size());
  for (size_t i = 0; i < twice.pieces.size(); ++i) {
    ASSERT_EQ(slot_.digests()[i], Crc32c(std::span(twice.pieces[i].data, 16))) << i;
  }
  EXPECT_EQ(calls_.num_alive(), before + 2);
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
  const TransferGroup group =
      GroupOf({LayerSpans{.spans = spans_, .rules = rules}, LayerSpans{.spans = spans_}});
  ASSERT_THAT(slot_.Fill(calls_, group, SlotWork::kDigest, cutter_), IsOk());
  ASSERT_THAT(slot_.Launch(calls_, stream_), IsOk());
  Finish();
  // Beyond what the rules name, and spans without rules, anything may stand.
  EXPECT_EQ(std::vector(slot_.flags().begin(), slot_.flags().end()),
            (std::vector<uint32_t>{0, 0, 1, 0, 0, 0}));
}

TEST_F(PairSlotTest, ChecksNumbersOfASpanWithItsLastPieceAlone) {
  FrameRules rules;
  rules.num_sections = 1;
  rules.sections[0] = {.num_heads = 1, .head_bytes = 64, .rule = NumberRule::kId, .bank_size = 9};
  spans_ = {{memory_.data(), 64}};
  std::memset(memory_.data(), 9, 64);
  const std::vector<const FrameRules*> all = {&rules};
  TransferGroup group = GroupOf({LayerSpans{.spans = spans_, .rules = all}});
  for (const uint64_t bytes_after : {uint64_t{16}, uint64_t{0}}) {
    group.pieces[0].bytes_after = bytes_after;
    ASSERT_THAT(slot_.Fill(calls_, group, SlotWork::kDigest, cutter_), IsOk());
    ASSERT_THAT(slot_.Launch(calls_, stream_), IsOk());
    Finish();
    EXPECT_EQ(slot_.flags()[0], bytes_after == 0 ? 1u : 0u);
  }
}

}  // namespace
}  // namespace pkv
