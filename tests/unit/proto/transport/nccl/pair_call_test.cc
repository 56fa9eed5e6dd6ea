#include "proto/transport/nccl/pair_call.h"

#include <gmock/gmock.h>
#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "pkv/v1/handoff.grpc.pb.h"
#include "proto/transport/convert.h"
#include "proto/transport/nccl/nccl_offer.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_pair_calls.h"
#include "tests/support/fake_pair_source.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

class Service final : public v1::Handoff::CallbackService {
 public:
  explicit Service(NcclServer* server) : server_(server) {}
  grpc::ServerBidiReactor<v1::PairRequest, v1::PairReply>* Pair(
      grpc::CallbackServerContext* context) override {
    return ServePair(server_, context, CheckDeadline(*context),
                     [this](absl::StatusCode code) { ended_with = code; });
  }
  std::optional<absl::StatusCode> ended_with;  // the last call; read once the server has stopped

 private:
  NcclServer* const server_;
};

// Handoff.Pair over real gRPC; what is said there is nccl_session_test's.
class PairCallTest : public testing::Test {
 protected:
  using Stream = grpc::ClientReaderWriter<v1::PairRequest, v1::PairReply>;
  // A client context whose calls end within a minute.
  struct Context : grpc::ClientContext {
    Context() { set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1)); }
  };

  // Once gRPC's last object is gone it ends its threads, which may take its pollers ten seconds;
  // between two tests that is waited for. Never the last one, then.
  static void SetUpTestSuite() { grpc_init(); }

  // `clock`: of the pairs' bounds.
  void Start(bool with_gpu = true, Clock* clock = Clock::Real()) {
    if (with_gpu) {
      NcclServerOptions options{.max_pairs = 1};
      options.limits.pair.group_bytes = uint64_t{1} << 20;
      options.limits.pair.abort_timeout = absl::Seconds(20);
      nccl_ = *NcclServer::Make(options, {.calls = calls_, .capability = {.nccl_version = 22809}},
                                &source_, clock);
    }
    service_ = std::make_unique<Service>(nccl_.get());
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    handoff_ = v1::Handoff::NewStub(
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));
  }
  void TearDown() override {
    Join();
    nccl_.reset();
    EXPECT_TRUE(calls_->IsSoonEmpty());
  }
  static v1::PairRequest Hello() {
    NcclCapability reader{.nccl_version = 22809};
    reader.device_uuid[0] = std::byte{1};
    v1::PairRequest request;
    *request.mutable_hello() = ToProto(reader);
    return request;
  }
  // The call as the server ended it.
  static absl::Status Ended(Stream& stream) {
    v1::PairReply reply;
    while (stream.Read(&reply)) {
    }
    return FromGrpc(stream.Finish());
  }
  // Until the server has seen the end of every call.
  void Join() {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_.reset();
  }

  std::shared_ptr<FakeLink> link_ = std::make_shared<FakeLink>();
  std::shared_ptr<FakePairCalls> calls_ = std::make_shared<FakePairCalls>(link_, nullptr);
  FakePairSource source_;
  std::unique_ptr<NcclServer> nccl_;
  std::unique_ptr<Service> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Handoff::Stub> handoff_;
};

TEST_F(PairCallTest, OffersAPairAndEndsItWithTheReadersCall) {
  Start();
  Context context;
  const auto stream = handoff_->Pair(&context);
  ASSERT_TRUE(stream->Write(Hello()));
  v1::PairReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_EQ(reply.offer().rank(), 1u);
  EXPECT_EQ(source_.num_pairs, 1u);
  context.TryCancel();
  Ended(*stream).IgnoreError();
  Join();
  EXPECT_EQ(source_.num_pairs, 0u);
  EXPECT_EQ(source_.num_ended(PairEnd::kUnopened), 1) << "nobody joined";
  EXPECT_EQ(service_->ended_with, absl::StatusCode::kCancelled);
}

// What a client could do that has the port: take an id, not join, and come again.
TEST_F(PairCallTest, OffersNoIdAfterOneThatNobodyJoined) {
  FakeClock clock;
  Start(/*with_gpu=*/true, &clock);
  for (int round = 0; round < 3; ++round) {
    Context context;
    const auto stream = handoff_->Pair(&context);
    ASSERT_TRUE(stream->Write(Hello()));
    v1::PairReply reply;
    ASSERT_TRUE(stream->Read(&reply)) << round;
    context.TryCancel();
    Ended(*stream).IgnoreError();
    while (source_.num_pairs > 0) std::this_thread::yield();
    Context again;
    EXPECT_THAT(Ended(*handoff_->Pair(&again)), StatusIs(absl::StatusCode::kResourceExhausted));
    clock.Advance(absl::Seconds(1 << round));
  }
  EXPECT_EQ(source_.num_ended(PairEnd::kUnopened), 3);
}

