#include "worker/serve/worker_services.h"

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <thread>

#include "pkv/v1/worker_service.grpc.pb.h"
#include "tests/support/batch_fixture.h"
#include "tests/support/tiny_worker.h"

namespace pkv {
namespace {

// Both services behind a gRPC server in this process; one request runs, none waits.
class WorkerServicesTest : public TinyWorkersTest {
 protected:
  void SetUp() override {
    prefill_service_ = MakePrefillService(&prefill_, &prefill_metrics_, &limits_);
    decode_service_ = MakeDecodeService(&one_decode_, &decode_metrics_);
    // A socket, not an in-process channel: that hands a sender's buffer to the receiver, which TSan
    // cannot see to be in order because Debian's gRPC is not instrumented.
    int port = 0;
    grpc::ServerBuilder builder;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(prefill_service_.get());
    builder.RegisterService(decode_service_.get());
    server_ = builder.BuildAndStart();
    const auto channel =
        grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials());
    prefill_stub_ = v1::Prefill::NewStub(channel);
    decode_stub_ = v1::Decode::NewStub(channel);
  }
  void TearDown() override {
    gate_.Open();
    server_->Shutdown();
    server_->Wait();
    // Ends its threads: every request has been counted.
    prefill_service_.reset();
    decode_service_.reset();
  }

  static BatchOptions NoneWaits() {
    BatchOptions options;
    options.max_waiting = 0;
    return options;
  }
  void HoldCache() {
    cache_.set_script([this](CacheCall) {
      gate_.Pass();
      return absl::OkStatus();
    });
  }
  grpc::Status CallPrefill(v1::PrefillResponse* response, uint64_t seed = 1) {
    grpc::ClientContext context;
    return prefill_stub_->Prefill(&context, MakePrefill(RandomPrompt(seed, 150), "pkv2"), response);
  }

