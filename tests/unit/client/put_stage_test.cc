#include "client/put_stage.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "tests/support/scripted_connection.h"
#include "tests/support/scripted_shm_server.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

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

  bool is_offered_ = true;
  ScriptedShmServer server_{"stage"};
  ScriptedCore scripted_ = MakeScriptedCore();
};

TEST_F(PutStageTest, SlotsFollowOneAnotherRoundTheWindow) {
  for (const Transport transport : {Transport::kAuto, Transport::kShm}) {
    const auto stage = Open(transport);
    ASSERT_THAT(stage, IsOk());
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
}

TEST_F(PutStageTest, AServerThatOffersNoneIsAFailedPrecondition) {
  is_offered_ = false;
  EXPECT_THAT(Open(Transport::kAuto), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(PutStageTest, OnePutTooManyIsToldSoUntilAnotherEnds) {
  std::vector<std::unique_ptr<PutStage>> stages;
  for (int i = 0; i < kNumPuts; ++i) stages.push_back(*Open(Transport::kAuto));
  EXPECT_NE(stages[0]->slot_offset(), stages[1]->slot_offset());
  EXPECT_THAT(Open(Transport::kAuto), StatusIs(absl::StatusCode::kResourceExhausted));
  const uint64_t offset = stages[0]->slot_offset();
  stages[0].reset();
  const auto next = Open(Transport::kAuto);
  ASSERT_THAT(next, IsOk());
  EXPECT_EQ((*next)->slot_offset(), offset);
  EXPECT_EQ(server_.Count(v1::ShmMessage::kHello), 1);
}

// The server may be reading from what a cancelled put left behind. Others go on in that stage.
TEST_F(PutStageTest, WhatWasRetiredIsLentToNobodyAndTheNextPutHasAnotherStage) {
  const auto other = *Open(Transport::kShm);
  auto cancelled = *Open(Transport::kShm);
  cancelled->Retire();
  cancelled.reset();
  EXPECT_EQ((*Open(Transport::kShm))->slot_offset(), 0u);
  EXPECT_EQ(server_.Count(v1::ShmMessage::kHello), 2);
  other->slot()[0] = std::byte{7};
  EXPECT_EQ(server_.stage()[other->slot_offset()], std::byte{7});
}

}  // namespace
}  // namespace pkv
