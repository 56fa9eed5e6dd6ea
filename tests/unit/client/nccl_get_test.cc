#include "client/nccl_get.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "tests/support/scripted_pair_holder.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr int kLayers = 4;
constexpr uint64_t kFrameBytes = uint64_t{1} << 20;

// Against a holder whose GPU is a fake; device memory is host memory here.
class NcclGetTest : public testing::Test {
 protected:
  NcclGetTest() {
    for (uint64_t id = 1; id <= 2; ++id) {
      ObjectHeader header = TestHeader(ObjectKind::kWindow, id, kLayers);
      header.num_tokens = kMaxWindowTokens;
      holder_.objects.push_back(SealTestObject(header, static_cast<uint32_t>(id), 4096));
      keys_.push_back(holder_.objects.back().key());
    }
    holder_.Serve(*scripted_.connection);
    scripted_.core->scratch = std::make_unique<DeviceScratch>(calls_, uint64_t{64} << 20);
    scripted_.core->nccl = std::make_unique<NcclDialer>(scripted_.connection, FakePort(calls_, 2),
                                                        scripted_.core->clock);
  }

  std::unique_ptr<NcclGet> Start(Transport transport = Transport::kNccl) {
    scripted_.core->options.transport = transport;
    return std::make_unique<NcclGet>(
        scripted_.core, keys_,
        scripted_.core->clock->MonotonicNow() + scripted_.core->options.get_deadline,
        scripted_.core->Record(CallMethod::kGet));
  }
  // As Start(kAuto), with the pair there.
  std::unique_ptr<NcclGet> StartPaired() {
    EXPECT_THAT(scripted_.core->nccl->Link(absl::InfiniteFuture()), IsOk());
    return Start(Transport::kAuto);
  }
  void ServeOverGrpc() {
    scripted_.connection->scripts.push_back([this](ScriptedStream& stream, const std::string* m) {
      if (m == nullptr) return;
      v1::GetRequest request;
      PKV_CHECK(request.ParseFromString(*m));
      grpc_first_layer_ = static_cast<int>(request.layer_begin());
      for (const v1::DataFrame& frame : GetFrames(holder_.objects, 1 << 20, grpc_first_layer_)) {
        stream.Deliver(frame);
      }
      stream.End(absl::OkStatus());
    });
  }
  void ExpectFrames(const GetStream& stream) {
    for (int i = 0; i < stream.num_objects(); ++i) {
      for (int layer = 0; layer < kLayers; ++layer) {
        EXPECT_TRUE(std::ranges::equal(stream.frame(i, layer), holder_.objects[i].frame(layer)))
            << i << " " << layer;
      }
    }
  }
  const CounterSet& counters() const { return scripted_.core->counters; }
  MethodStatistics Counted() const {
    return scripted_.core->options.statistics->Read(CallMethod::kGet);
  }

  ScriptedPairHolder holder_;
  std::shared_ptr<FakePairCalls> calls_ = std::make_shared<FakePairCalls>(holder_.link, nullptr);
  ScriptedCore scripted_ = MakeScriptedCore();
  std::vector<ObjectKey> keys_;
  int grpc_first_layer_ = -1;
};

TEST_F(NcclGetTest, BringsFramesToThePlacesNamedAndTheOthersAnywhere) {
  auto get = Start();
  ASSERT_THAT(get->WaitForManifest(), IsOk());
  EXPECT_EQ(get->header(1), holder_.objects[1].header);
  std::vector<std::byte> pages(kLayers * kFrameBytes + 16);
  std::byte* const first =
      pages.data() + (16 - reinterpret_cast<uintptr_t>(pages.data()) % 16) % 16;
  std::vector<std::byte*> places(2 * kLayers);
  for (int layer = 0; layer < kLayers; ++layer)
    places[kLayers + layer] = first + layer * kFrameBytes;
  get->PlaceFrames(places);
  ASSERT_THAT(get->WaitForAll(), IsOk());
  ExpectFrames(*get);
  for (int layer = 0; layer < kLayers; ++layer) {
    EXPECT_TRUE(get->is_on_device(layer));
    EXPECT_EQ(get->frame(1, layer).data(), places[kLayers + layer]);
  }
  EXPECT_THAT(get->CheckHeld(), IsOk());
  EXPECT_THAT(get->ReleasePlaces(), IsOk());
  EXPECT_EQ(get->received_bytes(), 2 * kLayers * kFrameBytes);
  EXPECT_EQ(counters().nccl_gets, 1u);
  EXPECT_EQ(counters().nccl_get_bytes, 2 * kLayers * kFrameBytes);
  EXPECT_EQ(counters().grpc_get_bytes, 0u);
  EXPECT_EQ(Counted().ended[static_cast<size_t>(absl::StatusCode::kOk)], 1u);
  EXPECT_EQ(Counted().in_flight, 0u);
  EXPECT_EQ(counters().nccl_fallbacks, 0u);
}

