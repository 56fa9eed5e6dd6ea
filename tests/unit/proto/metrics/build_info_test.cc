#include "proto/metrics/build_info.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <string>

namespace pkv {
namespace {

using ::testing::HasSubstr;

TEST(BuildInfoTest, NamesTheVersionAndWhatTheCallerAdds) {
  MetricRegistry registry;
  RegisterBuildInfo(registry, {{"grpc_version", "1.51.1"}});
  const std::string text = prometheus::TextSerializer().Serialize(registry.Collect());
  EXPECT_THAT(text, HasSubstr("pkv_build_info{compiler="));
  EXPECT_THAT(text, HasSubstr("grpc_version=\"1.51.1\""));
  EXPECT_THAT(text, HasSubstr(std::string("version=\"") + BuildVersion() + "\"} 1\n"));
}

TEST(BuildInfoTest, VersionHasThreeNumbers) {
  const std::string version = BuildVersion();
  EXPECT_EQ(std::count(version.begin(), version.end(), '.'), 2) << version;
}

}  // namespace
}  // namespace pkv
