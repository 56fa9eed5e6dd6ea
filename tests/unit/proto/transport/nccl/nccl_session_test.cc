#include "proto/transport/nccl/nccl_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <thread>
#include <vector>

#include "pkv/block/object_view.h"
#include "proto/base/sync.h"
#include "proto/transport/convert.h"
#include "proto/transport/nccl/nccl_offer.h"
#include "tests/support/fake_pair_calls.h"
#include "tests/support/fake_pair_source.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr uint64_t kGroupBytes = uint64_t{1} << 20;

NcclPort PortOf(std::shared_ptr<PairCalls> calls, int gpu) {
  NcclPort port{.calls = std::move(calls), .capability = {.nccl_version = 22809}};
  port.capability.device_uuid[0] = static_cast<std::byte>(gpu);
  return port;
}

// What a test says to a session, and what it says back.
class QueuedPeer : public PairPeer {
 public:
  void Say(const v1::PairRequest& request) {
    MutexLock lock(&mu_);
    requests_.push_back(request);
    changed_.SignalAll();
  }
  void Hangup() {
    MutexLock lock(&mu_);
    gone_ = true;
    changed_.SignalAll();
  }
  v1::PairReply Hear() {
    MutexLock lock(&mu_);
    while (replies_.empty()) changed_.Wait(&mu_);
    v1::PairReply reply = replies_.front();
    replies_.pop_front();
    return reply;
  }
  void Send(const v1::PairReply& reply) override {
    MutexLock lock(&mu_);
    replies_.push_back(reply);
    changed_.SignalAll();
  }
  absl::StatusOr<std::optional<v1::PairRequest>> Next(absl::Duration) override {
    MutexLock lock(&mu_);
    for (;;) {
      if (!requests_.empty()) {
        std::optional<v1::PairRequest> next = requests_.front();
        requests_.pop_front();
        return next;
      }
      if (gone_) return std::nullopt;
      changed_.Wait(&mu_);
    }
  }

 private:
  Mutex mu_;
  CondVar changed_;
  std::deque<v1::PairRequest> requests_ ABSL_GUARDED_BY(mu_);
  std::deque<v1::PairReply> replies_ ABSL_GUARDED_BY(mu_);
  bool gone_ ABSL_GUARDED_BY(mu_) = false;
};

class NcclSessionTest : public testing::Test {
 protected:
  void SetUp() override {
    for (uint64_t id = 1; id <= 3; ++id) {
      source_.objects.push_back(
          MakeTestWindow(id, static_cast<uint32_t>(id), static_cast<int>(id)));
    }
    shared_ = {
        .source = &source_, .offers = &offers_, .clock = Clock::Real(), .port = PortOf(calls_, 1)};
    shared_.limits.pair.group_bytes = kGroupBytes;
    shared_.limits.pair.abort_timeout = absl::Seconds(20);
    session_ = std::make_unique<NcclSession>(&shared_, &peer_);
    thread_ = std::thread([this] { ended_ = session_->Run(); });
  }
  void TearDown() override {
    End().IgnoreError();
    session_.reset();
    EXPECT_TRUE(calls_->IsSoonEmpty());
  }

  absl::Status End() {
    peer_.Hangup();
    if (thread_.joinable()) thread_.join();
    return ended_;
  }
  static v1::PairRequest Hello(int gpu) {
    v1::PairRequest request;
    *request.mutable_hello() = ToProto(PortOf(nullptr, gpu).capability);
    return request;
  }
  // The reader's end, opened as offered.
  void Pair() {
    peer_.Say(Hello(2));
    const auto offer = FromProto(peer_.Hear().offer());
    ASSERT_THAT(offer, IsOk());
    NcclPairOptions options{.group_bytes = offer->group_bytes};
    options.abort_timeout = absl::Seconds(20);
    reader_ = std::make_unique<NcclPair>(reader_calls_, options, Clock::Real());
    ASSERT_THAT(reader_->Open(offer->id, offer->rank), IsOk());
  }
  v1::PairManifest Fetch(const std::vector<ObjectKey>& keys) {
    v1::PairRequest request;
    for (const ObjectKey& key : keys) *request.mutable_fetch()->add_objects() = ToProto(key);
    peer_.Say(request);
    return peer_.Hear().manifest();
  }
  // True when every frame is the object's.
  bool ReceiveAll() {
    std::vector<std::vector<std::byte>> memory;
    std::vector<std::vector<DeviceSpan>> spans(2);
    std::vector<std::vector<uint32_t>> checksums(2);
    for (int layer = 0; layer < 2; ++layer) {
      for (const SealedObject& object : source_.objects) {
        memory.emplace_back(object.header.frame_bytes);
        spans[layer].push_back({memory.back().data(), memory.back().size()});
        checksums[layer].push_back(ObjectView::Parse(object.bytes())->frame_crc32c(layer));
      }
    }
    const std::vector<LayerSpans> layers = {{spans[0], checksums[0]}, {spans[1], checksums[1]}};
    return reader_->Receive(layers, {}, nullptr).ok();
  }
  std::vector<ObjectKey> Keys() const {
    std::vector<ObjectKey> keys;
    for (const SealedObject& object : source_.objects) keys.push_back(object.key());
    return keys;
  }

