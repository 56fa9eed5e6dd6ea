#include "proto/transport/nccl/transfer_plan.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;

alignas(16) std::byte memory[4096];

LayerSpans Layer(const std::vector<DeviceSpan>& spans) { return {.spans = spans}; }

std::vector<TransferGroup> Cut(const std::vector<LayerSpans>& layers, uint64_t group_bytes) {
  const auto source = LayerSource::Of(layers);
  EXPECT_THAT(source, IsOk());
  TransferPlan plan(*source, group_bytes);
  std::vector<TransferGroup> groups(plan.num_groups());
  for (size_t g = 0; g < groups.size(); ++g) {
    EXPECT_THAT(plan.Next(groups[g]), IsOk());
    EXPECT_EQ(groups[g].bytes, plan.BytesOf(g));
  }
  return groups;
}

std::vector<uint64_t> GroupBytes(const std::vector<TransferGroup>& groups) {
  std::vector<uint64_t> bytes;
  for (const TransferGroup& group : groups) bytes.push_back(group.bytes);
  return bytes;
}

TEST(TransferPlanTest, GroupsAreEqualAndTheLastIsWhatIsLeft) {
  const std::vector<DeviceSpan> spans = {{memory, 464}};
  EXPECT_EQ(GroupBytes(Cut({Layer(spans)}, 128)), (std::vector<uint64_t>{128, 128, 128, 80}));
}

TEST(TransferPlanTest, CutsTheStreamOfLayers) {
  const std::vector<DeviceSpan> first = {{memory, 48}, {memory + 256, 32}};
  const std::vector<DeviceSpan> second = {{memory + 512, 64}};
  const auto groups = Cut({Layer(first), Layer(second)}, 64);
  ASSERT_EQ(GroupBytes(groups), (std::vector<uint64_t>{64, 64, 16}));
  const auto& pieces = groups[1].pieces;
  ASSERT_EQ(pieces.size(), 2u);
  EXPECT_EQ(pieces[0].data, memory + 272);
  EXPECT_EQ(pieces[0].bytes, 16u);
  EXPECT_EQ(pieces[0].offset, 0u);
  EXPECT_FALSE(pieces[0].begins_span());
  EXPECT_TRUE(pieces[0].ends_span());
  EXPECT_EQ(pieces[1].data, memory + 512);
  EXPECT_EQ(pieces[1].bytes, 48u);
  EXPECT_EQ(pieces[1].offset, 16u);
  EXPECT_EQ(pieces[1].bytes_after, 16u);
  EXPECT_TRUE(pieces[1].begins_span());
  EXPECT_FALSE(pieces[1].ends_span());
}

TEST(TransferPlanTest, PiecesNameTheirSpanAndALayerIsDoneWithItsLast) {
  const std::vector<DeviceSpan> first = {{memory, 32}, {memory + 256, 32}};
  const std::vector<DeviceSpan> second = {{memory + 512, 48}};
  const std::vector<uint32_t> of_first = {7, 8}, of_second = {9};
  const auto groups = Cut({LayerSpans{first, of_first}, LayerSpans{second, of_second}}, 48);
  ASSERT_EQ(GroupBytes(groups), (std::vector<uint64_t>{48, 48, 16}));
  ASSERT_EQ(groups[0].pieces.size(), 2u);
  EXPECT_EQ(groups[0].pieces[0].span.data, memory);
  EXPECT_EQ(groups[0].pieces[0].checksum, 7u);
  EXPECT_EQ(groups[0].pieces[1].index, 1u);
  EXPECT_EQ(groups[0].layers_done, 0u);
  ASSERT_EQ(groups[1].pieces.size(), 2u);
  EXPECT_EQ(groups[1].pieces[0].index, 1u);
  EXPECT_EQ(groups[1].pieces[0].span.data, memory + 256);
  EXPECT_EQ(groups[1].layers_done, 1u);
  ASSERT_EQ(groups[2].pieces.size(), 1u);
  EXPECT_EQ(groups[2].pieces[0].layer, 1u);
  EXPECT_EQ(groups[2].pieces[0].checksum, 9u);
  EXPECT_EQ(groups[2].layers_done, 2u);
}

TEST(TransferPlanTest, EveryGroupWaitsForTheEventsOfItsLayers) {
  const std::vector<DeviceSpan> spans = {{memory, 80}};
  std::vector<LayerSpans> layers(3, Layer(spans));
  int events[2];
  layers[0].ready = &events[0];
  layers[2].ready = &events[1];
  const auto groups = Cut(layers, 64);
  ASSERT_EQ(groups.size(), 4u);
  EXPECT_EQ(groups[0].ready, (std::vector<void*>{&events[0]}));
  EXPECT_EQ(groups[1].ready, (std::vector<void*>{&events[0]})) << "layer 0 goes on";
  EXPECT_EQ(groups[2].ready, (std::vector<void*>{&events[1]}));
  EXPECT_EQ(groups[3].ready, (std::vector<void*>{&events[1]}));
}

