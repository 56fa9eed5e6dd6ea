#include "client/shm_dialer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>
#include <vector>

#include "tests/support/fake_clock.h"
#include "tests/support/scripted_connection.h"
#include "tests/support/scripted_shm_server.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

class ShmDialerTest : public testing::Test {
 protected:
  ShmDialerTest() {
    connection_.open_handoff = [this](const v1::HandoffOpenRequest& request,
                                      v1::HandoffOpenResponse& response) {
      ++num_opens_;
      request_ = request;
      response = response_;
      return status_;
    };
    *response_.mutable_shm() = server_.Offer();
  }

  absl::StatusOr<std::shared_ptr<ShmLink>> Link() {
    return dialer_.Link(clock_.MonotonicNow() + absl::Minutes(1));
  }

  ScriptedShmServer server_{"dialer"};
  v1::HandoffOpenRequest request_;
  v1::HandoffOpenResponse response_;
  absl::Status status_;
  int num_opens_ = 0;
  ScriptedConnection connection_;
  FakeClock clock_;
  ShmDialer dialer_{&connection_, ShmUse::kGets, &clock_};
};

TEST_F(ShmDialerTest, NegotiatesOnceAndKeepsTheLink) {
  EXPECT_TRUE(dialer_.IsWorthATry());
  const auto first = Link();
  ASSERT_THAT(first, IsOk());
  EXPECT_EQ(*Link(), *first);
  EXPECT_EQ(num_opens_, 1);
  EXPECT_EQ(request_.shm_version(), kShmVersion);
  EXPECT_EQ(request_.host_id(), HostIdentity());
}

TEST_F(ShmDialerTest, NegotiatesAgainAfterTheLinkBroke) {
  const auto first = Link();
  ASSERT_THAT(first, IsOk());
  server_.Disconnect();
  EXPECT_TRUE(dialer_.IsWorthATry());
  const auto second = Link();
  ASSERT_THAT(second, IsOk());
  EXPECT_NE(*second, *first);
  EXPECT_EQ(num_opens_, 2);
}

TEST_F(ShmDialerTest, AServerThatOffersNoneIsNotAskedAgainForAWhile) {
  response_.Clear();
  response_.set_reason("switched off");
  EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("switched off")));
  EXPECT_FALSE(dialer_.IsWorthATry());
  clock_.Advance(kShmRefusalLasts - absl::Milliseconds(1));
  EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(num_opens_, 1);
  clock_.Advance(absl::Milliseconds(1));
  EXPECT_TRUE(dialer_.IsWorthATry());
  *response_.mutable_shm() = server_.Offer();
  EXPECT_THAT(Link(), IsOk());
}

TEST_F(ShmDialerTest, AnOldServerOffersNone) {
  status_ = absl::UnimplementedError("unknown service");
  EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(ShmDialerTest, ADialerOfPutsAsksForAStage) {
  ShmDialer puts(&connection_, ShmUse::kPuts, &clock_);
  const auto link = puts.Link(clock_.MonotonicNow() + absl::Minutes(1));
  ASSERT_THAT(link, IsOk());
  EXPECT_FALSE((*link)->stage_token().empty());
  EXPECT_TRUE(server_.received()[0].hello().for_puts());
}

TEST_F(ShmDialerTest, AServerThatKnowsGetsAloneIsNotAskedForAStageAgainForAWhile) {
  server_.knows_puts = false;
  ShmDialer puts(&connection_, ShmUse::kPuts, &clock_);
  EXPECT_THAT(puts.Link(clock_.MonotonicNow() + absl::Minutes(1)),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  clock_.Advance(kShmFailureLasts);
  EXPECT_FALSE(puts.IsWorthATry());
}

TEST_F(ShmDialerTest, AnOfferForAnotherHostIsNotTaken) {
  response_.mutable_shm()->set_host_id("another");
  EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_TRUE(server_.received().empty());
}

TEST_F(ShmDialerTest, AnOfferOfAnotherVersionIsNotTaken) {
  response_.mutable_shm()->set_version(kShmVersion + 1);
  EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kFailedPrecondition));
}

// The path is right but another server listens there.
TEST_F(ShmDialerTest, AWrongTokenIsTriedAgainSoon) {
  response_.mutable_shm()->set_token(std::string(kShmTokenBytes, 'x'));
  EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_FALSE(dialer_.IsWorthATry());
  EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(num_opens_, 1);
  clock_.Advance(kShmFailureLasts);
  *response_.mutable_shm() = server_.Offer();
  EXPECT_THAT(Link(), IsOk());
}

TEST_F(ShmDialerTest, AServerThatIsAwayIsUnavailable) {
  status_ = absl::UnavailableError("away");
  EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kUnavailable, HasSubstr("away")));
}

TEST_F(ShmDialerTest, ThreadsThatComeTogetherShareOneNegotiation) {
  std::vector<std::shared_ptr<ShmLink>> links(8);
  std::vector<std::thread> threads;
  for (auto& link : links) {
    threads.emplace_back([this, &link] { link = Link().value(); });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& link : links) EXPECT_EQ(link, links[0]);
  EXPECT_EQ(num_opens_, 1);
}

}  // namespace
}  // namespace pkv
