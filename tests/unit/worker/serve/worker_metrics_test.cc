#include "worker/serve/worker_metrics.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "proto/metrics/metric_registry.h"
#include "tests/support/tiny_worker.h"

namespace pkv {
namespace {

class WorkerMetricsTest : public testing::Test {
 protected:
  double Sum(const std::string& name,
             const std::vector<std::pair<std::string, std::string>>& labels = {}) {
    return MetricSum(*metrics_.registry(), name, labels);
  }

  WorkerMetrics metrics_{"prefill"};
};

TEST_F(WorkerMetricsTest, HasEverySeriesAtZeroFromTheStart) {
  std::set<std::string> names;
  for (const prometheus::MetricFamily& family : metrics_.registry()->Collect()) {
    names.insert(family.name);
    EXPECT_FALSE(family.help.empty()) << family.name;
    ASSERT_FALSE(family.metric.empty()) << family.name;
    for (const prometheus::ClientMetric& metric : family.metric) {
      EXPECT_EQ(metric.counter.value, 0) << family.name;
      EXPECT_EQ(metric.gauge.value, family.name == "pkv_build_info" ? 1 : 0) << family.name;
      EXPECT_EQ(metric.histogram.sample_count, 0u) << family.name;
      bool has_role = false;
      for (const auto& label : metric.label) {
        has_role |= label.name == "role" && label.value == "prefill";
      }
      EXPECT_TRUE(has_role) << family.name;
    }
  }
  // worker/README.md lists them.
  EXPECT_EQ(names,
            (std::set<std::string>{
                "pkv_build_info", "pkv_worker_requests_total", "pkv_worker_requests_inflight",
                "pkv_worker_request_duration_seconds", "pkv_worker_prompt_tokens_total",
                "pkv_worker_generated_tokens_total", "pkv_worker_time_to_first_token_seconds",
                "pkv_client_saved_prefill_tokens_total", "pkv_client_fallback_recompute_total",
                "pkv_client_fetch_duration_seconds"}));
  for (const char* code : {"OK", "RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNKNOWN"}) {
    EXPECT_EQ(Sum("pkv_worker_requests_total", {{"code", code}}), 0);
  }
}

TEST_F(WorkerMetricsTest, CountsRequestsWhenTheyEndAndUnlistedCodesAsUnknown) {
  for (int i = 0; i < 5; ++i) metrics_.RequestBegan();
  EXPECT_EQ(Sum("pkv_worker_requests_inflight"), 5);
  EXPECT_EQ(Sum("pkv_worker_requests_total"), 0);
  metrics_.RequestEnded(absl::OkStatus(), 0.5);
  metrics_.RequestEnded(absl::OkStatus(), 0.5);
  metrics_.RequestEnded(absl::ResourceExhaustedError(""), 0.5);
  metrics_.RequestEnded(absl::AlreadyExistsError(""), 0.5);
  EXPECT_EQ(Sum("pkv_worker_requests_total", {{"code", "OK"}}), 2);
  EXPECT_EQ(Sum("pkv_worker_requests_total", {{"code", "RESOURCE_EXHAUSTED"}}), 1);
  EXPECT_EQ(Sum("pkv_worker_requests_total", {{"code", "UNKNOWN"}}), 1);
  EXPECT_EQ(Sum("pkv_worker_requests_total"), 4);
  EXPECT_EQ(Sum("pkv_worker_request_duration_seconds"), 4);
  EXPECT_EQ(Sum("pkv_worker_requests_inflight"), 1);
}

TEST_F(WorkerMetricsTest, CountsRecomputesByReason) {
  metrics_.CountRecompute(absl::DataLossError(""));
  metrics_.CountRecompute(absl::OutOfRangeError(""));
  EXPECT_EQ(Sum("pkv_client_fallback_recompute_total", {{"reason", "DATA_LOSS"}}), 1);
  EXPECT_EQ(Sum("pkv_client_fallback_recompute_total", {{"reason", "UNKNOWN"}}), 1);
}

TEST_F(WorkerMetricsTest, CountsThePromptAndWhatTheCacheHadOfIt) {
  v1::PrefillStats stats;
  stats.set_prompt_tokens(401);
  stats.set_cached_tokens(100);
  metrics_.CountPrefill(stats);
  EXPECT_EQ(Sum("pkv_worker_prompt_tokens_total"), 401);
  EXPECT_EQ(Sum("pkv_client_saved_prefill_tokens_total"), 100);
}

TEST_F(WorkerMetricsTest, ObservesAFetchOnlyWhenTheCacheDelivered) {
  v1::DecodeStats stats;
  metrics_.CountDecode(stats, 5);
  stats.set_recomputed_tokens(9);
  metrics_.CountDecode(stats, 2);
  EXPECT_EQ(Sum("pkv_worker_generated_tokens_total"), 7);
  EXPECT_EQ(Sum("pkv_client_fetch_duration_seconds"), 1);
  EXPECT_EQ(Sum("pkv_worker_time_to_first_token_seconds"), 2);
}

}  // namespace
}  // namespace pkv
