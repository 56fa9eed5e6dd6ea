#include "client/nccl_dialer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>

#include "tests/support/fake_clock.h"
#include "tests/support/scripted_pair_holder.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

class NcclDialerTest : public testing::Test {
 protected:
  void SetUp() override {
    holder_.Serve(*scripted_.connection);
    const auto open = scripted_.connection->open_handoff;
    scripted_.connection->open_handoff = [this, open](const v1::HandoffOpenRequest& request,
                                                      v1::HandoffOpenResponse& response) {
      ++num_asked_;
      EXPECT_TRUE(request.has_nccl());
      return offers_.ok() && is_offered_ ? open(request, response) : offers_;
    };
  }

  absl::StatusOr<std::shared_ptr<NcclLink>> Link() { return dialer_.Link(absl::InfiniteFuture()); }

  // Ends the link; the next call is accepted.
  void Break() {
    holder_.Accept(*scripted_.connection);
    holder_.stream->End(absl::UnavailableError("killed"));
  }

  ScriptedPairHolder holder_;
  std::shared_ptr<FakePairCalls> calls_ = std::make_shared<FakePairCalls>(holder_.link, nullptr);
  ScriptedCore scripted_ = MakeScriptedCore();
  absl::Status offers_;
  bool is_offered_ = true;
  int num_asked_ = 0;
  FakeClock clock_;
  NcclDialer dialer_{scripted_.connection, FakePort(calls_, 2), &clock_};
};

TEST_F(NcclDialerTest, MakesOneLinkAndKeepsIt) {
  const auto link = Link();
  ASSERT_THAT(link, IsOk());
  EXPECT_EQ(*dialer_.Link(absl::InfinitePast()), *link);
  EXPECT_EQ(num_asked_, 1);
}

TEST_F(NcclDialerTest, DoesNotWaitWhereTheDeadlineHasPassed) {
  EXPECT_THAT(dialer_.Link(absl::InfinitePast()), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_THAT(Link(), IsOk()) << "and makes it all the same";
  EXPECT_EQ(num_asked_, 1);
}

TEST_F(NcclDialerTest, MakesAnotherAtOnceWhenALinkBreaksThatStoodLong) {
  const auto link = Link();
  ASSERT_THAT(link, IsOk());
  clock_.Advance(kNcclFailureLastsMax);
  Break();
  const auto other = Link();
  ASSERT_THAT(other, IsOk());
  EXPECT_NE(*other, *link);
  EXPECT_EQ(num_asked_, 2);
}

TEST_F(NcclDialerTest, WaitsTwiceAsLongAfterEachLinkThatBreaksSoon) {
  absl::Duration lasts = kNcclFailureLasts;
  for (int links = 1; links <= 3; ++links, lasts *= 2) {
    ASSERT_THAT(Link(), IsOk());
    EXPECT_EQ(num_asked_, links);
    Break();
    EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kUnavailable));
    clock_.Advance(lasts - absl::Milliseconds(1));
    EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kUnavailable)) << "dialled too soon";
    clock_.Advance(absl::Milliseconds(1));
  }
  ASSERT_THAT(Link(), IsOk());
  clock_.Advance(kNcclFailureLastsMax);
  Break();
  ASSERT_THAT(Link(), IsOk());
  Break();
  EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kUnavailable));
  clock_.Advance(kNcclFailureLasts);
  EXPECT_THAT(Link(), IsOk()) << "one that stood long begins anew";
}

TEST_F(NcclDialerTest, SaysWhyNcclIsNotUsedOnceForEachReason) {
  is_offered_ = false;
  const auto logged = [this] {
    testing::internal::CaptureStderr();
    EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kFailedPrecondition));
    clock_.Advance(kNcclRefusalLasts);
    return testing::internal::GetCapturedStderr();
  };
  EXPECT_THAT(logged(), testing::HasSubstr("nccl: not used"));
  EXPECT_THAT(logged(), testing::IsEmpty());
  offers_ = absl::UnimplementedError("no such call");
  EXPECT_THAT(logged(), testing::HasSubstr("does not know it"));
  EXPECT_EQ(num_asked_, 3);
}

TEST_F(NcclDialerTest, RepeatsARefusalWhileItStands) {
  is_offered_ = false;
  EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_EQ(num_asked_, 1);
  is_offered_ = true;
  clock_.Advance(kNcclRefusalLasts);
  EXPECT_THAT(Link(), IsOk());
}

TEST_F(NcclDialerTest, WaitsTwiceAsLongAfterEachFailure) {
  offers_ = absl::UnavailableError("away");
  absl::Duration lasts = kNcclFailureLasts;
  for (int failures = 1; failures <= 4; ++failures, lasts *= 2) {
    EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kUnavailable));
    EXPECT_EQ(num_asked_, failures);
    clock_.Advance(lasts - absl::Milliseconds(1));
    EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kUnavailable));
    EXPECT_EQ(num_asked_, failures) << "asked again too soon";
    clock_.Advance(absl::Milliseconds(1));
  }
}

TEST_F(NcclDialerTest, AServerThatDoesNotKnowTheCallRefuses) {
  offers_ = absl::UnimplementedError("no such call");
  EXPECT_THAT(Link(), StatusIs(absl::StatusCode::kFailedPrecondition));
}

}  // namespace
}  // namespace pkv
