#include "client/put_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "proto/transport/data_frame.h"
#include "tests/support/scripted_put.h"
#include "tests/support/scripted_shm_server.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class PutCallTest : public testing::Test {
 protected:
  PutCallTest() {
    objects_.push_back(MakeTestBlock(1, 1));
    objects_.push_back(MakeTestWindow(2, 2, /*num_tokens=*/30, /*num_layers=*/3));
  }

  absl::StatusOr<std::unique_ptr<PutCall>> Start() {
    std::vector<ObjectDescriptor> descriptors;
    for (const SealedObject& object : objects_) {
      descriptors.push_back({object.key(), object.header.num_layers, object.header.frame_bytes});
    }
    return PutCall::Start(scripted_.core, descriptors,
                          Clock::Real()->MonotonicNow() + scripted_.core->options.put_deadline);
  }

  std::unique_ptr<PutCall> StartOrDie() {
    scripted_.connection->scripts.push_back(server_.Script());
    auto call = Start();
    PKV_CHECK(call.ok(), call.status().ToString());
    return *std::move(call);
  }

  // Frames of `layer` for every object that has it.
  std::vector<std::span<const std::byte>> Layer(int layer) const {
    std::vector<std::span<const std::byte>> frames;
    for (const SealedObject& object : objects_) {
      frames.push_back(layer < object.header.num_layers ? object.frame(layer)
                                                        : std::span<const std::byte>());
    }
    return frames;
  }

  void WriteAll(PutCall& call) {
    for (int layer = 0; layer < 3; ++layer) {
      ASSERT_THAT(call.WriteLayer(layer, Layer(layer)), IsOk());
    }
  }

  ScriptedCore scripted_ = MakeScriptedCore();
  ScriptedPutServer server_;
  std::vector<SealedObject> objects_;
};

TEST_F(PutCallTest, StoresTheBytesThatWereWritten) {
  auto call = StartOrDie();
  EXPECT_THAT(call->decisions(), ElementsAre(PutDecision::kWanted, PutDecision::kWanted));
  WriteAll(*call);
  EXPECT_THAT(call->Commit(0, objects_[0].head()), IsOk());
  EXPECT_THAT(call->Commit(1, objects_[1].head()), IsOk());
  const std::vector<PutOutcome> outcomes = call->Finish();
  ASSERT_EQ(outcomes.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_THAT(outcomes[i].status, IsOk());
    EXPECT_TRUE(outcomes[i].stored);
    EXPECT_EQ(server_.stored[IdOf(objects_[i])], BytesOf(objects_[i]));
  }
  EXPECT_EQ(server_.max_payload_bytes, scripted_.core->options.message_bytes);
  EXPECT_EQ(scripted_.core->counters.grpc_put_bytes,
            2 * objects_[0].header.frame_bytes + 3 * objects_[1].header.frame_bytes);
}