  TestGate gate_;
  QueueLimits limits_{{.max_running = 1, .max_waiting = 0}};
  DecodeWorker one_decode_{host_, &cache_, &decode_metrics_, {.num_slots = 1}, NoneWaits()};
  std::unique_ptr<grpc::Service> prefill_service_, decode_service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::Prefill::Stub> prefill_stub_;
  std::unique_ptr<v1::Decode::Stub> decode_stub_;
};

TEST_F(WorkerServicesTest, CarriesAPromptThroughBothRoles) {
  v1::PrefillResponse prefilled;
  ASSERT_TRUE(CallPrefill(&prefilled).ok());
  grpc::ClientContext context;
  const auto reader = decode_stub_->Decode(&context, MakeDecode(prefilled.ticket(), 30));
  std::vector<int32_t> tokens;
  v1::DecodeEvent event;
  while (reader->Read(&event)) {
    if (event.has_token()) tokens.push_back(event.token().token_id());
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_TRUE(event.has_stats()) << "comes last";
  EXPECT_EQ(tokens, Decode(MakeDecode(prefilled.ticket(), 30)).continuation.tokens);
}

TEST_F(WorkerServicesTest, MapsErrorsOfTheWorkers) {
  grpc::ClientContext context;
  v1::PrefillResponse response;
  const grpc::Status refused = prefill_stub_->Prefill(&context, MakePrefill({}, "pkv2"), &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  grpc::ClientContext decode_context;
  const auto reader = decode_stub_->Decode(&decode_context, {});
  v1::DecodeEvent event;
  EXPECT_FALSE(reader->Read(&event));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::INVALID_ARGUMENT);
}

TEST_F(WorkerServicesTest, RefusesRequestsBeyondTheQueue) {
  HoldCache();
  v1::PrefillResponse first_response, second_response;
  grpc::Status first;
  std::thread caller([&] { first = CallPrefill(&first_response); });
  gate_.WaitForArrivals(1);
  const grpc::Status second = CallPrefill(&second_response, 2);
  EXPECT_EQ(second.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(second.error_message(), testing::HasSubstr("1 requests are running or waiting"));
  EXPECT_EQ(PrefillMetric("pkv_worker_requests_inflight"), 1);
  EXPECT_EQ(PrefillMetric("pkv_rpc_rejected_total", {{"reason", "queue_full"}}), 1);
  gate_.Open();
  caller.join();
  EXPECT_TRUE(first.ok()) << first.error_message();
  EXPECT_EQ(PrefillMetric("pkv_worker_requests_total", {{"code", "RESOURCE_EXHAUSTED"}}), 1);
  EXPECT_EQ(PrefillMetric("pkv_worker_requests_total", {{"code", "OK"}}), 1);
  EXPECT_EQ(PrefillMetric("pkv_worker_requests_inflight"), 0);
  EXPECT_EQ(PrefillMetric("pkv_queue_wait_seconds", {{"queue", "prefill"}}), 1);
  EXPECT_EQ(PrefillMetric("pkv_queue_depth", {{"queue", "prefill"}}), 0);
}

TEST_F(WorkerServicesTest, TakesAnotherLengthOfTheQueueWhileItServes) {
  HoldCache();
  v1::PrefillResponse responses[2];
  grpc::Status statuses[2];
  std::thread first([&] { statuses[0] = CallPrefill(&responses[0]); });
  gate_.WaitForArrivals(1);
  v1::PrefillResponse refused;
  EXPECT_EQ(CallPrefill(&refused, 2).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  limits_.SetMaxWaiting(1);
  std::thread second([&] { statuses[1] = CallPrefill(&responses[1], 2); });
  gate_.Open();
  first.join();
  second.join();
  for (const grpc::Status& status : statuses) EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST_F(WorkerServicesTest, RefusesDecodesBeyondTheQueue) {
  v1::PrefillResponse prefilled;
  ASSERT_TRUE(CallPrefill(&prefilled).ok());
  HoldCache();
  grpc::ClientContext first_context, second_context;
  const auto first = decode_stub_->Decode(&first_context, MakeDecode(prefilled.ticket(), 3));
  gate_.WaitForArrivals(1);
  const auto second = decode_stub_->Decode(&second_context, MakeDecode(prefilled.ticket(), 3));
  v1::DecodeEvent event;
  EXPECT_FALSE(second->Read(&event));
  EXPECT_EQ(second->Finish().error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  gate_.Open();
  int num_events = 0;
  while (first->Read(&event)) ++num_events;
  EXPECT_TRUE(first->Finish().ok());
  EXPECT_EQ(num_events, 4);
}

TEST_F(WorkerServicesTest, EndsARequestWhoseCallerWentAway) {
  v1::PrefillResponse prefilled;
  ASSERT_TRUE(CallPrefill(&prefilled).ok());
  HoldCache();
  grpc::ClientContext context;
  const auto reader = decode_stub_->Decode(&context, MakeDecode(prefilled.ticket(), 800));
  gate_.WaitForArrivals(1);
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  gate_.Open();
  server_->Shutdown();
  server_->Wait();
  decode_service_.reset();
  EXPECT_EQ(DecodeMetric("pkv_worker_requests_total", {{"code", "CANCELLED"}}), 1);
  EXPECT_EQ(DecodeMetric("pkv_worker_generated_tokens_total"), 0);
}

// No layer ever arrives: only the cancellation can end the request.
TEST_F(WorkerServicesTest, EndsAFetchWhoseCallerWentAway) {
  v1::PrefillResponse prefilled;
  ASSERT_TRUE(CallPrefill(&prefilled).ok());
  cache_.HoldLayersFrom(0);
  grpc::ClientContext context;
  const auto reader = decode_stub_->Decode(&context, MakeDecode(prefilled.ticket(), 3));
  cache_.WaitForBlockedReader();
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  server_->Shutdown();
  server_->Wait();
  EXPECT_EQ(DecodeMetric("pkv_worker_requests_total", {{"code", "CANCELLED"}}), 1);
  EXPECT_EQ(DecodeMetric(kRecomputes), 0);
}

// As many streams as slots and more, each from a thread of its caller alone.
TEST_F(WorkerServicesTest, CarriesManyStreamsAtOnce) {
  DecodeWorker worker(host_, &cache_, &decode_metrics_, {.num_slots = 3});
  const auto service = MakeDecodeService(&worker, &decode_metrics_);
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(service.get());
  const auto server = builder.BuildAndStart();
  const auto stub = v1::Decode::NewStub(
      grpc::CreateChannel(absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));

  constexpr int kStreams = 8;
  std::vector<v1::DecodeRequest> requests;
  std::vector<std::vector<int32_t>> alone, together(kStreams);
  for (int i = 0; i < kStreams; ++i) {
    const char* preset = i % 2 == 0 ? "fp16" : "default";
    requests.push_back(
        MakeDecode(Prefill(RandomPrompt(50 + i, 40 + 60 * i), preset).ticket(), 20 + 20 * i));
    alone.push_back(Decode(requests.back()).continuation.tokens);
  }
  std::vector<std::thread> callers;
  for (int i = 0; i < kStreams; ++i) {
    callers.emplace_back([&, i] {
      grpc::ClientContext context;
      const auto reader = stub->Decode(&context, requests[i]);
      v1::DecodeEvent event;
      while (reader->Read(&event)) {
        if (event.has_token()) together[i].push_back(event.token().token_id());
      }
      EXPECT_TRUE(reader->Finish().ok()) << "stream " << i;
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(together, alone);
  server->Shutdown();
  server->Wait();
}

}  // namespace
}  // namespace pkv
