#include "client/shm_get.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/scripted_connection.h"
#include "tests/support/scripted_shm_server.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

class ShmGetTest : public testing::Test {
 protected:
  ShmGetTest() {
    objects_.push_back(MakeTestTable(1));
    objects_.push_back(MakeTestBlock(2, 2));
    for (const SealedObject& object : objects_) {
      keys_.push_back(object.key());
      server_.Add(object);
    }
    scripted_.connection->open_handoff = [this](const v1::HandoffOpenRequest&,
                                                v1::HandoffOpenResponse& response) {
      *response.mutable_shm() = server_.Offer();
      return absl::OkStatus();
    };
  }

  std::unique_ptr<ShmGet> Start(Transport transport = Transport::kAuto) {
    scripted_.core->options.transport = transport;
    return std::make_unique<ShmGet>(
        scripted_.core, keys_,
        scripted_.core->clock->MonotonicNow() + scripted_.core->options.get_deadline,
        scripted_.core->Record(CallMethod::kGet));
  }

  // Gets that ended with `code`.
  uint64_t Ended(absl::StatusCode code) const {
    return scripted_.core->options.statistics->Read(CallMethod::kGet)
        .ended[static_cast<size_t>(code)];
  }

  // gRPC serves the objects from now on.
  void ServeOverGrpc() {
    scripted_.connection->scripts.push_back([this](ScriptedStream& stream, const std::string* m) {
      if (m == nullptr) return;
      for (const v1::DataFrame& frame : GetFrames(objects_, 1500)) stream.Deliver(frame);
      stream.End(absl::OkStatus());
    });
  }

  void ExpectAllBytes(GetStream& stream) {
    for (int i = 0; i < stream.num_objects(); ++i) {
      EXPECT_EQ(stream.header(i), objects_[i].header);
      for (int layer = 0; layer < objects_[i].header.num_layers; ++layer) {
        EXPECT_TRUE(std::ranges::equal(stream.frame(i, layer), objects_[i].frame(layer)));
      }
      const AlignedBuffer taken = stream.TakeObject(i);
      EXPECT_TRUE(std::ranges::equal(taken.span(), objects_[i].bytes()));
    }
  }

  const CounterSet& counters() const { return scripted_.core->counters; }

  ScriptedCore scripted_ = MakeScriptedCore();
  ScriptedShmServer server_{"get"};
  std::vector<SealedObject> objects_;
  std::vector<ObjectKey> keys_;
};

TEST_F(ShmGetTest, ReadsInPlaceAndGivesBackWhenDestroyed) {
  auto get = Start();
  ASSERT_THAT(get->WaitForAll(), IsOk());
  ExpectAllBytes(*get);
  EXPECT_THAT(get->CheckHeld(), IsOk());
  uint64_t frame_bytes = 0;
  for (const SealedObject& object : objects_)
    frame_bytes += object.bytes().size() - object.head().size();
  EXPECT_EQ(get->received_bytes(), frame_bytes);
  EXPECT_EQ(counters().shm_get_bytes, frame_bytes);
  EXPECT_EQ(counters().grpc_get_bytes, 0u);
  EXPECT_EQ(counters().shm_gets, 1u);
  EXPECT_EQ(counters().shm_fallbacks, 0u);
  EXPECT_EQ(scripted_.connection->num_calls, 0) << "gRPC carried payload";
  EXPECT_EQ(server_.Count(v1::ShmMessage::kUnpin), 0);
  get.reset();
  EXPECT_TRUE(server_.WaitFor(v1::ShmMessage::kUnpin, 1));
  EXPECT_EQ(Ended(absl::StatusCode::kOk), 1u);
}

TEST_F(ShmGetTest, FramesPointIntoTheArena) {
  auto get = Start();
  ASSERT_THAT(get->WaitForLayer(0), IsOk());
  const auto link = scripted_.core->shm->Link(absl::InfiniteFuture()).value();
  const std::span<const std::byte> frame = get->frame(1, 0), arena = link->arena();
  EXPECT_GE(frame.data(), arena.data());
  EXPECT_LE(frame.data() + frame.size(), arena.data() + arena.size());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(frame.data()) % kFrameAlignment, 0u);
}