TEST_F(PutCallTest, ObjectNeverCommittedIsCancelled) {
  auto call = StartOrDie();
  call->CountIn(scripted_.core->Record(CallMethod::kPut));
  WriteAll(*call);
  EXPECT_THAT(call->Commit(1, objects_[1].head()), IsOk());
  const std::vector<PutOutcome> outcomes = call->Finish();
  const MethodStatistics counted = scripted_.core->options.statistics->Read(CallMethod::kPut);
  EXPECT_EQ(counted.ended[static_cast<size_t>(absl::StatusCode::kCancelled)], 1u);
  EXPECT_THAT(outcomes[0].status, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(outcomes[1].status, IsOk());
  EXPECT_EQ(server_.stored.size(), 1u);
}

TEST_F(PutCallTest, RefusalKeepsItsReason) {
  server_.decide = [](const v1::ObjectDescriptor& object) {
    return object.num_layers() == 3 ? v1::PUT_DECISION_REFUSED : v1::PUT_DECISION_WANTED;
  };
  auto call = StartOrDie();
  EXPECT_THAT(call->decisions(), ElementsAre(PutDecision::kWanted, PutDecision::kRefused));
  EXPECT_THAT(call->refusal(0), IsOk());
  EXPECT_THAT(call->refusal(1), StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("arena")));
  WriteAll(*call);
  EXPECT_THAT(call->Commit(1, objects_[1].head()), IsOk());
  EXPECT_THAT(call->Finish()[1].status, StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(PutCallTest, PresentObjectSendsItsHeadAndNoPayload) {
  server_.decide = [](const v1::ObjectDescriptor&) { return v1::PUT_DECISION_PRESENT; };
  std::vector<std::string> heads;
  server_.receive = [&](const v1::PutCommit& commit) {
    heads.push_back(commit.head());
    v1::PutReceipt receipt;
    receipt.set_result(v1::PUT_RESULT_DUPLICATE);
    return receipt;
  };
  auto call = StartOrDie();
  WriteAll(*call);
  EXPECT_THAT(call->Commit(0, objects_[0].head()), IsOk());
  const std::vector<PutOutcome> outcomes = call->Finish();
  EXPECT_THAT(outcomes[0].status, IsOk());
  EXPECT_FALSE(outcomes[0].stored);
  EXPECT_EQ(server_.max_payload_bytes, 0u);
  ASSERT_EQ(heads.size(), 1u);
  EXPECT_EQ(heads[0], BytesOf(objects_[0]).substr(0, objects_[0].head().size()));
  EXPECT_THAT(outcomes[1].status, StatusIs(absl::StatusCode::kCancelled));
}

TEST_F(PutCallTest, ReceiptSaysWhatBecameOfACommit) {
  server_.receive = [](const v1::PutCommit& commit) {
    v1::PutReceipt receipt;
    if (commit.object_index() == 0) {
      receipt.set_result(v1::PUT_RESULT_DUPLICATE);
    } else {
      receipt.set_result(v1::PUT_RESULT_FAILED);
      receipt.mutable_status()->set_code(grpc::StatusCode::ALREADY_EXISTS);
      receipt.mutable_status()->set_message("other bytes");
    }
    return receipt;
  };
  auto call = StartOrDie();
  WriteAll(*call);
  EXPECT_THAT(call->Commit(0, objects_[0].head()), IsOk());
  EXPECT_THAT(call->Commit(1, objects_[1].head()), IsOk());
  const std::vector<PutOutcome> outcomes = call->Finish();
  EXPECT_THAT(outcomes[0].status, IsOk());
  EXPECT_FALSE(outcomes[0].stored);
  EXPECT_THAT(outcomes[1].status, StatusIs(absl::StatusCode::kAlreadyExists, HasSubstr("other")));
}

TEST_F(PutCallTest, RefusesFramesThatDoNotFit) {
  auto call = StartOrDie();
  auto frames = Layer(0);
  EXPECT_THAT(call->WriteLayer(0, std::span(frames).first(1)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1 frames for 2 objects")));
  EXPECT_THAT(call->WriteLayer(2, frames), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(call->WriteLayer(-1, frames), StatusIs(absl::StatusCode::kInvalidArgument));
  frames[0] = frames[0].first(frames[0].size() - 1);
  EXPECT_THAT(call->WriteLayer(0, frames), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(call->WriteLayer(0, Layer(0)), IsOk());
  EXPECT_THAT(call->WriteLayer(0, Layer(0)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("written before")));
}

TEST_F(PutCallTest, RefusesACommitThatIsNotDue) {
  auto call = StartOrDie();
  ASSERT_THAT(call->WriteLayer(0, Layer(0)), IsOk());
  EXPECT_THAT(call->Commit(0, objects_[0].head()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("1 of 2 layers")));
  ASSERT_THAT(call->WriteLayer(1, Layer(1)), IsOk());
  EXPECT_THAT(call->Commit(0, objects_[0].head().first(256)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("256 bytes")));
  EXPECT_THAT(call->Commit(2, objects_[0].head()), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(call->Commit(0, objects_[0].head()), IsOk());
  EXPECT_THAT(call->Commit(0, objects_[0].head()), StatusIs(absl::StatusCode::kInvalidArgument));
}

// Frames of 64 KiB make 16 messages of 4 KiB a layer: more than the queue holds.
TEST_F(PutCallTest, WriterWaitsForRoomAndEndsWhenNothingLeaves) {
  scripted_.core->options.progress_timeout = absl::Milliseconds(20);
  objects_.clear();
  objects_.push_back(MakeTestWindow(2, 2, /*num_tokens=*/256));
  int num_messages = 0;
  scripted_.connection->scripts.push_back([&](ScriptedStream& stream, const std::string* message) {
    if (message == nullptr) return;
    if (num_messages++ > 0) return stream.HoldSent();
    v1::PutReply reply;
    reply.mutable_accepted()->add_decisions(v1::PUT_DECISION_WANTED);
    stream.Deliver(reply);
  });
  auto call = Start();
  ASSERT_THAT(call, IsOk());
  EXPECT_THAT((*call)->WriteLayer(0, Layer(0)),
              StatusIs(absl::StatusCode::kDeadlineExceeded, HasSubstr("8 messages wait")));
  EXPECT_EQ(num_messages, 1 + 8);
  EXPECT_THAT((*call)->Finish()[0].status, StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(PutCallTest, ServerThatGoesAwayIsUnavailableForEveryObject) {
  scripted_.connection->scripts.push_back(
      [n = 0, inner = server_.Script()](ScriptedStream& stream,
                                        const std::string* message) mutable {
        if (++n > 2) return stream.End(absl::UnavailableError("killed"));
        inner(stream, message);
      });
  auto call = Start();
  ASSERT_THAT(call, IsOk());
  absl::Status status;
  for (int layer = 0; layer < 3 && status.ok(); ++layer) {
    status = (*call)->WriteLayer(layer, Layer(layer));
  }
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kUnavailable));
  for (const PutOutcome& outcome : (*call)->Finish()) {
    EXPECT_THAT(outcome.status, StatusIs(absl::StatusCode::kUnavailable));
  }
}

TEST_F(PutCallTest, OneThatIsGivenUpBecauseItBrokeHasEndedAsItBroke) {
  for (const bool breaks : {true, false}) {
    scripted_.connection->scripts.push_back(
        [n = 0, breaks, inner = server_.Script()](ScriptedStream& stream,
                                                  const std::string* message) mutable {
          if (breaks && ++n > 2) return stream.End(absl::UnavailableError("killed"));
          inner(stream, message);
        });
    auto call = Start();
    ASSERT_THAT(call, IsOk());
    (*call)->CountIn(scripted_.core->Record(CallMethod::kPut));
    absl::Status status;
    for (int layer = 0; layer < 3 && status.ok(); ++layer) {
      status = (*call)->WriteLayer(layer, Layer(layer));
    }
    EXPECT_EQ(status.ok(), !breaks);
    call->reset();
  }
  const MethodStatistics puts = scripted_.core->options.statistics->Read(CallMethod::kPut);
  EXPECT_EQ(puts.ended[static_cast<size_t>(absl::StatusCode::kUnavailable)], 1u);
  EXPECT_EQ(puts.ended[static_cast<size_t>(absl::StatusCode::kCancelled)], 1u);
  EXPECT_EQ(puts.in_flight, 0u);
}

TEST_F(PutCallTest, StartFailsWhenTheServerIsAway) {
  EXPECT_THAT(Start(), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(PutCallTest, StartEndsAtItsDeadlineWhenNoAnswerComes) {
  scripted_.core->options.put_deadline = absl::Milliseconds(20);
  scripted_.connection->scripts.push_back([](ScriptedStream&, const std::string*) {});
  EXPECT_THAT(Start(), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(PutCallTest, RefusesAnswersThatMakeNoSense) {
  v1::PutReply too_few;
  too_few.mutable_accepted()->add_decisions(v1::PUT_DECISION_WANTED);
  v1::PutReply unknown = too_few;
  unknown.mutable_accepted()->add_decisions(static_cast<v1::PutDecision>(9));
  v1::PutReply early_receipt;
  early_receipt.mutable_receipt()->set_result(v1::PUT_RESULT_STORED);
  v1::PutReply odd_refusal = too_few;
  odd_refusal.mutable_accepted()->add_decisions(v1::PUT_DECISION_WANTED);
  odd_refusal.mutable_accepted()->add_refusals()->set_object_index(7);
  for (const v1::PutReply& reply : {too_few, unknown, early_receipt, odd_refusal, v1::PutReply()}) {
    scripted_.connection->scripts.push_back(
        [&](ScriptedStream& stream, const std::string*) { stream.Deliver(reply); });
    EXPECT_THAT(Start(), StatusIs(absl::StatusCode::kDataLoss)) << reply.ShortDebugString();
  }
}

// Puts whose payload goes by way of a stage.
class StagedPutCallTest : public PutCallTest {
 protected:
  StagedPutCallTest() {
    scripted_.connection->open_handoff = [this](const v1::HandoffOpenRequest&,
                                                v1::HandoffOpenResponse& response) {
      if (is_offered_) *response.mutable_shm() = offering_->Offer();
      return asked_;
    };
    server_.stage = shm_.stage();
    server_.stage_token = ScriptedShmServer::StageToken();
  }
  // One object of so many layers of 1 MiB, a slot each.
  void UseLargeObject(int num_layers) {
    ObjectHeader header = TestHeader(ObjectKind::kWindow, 7, num_layers);
    header.num_tokens = kMaxWindowTokens;
    objects_.clear();
    objects_.push_back(SealTestObject(header, /*seed=*/7, /*random_bytes=*/4096));
  }

  uint64_t fallbacks() const { return scripted_.core->counters.shm_put_fallbacks; }
  // One that has been started and given up at once: whether its payload would have been staged.
  bool IsStaged() {
    const uint64_t before = scripted_.core->counters.shm_puts;
    StartOrDie().reset();
    return scripted_.core->counters.shm_puts > before;
  }

  ScriptedShmServer shm_{"put_call"};
  ScriptedShmServer* offering_ = &shm_;
  bool is_offered_ = true;
  absl::Status asked_;
};

TEST_F(StagedPutCallTest, StoresTheBytesThatWereWritten) {
  auto call = StartOrDie();
  WriteAll(*call);
  EXPECT_THAT(call->Commit(0, objects_[0].head()), IsOk());
  EXPECT_THAT(call->Commit(1, objects_[1].head()), IsOk());
  const std::vector<PutOutcome> outcomes = call->Finish();
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(outcomes[i].stored) << outcomes[i].status;
    EXPECT_EQ(server_.stored[IdOf(objects_[i])], BytesOf(objects_[i]));
  }
  EXPECT_EQ(server_.max_payload_bytes, 0u) << "of the messages";
  EXPECT_EQ(server_.num_staged, 3);
  const CounterSet& counters = scripted_.core->counters;
  EXPECT_EQ(counters.shm_puts, 1u);
  EXPECT_EQ(counters.shm_put_bytes,
            2 * objects_[0].header.frame_bytes + 3 * objects_[1].header.frame_bytes);
  EXPECT_EQ(counters.grpc_put_bytes, 0u);
  EXPECT_EQ(counters.shm_put_fallbacks, 0u);
}

TEST_F(StagedPutCallTest, UsesItsSlotsAgainOnceTheyWereTaken) {
  UseLargeObject(/*num_layers=*/2 * PutStage::kNumSlots + 1);
  auto call = StartOrDie();
  for (int layer = 0; layer < objects_[0].header.num_layers; ++layer) {
    ASSERT_THAT(call->WriteLayer(layer, Layer(layer)), IsOk());
  }
  EXPECT_THAT(call->Commit(0, objects_[0].head()), IsOk());
  EXPECT_TRUE(call->Finish()[0].stored);
  EXPECT_EQ(server_.stored[IdOf(objects_[0])], BytesOf(objects_[0]));
}

// What stands in a slot may still be read.
TEST_F(StagedPutCallTest, WaitsForASlotThatWasNotTakenAndGivesUpInTime) {
  UseLargeObject(/*num_layers=*/PutStage::kNumSlots + 1);
  server_.says_taken = false;
  auto call = StartOrDie();
  scripted_.core->options.progress_timeout = absl::Milliseconds(20);
  for (int layer = 0; layer < PutStage::kNumSlots; ++layer) {
    ASSERT_THAT(call->WriteLayer(layer, Layer(layer)), IsOk());
  }
  EXPECT_THAT(call->WriteLayer(PutStage::kNumSlots, Layer(PutStage::kNumSlots)),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  // Its stage is lost to later puts, and the next has another.
  call.reset();
  scripted_.core->options.progress_timeout = absl::Minutes(1);
  EXPECT_TRUE(IsStaged());
  EXPECT_EQ(shm_.Count(v1::ShmMessage::kHello), 2);
}

TEST_F(StagedPutCallTest, AStageWhoseSlotsWereAllTakenIsKept) {
  UseLargeObject(/*num_layers=*/2);
  for (int i = 0; i < 2; ++i) {
    auto call = StartOrDie();
    ASSERT_THAT(call->WriteLayer(0, Layer(0)), IsOk());
    call->Cancel();
  }
  EXPECT_EQ(shm_.Count(v1::ShmMessage::kHello), 1);
}

// A server that drains keeps its connections while the next one takes the puts.
TEST_F(StagedPutCallTest, AStageThatTheServerDoesNotKnowIsGivenUpForOneOfItsOwn) {
  for (const Transport transport : {Transport::kAuto, Transport::kShm}) {
    scripted_.core->options.transport = transport;
    offering_ = &shm_;
    server_.stage_token = ScriptedShmServer::StageToken();
    ASSERT_TRUE(IsStaged());
    ScriptedShmServer next("put_call_next");
    offering_ = &next;
    server_.stage_token = "another";
    scripted_.connection->scripts.push_back(server_.Script());
    EXPECT_EQ(Start().ok(), transport == Transport::kAuto);
    server_.stage_token = ScriptedShmServer::StageToken();
    EXPECT_TRUE(IsStaged());
    EXPECT_EQ(next.Count(v1::ShmMessage::kHello), 1);
  }
  EXPECT_EQ(fallbacks(), 1u);
}

TEST_F(StagedPutCallTest, OnePutTooManyGoesOverGrpcAndIsCounted) {
  for (const Transport transport : {Transport::kAuto, Transport::kShm}) {
    scripted_.core->options.transport = transport;
    const uint64_t before = fallbacks();
    std::vector<std::unique_ptr<PutCall>> calls;
    for (uint64_t i = 0; i < ScriptedShmServer::kStageBytes / kShmWindowBytes; ++i) {
      calls.push_back(StartOrDie());
    }
    EXPECT_EQ(fallbacks(), before);
    EXPECT_FALSE(IsStaged());
    EXPECT_FALSE(IsStaged());
    EXPECT_EQ(fallbacks(), before + 2);
  }
}

TEST_F(StagedPutCallTest, PutsGoOverGrpcAndAreCountedWhileTheServerHasNoStageLeft) {
  shm_.has_stages = false;
  for (const Transport transport : {Transport::kAuto, Transport::kShm}) {
    scripted_.core->options.transport = transport;
    EXPECT_FALSE(IsStaged());
    EXPECT_FALSE(IsStaged());
  }
  EXPECT_EQ(fallbacks(), 4u);
}

TEST_F(StagedPutCallTest, WhatIsOfferedAndDoesNotWorkIsAFallbackOfEachPut) {
  shm_.seals = 0;
  EXPECT_FALSE(IsStaged());
  EXPECT_FALSE(IsStaged());
  EXPECT_EQ(fallbacks(), 2u);
  scripted_.core->options.transport = Transport::kShm;
  EXPECT_THAT(Start(), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(StagedPutCallTest, AServerThatOffersNoneIsNoFallback) {
  is_offered_ = false;
  EXPECT_FALSE(IsStaged());
  EXPECT_EQ(fallbacks(), 0u);
  scripted_.core->options.transport = Transport::kShm;
  EXPECT_THAT(Start(), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(StagedPutCallTest, AServerOfGetsAloneIsNoFallback) {
  shm_.knows_puts = false;
  EXPECT_FALSE(IsStaged());
  EXPECT_EQ(fallbacks(), 0u);
}

TEST_F(StagedPutCallTest, AServerThatIsAwayIsNoFallback) {
  asked_ = absl::UnavailableError("away");
  EXPECT_THAT(Start(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(fallbacks(), 0u);
}

TEST_F(StagedPutCallTest, OtherTransportsAskForNoStage) {
  for (const Transport transport : {Transport::kGrpc, Transport::kNccl}) {
    scripted_.core->options.transport = transport;
    EXPECT_FALSE(IsStaged());
  }
  EXPECT_TRUE(shm_.received().empty());
  EXPECT_EQ(fallbacks(), 0u);
}

TEST_F(StagedPutCallTest, AServerThatDoesNotFindTheStageGetsPayloadInMessages) {
  server_.stage_token = "another";
  auto call = StartOrDie();
  WriteAll(*call);
  EXPECT_THAT(call->Commit(0, objects_[0].head()), IsOk());
  EXPECT_TRUE(call->Finish()[0].stored);
  EXPECT_EQ(server_.num_staged, 0);
  EXPECT_EQ(scripted_.core->counters.shm_puts, 0u);
  EXPECT_EQ(scripted_.core->counters.shm_put_fallbacks, 1u);
  EXPECT_EQ(scripted_.core->counters.shm_put_bytes, 0u);
}

TEST_F(StagedPutCallTest, ButNotWhenShmIsWanted) {
  scripted_.core->options.transport = Transport::kShm;
  server_.stage_token = "another";
  scripted_.connection->scripts.push_back(server_.Script());
  EXPECT_THAT(Start(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("stage")));
  EXPECT_EQ(scripted_.core->counters.shm_put_fallbacks, 0u);
}

TEST_F(StagedPutCallTest, AnAnswerForPayloadThatWasNotStagedIsDataLoss) {
  scripted_.connection->scripts.push_back(
      [inner = server_.Script()](ScriptedStream& stream, const std::string* message) mutable {
        inner(stream, message);
        v1::PutReply stray;
        stray.mutable_taken();
        stream.Deliver(stray);
      });
  auto call = Start();
  const absl::Status status = call.ok() ? (*call)->Finish()[0].status : call.status();
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(PutCallTest, CancelFromAnotherThreadEndsFinish) {
  scripted_.connection->scripts.push_back(
      [inner = server_.Script()](ScriptedStream& stream, const std::string* message) mutable {
        if (message != nullptr) inner(stream, message);  // the half-close is never answered
      });
  auto call = Start();
  ASSERT_THAT(call, IsOk());
  std::thread other([&] { (*call)->Cancel(); });
  for (const PutOutcome& outcome : (*call)->Finish()) {
    EXPECT_THAT(outcome.status, StatusIs(absl::StatusCode::kCancelled));
  }
  other.join();
}

TEST_F(PutCallTest, RefusesDescriptorsOutOfRange) {
  const ObjectDescriptor good = {objects_[0].key(), 2, 128};
  const auto start = [&](ObjectDescriptor object) {
    return PutCall::Start(scripted_.core, {&object, 1}, absl::InfiniteFuture()).status();
  };
  ObjectDescriptor bad = good;
  bad.num_layers = 0;
  EXPECT_THAT(start(bad), StatusIs(absl::StatusCode::kInvalidArgument));
  bad.num_layers = kMaxLayers + 1;
  EXPECT_THAT(start(bad), StatusIs(absl::StatusCode::kInvalidArgument));
  bad = good;
  bad.frame_bytes = 100;
  EXPECT_THAT(start(bad), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(PutCall::Start(scripted_.core, {}, absl::InfiniteFuture()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(scripted_.connection->num_calls, 0);
}

}  // namespace
}  // namespace pkv