TEST_F(NcclGetTest, OneGetFollowsAnotherOverTheSamePair) {
  for (int i = 0; i < 3; ++i) {
    auto get = Start();
    ASSERT_THAT(get->WaitForAll(), IsOk()) << i;
    ExpectFrames(*get);
  }
  EXPECT_EQ(counters().nccl_gets, 3u);
  EXPECT_EQ(holder_.requests.front().kind_case(), v1::PairRequest::kHello);
  EXPECT_EQ(holder_.requests.size(), 1u + 3) << "a hello, then a fetch of each";
}

// The holder sends, and as many groups come as the pair has staging for, before anybody says where
// they are to lie.
TEST_F(NcclGetTest, TheTransferBeginsWithTheManifest) {
  auto get = Start();
  ASSERT_THAT(get->WaitForManifest(), IsOk());
  const absl::Time end = Clock::Real()->MonotonicNow() + absl::Seconds(20);
  while (calls_->num_begins() < 1 + 3 && Clock::Real()->MonotonicNow() < end) {
    std::this_thread::yield();
  }
  EXPECT_EQ(calls_->num_begins(), 1 + 3) << "the greeting and three groups";
  get->PlaceFrames({});
  ASSERT_THAT(get->WaitForAll(), IsOk());
  ExpectFrames(*get);
}

TEST_F(NcclGetTest, WhatAPairThatBreaksDidNotBringComesOverGrpc) {
  ServeOverGrpc();
  // The greeting is send 0, a group of a frame each one more: layers 0 and 1 leave.
  holder_.calls->faults.failing_begin = 1 + 2 * 2;
  auto get = StartPaired();
  ASSERT_THAT(get->WaitForLayer(1), IsOk());
  EXPECT_THAT(holder_.Join(), StatusIs(absl::StatusCode::kUnavailable));
  // As when its process ends: the control connection breaks too.
  holder_.stream->End(absl::UnavailableError("killed"));
  for (int layer = 2; layer < kLayers; ++layer) EXPECT_THAT(get->WaitForLayer(layer), IsOk());
  EXPECT_TRUE(get->is_on_device(1));
  EXPECT_FALSE(get->is_on_device(2));
  EXPECT_EQ(grpc_first_layer_, 2);
  ExpectFrames(*get);
  EXPECT_THAT(get->WaitForLayer(0), IsOk());
  EXPECT_EQ(counters().nccl_fallbacks, 1u);
  EXPECT_EQ(counters().nccl_gets, 0u);
  EXPECT_EQ(counters().nccl_get_bytes, 2 * 2 * kFrameBytes) << "those that came";
  EXPECT_EQ(Counted().ended[static_cast<size_t>(absl::StatusCode::kOk)], 1u);
  EXPECT_EQ(Counted().in_flight, 0u);
}

TEST_F(NcclGetTest, WhatWasReplacedBeforeGrpcWentOnIsAborted) {
  ServeOverGrpc();
  holder_.calls->faults.failing_begin = 1 + 2 * 2;
  auto get = StartPaired();
  ASSERT_THAT(get->WaitForLayer(1), IsOk());
  EXPECT_THAT(holder_.Join(), StatusIs(absl::StatusCode::kUnavailable));
  ObjectHeader other = holder_.objects[1].header;
  other.num_tokens -= 1;
  holder_.objects[1] = SealTestObject(other, 7, 4096);
  ASSERT_EQ(holder_.objects[1].key(), keys_[1]);
  holder_.stream->End(absl::UnavailableError("killed"));
  EXPECT_THAT(get->WaitForLayer(2), StatusIs(absl::StatusCode::kAborted, HasSubstr("object 1")));
  EXPECT_THAT(get->CheckHeld(), StatusIs(absl::StatusCode::kAborted)) << "layers 0 and 1 too";
}