// Goal: it is the end of the call that ends the transfer. Method: on a clock that stands still no
// bound of the pair passes.
TEST_F(PairCallTest, AReaderThatGoesEndsATransferAtOnce) {
  FakeClock stopped;
  Start(/*with_gpu=*/true, &stopped);
  source_.objects.push_back(MakeTestWindow(1, 1));
  const SealedObject& object = source_.objects[0];
  calls_->faults.hanging_begin = 2;  // the greetings are one for each end
  Context context;
  const auto stream = handoff_->Pair(&context);
  ASSERT_TRUE(stream->Write(Hello()));
  v1::PairReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  NcclPair reader(calls_, {.group_bytes = reply.offer().group_bytes()}, Clock::Real());
  ASSERT_THAT(reader.Open(FromProto(reply.offer())->id, 1), IsOk());
  v1::PairRequest fetch;
  *fetch.mutable_fetch()->add_objects() = ToProto(object.key());
  ASSERT_TRUE(stream->Write(fetch));
  ASSERT_TRUE(stream->Read(&reply));
  while (calls_->num_begins() < 3) std::this_thread::yield();
  context.TryCancel();
  Ended(*stream).IgnoreError();
  Join();
  EXPECT_EQ(source_.num_pairs, 0u);
  EXPECT_EQ(source_.num_ended(PairEnd::kReader), 1);
  EXPECT_EQ(source_.num_broken, 1);
  EXPECT_EQ(source_.num_held, 0);
}

TEST_F(PairCallTest, AServerWithoutAGpuDoesNotKnowIt) {
  Start(/*with_gpu=*/false);
  Context context;
  const auto stream = handoff_->Pair(&context);
  EXPECT_THAT(Ended(*stream), StatusIs(absl::StatusCode::kUnimplemented));
}

TEST_F(PairCallTest, RefusesOnePairTooMany) {
  Start();
  Context context, other_context;
  const auto stream = handoff_->Pair(&context);
  ASSERT_TRUE(stream->Write(Hello()));
  v1::PairReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  const auto other = handoff_->Pair(&other_context);
  EXPECT_THAT(Ended(*other), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(PairCallTest, ACallWithoutADeadlineIsRefused) {
  Start();
  grpc::ClientContext context;
  const auto stream = handoff_->Pair(&context);
  EXPECT_THAT(Ended(*stream), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(PairCallTest, EndsWithTheErrorOfABrokenProtocol) {
  Start();
  Context context;
  const auto stream = handoff_->Pair(&context);
  v1::PairRequest request;
  request.mutable_fetch();
  ASSERT_TRUE(stream->Write(request));
  EXPECT_THAT(Ended(*stream), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(source_.num_ended(PairEnd::kFailed), 1);
}

// While the server still waits for the pair to open.
TEST_F(PairCallTest, AReaderThatSendsMoreThanAReaderHasEndsAtOnce) {
  Start();
  Context context;
  const auto stream = handoff_->Pair(&context);
  ASSERT_TRUE(stream->Write(Hello()));
  v1::PairReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  v1::PairRequest damaged;
  damaged.mutable_damaged();
  for (int i = 0; i < 9; ++i) stream->Write(damaged);
  EXPECT_THAT(Ended(*stream), StatusIs(absl::StatusCode::kInvalidArgument,
                                       testing::HasSubstr("more requests than a reader has")));
  EXPECT_EQ(source_.num_ended(PairEnd::kUnopened), 1);
}

TEST_F(PairCallTest, AReaderThatDoesNotReadWhatItAsksForEnds) {
  Start();
  source_.objects.push_back(MakeTestWindow(1, 1));
  const SealedObject& object = source_.objects[0];
  Context context;
  const auto stream = handoff_->Pair(&context);
  ASSERT_TRUE(stream->Write(Hello()));
  v1::PairReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  NcclPair reader(calls_, {.group_bytes = reply.offer().group_bytes()}, Clock::Real());
  ASSERT_THAT(reader.Open(FromProto(reply.offer())->id, 1), IsOk());
  // gRPC takes answers of 1.6 MB until a stream's window is full. What is missing counts them, and
  // keeps frames from being sent.
  constexpr int kEnough = 64;
  v1::PairRequest fetch;
  for (int i = 1; i < 4096; ++i) *fetch.mutable_fetch()->add_objects() = ToProto(object.key());
  *fetch.mutable_fetch()->add_objects() = ToProto(MakeTestWindow(2, 1).key());
  const auto has_ended = [this] { return source_.num_ended(PairEnd::kFailed) == 1; };
  for (int answers = 1; answers <= kEnough && !has_ended(); ++answers) {
    ASSERT_TRUE(stream->Write(fetch));
    while (source_.num_missed < answers && !has_ended()) {
      std::this_thread::yield();
    }
  }
  ASSERT_TRUE(has_ended());
  EXPECT_THAT(Ended(*stream),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("does not read")));
}

TEST_F(PairCallTest, APairThatBreaksIsNoServerThatIsGone) {
  Start();
  calls_->faults.begin_init = absl::UnavailableError("no way to the reader's GPU");
  Context context;
  const auto stream = handoff_->Pair(&context);
  ASSERT_TRUE(stream->Write(Hello()));
  EXPECT_THAT(Ended(*stream),
              StatusIs(absl::StatusCode::kAborted, testing::HasSubstr("the reader's GPU")));
  Join();
  EXPECT_EQ(source_.num_ended(PairEnd::kUnopened), 1);
  EXPECT_EQ(service_->ended_with, absl::StatusCode::kAborted);
}

TEST_F(PairCallTest, APairThatIdlesEndsWhenTheServerStops) {
  Start();
  Context context;
  const auto stream = handoff_->Pair(&context);
  ASSERT_TRUE(stream->Write(Hello()));
  v1::PairReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  NcclPair reader(calls_,
                  {.group_bytes = reply.offer().group_bytes(), .abort_timeout = absl::Seconds(20)},
                  Clock::Real());
  ASSERT_THAT(reader.Open(FromProto(reply.offer())->id, 1), IsOk());
  nccl_->Stop();
  EXPECT_THAT(Ended(*stream), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(source_.num_ended(PairEnd::kStopped), 1);
}

}  // namespace
}  // namespace pkv
