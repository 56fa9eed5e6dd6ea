#include "proto/metrics/reload_metrics.h"

#include <gmock/gmock.h>
#include <prometheus/text_serializer.h>

#include <string>

namespace pkv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class ReloadMetricsTest : public testing::Test {
 protected:
  std::string Page() const { return prometheus::TextSerializer().Serialize(registry_.Collect()); }

  MetricRegistry registry_;
  ReloadMetrics metrics_{registry_};
};

TEST_F(ReloadMetricsTest, SeriesAreThereFromTheStart) {
  EXPECT_THAT(Page(), AllOf(HasSubstr("pkv_config_reloads_total{result=\"success\"} 0\n"),
                            HasSubstr("pkv_config_reloads_total{result=\"partial\"} 0\n"),
                            HasSubstr("pkv_config_reloads_total{result=\"failure\"} 0\n"),
                            HasSubstr("pkv_config_last_reload_successful 1\n"),
                            HasSubstr("pkv_config_hash 0\n")));
}

TEST_F(ReloadMetricsTest, ShowsAllBitsOfAHash) {
  metrics_.SetHash(0xfffffffe);
  EXPECT_THAT(Page(), HasSubstr("pkv_config_hash 4294967294\n"));
}

TEST_F(ReloadMetricsTest, TheLastReloadIsAFailureUntilOneIsNot) {
  metrics_.Count(ReloadResult::kFailure);
  metrics_.Count(ReloadResult::kFailure);
  EXPECT_THAT(Page(), AllOf(HasSubstr("{result=\"failure\"} 2\n"),
                            HasSubstr("pkv_config_last_reload_successful 0\n")));
  metrics_.Count(ReloadResult::kPartial);
  EXPECT_THAT(Page(), AllOf(HasSubstr("{result=\"partial\"} 1\n"),
                            HasSubstr("pkv_config_last_reload_successful 1\n")));
  metrics_.Count(ReloadResult::kSuccess);
  EXPECT_THAT(Page(), HasSubstr("{result=\"success\"} 1\n"));
}

}  // namespace
}  // namespace pkv
