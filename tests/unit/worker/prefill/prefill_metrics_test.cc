#include "worker/prefill/prefill_metrics.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "pkv/kernels/codec_params.h"
#include "proto/metrics/metric_registry.h"
#include "tests/support/tiny_worker.h"

namespace pkv {
namespace {

class PrefillMetricsTest : public testing::Test {
 protected:
  double Sum(const std::string& name,
             const std::vector<std::pair<std::string, std::string>>& labels = {}) {
    return MetricSum(registry_, name, labels);
  }

  MetricRegistry registry_;
  PrefillMetrics metrics_{registry_};
};

TEST_F(PrefillMetricsTest, HasEverySeriesAtZeroFromTheStart) {
  for (const char* name : {"pkv_queue_depth", "pkv_queue_wait_seconds"}) {
    EXPECT_EQ(Sum(name, {{"queue", "prefill"}}), 0);
  }
  EXPECT_EQ(Sum("pkv_rpc_rejected_total", {{"reason", "queue_full"}}), 0);
  for (const char* tensor : {"k", "v"}) {
    EXPECT_EQ(Sum("pkv_codec_relative_error", {{"tensor", tensor}}), 0);
  }
  for (const char* stage : {"mine", "encode"}) {
    EXPECT_EQ(Sum("pkv_codec_duration_seconds", {{"stage", stage}}), 0);
    for (const std::string& preset : PresetNames()) {
      EXPECT_EQ(Sum("pkv_codec_seconds_total", {{"stage", stage}, {"codec", preset}}), 0);
    }
  }
  for (const std::string& preset : PresetNames()) {
    EXPECT_EQ(Sum("pkv_codec_input_bytes_total", {{"codec", preset}}), 0);
    EXPECT_EQ(Sum("pkv_codec_output_bytes_total", {{"codec", preset}}), 0);
  }
}

TEST_F(PrefillMetricsTest, CountsTheCodecUnderItsPreset) {
  metrics_.CountCodec({.preset = "default",
                       .input_bytes = 3000,
                       .output_bytes = 700,
                       .mine_seconds = 0.25,
                       .encode_seconds = 0.5});
  EXPECT_EQ(Sum("pkv_codec_input_bytes_total", {{"codec", "default"}}), 3000);
  EXPECT_EQ(Sum("pkv_codec_input_bytes_total"), 3000);
  EXPECT_EQ(Sum("pkv_codec_output_bytes_total", {{"codec", "default"}}), 700);
  EXPECT_EQ(Sum("pkv_codec_seconds_total", {{"codec", "default"}, {"stage", "mine"}}), 0.25);
  EXPECT_EQ(Sum("pkv_codec_seconds_total", {{"codec", "default"}, {"stage", "encode"}}), 0.5);
  EXPECT_EQ(Sum("pkv_codec_duration_seconds", {{"stage", "mine"}}), 1);
}

TEST_F(PrefillMetricsTest, ATimeThatWasNotMeasuredIsNotObserved) {
  metrics_.CountCodec({.preset = "fp16", .input_bytes = 10, .output_bytes = 10});
  EXPECT_EQ(Sum("pkv_codec_duration_seconds"), 0);
  EXPECT_EQ(Sum("pkv_codec_input_bytes_total"), 10);
}

TEST_F(PrefillMetricsTest, ObservesErrorsOfKAndV) {
  metrics_.ObserveRelativeError(0.25, 0.125);
  EXPECT_EQ(Sum("pkv_codec_relative_error", {{"tensor", "k"}}), 1);
  EXPECT_EQ(Sum("pkv_codec_relative_error", {{"tensor", "v"}}), 1);
}

TEST_F(PrefillMetricsTest, FollowsTheQueue) {
  metrics_.AddWaiting(1);
  metrics_.AddWaiting(1);
  metrics_.AddWaiting(-1);
  metrics_.ObserveQueueWait(0.5);
  metrics_.CountQueueFull();
  EXPECT_EQ(Sum("pkv_queue_depth"), 1);
  EXPECT_EQ(Sum("pkv_queue_wait_seconds"), 1);
  EXPECT_EQ(Sum("pkv_rpc_rejected_total"), 1);
}

}  // namespace
}  // namespace pkv