TEST_F(NcclGetTest, WhatWasReplacedByOtherFramesUnderAnEqualHeaderIsAbortedToo) {
  ServeOverGrpc();
  holder_.calls->faults.failing_begin = 1 + 2 * 2;
  auto get = StartPaired();
  ASSERT_THAT(get->WaitForLayer(1), IsOk());
  EXPECT_THAT(holder_.Join(), StatusIs(absl::StatusCode::kUnavailable));
  const ObjectHeader header = holder_.objects[1].header;
  holder_.objects[1] = SealTestObject(header, 7, 4096);
  ASSERT_EQ(holder_.objects[1].header, header);
  holder_.stream->End(absl::UnavailableError("killed"));
  EXPECT_THAT(get->WaitForLayer(2), StatusIs(absl::StatusCode::kAborted, HasSubstr("object 1")));
  EXPECT_THAT(get->CheckHeld(), StatusIs(absl::StatusCode::kAborted)) << "layers 0 and 1 too";
}

TEST_F(NcclGetTest, ObjectsOfUnequalLayersComeOverGrpc) {
  ServeOverGrpc();
  ObjectHeader taller = holder_.objects[1].header;
  taller.num_layers = kLayers + 1;
  holder_.objects[1] = SealTestObject(taller, 7, 4096);
  auto get = StartPaired();
  EXPECT_THAT(get->WaitForLayer(kLayers), IsOk()) << "of one alone";
  EXPECT_FALSE(get->is_on_device(0));
  EXPECT_THAT(get->WaitForAll(), IsOk());
  ExpectFrames(*get);
  // What came nevertheless was dropped.
  EXPECT_THAT(holder_.Join(), IsOk());
  EXPECT_FALSE(scripted_.core->nccl->Link(absl::InfinitePast()).value()->broken());
}

