#include "proto/transport/nccl/transfer_plan.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;

alignas(16) std::byte memory[4096];

LayerSpans Layer(const std::vector<DeviceSpan>& spans) { return {.spans = spans}; }

std::vector<uint64_t> GroupBytes(const TransferPlan& plan) {
  std::vector<uint64_t> bytes;
  for (const TransferPlan::Group& group : plan.groups) bytes.push_back(group.bytes);
  return bytes;
}

TEST(TransferPlanTest, GroupsAreEqualAndTheLastIsWhatIsLeft) {
  const std::vector<DeviceSpan> spans = {{memory, 464}};
  const auto plan = TransferPlan::Make(std::vector{Layer(spans)}, 128);
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(GroupBytes(*plan), (std::vector<uint64_t>{128, 128, 128, 80}));
}

TEST(TransferPlanTest, CutsTheStreamOfLayers) {
  const std::vector<DeviceSpan> first = {{memory, 48}, {memory + 256, 32}};
  const std::vector<DeviceSpan> second = {{memory + 512, 64}};
  const auto plan = TransferPlan::Make(std::vector{Layer(first), Layer(second)}, 64);
  ASSERT_THAT(plan, IsOk());
  ASSERT_EQ(GroupBytes(*plan), (std::vector<uint64_t>{64, 64, 16}));
  const auto& pieces = plan->groups[1].pieces;
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_EQ(pieces[0].data, memory + 272);
  EXPECT_EQ(pieces[0].bytes, 16u);
  EXPECT_EQ(pieces[0].offset, 0u);
  EXPECT_EQ(pieces[1].data, memory + 512);
  EXPECT_EQ(pieces[1].bytes, 48u);
  EXPECT_EQ(pieces[1].offset, 16u);
}

TEST(TransferPlanTest, ASpanEndsInTheGroupOfItsLastByteAndALayerWithItsLastSpan) {
  const std::vector<DeviceSpan> first = {{memory, 32}, {memory + 256, 32}};
  const std::vector<DeviceSpan> second = {{memory + 512, 48}};
  const auto plan = TransferPlan::Make(std::vector{Layer(first), Layer(second)}, 48);
  ASSERT_THAT(plan, IsOk());
  const auto& groups = plan->groups;
  ASSERT_EQ(GroupBytes(*plan), (std::vector<uint64_t>{48, 48, 16}));
  ASSERT_EQ(groups[0].ending.size(), 1u);
  EXPECT_EQ(groups[0].ending[0].span.data, memory);
  EXPECT_EQ(groups[0].layers_done, 0u);
  EXPECT_EQ(groups[0].first_layer, 0u);
  EXPECT_EQ(groups[0].end_layer, 1u);
  ASSERT_EQ(groups[1].ending.size(), 1u);
  EXPECT_EQ(groups[1].ending[0].index, 1u);
  EXPECT_EQ(groups[1].layers_done, 1u);
  EXPECT_EQ(groups[1].first_layer, 0u);
  EXPECT_EQ(groups[1].end_layer, 2u);
  ASSERT_EQ(groups[2].ending.size(), 1u);
  EXPECT_EQ(groups[2].ending[0].layer, 1u);
  EXPECT_EQ(groups[2].layers_done, 2u);
}

TEST(TransferPlanTest, CutsAlikeHoweverTheBytesLie) {
  const std::vector<DeviceSpan> scattered = {{memory, 112}, {memory + 512, 16}, {memory + 256, 64}};
  const std::vector<DeviceSpan> whole = {{memory, 192}};
  const auto a = TransferPlan::Make(std::vector{Layer(scattered)}, 64);
  const auto b = TransferPlan::Make(std::vector{Layer(whole)}, 64);
  ASSERT_THAT(a, IsOk());
  ASSERT_THAT(b, IsOk());
  EXPECT_EQ(GroupBytes(*a), GroupBytes(*b));
}

TEST(TransferPlanTest, SeesWhatLiesInOnePiece) {
  const std::vector<DeviceSpan> spans = {{memory, 32}, {memory + 32, 32}, {memory + 256, 64}};
  const auto plan = TransferPlan::Make(std::vector{Layer(spans)}, 48);
  ASSERT_THAT(plan, IsOk());
  ASSERT_EQ(plan->groups.size(), 3u);
  EXPECT_EQ(plan->groups[0].contiguous, memory);
  EXPECT_EQ(plan->groups[1].contiguous, nullptr);
  EXPECT_EQ(plan->groups[2].contiguous, memory + 288);
}

TEST(TransferPlanTest, RefusesWhatCannotBeMoved) {
  const std::vector<DeviceSpan> good = {{memory, 64}};
  EXPECT_THAT(TransferPlan::Make({}, 64), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(TransferPlan::Make(std::vector{Layer(good), LayerSpans()}, 64),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer 1 has no spans")));
  for (const DeviceSpan& bad : {DeviceSpan{memory, 0}, DeviceSpan{memory + 8, 64},
                                DeviceSpan{memory, 24}, DeviceSpan{nullptr, 64}}) {
    const std::vector<DeviceSpan> spans = {good[0], bad};
    EXPECT_THAT(TransferPlan::Make(std::vector{Layer(spans)}, 64),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer 0 span 1")));
  }
  const std::vector<uint32_t> checksums = {1, 2};
  EXPECT_THAT(TransferPlan::Make(std::vector{LayerSpans{good, checksums}}, 64),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("2 checksums for 1 spans")));
}

TEST(TransferPlanTest, WhatLiesInHostMemoryIsNotSentFromThere) {
  const std::vector<DeviceSpan> spans = {{memory, 64}};
  LayerSpans host = Layer(spans);
  host.in_host_memory = true;
  const auto plan = TransferPlan::Make(std::vector{Layer(spans), host}, 64);
  ASSERT_THAT(plan, IsOk());
  EXPECT_EQ(plan->groups[0].contiguous, memory);
  EXPECT_EQ(plan->groups[1].contiguous, nullptr);
}

TEST(TransferPlanTest, RulesForSomeSpansOnlyAreRefused) {
  const std::vector<DeviceSpan> spans = {{memory, 16}, {memory + 64, 16}};
  const FrameRules any;
  const std::vector<const FrameRules*> rules = {&any};
  LayerSpans layer = Layer(spans);
  layer.rules = rules;
  EXPECT_THAT(TransferPlan::Make(std::vector{layer}, 64),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace pkv
