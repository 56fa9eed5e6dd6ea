#include "client/nccl_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/fake_clock.h"
#include "tests/support/scripted_pair_holder.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

class NcclLinkTest : public testing::Test {
 protected:
  NcclLinkTest() {
    holder_.objects.push_back(MakeTestWindow(1, 1));
    key_ = holder_.objects[0].key();
    holder_.Serve(*scripted_.connection);
  }

  absl::StatusOr<std::shared_ptr<NcclLink>> Open(absl::Duration timeout = absl::Seconds(20)) {
    return NcclLink::Open(scripted_.connection, FakePort(calls_, 2), timeout, Clock::Real());
  }
  static absl::StatusOr<std::unique_ptr<NcclLink::Turn>> TakeTurn(NcclLink& link) {
    static const std::atomic<bool> cancelled{false};
    return link.TakeTurn(absl::InfinitePast(), cancelled);
  }

  ScriptedPairHolder holder_;
  std::shared_ptr<FakePairCalls> calls_ = std::make_shared<FakePairCalls>(holder_.link, nullptr);
  ScriptedCore scripted_ = MakeScriptedCore();
  ObjectKey key_;
};

TEST_F(NcclLinkTest, OpensAPairAsTheHolderOffers) {
  const auto link = Open();
  ASSERT_THAT(link, IsOk());
  EXPECT_THAT(holder_.Join(), IsOk());
  EXPECT_FALSE((*link)->broken());
  EXPECT_EQ(holder_.requests[0].hello().nccl_version(), 22809u);
}

