#include "worker/prefill/direct_handoff.h"

#include <gmock/gmock.h>
#include <grpc/grpc.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>

#include "absl/strings/str_cat.h"
#include "pkv/v1/handoff.grpc.pb.h"
#include "proto/metrics/metric_registry.h"
#include "proto/transport/convert.h"
#include "proto/transport/nccl/nccl_offer.h"
#include "tests/support/fake_pair_calls.h"
#include "tests/support/sealed_object.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_worker.h"
#include "worker/prefill/direct_metrics.h"

namespace pkv {
namespace {

constexpr uint64_t kMemoryBytes = uint64_t{1} << 20;

// The service over real gRPC, on a GPU that is a fake.
class DirectHandoffTest : public testing::Test {
 protected:
  struct Context : grpc::ClientContext {
    Context() { set_deadline(std::chrono::system_clock::now() + std::chrono::minutes(1)); }
  };

  // As in pair_call_test.
  static void SetUpTestSuite() { grpc_init(); }

  void SetUp() override {
    handoff_ = *DirectHandoff::Make({.calls = calls_, .capability = {.nccl_version = 22809}},
                                    kMemoryBytes, &metrics_, Clock::Real());
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(handoff_->service());
    server_ = builder.BuildAndStart();
    stub_ = v1::Handoff::NewStub(
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));
  }
  void TearDown() override {
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    handoff_.reset();
    EXPECT_TRUE(calls_->IsSoonEmpty());
  }
  static v1::NcclCapability Reader(int version = 22809) {
    NcclCapability reader{.nccl_version = version};
    reader.device_uuid[0] = std::byte{1};
    return ToProto(reader);
  }

  MetricRegistry registry_;
  DirectMetrics metrics_{registry_};
  std::shared_ptr<FakeLink> link_ = std::make_shared<FakeLink>();
  std::shared_ptr<FakePairCalls> calls_ = std::make_shared<FakePairCalls>(link_, nullptr);
  std::unique_ptr<DirectHandoff> handoff_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Handoff::Stub> stub_;
};

TEST_F(DirectHandoffTest, OffersPairsAlone) {
  Context context;
  v1::HandoffOpenRequest request;
  request.set_shm_version(1);
  *request.mutable_nccl() = Reader();
  v1::HandoffOpenResponse response;
  ASSERT_TRUE(stub_->Open(&context, request, &response).ok());
  EXPECT_TRUE(response.has_nccl());
  EXPECT_FALSE(response.has_shm());
  EXPECT_NE(response.reason(), "");
  Context other_context;
  *request.mutable_nccl() = Reader(22808);
  ASSERT_TRUE(stub_->Open(&other_context, request, &response).ok());
  EXPECT_FALSE(response.has_nccl());
  EXPECT_NE(response.nccl_reason(), "");
}

TEST_F(DirectHandoffTest, SendsWhatTheStoreKeeps) {
  ObjectHeader header = TestHeader(ObjectKind::kWindow, 1, 1);
  header.num_tokens = 1;
  auto object = *ObjectBuilder::Make(header);
  object.frame(0)[5] = std::byte{9};
  ASSERT_THAT(object.Seal(), IsOk());
  const std::vector<uint64_t> frame_bytes = {object.frame(0).size()};
  auto draft = handoff_->store()->Reserve(frame_bytes, 1);
  std::ranges::copy(object.frame(0), draft->frame(0, 0).begin());
  const ObjectBuilder* const objects[] = {&object};
  handoff_->store()->Publish(std::move(draft), objects);

  Context context;
  const auto stream = stub_->Pair(&context);
  v1::PairRequest request;
  *request.mutable_hello() = Reader();
  ASSERT_TRUE(stream->Write(request));
  v1::PairReply reply;
  ASSERT_TRUE(stream->Read(&reply));
  EXPECT_EQ(MetricSum(registry_, "pkv_direct_pairs", {}), 1);
  NcclPair reader(calls_, {.group_bytes = reply.offer().group_bytes()}, Clock::Real());
  ASSERT_THAT(reader.Open(FromProto(reply.offer())->id, 1), IsOk());
  *request.mutable_fetch()->add_objects() = ToProto(object.header().key());
  ASSERT_TRUE(stream->Write(request));
  ASSERT_TRUE(stream->Read(&reply));
  ASSERT_EQ(reply.manifest().heads_size(), 1);
  AlignedBuffer memory(object.frame(0).size());
  const DeviceSpan span = {memory.span().data(), memory.span().size()};
  const uint32_t checksum =
      ParseFrameTable(object.head().subspan(sizeof(ObjectHeader)), 1)->front();
  const LayerSpans layer = {.spans = {&span, 1}, .checksums = {&checksum, 1}};
  EXPECT_THAT(reader.Receive({&layer, 1}, {}, nullptr), IsOk());
  EXPECT_EQ(memory.span()[5], std::byte{9});
  context.TryCancel();
  stream->Finish();
}

TEST_F(DirectHandoffTest, TakesNoPairOnceItIsStopped) {
  handoff_->Stop();
  Context context;
  const auto stream = stub_->Pair(&context);
  v1::PairReply reply;
  EXPECT_FALSE(stream->Read(&reply));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(DirectHandoffTest, ACallWithoutADeadlineIsRefused) {
  grpc::ClientContext context;
  const auto stream = stub_->Pair(&context);
  v1::PairReply reply;
  EXPECT_FALSE(stream->Read(&reply));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

}  // namespace
}  // namespace pkv
