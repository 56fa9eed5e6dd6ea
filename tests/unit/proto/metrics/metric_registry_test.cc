#include "proto/metrics/metric_registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <string>

namespace pkv {
namespace {

using ::testing::HasSubstr;

std::string Page(const MetricRegistry& registry) {
  return prometheus::TextSerializer().Serialize(registry.Collect());
}

TEST(MetricRegistryTest, ShowsEveryTypeWithItsOwnLabelsToo) {
  MetricRegistry registry(MetricRegistry::Labels{{"role", "test"}});
  registry.AddCounter("pkv_c_total", "Counted", {{"a", "b"}})->Increment(2);
  registry.AddGauge("pkv_g", "Measured")->Set(3);
  registry.AddHistogram("pkv_h_seconds", "Observed", {{"a", "b"}}, {1})->Observe(0.5);
  const std::string page = Page(registry);
  EXPECT_THAT(page, HasSubstr("pkv_c_total{a=\"b\",role=\"test\"} 2\n"));
  EXPECT_THAT(page, HasSubstr("pkv_g{role=\"test\"} 3\n"));
  EXPECT_THAT(page, HasSubstr("# HELP pkv_h_seconds Observed\n# TYPE pkv_h_seconds histogram\n"));
  EXPECT_THAT(page, HasSubstr("pkv_h_seconds_bucket{a=\"b\",role=\"test\",le=\"1\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("pkv_h_seconds_bucket{a=\"b\",role=\"test\",le=\"+Inf\"} 1\n"));
  EXPECT_THAT(page, HasSubstr("pkv_h_seconds_sum{a=\"b\",role=\"test\"} 0.5\n"));
}

TEST(MetricRegistryTest, SeriesOfOneNameShareAFamily) {
  MetricRegistry registry;
  for (const char* value : {"x", "y"}) {
    registry.AddCounter("pkv_c_total", "Counted", {{"a", value}});
    registry.AddHistogram("pkv_h", "Observed", {{"a", value}}, {1});
  }
  const auto families = registry.Collect();
  ASSERT_EQ(families.size(), 2u);
  for (const auto& family : families) EXPECT_EQ(family.metric.size(), 2u) << family.name;
}

TEST(MetricRegistryTest, AddedAgainIsTheSame) {
  MetricRegistry registry;
  EXPECT_EQ(registry.AddCounter("pkv_c_total", "Counted"),
            registry.AddCounter("pkv_c_total", "Counted"));
  Histogram* first = registry.AddHistogram("pkv_h", "Observed", {{"a", "x"}}, {1});
  EXPECT_EQ(first, registry.AddHistogram("pkv_h", "Observed", {{"a", "x"}}, {1}));
  EXPECT_NE(first, registry.AddHistogram("pkv_h", "Observed", {{"a", "y"}}, {1}));
}

TEST(MetricRegistryTest, CollectsWhatOthersCollect) {
  const auto other = std::make_shared<MetricRegistry>();
  other->AddGauge("pkv_g", "Measured");
  MetricRegistry registry(MetricRegistry::Labels{{"role", "test"}});
  registry.AddCollectable(other);
  EXPECT_THAT(Page(registry), HasSubstr("pkv_g 0\n"));
}

}  // namespace
}  // namespace pkv