TEST_F(NcclLinkTest, AHolderThatRefusesIsItsErrorAndNothingIsLeft) {
  holder_.offers = absl::ResourceExhaustedError("8 pairs are open");
  EXPECT_THAT(Open(), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_TRUE(calls_->IsSoonEmpty());
}

TEST_F(NcclLinkTest, AHolderThatNeverJoinsIsGivenUpInTime) {
  calls_->faults.init_hangs = true;
  EXPECT_THAT(Open(absl::Milliseconds(50)), StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(NcclLinkTest, TurnsFollowEachOther) {
  const auto link = Open();
  ASSERT_THAT(link, IsOk());
  auto first = TakeTurn(**link);
  ASSERT_THAT(first, IsOk());
  EXPECT_THAT(TakeTurn(**link), StatusIs(absl::StatusCode::kDeadlineExceeded));
  first->reset();
  EXPECT_THAT(TakeTurn(**link), IsOk());
}

TEST_F(NcclLinkTest, WhoWaitsForATurnIsWokenWhenCancelled) {
  const auto link = Open();
  ASSERT_THAT(link, IsOk());
  const auto first = TakeTurn(**link);
  std::atomic<bool> cancelled{false};
  std::thread other([&] {
    cancelled = true;
    (*link)->Wake();
  });
  EXPECT_THAT((*link)->TakeTurn(absl::InfiniteFuture(), cancelled),
              StatusIs(absl::StatusCode::kCancelled));
  other.join();
}

TEST_F(NcclLinkTest, AnAnswerOfTheWrongSizeBreaksIt) {
  const auto link = Open();
  ASSERT_THAT(link, IsOk());
  auto turn = TakeTurn(**link);
  ASSERT_THAT(turn, IsOk());
  ASSERT_THAT((*turn)->Fetch({&key_, 1}, absl::InfiniteFuture()), IsOk());
  v1::PairReply reply;
  reply.mutable_manifest();
  holder_.on_fetch = [&reply](ScriptedStream& stream) { stream.Deliver(reply); };
  EXPECT_THAT((*turn)->Fetch({&key_, 1}, absl::InfiniteFuture()),
              StatusIs(absl::StatusCode::kDataLoss, testing::HasSubstr("makes no sense")));
  EXPECT_TRUE((*link)->broken());
  turn->reset();
  EXPECT_THAT(TakeTurn(**link), StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(NcclLinkTest, FramesFollowAManifestAndThoseThatNobodyReceivesAreDropped) {
  const auto link = Open();
  ASSERT_THAT(link, IsOk());
  const ObjectHeader& header = holder_.objects[0].header;
  for (int round = 0; round < 3; ++round) {
    auto turn = TakeTurn(**link);
    ASSERT_THAT(turn, IsOk());
    ASSERT_THAT((*turn)->Fetch({&key_, 1}, absl::InfiniteFuture()), IsOk());
    EXPECT_EQ((*turn)->total_bytes(), header.frame_bytes * header.num_layers);
    // One turn may ask again.
    if (round == 1) {
      ASSERT_THAT((*turn)->Fetch({&key_, 1}, absl::InfiniteFuture()), IsOk());
    }
    turn->reset();
    EXPECT_FALSE((*link)->broken()) << round;
    EXPECT_THAT(holder_.Join(), IsOk());
  }
}

TEST_F(NcclLinkTest, AManifestWithoutOneHeadIsFollowedByNothing) {
  const auto link = Open();
  ASSERT_THAT(link, IsOk());
  const std::vector<ObjectKey> keys = {key_, MakeTestWindow(9, 9).key()};
  auto turn = TakeTurn(**link);
  ASSERT_THAT((*turn)->Fetch(keys, absl::InfiniteFuture()), IsOk());
  EXPECT_EQ((*turn)->total_bytes(), 0u);
  EXPECT_EQ(calls_->num_begins(), 1) << "the greeting";
}

// Whoever says so much, or so little, sends something else.
TEST_F(NcclLinkTest, HeadsWhoseFramesCannotBeBreakIt) {
  ObjectHeader header = holder_.objects[0].header;
  std::vector<std::string> heads = {"short"};
  for (const uint64_t frame_bytes : {uint64_t{0}, uint64_t{100}, uint64_t{1} << 40, ~uint64_t{0}}) {
    header.frame_bytes = frame_bytes;
    heads.emplace_back(reinterpret_cast<const char*>(&header), sizeof(header));
  }
  for (const std::string& head : heads) {
    holder_.Serve(*scripted_.connection);
    const auto link = Open();
    ASSERT_THAT(link, IsOk());
    auto turn = TakeTurn(**link);
    holder_.on_fetch = [&](ScriptedStream& stream) {
      v1::PairReply reply;
      reply.mutable_manifest()->add_heads(head);
      stream.Deliver(reply);
    };
    EXPECT_THAT((*turn)->Fetch({&key_, 1}, absl::InfiniteFuture()),
                StatusIs(absl::StatusCode::kDataLoss));
    EXPECT_TRUE((*link)->broken());
  }
}

TEST_F(NcclLinkTest, AFetchThatIsNotAnsweredInTimeBreaksIt) {
  FakeClock clock;
  const auto link =
      NcclLink::Open(scripted_.connection, FakePort(calls_, 2), absl::Seconds(20), &clock);
  ASSERT_THAT(link, IsOk());
  auto turn = TakeTurn(**link);
  holder_.on_fetch = [&](ScriptedStream&) { clock.Advance(absl::Minutes(1)); };
  EXPECT_THAT((*turn)->Fetch({&key_, 1}, absl::InfiniteFuture()),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_TRUE((*link)->broken()) << "a late answer would be taken for the next one's";
  EXPECT_TRUE(holder_.stream->cancelled());
}

// On a clock that stands still the link's own patience never ends.
TEST_F(NcclLinkTest, AFetchEndsAtTheDeadlineOfWhoAsks) {
  FakeClock clock;
  const auto link =
      NcclLink::Open(scripted_.connection, FakePort(calls_, 2), absl::Seconds(20), &clock);
  ASSERT_THAT(link, IsOk());
  auto turn = TakeTurn(**link);
  holder_.on_fetch = [](ScriptedStream&) {};
  EXPECT_THAT((*turn)->Fetch({&key_, 1}, clock.MonotonicNow()),
              StatusIs(absl::StatusCode::kDeadlineExceeded));
}

TEST_F(NcclLinkTest, TheEndOfTheCallBreaksItAndWhatWaits) {
  const auto link = Open();
  ASSERT_THAT(link, IsOk());
  auto turn = TakeTurn(**link);
  holder_.on_fetch = [](ScriptedStream& stream) { stream.End(absl::UnavailableError("killed")); };
  EXPECT_THAT((*turn)->Fetch({&key_, 1}, absl::InfiniteFuture()),
              StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_TRUE((*link)->broken());
}

TEST_F(NcclLinkTest, AnswersToNoQuestionBreakIt) {
  const auto link = Open();
  ASSERT_THAT(link, IsOk());
  v1::PairReply reply;
  reply.mutable_manifest();
  holder_.stream->Deliver(reply);
  holder_.stream->Deliver(reply);
  EXPECT_TRUE((*link)->broken());
}

TEST_F(NcclLinkTest, LeavesNothingOnTheGpuWhenDestroyed) {
  auto link = Open();
  ASSERT_THAT(link, IsOk());
  EXPECT_GT(calls_->num_alive(), 0);
  link->reset();
  EXPECT_TRUE(calls_->IsSoonEmpty());
}

}  // namespace
}  // namespace pkv
