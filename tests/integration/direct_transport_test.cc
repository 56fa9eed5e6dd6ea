// A prefill worker's GPU to a decode worker's, in one process: over real gRPC, with a pkvd beside
// them and fakes for GPUs, whose memory is the host's. Whatever goes wrong, the tokens are those
// that come from pkvd.

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/service/cache_server.h"
#include "proto/base/clock.h"
#include "tests/support/copying_executor.h"
#include "tests/support/scripted_pair_holder.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_worker.h"
#include "worker/batch/cpu_batch_engine.h"
#include "worker/prefill/direct_handoff.h"
#include "worker/prefill/direct_metrics.h"

namespace pkv {
namespace {

constexpr int kNumTokens = 8;
constexpr absl::Duration kPatience = absl::Seconds(30);

// A CPU engine that is told that its memory is a GPU's.
class DeviceFramesEngine final : public BatchEngine {
 public:
  explicit DeviceFramesEngine(ModelHost* host) : inner_(host, {}) {}

  EngineLimits limits() const override {
    EngineLimits limits = inner_.limits();
    limits.takes_device_frames = true;
    return limits;
  }
  absl::Status CheckVariant(const CodecParams& params) const override {
    return inner_.CheckVariant(params);
  }
  absl::Status Attach(int slot, const CodecParams& params, EnginePrefix prefix) override {
    return inner_.Attach(slot, params, std::move(prefix));
  }
  absl::Status Compute(int slot, const CodecParams& params, std::span<const int32_t> tokens,
                       std::span<const int32_t> pages, const std::function<bool()>& cancelled,
                       std::vector<std::unique_ptr<ObjectBuilder>>* sealed) override {
    return inner_.Compute(slot, params, tokens, pages, cancelled, sealed);
  }
  absl::Status First(const StepInput& input, const std::function<void()>& on_first_layer,
                     StepOutput& output) override {
    return inner_.First(input, on_first_layer, output);
  }
  absl::Status Step(std::span<const StepInput> inputs, std::span<StepOutput> outputs) override {
    return inner_.Step(inputs, outputs);
  }
  absl::Status Flush(std::span<const FlushInput> flushes) override { return inner_.Flush(flushes); }
  int64_t num_tokens(int slot) const override { return inner_.num_tokens(slot); }
  std::vector<ObjectHeader> block_headers(int slot) const override {
    return inner_.block_headers(slot);
  }
  uint64_t received_bytes(int slot) const override { return inner_.received_bytes(slot); }
  void Release(int slot) override { inner_.Release(slot); }

 private:
  CpuBatchEngine inner_;
};

// A prefill worker's Handoff service on a port, on the GPU of `calls`.
class DirectServer {
 public:
  explicit DirectServer(std::shared_ptr<FakePairCalls> calls) {
    handoff_ =
        *DirectHandoff::Make(FakePort(calls, 1), uint64_t{8} << 20, &metrics_, Clock::Real());
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(handoff_->service());
    server_ = builder.BuildAndStart();
    address = absl::StrCat("127.0.0.1:", port);
  }
  ~DirectServer() { End(); }
  void End() {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now());
    server_->Wait();
    server_.reset();
  }
  DirectStore* store() { return handoff_->store(); }

  MetricRegistry registry;
  std::string address;

 private:
  DirectMetrics metrics_{registry};
  std::unique_ptr<DirectHandoff> handoff_;
  std::unique_ptr<grpc::Server> server_;
};

class DirectTransportTest : public TinyWorkersTest {
 protected:
  void SetUp() override {
    CacheServerOptions cache;
    cache.listen = "127.0.0.1:0";
    cache.metrics_listen = "";
    cache.capacity_bytes = uint64_t{64} << 20;
    pkvd_ = *CacheServer::Start(cache);
    direct_ = std::make_unique<DirectServer>(prefill_calls_);
    options_.address = absl::StrCat("127.0.0.1:", pkvd_->port());
    options_.direct_from = direct_->address;
    prefill_cluster_ = *CacheCluster::Create(options_);
    worker_ = std::make_unique<PrefillWorker>(
        host_, &copying_, prefill_cluster_.get(), &prefill_metrics_, nullptr,
        PrefillWorker::Direct{direct_->store(), direct_->address});
    StartDecode();
  }
  void TearDown() override {
    direct_decode_.reset();
    cluster_.reset();
    direct_.reset();
    worker_.reset();
    prefill_cluster_.reset();
    pkvd_->Shutdown(absl::Seconds(5));
    EXPECT_TRUE(prefill_calls_->IsSoonEmpty());
    EXPECT_TRUE(decode_calls_->IsSoonEmpty());
  }
  void StartDecode() {
    const NcclPort port = FakePort(decode_calls_, 2);
    cluster_ = *CacheCluster::Create(options_, &port);
    direct_decode_ =
        std::make_unique<DecodeWorker>(host_, std::make_unique<DeviceFramesEngine>(host_),
                                       cluster_.get(), &decode_metrics_, BatchOptions{});
  }

