#include "worker/batch/batch_metrics.h"

#include <gtest/gtest.h>

#include <map>
#include <string>

#include "proto/metrics/metric_registry.h"

namespace pkv {
namespace {

class BatchMetricsTest : public testing::Test {
 protected:
  // "name{label=value,...}", the role left out, and its value or number of observations.
  std::map<std::string, double> Series() {
    std::map<std::string, double> series;
    for (const prometheus::MetricFamily& family : registry_.Collect()) {
      EXPECT_FALSE(family.help.empty()) << family.name;
      for (const prometheus::ClientMetric& metric : family.metric) {
        std::string name = family.name;
        bool has_role = false;
        for (const auto& label : metric.label) {
          if (label.name == "role") {
            has_role = label.value == "decode";
          } else {
            name += " " + label.name + "=" + label.value;
          }
        }
        EXPECT_TRUE(has_role) << name;
        series[name] = metric.counter.value + metric.gauge.value +
                       static_cast<double>(metric.histogram.sample_count);
      }
    }
    return series;
  }

  MetricRegistry registry_{MetricRegistry::Labels{{"role", "decode"}}};
  BatchMetrics metrics_{registry_};
};

// worker/README.md lists them.
TEST_F(BatchMetricsTest, HasEverySeriesAtZeroFromTheStart) {
  const std::map<std::string, double> expected = {
      {"pkv_queue_depth queue=decode", 0},
      {"pkv_queue_wait_seconds queue=decode", 0},
      {"pkv_decode_sequences state=fetching", 0},
      {"pkv_decode_sequences state=running", 0},
      {"pkv_decode_pages state=free", 0},
      {"pkv_decode_pages state=referenced", 0},
      {"pkv_decode_pages state=cached", 0},
      {"pkv_decode_shared_pages_total", 0},
      {"pkv_evictions_total reason=capacity tier=page", 0},
      {"pkv_decode_steps_total", 0},
      {"pkv_decode_batch_size", 0},
      {"pkv_decode_step_duration_seconds", 0},
      {"pkv_decode_inter_token_seconds", 0},
      {"pkv_rpc_rejected_total reason=invalid", 0},
      {"pkv_rpc_rejected_total reason=too_large", 0},
      {"pkv_rpc_rejected_total reason=queue_full", 0},
      {"pkv_rpc_rejected_total reason=draining", 0},
      {"pkv_rpc_rejected_total reason=failed", 0}};
  EXPECT_EQ(Series(), expected);
}

TEST_F(BatchMetricsTest, CountsInTheSeriesOfItsName) {
  metrics_.SetSequences(1, 2, 3);
  metrics_.SetPages({.free = 4, .referenced = 5, .cached = 6});
  metrics_.CountEvictedPages(7);
  metrics_.CountSharedPages(8);
  metrics_.CountRefusal(Refusal::kQueueFull);
  metrics_.ObserveQueueWait(0.5);
  metrics_.ObserveStep(9, 0.25);
  metrics_.ObserveStep(1, 0.25);
  metrics_.ObserveInterToken(0.125);
  std::map<std::string, double> series = Series();
  EXPECT_EQ(series["pkv_queue_depth queue=decode"], 1);
  EXPECT_EQ(series["pkv_decode_sequences state=fetching"], 2);
  EXPECT_EQ(series["pkv_decode_sequences state=running"], 3);
  EXPECT_EQ(series["pkv_decode_pages state=free"], 4);
  EXPECT_EQ(series["pkv_decode_pages state=referenced"], 5);
  EXPECT_EQ(series["pkv_decode_pages state=cached"], 6);
  EXPECT_EQ(series["pkv_evictions_total reason=capacity tier=page"], 7);
  EXPECT_EQ(series["pkv_decode_shared_pages_total"], 8);
  EXPECT_EQ(series["pkv_rpc_rejected_total reason=queue_full"], 1);
  EXPECT_EQ(series["pkv_rpc_rejected_total reason=invalid"], 0);
  EXPECT_EQ(series["pkv_queue_wait_seconds queue=decode"], 1);
  EXPECT_EQ(series["pkv_decode_steps_total"], 2);
  EXPECT_EQ(series["pkv_decode_batch_size"], 2);
  EXPECT_EQ(series["pkv_decode_step_duration_seconds"], 2);
  EXPECT_EQ(series["pkv_decode_inter_token_seconds"], 1);
}

}  // namespace
}  // namespace pkv
