#include "kvstore/service/pair_call.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>

#include "pkv/v1/handoff.grpc.pb.h"
#include "proto/transport/convert.h"
#include "proto/transport/nccl/nccl_offer.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_pair_calls.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/service/rpc_fixture.h"

namespace pkv {
namespace {

// Handoff.Pair over real gRPC; what is said there is nccl_session_test's.
class PairCallTest : public RpcFixture {
 protected:
  using Stream = grpc::ClientReaderWriter<v1::PairRequest, v1::PairReply>;

  // `clock`: of the pairs' bounds.
  void Start(bool with_gpu = true, Clock* clock = Clock::Real()) {
    StartServer(16);
    if (with_gpu) {
      NcclServerOptions options{.max_pairs = 1};
      options.limits.pair.group_bytes = uint64_t{1} << 20;
      options.limits.pair.abort_timeout = absl::Seconds(20);
      nccl_ = *NcclServer::Start(options, {.calls = calls_, .capability = {.nccl_version = 22809}},
                                 store_.get(), &metrics_, clock);
    }
    service_ = MakeHandoffService(
        parts_, [](const v1::HandoffOpenRequest&) { return v1::HandoffOpenResponse(); },
        nccl_.get());
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(service_.get());
    pair_server_ = builder.BuildAndStart();
    handoff_ = v1::Handoff::NewStub(
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));
  }
  void TearDown() override {
    if (pair_server_ != nullptr) {
      pair_server_->Shutdown(std::chrono::system_clock::now());
      pair_server_->Wait();
    }
    nccl_.reset();
    EXPECT_TRUE(calls_->IsSoonEmpty());
    RpcFixture::TearDown();
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
    pair_server_->Shutdown(std::chrono::system_clock::now());
    pair_server_->Wait();
    pair_server_.reset();
  }

  std::shared_ptr<FakeLink> link_ = std::make_shared<FakeLink>();
  std::shared_ptr<FakePairCalls> calls_ = std::make_shared<FakePairCalls>(link_, nullptr);
  std::unique_ptr<NcclServer> nccl_;
  std::unique_ptr<grpc::Service> service_;
  std::unique_ptr<grpc::Server> pair_server_;
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
  EXPECT_EQ(Metric("pkv_nccl_pairs"), 1);
  context.TryCancel();
  Ended(*stream).IgnoreError();
  Join();
  EXPECT_EQ(Metric("pkv_nccl_pairs"), 0);
  EXPECT_EQ(Metric("pkv_nccl_ended_total{reason=\"reader\"}"), 1);
  EXPECT_EQ(Metric("pkv_rpc_requests_total{code=\"CANCELLED\",method=\"HandoffPair\"}"), 1);
}

// Goal: it is the end of the call that ends the transfer. Method: on a clock that stands still no
// bound of the pair passes.
TEST_F(PairCallTest, AReaderThatGoesEndsATransferAtOnce) {
  FakeClock stopped;
  Start(/*with_gpu=*/true, &stopped);
  const SealedObject object = MakeTestWindow(1, 1);
  ASSERT_THAT(Put(object), IsOk());
  calls_->faults.hanging_begin = 2;  // the greetings are one for each end
  Context context;
  const auto stream = handoff_->Pair(&context);
  ASSERT_TRUE(stream->Write(Hello()));
  v1::PairReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  NcclPair reader(calls_, {.group_bytes = reply.offer().group_bytes()}, Clock::Real());
  ASSERT_THAT(reader.Open(FromProto(reply.offer())->id, 1), IsOk());
  v1::PairRequest fetch, ready;
  *fetch.mutable_fetch()->add_objects() = ToProto(object.key());
  ASSERT_TRUE(stream->Write(fetch));
  ASSERT_TRUE(stream->Read(&reply));
  ready.mutable_ready();
  ASSERT_TRUE(stream->Write(ready));
  while (calls_->num_begins() < 3) std::this_thread::yield();
  context.TryCancel();
  Ended(*stream).IgnoreError();
  Join();
  EXPECT_EQ(Metric("pkv_nccl_pairs"), 0);
  EXPECT_EQ(Metric("pkv_nccl_ended_total{reason=\"reader\"}"), 1);
  EXPECT_EQ(Metric("pkv_block_gets_total{result=\"shed\"}"), 1);
  EXPECT_EQ(store_->stats().pinned_bytes, 0u);
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
  request.mutable_ready();
  ASSERT_TRUE(stream->Write(request));
  EXPECT_THAT(Ended(*stream), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(Metric("pkv_nccl_ended_total{reason=\"failed\"}"), 1);
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
  EXPECT_EQ(Metric("pkv_nccl_ended_total{reason=\"failed\"}"), 1);
}

TEST_F(PairCallTest, AReaderThatDoesNotReadWhatItAsksForEnds) {
  Start();
  const SealedObject object = MakeTestWindow(1, 1);
  ASSERT_THAT(Put(object), IsOk());
  Context context;
  const auto stream = handoff_->Pair(&context);
  ASSERT_TRUE(stream->Write(Hello()));
  v1::PairReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  NcclPair reader(calls_, {.group_bytes = reply.offer().group_bytes()}, Clock::Real());
  ASSERT_THAT(reader.Open(FromProto(reply.offer())->id, 1), IsOk());
  // Answers of more than a stream's window. What is missing counts them.
  v1::PairRequest fetch;
  for (int i = 1; i < 4096; ++i) *fetch.mutable_fetch()->add_objects() = ToProto(object.key());
  *fetch.mutable_fetch()->add_objects() = ToProto(MakeTestWindow(2, 1).key());
  for (int answers = 1; answers <= 5; ++answers) {
    ASSERT_TRUE(stream->Write(fetch));
    while (Metric("pkv_block_gets_total{result=\"miss\"}") < answers) std::this_thread::yield();
  }
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
  EXPECT_EQ(Metric("pkv_nccl_ended_total{reason=\"failed\"}"), 1);
  EXPECT_EQ(Metric("pkv_rpc_requests_total{code=\"ABORTED\",method=\"HandoffPair\"}"), 1);
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
  EXPECT_EQ(Metric("pkv_nccl_ended_total{reason=\"stopped\"}"), 1);
}

}  // namespace
}  // namespace pkv
