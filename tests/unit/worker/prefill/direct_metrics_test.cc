#include "worker/prefill/direct_metrics.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "proto/metrics/metric_registry.h"
#include "tests/support/tiny_worker.h"

namespace pkv {
namespace {

class DirectMetricsTest : public testing::Test {
 protected:
  double Sum(const std::string& name,
             const std::vector<std::pair<std::string, std::string>>& labels = {}) {
    return MetricSum(registry_, name, labels);
  }

  MetricRegistry registry_;
  DirectMetrics metrics_{registry_};
};

TEST_F(DirectMetricsTest, HasEverySeriesAtZeroFromTheStart) {
  std::vector<std::string> names;
  for (const prometheus::MetricFamily& family : registry_.Collect()) {
    names.push_back(family.name);
    EXPECT_EQ(Sum(family.name), 0) << family.name;
  }
  EXPECT_EQ(names.size(), 8u);
}

TEST_F(DirectMetricsTest, CountsByReasonAndResult) {
  metrics_.PairEnded(PairEnd::kStopped);
  metrics_.PairEnded(PairEnd::kUnopened);
  metrics_.PromptEnded(DirectPrompt::kNoRoom);
  metrics_.GetEnded(DirectGet::kShed);
  metrics_.Evicted(DirectEviction::kDamaged);
  EXPECT_EQ(Sum("pkv_direct_ended_total", {{"reason", "stopped"}}), 1);
  EXPECT_EQ(Sum("pkv_direct_ended_total", {{"reason", "unopened"}}), 1);
  EXPECT_EQ(Sum("pkv_direct_prompts_total", {{"result", "no_room"}}), 1);
  EXPECT_EQ(Sum("pkv_direct_gets_total", {{"result", "shed"}}), 1);
  EXPECT_EQ(Sum("pkv_direct_evictions_total", {{"reason", "damaged"}}), 1);
  EXPECT_EQ(Sum("pkv_direct_gets_total"), 1);
}

}  // namespace
}  // namespace pkv