  std::shared_ptr<FakeLink> link_ = std::make_shared<FakeLink>();
  std::shared_ptr<FakePairCalls> calls_ = std::make_shared<FakePairCalls>(link_, nullptr);
  std::shared_ptr<FakePairCalls> reader_calls_ = std::make_shared<FakePairCalls>(link_, nullptr);
  FakePairSource source_;
  PairOffers offers_{Clock::Real()};
  NcclShared shared_;
  QueuedPeer peer_;
  std::unique_ptr<NcclSession> session_;
  std::unique_ptr<NcclPair> reader_;
  std::thread thread_;
  absl::Status ended_;
};

TEST_F(NcclSessionTest, SendsWhatWasFetched) {
  ASSERT_NO_FATAL_FAILURE(Pair());
  const v1::PairManifest manifest = Fetch(Keys());
  ASSERT_EQ(manifest.heads_size(), 3);
  EXPECT_TRUE(
      std::ranges::equal(std::as_bytes(std::span(manifest.heads(1))), source_.objects[1].head()));
  EXPECT_TRUE(ReceiveAll());
  EXPECT_THAT(End(), IsOk());
  EXPECT_EQ(source_.num_held, 0);
  EXPECT_EQ(source_.num_sent, 1);
}

TEST_F(NcclSessionTest, WhatIsMissingHasNoHeadAndNothingIsHeld) {
  ASSERT_NO_FATAL_FAILURE(Pair());
  std::vector<ObjectKey> keys = Keys();
  keys.push_back(MakeTestWindow(9, 9).key());
  const v1::PairManifest manifest = Fetch(keys);
  ASSERT_EQ(manifest.heads_size(), 4);
  EXPECT_FALSE(manifest.heads(0).empty());
  EXPECT_TRUE(manifest.heads(3).empty());
  EXPECT_EQ(manifest.code(), 0);
  EXPECT_EQ(source_.num_held, 0);
}

TEST_F(NcclSessionTest, WhatNobodyTakesIsLetGoByTheStallBoundAndThePairWithIt) {
  shared_.limits.transfer.stall_timeout = absl::Milliseconds(20);
  calls_->faults.hanging_begin = 1;
  ASSERT_NO_FATAL_FAILURE(Pair());
  EXPECT_EQ(Fetch(Keys()).heads_size(), 3);
  thread_.join();
  EXPECT_THAT(ended_, StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(source_.num_held, 0);
  EXPECT_EQ(source_.num_broken, 1);
}

TEST_F(NcclSessionTest, HoldsWhatItSendsAndAReaderThatIsGoneEndsBoth) {
  calls_->faults.hanging_begin = 1;
  ASSERT_NO_FATAL_FAILURE(Pair());
  Fetch(Keys());
  while (calls_->num_begins() < 2) std::this_thread::yield();
  EXPECT_EQ(source_.num_held, 1);
  session_->PeerGone();
  EXPECT_THAT(End(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(source_.num_held, 0);
  EXPECT_EQ(source_.num_broken, 1);
  EXPECT_EQ(source_.num_sent, 0);
}

TEST_F(NcclSessionTest, ReportsDamageToTheSourceOnceForEachObject) {
  ASSERT_NO_FATAL_FAILURE(Pair());
  Fetch(Keys());
  ASSERT_TRUE(ReceiveAll());
  v1::PairRequest request;
  request.mutable_damaged()->set_object_index(1);
  peer_.Say(request);
  EXPECT_EQ(Fetch(Keys()).heads_size(), 3);
  EXPECT_THAT(source_.damaged(), testing::ElementsAre(source_.objects[1].key()));
  peer_.Say(request);
  peer_.Say(request);
  EXPECT_THAT(End(), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(NcclSessionTest, WhyNothingIsHeldIsToldAndNothingIsSent) {
  source_.refusal = absl::DataLossError("damaged in memory");
  ASSERT_NO_FATAL_FAILURE(Pair());
  const v1::PairManifest manifest = Fetch(Keys());
  EXPECT_EQ(manifest.code(), static_cast<int>(absl::StatusCode::kDataLoss));
  EXPECT_EQ(manifest.message(), "damaged in memory");
  EXPECT_THAT(End(), IsOk());
  EXPECT_EQ(calls_->num_begins(), 1) << "the greeting";
}

TEST_F(NcclSessionTest, EndsWhenThePeerSpeaksOutOfTurn) {
  v1::PairRequest request;
  request.mutable_fetch();
  peer_.Say(request);
  EXPECT_THAT(End(), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(NcclSessionTest, EndsWhenThePeerSaysHelloAgain) {
  ASSERT_NO_FATAL_FAILURE(Pair());
  peer_.Say(Hello(2));
  EXPECT_THAT(End(), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(NcclSessionTest, RefusesAFetchOfNothingAndDamageOfWhatIsNot) {
  ASSERT_NO_FATAL_FAILURE(Pair());
  v1::PairRequest request;
  request.mutable_damaged()->set_object_index(0);
  peer_.Say(request);
  EXPECT_THAT(End(), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(NcclSessionTest, RefusesAReaderOnItsOwnGpu) {
  peer_.Say(Hello(1));
  EXPECT_THAT(End(), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(NcclSessionTest, AReaderThatNeverJoinsIsGivenUp) {
  calls_->faults.init_error = absl::UnavailableError("the reader's socket closed");
  peer_.Say(Hello(2));
  EXPECT_THAT(End(), StatusIs(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace pkv
