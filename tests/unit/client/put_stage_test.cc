#include "client/put_stage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "tests/support/scripted_connection.h"
#include "tests/support/scripted_shm_server.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::IsNull;
using ::testing::Not;

// The scripted stage has room for two puts.
constexpr int kNumPuts = ScriptedShmServer::kStageBytes / kShmWindowBytes;

class PutStageTest : public testing::Test {
 protected:
  PutStageTest() {
    scripted_.connection->open_handoff = [this](const v1::HandoffOpenRequest&,
                                                v1::HandoffOpenResponse& response) {
      if (is_offered_) *response.mutable_shm() = server_.Offer();
      return absl::OkStatus();
    };
  }

  absl::StatusOr<std::unique_ptr<PutStage>> Open(Transport transport) {
    scripted_.core->options.transport = transport;
    return PutStage::Open(*scripted_.core, Clock::Real()->MonotonicNow() + absl::Minutes(1));
  }
  uint64_t fallbacks() const { return scripted_.core->counters.shm_put_fallbacks; }

  bool is_offered_ = true;
  ScriptedShmServer server_{"stage"};
  ScriptedCore scripted_ = MakeScriptedCore();
};

TEST_F(PutStageTest, SlotsFollowOneAnotherRoundTheWindow) {
  for (const Transport transport : {Transport::kAuto, Transport::kShm}) {
    const auto stage = Open(transport);
    ASSERT_THAT(stage, IsOkAndHolds(Not(IsNull())));
    EXPECT_EQ((*stage)->token(), ScriptedShmServer::StageToken());
    std::vector<uint64_t> offsets;
    for (int i = 0; i < PutStage::kNumSlots; ++i, (*stage)->NextSlot()) {
      offsets.push_back((*stage)->slot_offset());
      std::fill((*stage)->slot().begin(), (*stage)->slot().end(), std::byte(i + 1));
    }
    EXPECT_EQ((*stage)->slot_offset(), offsets[0]);
    for (int i = 0; i < PutStage::kNumSlots; ++i) {
      const auto seen = server_.stage().subspan(offsets[i], (*stage)->slot().size());
      EXPECT_TRUE(std::ranges::all_of(seen, [&](std::byte b) { return b == std::byte(i + 1); }));
    }
  }
  EXPECT_EQ(fallbacks(), 0u);
}

TEST_F(PutStageTest, OtherTransportsAskForNone) {
  for (const Transport transport : {Transport::kGrpc, Transport::kNccl}) {
    EXPECT_THAT(Open(transport), IsOkAndHolds(IsNull()));
  }
  EXPECT_TRUE(server_.received().empty());
}

TEST_F(PutStageTest, AServerThatOffersNoneIsNoFallback) {
  is_offered_ = false;
  EXPECT_THAT(Open(Transport::kAuto), IsOkAndHolds(IsNull()));
  EXPECT_THAT(Open(Transport::kShm), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(fallbacks(), 0u);
}

TEST_F(PutStageTest, AServerOfGetsAloneIsNoFallback) {
  server_.knows_puts = false;
  EXPECT_THAT(Open(Transport::kAuto), IsOkAndHolds(IsNull()));
  EXPECT_THAT(Open(Transport::kShm), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(fallbacks(), 0u);
}

TEST_F(PutStageTest, WhatIsOfferedAndDoesNotWorkIsAFallback) {
  server_.seals = 0;
  EXPECT_THAT(Open(Transport::kAuto), IsOkAndHolds(IsNull()));
  EXPECT_EQ(fallbacks(), 1u);
  EXPECT_THAT(Open(Transport::kShm), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(fallbacks(), 1u);
}

TEST_F(PutStageTest, OnePutTooManyGoesOverGrpcUntilAnotherEnds) {
  std::vector<std::unique_ptr<PutStage>> stages;
  for (int i = 0; i < kNumPuts; ++i) stages.push_back(*Open(Transport::kAuto));
  EXPECT_NE(stages[0]->slot_offset(), stages[1]->slot_offset());
  EXPECT_THAT(Open(Transport::kAuto), IsOkAndHolds(IsNull()));
  EXPECT_EQ(fallbacks(), 1u);
  EXPECT_THAT(Open(Transport::kShm), StatusIs(absl::StatusCode::kResourceExhausted));
  const uint64_t offset = stages[0]->slot_offset();
  stages[0].reset();
  const auto next = Open(Transport::kAuto);
  ASSERT_THAT(next, IsOkAndHolds(Not(IsNull())));
  EXPECT_EQ((*next)->slot_offset(), offset);
  EXPECT_EQ(server_.Count(v1::ShmMessage::kHello), 1);
}

// The server may be reading from what a cancelled put left behind.
TEST_F(PutStageTest, WhatWasRetiredIsLentToNobodyAndAnotherStageIsAskedForInTheEnd) {
  for (int i = 0; i < kNumPuts; ++i) {
    const auto stage = *Open(Transport::kShm);
    EXPECT_EQ(stage->slot_offset(), i * kShmWindowBytes);
    stage->Retire();
  }
  EXPECT_EQ(server_.Count(v1::ShmMessage::kHello), 1);
  EXPECT_EQ((*Open(Transport::kShm))->slot_offset(), 0u);
  EXPECT_EQ(server_.Count(v1::ShmMessage::kHello), 2);
}

}  // namespace
}  // namespace pkv