TEST_F(NcclGetTest, WithNothingButNcclAPairThatBreaksIsAnError) {
  holder_.calls->faults.failing_begin = 1;
  auto get = Start();
  ASSERT_THAT(get->WaitForManifest(), IsOk());
  holder_.stream->End(absl::UnavailableError("killed"));
  EXPECT_THAT(get->WaitForLayer(0), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(counters().failures, 1u);
}

TEST_F(NcclGetTest, AHolderThatStandsStillEndsInTimeAndGrpcGoesOn) {
  ServeOverGrpc();
  holder_.calls->faults.hanging_begin = 1;
  auto get = StartPaired();
  EXPECT_THAT(get->WaitForAll(), IsOk());  // within the stall bound, a second
  EXPECT_EQ(grpc_first_layer_, 0);
  ExpectFrames(*get);
  EXPECT_EQ(counters().nccl_fallbacks, 1u);
}

TEST_F(NcclGetTest, ADamagedFrameIsDataLossThatTheServerHearsOf) {
  calls_->faults.corrupt_begin = 1 + 1;  // object 1 of layer 0
  auto get = StartPaired();
  EXPECT_THAT(get->WaitForLayer(0),
              StatusIs(absl::StatusCode::kDataLoss, testing::HasSubstr("object 1")));
  EXPECT_EQ(holder_.requests.back().damaged().object_index(), 1u);
  EXPECT_EQ(counters().integrity_failures, 1u);
  EXPECT_EQ(counters().nccl_fallbacks, 0u);
}

TEST_F(NcclGetTest, WhatIsNotStoredIsNotFoundAndThePairStays) {
  const ObjectKey missing = MakeTestWindow(9, 9).key();
  std::swap(keys_[1], const_cast<ObjectKey&>(missing));
  EXPECT_THAT(Start()->WaitForManifest(), StatusIs(absl::StatusCode::kNotFound));
  std::swap(keys_[1], const_cast<ObjectKey&>(missing));
  EXPECT_THAT(Start()->WaitForAll(), IsOk());
}

TEST_F(NcclGetTest, WhileThePairIsBeingMadeGrpcIsUsedAndNothingCounted) {
  scripted_.connection->scripts.pop_back();
  ServeOverGrpc();
  scripted_.connection->open_handoff = nullptr;
  auto get = Start(Transport::kAuto);
  EXPECT_THAT(get->WaitForAll(), IsOk());
  ExpectFrames(*get);
  EXPECT_FALSE(get->is_on_device(0));
  EXPECT_TRUE(std::ranges::equal(get->TakeObject(0).span(), holder_.objects[0].bytes()));
  EXPECT_EQ(counters().nccl_fallbacks, 0u);
}

TEST_F(NcclGetTest, WithNothingButNcclAServerWithoutItIsAnError) {
  scripted_.connection->open_handoff = nullptr;
  EXPECT_THAT(Start()->WaitForManifest(), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(NcclGetTest, ARefusalOfTheServerIsAFallback) {
  ServeOverGrpc();
  holder_.refusal.set_code(static_cast<int>(absl::StatusCode::kResourceExhausted));
  auto get = StartPaired();
  EXPECT_THAT(get->WaitForAll(), IsOk());
  EXPECT_EQ(counters().nccl_fallbacks, 1u);
}

TEST_F(NcclGetTest, WhateverKeepsAPairFromBeingMadeGrpcIsUsed) {
  ServeOverGrpc();
  calls_->faults.begin_init = absl::InternalError("NCCL finds no network");
  ASSERT_THAT(scripted_.core->nccl->Link(absl::InfiniteFuture()),
              StatusIs(absl::StatusCode::kInternal));
  auto get = Start(Transport::kAuto);
  ASSERT_THAT(get->WaitForAll(), IsOk());
  ExpectFrames(*get);
  EXPECT_EQ(counters().failures, 0u);
}

TEST_F(NcclGetTest, AnAnswerThatMakesNoSenseIsAFallback) {
  ServeOverGrpc();
  holder_.on_fetch = [](ScriptedStream& stream) {
    v1::PairReply reply;
    reply.mutable_manifest();
    stream.Deliver(reply);
  };
  auto get = StartPaired();
  EXPECT_THAT(get->WaitForAll(), IsOk());
  EXPECT_EQ(counters().nccl_fallbacks, 1u);
  EXPECT_EQ(counters().integrity_failures, 0u);
}

TEST_F(NcclGetTest, WithoutDeviceMemoryGrpcIsUsed) {
  ServeOverGrpc();
  scripted_.core->scratch = std::make_unique<DeviceScratch>(calls_, kFrameBytes);
  auto get = StartPaired();
  EXPECT_THAT(get->WaitForAll(), IsOk());
  EXPECT_EQ(counters().nccl_fallbacks, 1u);
  // What came nevertheless was dropped, and the pair is as it was.
  get.reset();
  scripted_.core->scratch = std::make_unique<DeviceScratch>(calls_, uint64_t{64} << 20);
  get = StartPaired();
  EXPECT_THAT(get->WaitForAll(), IsOk());
  EXPECT_TRUE(get->is_on_device(0));
  ExpectFrames(*get);
}

TEST_F(NcclGetTest, ACancelledGetEndsAndLeavesThePairToTheNext) {
  auto get = Start();
  ASSERT_THAT(get->WaitForManifest(), IsOk());
  get->PlaceFrames({});
  get->Cancel();
  EXPECT_THAT(get->WaitForLayer(kLayers - 1),
              testing::AnyOf(IsOk(), StatusIs(absl::StatusCode::kCancelled)));
  get.reset();
  EXPECT_THAT(Start()->WaitForAll(), IsOk());
}

TEST_F(NcclGetTest, AGetThatIsDroppedBeforeItsTransferLeavesThePairToTheNext) {
  ASSERT_THAT(Start()->WaitForManifest(), IsOk());
  EXPECT_THAT(Start()->WaitForAll(), IsOk());
}

TEST_F(NcclGetTest, AGpuThatGoesOnWritingIsInternalToWhoeverReleasesThePlaces) {
  calls_->faults.hanging_begin = 1;
  calls_->faults.kernels_survive_abort = true;
  auto get = StartPaired();
  EXPECT_THAT(get->WaitForAll(), StatusIs(absl::StatusCode::kInternal));
  EXPECT_THAT(get->ReleasePlaces(), StatusIs(absl::StatusCode::kInternal));
}

// Beside the server's holder, a prefill worker's with the same objects.
class DirectGetTest : public NcclGetTest {
 protected:
  DirectGetTest() {
    auto connection = std::make_unique<ScriptedConnection>();
    for (const SealedObject& object : holder_.objects) {
      direct_holder_.objects.push_back(Copy(object));
    }
    direct_holder_.Serve(*connection);
    direct_connection_ = connection.get();
    direct_ = std::make_shared<DirectPeer>(std::move(connection), FakePort(calls_, 2),
                                           scripted_.core->clock);
  }
  static SealedObject Copy(const SealedObject& object) {
    AlignedBuffer buffer(object.bytes().size());
    std::ranges::copy(object.bytes(), buffer.span().begin());
    return {object.header, std::move(buffer)};
  }
  std::unique_ptr<NcclGet> StartDirect(Transport transport = Transport::kAuto) {
    scripted_.core->options.transport = transport;
    return std::make_unique<NcclGet>(
        scripted_.core, keys_,
        scripted_.core->clock->MonotonicNow() + scripted_.core->options.get_deadline,
        scripted_.core->Record(CallMethod::kGet), direct_);
  }
  // Everything has come, and is counted.
  void ExpectWhole(NcclGet& get) {
    ASSERT_THAT(get.WaitForAll(), IsOk());
    ExpectFrames(get);
    EXPECT_THAT(get.ReleasePlaces(), IsOk());
  }
  void PairDirectly() { EXPECT_THAT(direct_->dialer.Link(absl::InfiniteFuture()), IsOk()); }
  void PairWithServer() { EXPECT_THAT(scripted_.core->nccl->Link(absl::InfiniteFuture()), IsOk()); }
  // The prefill worker answers the fetch with this, and the server's pair brings everything.
  void ExpectFallbackAfter(absl::StatusCode refusal) {
    PairDirectly();
    PairWithServer();
    direct_holder_.refusal.set_code(static_cast<int>(refusal));
    auto get = StartDirect();
    ExpectWhole(*get);
    EXPECT_EQ(counters().direct_fallbacks, 1u);
    EXPECT_EQ(counters().nccl_gets, 1u);
  }

  ScriptedPairHolder direct_holder_{holder_.link};
  ScriptedConnection* direct_connection_ = nullptr;
  std::shared_ptr<DirectPeer> direct_;
};

TEST_F(DirectGetTest, ComesFromThePrefillWorkerAndTheServerIsNotAsked) {
  PairDirectly();
  auto get = StartDirect();
  ExpectWhole(*get);
  EXPECT_TRUE(get->is_on_device(0));
  EXPECT_EQ(scripted_.connection->num_calls, 0);
  EXPECT_EQ(counters().direct_gets, 1u);
  EXPECT_EQ(counters().direct_get_bytes, 2 * kLayers * kFrameBytes);
  EXPECT_EQ(counters().nccl_gets + counters().nccl_get_bytes, 0u);
  EXPECT_EQ(Counted().ended[static_cast<size_t>(absl::StatusCode::kOk)], 1u);
}

TEST_F(DirectGetTest, WhileThePairIsBeingMadeTheServersIsUsed) {
  PairWithServer();
  auto get = StartDirect();
  ExpectWhole(*get);
  EXPECT_EQ(counters().nccl_gets, 1u);
  EXPECT_EQ(counters().direct_fallbacks, 0u);
  // It was made meanwhile.
  PairDirectly();
  ExpectWhole(*StartDirect());
  EXPECT_EQ(counters().direct_gets, 1u);
}

TEST_F(DirectGetTest, WhatThePrefillWorkerHasNoMoreIsAskedOfTheServer) {
  PairDirectly();
  PairWithServer();
  direct_holder_.objects.pop_back();
  auto get = StartDirect();
  ExpectWhole(*get);
  EXPECT_EQ(counters().nccl_gets, 1u);
  EXPECT_EQ(counters().direct_fallbacks, 0u) << "no failure";
  EXPECT_EQ(counters().failures, 0u);
}

TEST_F(DirectGetTest, AndOfGrpcWhereTheServerHasNoGpu) {
  ServeOverGrpc();
  scripted_.connection->scripts.pop_front();  // the holder's
  scripted_.connection->open_handoff = nullptr;
  PairDirectly();
  direct_holder_.objects.pop_back();
  auto get = StartDirect();
  ExpectWhole(*get);
  EXPECT_EQ(counters().direct_fallbacks + counters().nccl_fallbacks, 0u);
}

TEST_F(DirectGetTest, ARefusalOfThePrefillWorkerIsAFallback) {
  ExpectFallbackAfter(absl::StatusCode::kDataLoss);
}

TEST_F(DirectGetTest, APrefillWorkersCodeCannotCancelTheGet) {
  ExpectFallbackAfter(absl::StatusCode::kCancelled);
}

TEST_F(DirectGetTest, OthersThatHaveTheirTurnAreNoFallback) {
  PairDirectly();
  PairWithServer();
  const auto link = *direct_->dialer.Link(absl::InfinitePast());
  const std::atomic<bool> never = false;
  auto turn = link->TakeTurn(absl::InfiniteFuture(), never);
  ASSERT_THAT(turn, IsOk());
  auto get = StartDirect();
  ExpectWhole(*get);
  EXPECT_EQ(counters().nccl_gets, 1u);
  EXPECT_EQ(counters().direct_fallbacks, 0u);
}

TEST_F(DirectGetTest, LetsGoOfThePrefillWorkerOnceItBringsNoMore) {
  scripted_.connection->scripts.clear();
  ServeOverGrpc();
  direct_holder_.calls->faults.failing_begin = 1 + 2 * 2;
  PairDirectly();
  auto get = StartDirect();
  ASSERT_THAT(get->WaitForLayer(1), IsOk());
  EXPECT_THAT(direct_holder_.Join(), StatusIs(absl::StatusCode::kUnavailable));
  direct_holder_.stream->End(absl::UnavailableError("killed"));
  EXPECT_GT(direct_.use_count(), 1);
  ExpectWhole(*get);
  EXPECT_EQ(direct_.use_count(), 1);
}

TEST_F(DirectGetTest, APrefillWorkerThatAnswersNoMoreIsAFallbackInTime) {
  PairDirectly();
  PairWithServer();
  direct_holder_.on_fetch = [](ScriptedStream&) {};
  auto get = StartDirect();
  ExpectWhole(*get);
  EXPECT_EQ(counters().direct_fallbacks, 1u);
}

TEST_F(DirectGetTest, WhatATransferThatBreaksDidNotBringComesFromTheServer) {
  scripted_.connection->scripts.clear();
  ServeOverGrpc();
  direct_holder_.calls->faults.failing_begin = 1 + 2 * 2;
  PairDirectly();
  auto get = StartDirect();
  ASSERT_THAT(get->WaitForLayer(1), IsOk());
  EXPECT_THAT(direct_holder_.Join(), StatusIs(absl::StatusCode::kUnavailable));
  direct_holder_.stream->End(absl::UnavailableError("killed"));
  ASSERT_THAT(get->WaitForAll(), IsOk());
  EXPECT_TRUE(get->is_on_device(1));
  EXPECT_FALSE(get->is_on_device(2));
  EXPECT_EQ(grpc_first_layer_, 2);
  ExpectFrames(*get);
  EXPECT_EQ(counters().direct_fallbacks, 1u);
  EXPECT_EQ(counters().direct_gets, 0u);
  EXPECT_EQ(counters().direct_get_bytes, 2 * 2 * kFrameBytes);
}

TEST_F(DirectGetTest, WhatIsDamagedOnTheWayComesFromTheServerAndIsReported) {
  scripted_.connection->scripts.clear();
  ServeOverGrpc();
  calls_->faults.corrupt_begin = 1 + 2 * 1 + 1;  // object 1 of layer 1
  PairDirectly();
  auto get = StartDirect();
  ExpectWhole(*get);
  EXPECT_EQ(grpc_first_layer_, 1);
  EXPECT_EQ(direct_holder_.requests.back().damaged().object_index(), 1u);
  EXPECT_EQ(counters().integrity_failures, 1u);
  EXPECT_EQ(counters().direct_fallbacks, 1u);
}

TEST_F(DirectGetTest, BytesOfAnotherPrefillUnderEqualKeysEndTheGet) {
  scripted_.connection->scripts.clear();
  ServeOverGrpc();
  ObjectHeader other = holder_.objects[1].header;
  other.num_tokens -= 1;
  holder_.objects[1] = SealTestObject(other, 7, 4096);
  direct_holder_.calls->faults.failing_begin = 1 + 2 * 2;
  PairDirectly();
  auto get = StartDirect();
  ASSERT_THAT(get->WaitForLayer(1), IsOk());
  direct_holder_.Join().IgnoreError();
  direct_holder_.stream->End(absl::UnavailableError("killed"));
  EXPECT_THAT(get->WaitForLayer(2), StatusIs(absl::StatusCode::kAborted));
}

TEST_F(DirectGetTest, WithNothingButNcclTheServersPairIsWaitedForInstead) {
  direct_connection_->open_handoff = nullptr;
  auto get = StartDirect(Transport::kNccl);
  ExpectWhole(*get);
  EXPECT_EQ(counters().nccl_gets, 1u);
}

}  // namespace
}  // namespace pkv
