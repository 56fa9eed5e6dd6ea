#include "client/shm_link.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "tests/support/scripted_shm_server.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kLong = absl::Minutes(1);
constexpr absl::Duration kShort = absl::Milliseconds(50);

class ShmLinkTest : public testing::Test {
 protected:
  ShmLinkTest() { server_.Add(object_); }

  absl::StatusOr<std::shared_ptr<ShmLink>> Connect(absl::Duration timeout = kLong,
                                                   ShmUse use = ShmUse::kGets) {
    return ShmLink::Connect(server_.Offer(), use, timeout, Clock::Real());
  }
  absl::StatusOr<std::unique_ptr<ShmLink::Pin>> PinObject(ShmLink& link,
                                                          absl::Duration timeout = kLong) {
    const ObjectKey key = object_.key();
    return link.PinObjects({&key, 1}, Clock::Real()->MonotonicNow() + timeout, cancelled_);
  }

  const SealedObject object_ = MakeTestWindow(1, 1);
  std::atomic<bool> cancelled_{false};
  ScriptedShmServer server_{"link"};
};

TEST_F(ShmLinkTest, MapsTheArenaAndFindsThePinnedObjectThere) {
  const auto link = Connect();
  ASSERT_THAT(link, IsOk());
  EXPECT_EQ((*link)->arena().size(), ScriptedShmServer::kArenaBytes);
  const auto pin = PinObject(**link);
  ASSERT_THAT(pin, IsOk());
  ASSERT_EQ((*pin)->extents.size(), 1u);
  const v1::ShmExtent& extent = (*pin)->extents[0];
  EXPECT_TRUE(std::ranges::equal((*link)->arena().subspan(extent.offset(), extent.bytes()),
                                 object_.bytes()));
  EXPECT_THAT((*link)->CheckHeld(), IsOk());
}

TEST_F(ShmLinkTest, MapsTheStageAndCutsItIntoWindows) {
  const auto link = Connect(kLong, ShmUse::kPuts);
  ASSERT_THAT(link, IsOk());
  EXPECT_EQ((*link)->stage_token(), ScriptedShmServer::StageToken());
  auto first = (*link)->TakeWindow().value();
  const auto second = (*link)->TakeWindow().value();
  EXPECT_EQ(first->offset(), 0u);
  EXPECT_EQ(second->offset(), kShmWindowBytes);
  second->bytes()[5] = std::byte{7};
  EXPECT_EQ(server_.stage()[kShmWindowBytes + 5], std::byte{7});
  EXPECT_THAT((*link)->TakeWindow(), StatusIs(absl::StatusCode::kResourceExhausted));
  first.reset();
  EXPECT_EQ((*link)->TakeWindow().value()->offset(), 0u);
}

TEST_F(ShmLinkTest, BreaksWithAWindowThatIsRetiredAndLendsItToNobody) {
  const auto link = Connect(kLong, ShmUse::kPuts).value();
  link->TakeWindow().value().reset();
  EXPECT_FALSE(link->broken());
  (*link->TakeWindow())->Retire();
  EXPECT_TRUE(link->broken());
  EXPECT_EQ(link->TakeWindow().value()->offset(), kShmWindowBytes);
}

TEST_F(ShmLinkTest, AServerThatLendsNoStagesIsAFailedPrecondition) {
  server_.knows_puts = false;
  EXPECT_THAT(Connect(kLong, ShmUse::kPuts), StatusIs(absl::StatusCode::kFailedPrecondition));
}

TEST_F(ShmLinkTest, AServerThatHasNoStageLeftIsResourceExhausted) {
  server_.has_stages = false;
  EXPECT_THAT(Connect(kLong, ShmUse::kPuts), StatusIs(absl::StatusCode::kResourceExhausted));
}

TEST_F(ShmLinkTest, AStageThatMayShrinkIsRefused) {
  server_.seals = 0;
  EXPECT_THAT(Connect(kLong, ShmUse::kPuts),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("seals")));
}

