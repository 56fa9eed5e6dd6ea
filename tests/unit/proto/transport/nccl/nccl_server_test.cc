#include "proto/transport/nccl/nccl_server.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "proto/transport/nccl/nccl_offer.h"
#include "tests/support/fake_pair_calls.h"
#include "tests/support/fake_pair_source.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

class NcclServerTest : public testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<NcclServer>> Start(int max_pairs = 2) {
    NcclPort port{.calls = calls_, .capability = {.nccl_version = 22809}};
    return NcclServer::Make({.max_pairs = max_pairs}, port, &source_, Clock::Real());
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

  FakePairSource source_;
  std::shared_ptr<FakePairCalls> calls_ =
      std::make_shared<FakePairCalls>(std::make_shared<FakeLink>(), nullptr);
};

TEST_F(NcclServerTest, NeedsAPlace) {
  EXPECT_THAT(Start(0), StatusIs(absl::StatusCode::kInvalidArgument));
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

TEST_F(NcclServerTest, OffersNothingWhileNoPairIsOfferedAndSaysWhy) {
  const auto server = *Start();
  ASSERT_THAT(server->shared().offers->Begin(), IsOk()) << "and does not open";
  EXPECT_FALSE(Answer(*server, 22809, 1).has_nccl());
  EXPECT_THAT(Answer(*server, 22809, 1).nccl_reason(), testing::HasSubstr("did not open"));
  EXPECT_THAT(server->TakePlace(Nothing), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(NcclServerTest, HasSoManyPlacesAndCountsThem) {
  const auto server = *Start();
  auto first = server->TakePlace(Nothing);
  const auto second = server->TakePlace(Nothing);
  EXPECT_THAT(server->TakePlace(Nothing), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(source_.num_pairs, 2u);
  first->reset();
  EXPECT_EQ(source_.num_pairs, 1u);
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
