#include "worker/serve/client_collector.h"

#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/fake_cache_client.h"
#include "tests/support/tiny_worker.h"

namespace pkv {
namespace {

// A client that says what it is told to.
class CountingClient : public FakeCacheClient {
 public:
  ClientCounters counters() const override { return told; }
  ClientCounters told;
};

class ClientCollectorTest : public testing::Test {
 protected:
  double Sum(const std::string& name,
             const std::vector<std::pair<std::string, std::string>>& labels = {}) {
    return MetricSum(collector_, name, labels);
  }

  CountingClient client_;
  std::shared_ptr<CallStatistics> statistics_ = std::make_shared<CallStatistics>();
  ClientCollector collector_{"decode", &client_, statistics_};
};

TEST_F(ClientCollectorTest, HasEverySeriesAtZeroFromTheStart) {
  std::set<std::string> names;
  for (const prometheus::MetricFamily& family : collector_.Collect()) {
    names.insert(family.name);
    EXPECT_FALSE(family.help.empty()) << family.name;
    for (const prometheus::ClientMetric& metric : family.metric) {
      EXPECT_EQ(metric.counter.value + metric.gauge.value, 0) << family.name;
      bool has_role = false;
      for (const auto& label : metric.label) {
        has_role |= label.name == "role" && label.value == "decode";
      }
      EXPECT_TRUE(has_role) << family.name;
    }
  }
  EXPECT_EQ(names,
            (std::set<std::string>{
                "pkv_client_rpc_requests_total", "pkv_client_rpc_duration_seconds",
                "pkv_client_rpc_inflight", "pkv_client_retries_total", "pkv_client_backing_off",
                "pkv_client_payload_bytes_total", "pkv_client_shm_fallbacks_total",
                "pkv_client_shm_put_fallbacks_total", "pkv_client_nccl_fallbacks_total",
                "pkv_client_direct_fallbacks_total", "pkv_client_direct_refusals_total",
                "pkv_client_direct_crowded_total", "pkv_integrity_failures_total"}));
  for (const char* code : {"OK", "NOT_FOUND", "UNAVAILABLE", "UNKNOWN"}) {
    EXPECT_EQ(Sum("pkv_client_rpc_requests_total", {{"method", "Get"}, {"code", code}}), 0);
  }
}

TEST_F(ClientCollectorTest, ShowsCallsByMethodAndCodeAndUnlistedCodesAsUnknown) {
  for (const absl::StatusCode code :
       {absl::StatusCode::kOk, absl::StatusCode::kUnavailable, absl::StatusCode::kOutOfRange}) {
    statistics_->Began(CallMethod::kGet);
    statistics_->Ended(CallMethod::kGet, code, absl::Seconds(1));
  }
  statistics_->Began(CallMethod::kPut);
  statistics_->RetryBegan(CallMethod::kPut);
  const std::string requests = "pkv_client_rpc_requests_total";
  EXPECT_EQ(Sum(requests, {{"method", "Get"}, {"code", "OK"}}), 1);
  EXPECT_EQ(Sum(requests, {{"method", "Get"}, {"code", "UNAVAILABLE"}}), 1);
  EXPECT_EQ(Sum(requests, {{"method", "Get"}, {"code", "UNKNOWN"}}), 1);
  EXPECT_EQ(Sum(requests), 3);
  EXPECT_EQ(Sum("pkv_client_rpc_duration_seconds", {{"method", "Get"}}), 3);
  EXPECT_EQ(Sum("pkv_client_rpc_inflight", {{"method", "Put"}}), 1);
  EXPECT_EQ(Sum("pkv_client_rpc_inflight"), 1);
  EXPECT_EQ(Sum("pkv_client_retries_total", {{"method", "Put"}}), 1);
  EXPECT_EQ(Sum("pkv_client_backing_off", {{"method", "Put"}}), 1);
}

TEST_F(ClientCollectorTest, ShowsBytesByTransportAndDamage) {
  client_.told.get_bytes = 1100 + 9000;
  client_.told.direct_get_bytes = 9000;
  client_.told.direct_fallbacks = 6;
  client_.told.direct_refusals = 7;
  client_.told.direct_crowded = 8;
  client_.told.shm_get_bytes = 70;
  client_.told.nccl_get_bytes = 1000;
  client_.told.put_bytes = 5 + 40;
  client_.told.shm_put_bytes = 40;
  client_.told.shm_put_fallbacks = 4;
  client_.told.shm_fallbacks = 2;
  client_.told.nccl_fallbacks = 3;
  client_.told.integrity_failures = 1;
  const std::string bytes = "pkv_client_payload_bytes_total";
  EXPECT_EQ(Sum(bytes, {{"direction", "in"}, {"transport", "grpc"}}), 30);
  EXPECT_EQ(Sum(bytes, {{"direction", "in"}, {"transport", "direct"}}), 9000);
  EXPECT_EQ(Sum("pkv_client_direct_fallbacks_total"), 6);
  EXPECT_EQ(Sum("pkv_client_direct_refusals_total"), 7);
  EXPECT_EQ(Sum("pkv_client_direct_crowded_total"), 8);
  EXPECT_EQ(Sum(bytes, {{"direction", "in"}, {"transport", "shm"}}), 70);
  EXPECT_EQ(Sum(bytes, {{"direction", "in"}, {"transport", "nccl"}}), 1000);
  EXPECT_EQ(Sum(bytes, {{"direction", "out"}, {"transport", "grpc"}}), 5);
  EXPECT_EQ(Sum(bytes, {{"direction", "out"}, {"transport", "shm"}}), 40);
  EXPECT_EQ(Sum("pkv_client_shm_put_fallbacks_total"), 4);
  EXPECT_EQ(Sum("pkv_client_shm_fallbacks_total"), 2);
  EXPECT_EQ(Sum("pkv_client_nccl_fallbacks_total"), 3);
  EXPECT_EQ(Sum("pkv_integrity_failures_total", {{"stage", "client"}}), 1);
}

}  // namespace
}  // namespace pkv
