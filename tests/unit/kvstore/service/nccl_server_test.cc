#include "kvstore/service/nccl_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "proto/transport/nccl/nccl_offer.h"
#include "tests/support/fake_pair_calls.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/service/service_fixture.h"

namespace pkv {
namespace {

class NcclServerTest : public ServiceFixture {
 protected:
  void SetUp() override { MakeService(16); }

  absl::StatusOr<std::unique_ptr<NcclServer>> Start(int max_pairs = 2) {
    NcclPort port{.calls = calls_, .capability = {.nccl_version = 22809}};
    return NcclServer::Start({.max_pairs = max_pairs}, port, store_.get(), &metrics_,
                             Clock::Real());
  }
  static v1::HandoffOpenResponse Answer(const NcclServer& server, int version, int gpu) {
    NcclCapability reader{.nccl_version = version};
    reader.device_uuid[0] = static_cast<std::byte>(gpu);
    v1::HandoffOpenRequest request;
    *request.mutable_nccl() = ToProto(reader);
    v1::HandoffOpenResponse response;
    server.Answer(request, response);
    return response;
  }
  static void Nothing() {}

  std::shared_ptr<FakePairCalls> calls_ =
      std::make_shared<FakePairCalls>(std::make_shared<FakeLink>(), nullptr);
};

TEST_F(NcclServerTest, LetsTheGpuReadTheStoreAsLongAsItStands) {
  {
    const auto server = Start();
    ASSERT_THAT(server, IsOk());
    EXPECT_EQ(calls_->num_alive(), 1);
  }
  EXPECT_EQ(calls_->num_alive(), 0);
}

TEST_F(NcclServerTest, LogsWhatItPinsBeforeAndAfter) {
  testing::internal::CaptureStderr();
  ASSERT_THAT(Start(), IsOk());
  const std::string bytes = absl::StrCat("bytes=", store_->memory().size());
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              testing::AllOf(testing::HasSubstr("pinning memory for the GPU"),
                             testing::HasSubstr("pinned memory for the GPU"),
                             testing::HasSubstr(bytes), testing::HasSubstr("seconds=")));
}

TEST_F(NcclServerTest, SaysWhyItCannotStart) {
  EXPECT_THAT(Start(0), StatusIs(absl::StatusCode::kInvalidArgument));
  calls_->faults.register_host = absl::ResourceExhaustedError("no memory to pin");
  EXPECT_THAT(Start(), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(NcclServerTest, OffersAPairToWhomItCanPairWith) {
  const auto server = *Start();
  EXPECT_TRUE(Answer(*server, 22809, 1).has_nccl());
  EXPECT_FALSE(Answer(*server, 22809, 0).has_nccl()) << "one GPU";
  EXPECT_FALSE(Answer(*server, 22808, 1).has_nccl());
  EXPECT_NE(Answer(*server, 22808, 1).nccl_reason(), "");
  v1::HandoffOpenResponse response;
  server->Answer({}, response);
  EXPECT_FALSE(response.has_nccl());
  EXPECT_NE(response.nccl_reason(), "");
}

TEST_F(NcclServerTest, HasSoManyPlacesAndCountsThem) {
  const auto server = *Start();
  auto first = server->TakePlace(Nothing);
  const auto second = server->TakePlace(Nothing);
  EXPECT_THAT(server->TakePlace(Nothing), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(Metric("pkv_nccl_pairs"), 2);
  first->reset();
  EXPECT_EQ(Metric("pkv_nccl_pairs"), 1);
  EXPECT_THAT(server->TakePlace(Nothing), IsOk());
}

TEST_F(NcclServerTest, TellsThoseThatStandWhenItStopsAndTakesNoMore) {
  const auto server = *Start();
  int num_told = 0;
  const auto place = server->TakePlace([&num_told] { ++num_told; });
  server->TakePlace([&num_told] { num_told += 100; }).IgnoreError();  // leaves at once
  server->Stop();
  server->Stop();
  EXPECT_EQ(num_told, 1);
  EXPECT_THAT(server->TakePlace(Nothing), StatusIs(absl::StatusCode::kUnavailable));
}

}  // namespace
}  // namespace pkv
