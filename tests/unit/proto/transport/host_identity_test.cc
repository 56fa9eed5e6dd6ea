#include "proto/transport/host_identity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace pkv {
namespace {

TEST(HostIdentityTest, IsTheBootIdAndStaysWhatItIs) {
  const std::string id = HostIdentity();
  EXPECT_THAT(id, testing::MatchesRegex("[0-9a-f]+-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+"));
  EXPECT_EQ(HostIdentity(), id);
}

}  // namespace
}  // namespace pkv