TEST_F(ShmLinkTest, AStageSmallerThanSaidIsRefused) {
  server_.said_stage_bytes = ScriptedShmServer::kStageBytes + 4096;
  EXPECT_THAT(Connect(kLong, ShmUse::kPuts), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(ShmLinkTest, UnpinsWhenThePinGoes) {
  const auto link = Connect().value();
  auto pin = PinObject(*link).value();
  pin->ReportDamage(0);
  pin.reset();
  ASSERT_TRUE(server_.WaitFor(v1::ShmMessage::kUnpin, 1));
  const auto received = server_.received();
  const uint64_t pin_id = received[1].pin().pin_id();
  EXPECT_EQ(received[2].damaged().pin_id(), pin_id);
  EXPECT_EQ(received[3].unpin().pin_id(), pin_id);
}

TEST_F(ShmLinkTest, RenewsSeveralTimesInTheSilenceAllowed) {
  server_.silence_ms = 60;
  const auto link = Connect().value();
  EXPECT_TRUE(server_.WaitFor(v1::ShmMessage::kRenew, 5));
  EXPECT_TRUE(link->usable());
}

TEST_F(ShmLinkTest, AnotherServersTokenIsUnavailable) {
  v1::ShmOffer offer = server_.Offer();
  offer.set_token(std::string(kShmTokenBytes, 'x'));
  EXPECT_THAT(ShmLink::Connect(offer, ShmUse::kGets, kLong, Clock::Real()),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(ShmLinkTest, AServerThatDoesNotWelcomeIsUnavailableInTime) {
  server_.welcomes = false;
  EXPECT_THAT(Connect(kShort),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("does not answer")));
}

TEST_F(ShmLinkTest, AnArenaThatMayShrinkIsRefused) {
  server_.seals = 0;
  EXPECT_THAT(Connect(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("seals")));
}

TEST_F(ShmLinkTest, AnArenaSmallerThanSaidIsRefused) {
  server_.said_arena_bytes = ScriptedShmServer::kArenaBytes + 4096;
  EXPECT_THAT(Connect(), StatusIs(absl::StatusCode::kDataLoss));
}

TEST_F(ShmLinkTest, AWelcomeWithoutADescriptorIsRefused) {
  server_.passes_descriptor = false;
  EXPECT_THAT(Connect(), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("descriptor")));
}

TEST_F(ShmLinkTest, ExtentsOutsideTheArenaAreDataLoss) {
  for (const uint64_t shift : {ScriptedShmServer::kArenaBytes, ~uint64_t{0} - 127, uint64_t{1}}) {
    server_.extent_shift = shift;
    const auto link = Connect().value();
    EXPECT_THAT(PinObject(*link), StatusIs(absl::StatusCode::kDataLoss)) << shift;
  }
}

TEST_F(ShmLinkTest, TheServersRefusalIsReturned) {
  server_.pin_code = static_cast<int>(absl::StatusCode::kResourceExhausted);
  const auto link = Connect().value();
  EXPECT_THAT(PinObject(*link), StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(server_.Count(v1::ShmMessage::kUnpin), 0);
}

TEST_F(ShmLinkTest, AShutdownIsALostLeaseWhileTheServersProcessLives) {
  const auto link = Connect().value();
  const auto pin = PinObject(*link).value();
  server_.Disconnect();
  EXPECT_THAT(link->CheckHeld(), StatusIs(absl::StatusCode::kAborted));
  EXPECT_FALSE(link->usable());
  EXPECT_TRUE(link->broken());
  EXPECT_THAT(PinObject(*link), StatusIs(absl::StatusCode::kUnavailable));
}

// Whoever waited has left; what comes for it is given back, and until then nobody else asks.
TEST_F(ShmLinkTest, ALateAnswerIsUnpinned) {
  server_.answers_pins = false;
  const auto link = Connect().value();
  EXPECT_THAT(PinObject(*link, kShort), StatusIs(absl::StatusCode::kDeadlineExceeded));
  EXPECT_FALSE(link->usable());
  EXPECT_FALSE(link->broken());
  v1::ShmMessage late;
  late.mutable_pinned()->set_pin_id(server_.received()[1].pin().pin_id());
  server_.SendAnyway(late);
  EXPECT_TRUE(server_.WaitFor(v1::ShmMessage::kUnpin, 1));
  EXPECT_TRUE(link->usable());
}

TEST_F(ShmLinkTest, CancelEndsTheWait) {
  server_.answers_pins = false;
  const auto link = Connect().value();
  std::thread canceller([&] {
    EXPECT_TRUE(server_.WaitFor(v1::ShmMessage::kPin, 1));
    cancelled_ = true;
    link->Wake();
  });
  EXPECT_THAT(PinObject(*link), StatusIs(absl::StatusCode::kCancelled));
  canceller.join();
}

TEST_F(ShmLinkTest, AnAnswerToNoQuestionBreaksTheLink) {
  const auto link = Connect().value();
  v1::ShmMessage stray;
  stray.mutable_pinned()->set_pin_id(999);
  server_.SendAnyway(stray);
  const absl::Time deadline = Clock::Real()->MonotonicNow() + kLong;
  while (!link->broken() && Clock::Real()->MonotonicNow() < deadline) std::this_thread::yield();
  EXPECT_TRUE(link->broken());
}

TEST_F(ShmLinkTest, ManyThreadsPinOverOneLink) {
  const auto link = Connect().value();
  std::vector<std::thread> threads;
  std::atomic<int> num_pinned{0};
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) num_pinned += PinObject(*link).ok() ? 1 : 0;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_pinned, 200);
  EXPECT_TRUE(server_.WaitFor(v1::ShmMessage::kUnpin, 200));
}

}  // namespace
}  // namespace pkv
