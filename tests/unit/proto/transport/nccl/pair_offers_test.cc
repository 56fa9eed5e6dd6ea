#include "proto/transport/nccl/pair_offers.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/support/fake_clock.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

class PairOffersTest : public testing::Test {
 protected:
  // Makes an offer whose pair does not open.
  void Lose() { ASSERT_THAT(offers_.Begin(), IsOk()); }
  void Open() {
    auto offer = offers_.Begin();
    ASSERT_THAT(offer, IsOk());
    (*offer)->Opened();
  }
  // How long the pause lasts from now on, to the second; ends it.
  absl::Duration WaitForNext() {
    absl::Duration waited;
    while (!offers_.Check().ok()) {
      clock_.Advance(absl::Seconds(1));
      waited += absl::Seconds(1);
    }
    return waited;
  }

  FakeClock clock_;
  PairOffers offers_{&clock_};
};

TEST_F(PairOffersTest, PausesTwiceAsLongAfterEachThatDoesNotOpen) {
  for (const int seconds : {1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300}) {
    Lose();
    EXPECT_THAT(offers_.Begin(), StatusIs(absl::StatusCode::kResourceExhausted));
    EXPECT_EQ(WaitForNext(), absl::Seconds(seconds));
  }
}

TEST_F(PairOffersTest, HasNoPauseOnceAPairHasOpened) {
  for (int i = 0; i < 5; ++i) {
    Lose();
    WaitForNext();
  }
  Open();
  EXPECT_THAT(offers_.Check(), IsOk());
  Lose();
  EXPECT_EQ(WaitForNext(), PairOffers::kFirstPause);
}

TEST_F(PairOffersTest, OneThatOpensBesideThemEndsThePauseOfOthers) {
  auto opening = *offers_.Begin();
  Lose();
  EXPECT_FALSE(offers_.Check().ok());
  opening->Opened();
  opening.reset();
  EXPECT_THAT(offers_.Check(), IsOk());
}

TEST_F(PairOffersTest, EndsForGoodAfterSoManyThatDidNotOpenAndSaysSo) {
  testing::internal::CaptureStderr();
  for (int i = 1; i < PairOffers::kMaxUnopened; ++i) {
    Lose();
    WaitForNext();
    Open();  // takes back the pause, not the number
  }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
  testing::internal::CaptureStderr();
  Lose();
  EXPECT_THAT(testing::internal::GetCapturedStderr(), testing::HasSubstr("any more"));
  clock_.Advance(absl::Hours(1000));
  EXPECT_THAT(offers_.Begin(), StatusIs(absl::StatusCode::kResourceExhausted));
}

// All at once: none has failed yet.
TEST_F(PairOffersTest, OffersNoMoreAtOnceThanMayFail) {
  std::vector<std::unique_ptr<PairOffers::Offer>> opening;
  for (int i = 0; i < PairOffers::kMaxUnopened; ++i) opening.push_back(*offers_.Begin());
  EXPECT_THAT(offers_.Begin(), StatusIs(absl::StatusCode::kResourceExhausted));
  opening.back()->Opened();
  opening.pop_back();
  EXPECT_THAT(offers_.Begin(), IsOk()) << "and is lost";
  opening.clear();
  clock_.Advance(absl::Hours(1));
  EXPECT_THAT(offers_.Begin(), StatusIs(absl::StatusCode::kResourceExhausted));
}

}  // namespace
}  // namespace pkv
