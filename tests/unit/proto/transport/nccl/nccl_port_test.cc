#include "proto/transport/nccl/nccl_port.h"

#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

TEST(NcclPortTest, NamesTheDeviceThatIsNotThere) {
  const auto missing =
      NcclVersion() == 0 ? absl::StatusCode::kUnimplemented : absl::StatusCode::kFailedPrecondition;
  const absl::StatusOr<NcclPort> port = OpenNcclPort(1000);
  EXPECT_THAT(port, StatusIs(missing));
  EXPECT_NE(port.status().message().find("device 1000"), std::string::npos) << port.status();
}

}  // namespace
}  // namespace pkv