  v1::HandoffTicket Ticket(uint64_t seed) {
    const auto response = worker_->Prefill(MakePrefill(RandomPrompt(seed, 400), "pkv2"));
    EXPECT_THAT(response, IsOk());
    return response->ticket();
  }
  std::vector<int32_t> Tokens(const v1::HandoffTicket& ticket) {
    v1::DecodeRequest request = MakeDecode(ticket, kNumTokens);
    request.set_refuse_recompute(true);
    std::vector<int32_t> tokens;
    EXPECT_THAT(direct_decode_->Decode(request,
                                       [&](const v1::DecodeEvent& event) {
                                         if (event.has_token()) {
                                           tokens.push_back(event.token().token_id());
                                         }
                                         return true;
                                       }),
                IsOk());
    return tokens;
  }
  // The same without what the ticket says of the prefill worker.
  std::vector<int32_t> TokensFromPkvd(v1::HandoffTicket ticket) {
    ticket.clear_direct_server();
    return Tokens(ticket);
  }
  // Decodes until a get has come directly, which makes the pair.
  void PairUp(const v1::HandoffTicket& ticket) {
    const absl::Time end = Clock::Real()->MonotonicNow() + kPatience;
    while (cluster_->counters().direct_gets == 0 && Clock::Real()->MonotonicNow() < end) {
      Tokens(ticket);
    }
    ASSERT_GT(cluster_->counters().direct_gets, 0u);
  }

  std::shared_ptr<FakeLink> link_ = std::make_shared<FakeLink>();
  std::shared_ptr<FakePairCalls> prefill_calls_ = std::make_shared<FakePairCalls>(link_, nullptr);
  std::shared_ptr<FakePairCalls> decode_calls_ = std::make_shared<FakePairCalls>(link_, nullptr);
  ClientOptions options_;
  std::unique_ptr<CacheServer> pkvd_;
  std::unique_ptr<DirectServer> direct_;
  CopyingExecutor copying_{&executor_};
  std::unique_ptr<CacheCluster> prefill_cluster_, cluster_;
  std::unique_ptr<PrefillWorker> worker_;
  std::unique_ptr<DecodeWorker> direct_decode_;
};

TEST_F(DirectTransportTest, BringsEqualTokensAndNothingFromPkvd) {
  const v1::HandoffTicket ticket = Ticket(1);
  EXPECT_EQ(ticket.direct_server(), direct_->address);
  ASSERT_NO_FATAL_FAILURE(PairUp(ticket));
  const ClientCounters before = cluster_->counters();
  const std::vector<int32_t> tokens = Tokens(ticket);
  const ClientCounters after = cluster_->counters();
  EXPECT_EQ(after.direct_gets, before.direct_gets + 1);
  EXPECT_EQ(after.get_bytes - before.get_bytes, after.direct_get_bytes - before.direct_get_bytes);
  EXPECT_EQ(after.direct_fallbacks, 0u);
  EXPECT_EQ(tokens, TokensFromPkvd(ticket));
  EXPECT_EQ(MetricSum(direct_->registry, "pkv_direct_sent_bytes_total"), after.direct_get_bytes);
}

TEST_F(DirectTransportTest, AGpuThatStandsStillInATransferEndsInEqualTokens) {
  const v1::HandoffTicket ticket = Ticket(2);
  const std::vector<int32_t> expected = TokensFromPkvd(ticket);
  ASSERT_NO_FATAL_FAILURE(PairUp(ticket));
  prefill_calls_->faults.hanging_begin = prefill_calls_->num_begins();
  EXPECT_EQ(Tokens(ticket), expected);
  EXPECT_EQ(cluster_->counters().direct_fallbacks, 1u);
}

TEST_F(DirectTransportTest, DamageOnTheWayEndsInEqualTokensAndDropsThePrompt) {
  const v1::HandoffTicket ticket = Ticket(3);
  const std::vector<int32_t> expected = TokensFromPkvd(ticket);
  ASSERT_NO_FATAL_FAILURE(PairUp(ticket));
  decode_calls_->faults.corrupt_begin = decode_calls_->num_begins();
  EXPECT_EQ(Tokens(ticket), expected);
  EXPECT_EQ(cluster_->counters().direct_fallbacks, 1u);
  EXPECT_EQ(cluster_->counters().integrity_failures, 1u);
  EXPECT_EQ(Ticket(3).direct_server(), "");
}

TEST_F(DirectTransportTest, APrefillWorkerThatEndsLeavesPkvd) {
  const v1::HandoffTicket ticket = Ticket(4);
  const std::vector<int32_t> expected = TokensFromPkvd(ticket);
  ASSERT_NO_FATAL_FAILURE(PairUp(ticket));
  direct_->End();
  EXPECT_EQ(Tokens(ticket), expected);
  EXPECT_EQ(cluster_->counters().failures, 0u);
}

TEST_F(DirectTransportTest, WithoutPkvdItIsEnough) {
  const v1::HandoffTicket ticket = Ticket(5);
  const std::vector<int32_t> expected = TokensFromPkvd(ticket);
  ASSERT_NO_FATAL_FAILURE(PairUp(ticket));
  pkvd_->Shutdown(absl::ZeroDuration());
  EXPECT_EQ(Tokens(ticket), expected);
}

// A ticket is a text from a client.
TEST_F(DirectTransportTest, NoTicketMakesAWorkerDialWhereItIsNotConfiguredTo) {
  DirectServer other(prefill_calls_);
  v1::HandoffTicket ticket = Ticket(6);
  const std::vector<int32_t> expected = TokensFromPkvd(ticket);
  ticket.set_direct_server(other.address);
  EXPECT_EQ(Tokens(ticket), expected);
  EXPECT_EQ(cluster_->counters().direct_refusals, 1u);
  EXPECT_EQ(cluster_->counters().direct_gets, 0u);
  EXPECT_EQ(MetricSum(other.registry, "pkv_direct_ended_total"), 0);
  EXPECT_EQ(MetricSum(other.registry, "pkv_direct_pairs"), 0);
}

}  // namespace
}  // namespace pkv
