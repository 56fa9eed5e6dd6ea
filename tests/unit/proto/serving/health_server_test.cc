#include "proto/serving/health_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "tests/support/health_check.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

std::string AddressOf(const HealthServer& server) {
  return absl::StrCat("127.0.0.1:", server.port());
}

TEST(HealthServerTest, IsAliveAndNotReadyFromTheStart) {
  const auto server = HealthServer::Start("127.0.0.1:0");
  ASSERT_THAT(server, IsOk());
  const std::string address = AddressOf(**server);
  EXPECT_THAT(IsServing(address, kLivenessService), IsOkAndHolds(true));
  EXPECT_THAT(IsServing(address, kReadinessService), IsOkAndHolds(false));
  EXPECT_THAT(IsServing(address, ""), IsOkAndHolds(false));
}

TEST(HealthServerTest, ReadinessFollowsAndLivenessStays) {
  const auto server = HealthServer::Start("127.0.0.1:0");
  ASSERT_THAT(server, IsOk());
  const std::string address = AddressOf(**server);
  for (const bool ready : {true, false}) {
    (*server)->SetReady(ready);
    EXPECT_THAT(IsServing(address, kReadinessService), IsOkAndHolds(ready));
    EXPECT_THAT(IsServing(address, ""), IsOkAndHolds(ready));
    EXPECT_THAT(IsServing(address, kLivenessService), IsOkAndHolds(true));
  }
}

TEST(HealthServerTest, KnowsNoOtherService) {
  const auto server = HealthServer::Start("127.0.0.1:0");
  ASSERT_THAT(server, IsOk());
  EXPECT_THAT(IsServing(AddressOf(**server), "pkv-startup"), StatusIs(absl::StatusCode::kNotFound));
}

TEST(HealthServerTest, AnswersNothingButHealthChecks) {
  const auto server = HealthServer::Start("127.0.0.1:0");
  ASSERT_THAT(server, IsOk());
  for (const char* method : {"/pkv.v1.Block/Lookup", "/pkv.v1.Admin/Drain",
                             "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"}) {
    EXPECT_THAT(CallWithBytes(AddressOf(**server), method, ""),
                StatusIs(absl::StatusCode::kUnimplemented))
        << method;
  }
}

TEST(HealthServerTest, RefusesMessagesThatNoHealthCheckHas) {
  const auto server = HealthServer::Start("127.0.0.1:0");
  ASSERT_THAT(server, IsOk());
  EXPECT_THAT(CallWithBytes(AddressOf(**server), "/grpc.health.v1.Health/Check",
                            std::string(8 << 10, '\0')),
              StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST(HealthServerTest, ServesOnAUnixSocket) {
  const std::string address = absl::StrCat("unix:", testing::TempDir(), "/health.", getpid());
  const auto server = HealthServer::Start(address);
  ASSERT_THAT(server, IsOk());
  EXPECT_EQ((*server)->port(), 0);
  EXPECT_THAT(IsServing(address, kLivenessService), IsOkAndHolds(true));
}

TEST(HealthServerTest, RefusesAnAddressInUse) {
  const auto first = HealthServer::Start("127.0.0.1:0");
  ASSERT_THAT(first, IsOk());
  EXPECT_THAT(HealthServer::Start(AddressOf(**first)), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(HealthServer::Start("nonsense"), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace pkv