TEST(TransferPlanTest, CutsAlikeHoweverTheBytesLie) {
  const std::vector<DeviceSpan> scattered = {{memory, 112}, {memory + 512, 16}, {memory + 256, 64}};
  const std::vector<DeviceSpan> whole = {{memory, 192}};
  EXPECT_EQ(GroupBytes(Cut({Layer(scattered)}, 64)), GroupBytes(Cut({Layer(whole)}, 64)));
}

TEST(TransferPlanTest, SeesWhatLiesInOnePiece) {
  const std::vector<DeviceSpan> spans = {{memory, 32}, {memory + 32, 32}, {memory + 256, 64}};
  const auto groups = Cut({Layer(spans)}, 48);
  ASSERT_EQ(groups.size(), 3u);
  EXPECT_EQ(groups[0].contiguous, memory);
  EXPECT_EQ(groups[1].contiguous, nullptr);
  EXPECT_EQ(groups[2].contiguous, memory + 288);
}

// A group can travel before the lists of the next are made.
TEST(TransferPlanTest, AsksForALayerNoEarlierThanItsBytesAreCut) {
  const std::vector<DeviceSpan> spans = {{memory, 64}};
  std::vector<size_t> asked;
  bool is_known = false;
  TransferPlan plan({.num_layers = 3,
                     .total_bytes = 192,
                     .layer =
                         [&](size_t layer) {
                           asked.push_back(layer);
                           return Layer(spans);
                         },
                     .is_known = [&] { return is_known; }},
                    96);
  ASSERT_EQ(plan.num_groups(), 2u);
  EXPECT_EQ(plan.BytesOf(1), 96u);
  EXPECT_TRUE(asked.empty());
  EXPECT_FALSE(plan.IsNextKnown());
  is_known = true;
  EXPECT_TRUE(plan.IsNextKnown());
  TransferGroup group;
  ASSERT_THAT(plan.Next(group), IsOk());
  EXPECT_EQ(asked, (std::vector<size_t>{0, 1}));
  ASSERT_THAT(plan.Next(group), IsOk());
  EXPECT_EQ(asked, (std::vector<size_t>{0, 1, 2}));
}

TEST(TransferPlanTest, ASourceThatFailsOrIsNotWhatItSaidIsItsError) {
  const std::vector<DeviceSpan> spans = {{memory, 64}};
  const auto next = [&](uint64_t total_bytes, const absl::StatusOr<LayerSpans>& layer) {
    TransferPlan plan(
        {.num_layers = 2, .total_bytes = total_bytes, .layer = [&](size_t) { return layer; }}, 256);
    TransferGroup group;
    return plan.Next(group);
  };
  EXPECT_THAT(next(128, Layer(spans)), IsOk());
  EXPECT_THAT(next(128, absl::CancelledError("nobody")), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(next(128, LayerSpans()), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(next(144, Layer(spans)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("fewer bytes")));
  EXPECT_THAT(next(112, Layer(spans)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("more bytes")));
}

TEST(TransferPlanTest, RefusesWhatCannotBeMoved) {
  const std::vector<DeviceSpan> good = {{memory, 64}};
  EXPECT_THAT(LayerSource::Of({}), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(LayerSource::Of(std::vector{Layer(good), LayerSpans()}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer 1 has no spans")));
  for (const DeviceSpan& bad : {DeviceSpan{memory, 0}, DeviceSpan{memory + 8, 64},
                                DeviceSpan{memory, 24}, DeviceSpan{nullptr, 64}}) {
    const std::vector<DeviceSpan> spans = {good[0], bad};
    EXPECT_THAT(LayerSource::Of(std::vector{Layer(spans)}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer 0 span 1")));
  }
  const std::vector<uint32_t> checksums = {1, 2};
  EXPECT_THAT(LayerSource::Of(std::vector{LayerSpans{good, checksums}}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("2 checksums for 1 spans")));
}

TEST(TransferPlanTest, WhatLiesInHostMemoryIsNotSentFromThere) {
  const std::vector<DeviceSpan> spans = {{memory, 64}};
  LayerSpans host = Layer(spans);
  host.in_host_memory = true;
  const auto groups = Cut({Layer(spans), host}, 64);
  EXPECT_EQ(groups[0].contiguous, memory);
  EXPECT_EQ(groups[1].contiguous, nullptr);
}

TEST(TransferPlanTest, RulesForSomeSpansOnlyAreRefused) {
  const std::vector<DeviceSpan> spans = {{memory, 16}, {memory + 64, 16}};
  const FrameRules any;
  const std::vector<const FrameRules*> rules = {&any};
  LayerSpans layer = Layer(spans);
  layer.rules = rules;
  EXPECT_THAT(LayerSource::Of(std::vector{layer}), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace pkv