TEST_F(ShmGetTest, AWrongByteIsDataLossAndReported) {
  server_.Damage(objects_[1], objects_[1].bytes().size() - 5);
  for (const Transport transport : {Transport::kAuto, Transport::kShm}) {
    auto get = Start(transport);
    EXPECT_THAT(get->WaitForLayer(0), IsOk());
    EXPECT_THAT(get->WaitForLayer(1), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("object 1")));
    EXPECT_THAT(get->WaitForAll(), StatusIs(absl::StatusCode::kDataLoss));
  }
  EXPECT_EQ(counters().integrity_failures, 2u);
  EXPECT_TRUE(server_.WaitFor(v1::ShmMessage::kDamaged, 2));
  EXPECT_TRUE(server_.WaitFor(v1::ShmMessage::kUnpin, 2));
  EXPECT_EQ(Ended(absl::StatusCode::kDataLoss), 2u);
}

TEST_F(ShmGetTest, ADamagedHeadIsDataLoss) {
  server_.Damage(objects_[0], 50);
  EXPECT_THAT(Start()->WaitForManifest(), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(ShmGetTest, BytesOfAnotherObjectAreDataLoss) {
  server_.extent_shift = 4096;
  EXPECT_THAT(Start()->WaitForManifest(), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(ShmGetTest, MissIsNotFoundAndNamesTheObject) {
  keys_.push_back(MakeTestWindow(99, 9).key());
  EXPECT_THAT(Start()->WaitForManifest(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("object 2")));
  EXPECT_EQ(counters().failures, 0u);
  EXPECT_TRUE(server_.WaitFor(v1::ShmMessage::kUnpin, 1));
}

TEST_F(ShmGetTest, LayerOutOfRangeIsInvalid) {
  auto get = Start();
  EXPECT_THAT(get->WaitForLayer(-1), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(get->WaitForLayer(2), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(get->WaitForLayer(1), IsOk());
}

TEST_F(ShmGetTest, NumberOfKeysIsBounded) {
  keys_.clear();
  EXPECT_THAT(Start()->WaitForAll(), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ShmGetTest, AutoGoesOverGrpcWhenPinningIsRefused) {
  server_.pin_code = static_cast<int>(absl::StatusCode::kResourceExhausted);
  ServeOverGrpc();
  auto get = Start();
  ASSERT_THAT(get->WaitForAll(), IsOk());
  EXPECT_THAT(get->CheckHeld(), IsOk());
  ExpectAllBytes(*get);
  EXPECT_EQ(counters().shm_fallbacks, 1u);
  EXPECT_EQ(counters().shm_gets, 0u);
  get.reset();
  EXPECT_EQ(Ended(absl::StatusCode::kOk), 1u) << "one call, whatever it went over";
  EXPECT_EQ(Ended(absl::StatusCode::kCancelled), 0u);
}

TEST_F(ShmGetTest, AutoGoesOverGrpcWithoutAnOffer) {
  scripted_.connection->open_handoff = nullptr;
  ServeOverGrpc();
  auto get = Start();
  ASSERT_THAT(get->WaitForAll(), IsOk());
  ExpectAllBytes(*get);
  EXPECT_EQ(counters().shm_fallbacks, 0u) << "nothing was offered";
}

TEST_F(ShmGetTest, AutoGoesOverGrpcWhenTheOfferIsOfAnotherServerOrForAnotherHost) {
  v1::ShmOffer wrong_token = server_.Offer(), wrong_host = wrong_token, nobody = wrong_token;
  wrong_token.set_token(std::string(kShmTokenBytes, 'x'));
  wrong_host.set_host_id("another");
  nobody.set_socket_path("/tmp/pkv_shm_nobody");
  for (const v1::ShmOffer& offer : {wrong_token, wrong_host, nobody}) {
    ScriptedCore scripted = MakeScriptedCore();
    std::swap(scripted, scripted_);
    scripted_.connection->open_handoff = [&](const v1::HandoffOpenRequest&,
                                             v1::HandoffOpenResponse& response) {
      *response.mutable_shm() = offer;
      return absl::OkStatus();
    };
    ServeOverGrpc();
    auto get = Start();
    ASSERT_THAT(get->WaitForAll(), IsOk()) << offer.ShortDebugString();
    ExpectAllBytes(*get);
    EXPECT_EQ(counters().shm_gets, 0u);
  }
}

TEST_F(ShmGetTest, ShmWithoutAnOfferIsAnError) {
  scripted_.connection->open_handoff = nullptr;
  EXPECT_THAT(Start(Transport::kShm)->WaitForAll(),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(scripted_.connection->num_calls, 0);
}

TEST_F(ShmGetTest, ShmThatFailsIsTriedAgainAndThenUnavailable) {
  int num_opens = 0;
  scripted_.connection->open_handoff = [&](const v1::HandoffOpenRequest&,
                                           v1::HandoffOpenResponse&) {
    ++num_opens;
    return absl::UnavailableError("away");
  };
  EXPECT_THAT(Start(Transport::kShm)->WaitForAll(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(counters().retries, static_cast<uint64_t>(scripted_.core->options.max_attempts - 1));
}

// Before a frame was seen a lost pin is as if there had been none; afterwards the caller must know.
TEST_F(ShmGetTest, ALostPinBeforeTheFirstLayerGoesOverGrpc) {
  ServeOverGrpc();
  auto get = Start();
  ASSERT_THAT(get->WaitForManifest(), IsOk());
  server_.Disconnect();
  ASSERT_THAT(get->WaitForAll(), IsOk());
  ExpectAllBytes(*get);
  EXPECT_EQ(counters().shm_fallbacks, 1u);
}

// What the caller learned from the manifest stays true, or it is told.
TEST_F(ShmGetTest, OtherObjectsOverGrpcThanWereShownAreAborted) {
  auto get = Start();
  ASSERT_THAT(get->WaitForManifest(), IsOk());
  const ObjectHeader& shown = get->header(1);
  const ObjectHeader copy = shown;
  server_.Disconnect();
  objects_[1] = MakeTestBlock(2, 2, objects_[0].header.id);
  ASSERT_EQ(objects_[1].key(), keys_[1]);
  ServeOverGrpc();
  EXPECT_THAT(get->WaitForLayer(0), StatusIs(absl::StatusCode::kAborted, HasSubstr("object 1")));
  EXPECT_EQ(shown, copy);
}

TEST_F(ShmGetTest, ALostPinAfterALayerIsAborted) {
  ServeOverGrpc();
  auto get = Start();
  ASSERT_THAT(get->WaitForLayer(0), IsOk());
  server_.Disconnect();
  EXPECT_THAT(get->CheckHeld(), StatusIs(absl::StatusCode::kAborted));
  EXPECT_THAT(get->WaitForLayer(1), StatusIs(absl::StatusCode::kAborted));
  EXPECT_THAT(get->WaitForAll(), StatusIs(absl::StatusCode::kAborted));
}

TEST_F(ShmGetTest, CancelEndsAWaitForTheServer) {
  server_.answers_pins = false;
  auto get = Start(Transport::kShm);
  std::thread canceller([&] {
    EXPECT_TRUE(server_.WaitFor(v1::ShmMessage::kPin, 1));
    get->Cancel();
  });
  EXPECT_THAT(get->WaitForAll(), StatusIs(absl::StatusCode::kCancelled));
  canceller.join();
  EXPECT_EQ(counters().failures, 0u);
}

TEST_F(ShmGetTest, CancelledBeforeItsBeginningDoesNothing) {
  auto get = Start();
  get->Cancel();
  EXPECT_THAT(get->WaitForManifest(), StatusIs(absl::StatusCode::kCancelled));
  EXPECT_TRUE(server_.received().empty());
}

TEST_F(ShmGetTest, OutlivesTheClientAndItsFramesStayMapped) {
  auto get = Start();
  ASSERT_THAT(get->WaitForAll(), IsOk());
  scripted_.core.reset();
  ExpectAllBytes(*get);
}

}  // namespace
}  // namespace pkv
