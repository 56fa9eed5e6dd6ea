#include "kvstore/service/shm_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/support/shm_messages.h"
#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/service/service_fixture.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr auto kOk = static_cast<int>(absl::StatusCode::kOk);
constexpr auto kNotFound = static_cast<int>(absl::StatusCode::kNotFound);
constexpr auto kDataLoss = static_cast<int>(absl::StatusCode::kDataLoss);
constexpr auto kResourceExhausted = static_cast<int>(absl::StatusCode::kResourceExhausted);

class ShmSessionTest : public ServiceFixture {
 protected:
  void SetUp() override {
    MakeService(16);
    for (uint64_t id = 1; id <= 3; ++id) {
      objects_.push_back(MakeTestWindow(id, static_cast<uint32_t>(id)));
      ASSERT_THAT(Put(objects_.back()), IsOk());
    }
    const uint64_t object_bytes = objects_[0].bytes().size();
    shared_ = {.store = store_.get(),
               .metrics = &metrics_,
               .clock = &clock_,
               .limits = {.connection_pinned_bytes = 3 * object_bytes,
                          .total_pinned_bytes = 4 * object_bytes,
                          .silence = absl::Seconds(10),
                          .pin_age = absl::Seconds(60)},
               .token = std::string(kShmTokenBytes, 't'),
               .stages = &stages_};
    session_ = Welcomed();
  }
  void TearDown() override { session_.reset(); }

  std::unique_ptr<ShmSession> Welcomed() {
    auto session = std::make_unique<ShmSession>(&shared_);
    EXPECT_THAT(session->OnMessage(ShmHelloOf(shared_.token)), IsOk());
    return session;
  }

  v1::ShmPinned Pin(uint64_t pin_id, const std::vector<const SealedObject*>& objects,
                    ShmSession* session = nullptr) {
    std::vector<ObjectKey> keys;
    for (const SealedObject* object : objects) keys.push_back(object->key());
    const auto answer =
        (session == nullptr ? session_.get() : session)->OnMessage(ShmPinOf(pin_id, keys));
    EXPECT_THAT(answer, IsOk());
    return answer.ok() && answer->has_value() ? (*answer)->pinned() : v1::ShmPinned();
  }

  uint64_t StorePinned() const { return store_->stats().pinned_bytes; }

  std::vector<SealedObject> objects_;
  ShmShared shared_;
  std::unique_ptr<ShmSession> session_;
};

TEST_F(ShmSessionTest, WelcomeNamesTheArenasSizeAndTheSilenceAllowed) {
  ShmSession session(&shared_);
  const auto answer = session.OnMessage(ShmHelloOf(shared_.token));
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ((*answer)->welcome().arena_bytes(), store_->stats().capacity_bytes);
  EXPECT_EQ((*answer)->welcome().silence_ms(), 10'000u);
}

TEST_F(ShmSessionTest, WhoPutsIsLentAStageUntilItGoes) {
  auto session = std::make_unique<ShmSession>(&shared_);
  EXPECT_EQ(session->stage(), nullptr);
  const auto answer = session->OnMessage(ShmPutHelloOf(shared_.token));
  ASSERT_THAT(answer, IsOk());
  const v1::ShmWelcome& welcome = (*answer)->welcome();
  EXPECT_EQ(welcome.arena_bytes(), 0u);
  EXPECT_EQ(welcome.stage_bytes(), kShmStageBytes);
  EXPECT_EQ(stages_.Find(welcome.stage_token()).get(), session->stage());
  EXPECT_EQ(session_->stage(), nullptr) << "others have none";
  session.reset();
  EXPECT_EQ(stages_.Find(welcome.stage_token()), nullptr);
  EXPECT_EQ(stages_.bytes(), 0u);
}

TEST_F(ShmSessionTest, WhoPutsPinsNothing) {
  ShmSession session(&shared_);
  ASSERT_THAT(session.OnMessage(ShmPutHelloOf(shared_.token)), IsOk());
  const ObjectKey key = objects_[0].key();
  EXPECT_THAT(session.OnMessage(ShmPinOf(1, {&key, 1})),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(session.OnMessage(ShmPutHelloOf(shared_.token)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("second")));
  EXPECT_EQ(StorePinned(), 0u);
}

TEST_F(ShmSessionTest, WithoutAStageLeftNobodyIsWelcomedToPut) {
  std::vector<std::unique_ptr<ShmSession>> sessions;
  for (int i = 0; i < kMaxShmStages; ++i) {
    sessions.push_back(std::make_unique<ShmSession>(&shared_));
    ASSERT_THAT(sessions.back()->OnMessage(ShmPutHelloOf(shared_.token)), IsOk());
  }
  ShmSession late(&shared_);
  EXPECT_THAT(late.OnMessage(ShmPutHelloOf(shared_.token)),
              StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(ShmSession(&shared_).OnMessage(ShmHelloOf(shared_.token)), IsOk());
}

TEST_F(ShmSessionTest, AnotherServersTokenIsRefused) {
  ShmSession session(&shared_);
  for (const std::string& token : {std::string(), std::string(kShmTokenBytes, 'u')}) {
    EXPECT_THAT(session.OnMessage(ShmHelloOf(token)),
                StatusIs(absl::StatusCode::kPermissionDenied));
  }
}

TEST_F(ShmSessionTest, NothingIsAnsweredBeforeTheHello) {
  ShmSession session(&shared_);
  const ObjectKey key = objects_[0].key();
  EXPECT_THAT(session.OnMessage(ShmPinOf(1, {&key, 1})),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("hello")));
  EXPECT_EQ(StorePinned(), 0u);
}

TEST_F(ShmSessionTest, WhatIsOutOfTurnIsRefused) {
  v1::ShmMessage welcome;
  welcome.mutable_welcome();
  const ObjectKey key = objects_[0].key();
  Pin(7, {&objects_[0]});
  for (const v1::ShmMessage& message :
       {ShmHelloOf(shared_.token), welcome, ShmUnpinOf(8), ShmDamagedOf(8, 0), ShmDamagedOf(7, 1),
        ShmPinOf(7, {&key, 1}), ShmPinOf(9, {}), ShmPinOf(9, std::vector<ObjectKey>(4097, key))}) {
    EXPECT_THAT(session_->OnMessage(message), StatusIs(absl::StatusCode::kInvalidArgument))
        << message.ShortDebugString();
  }
}

TEST_F(ShmSessionTest, AnotherVersionIsRefused) {
  ShmSession session(&shared_);
  EXPECT_THAT(session.OnMessage(ShmHelloOf(shared_.token, kShmVersion + 1)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("version")));
}

TEST_F(ShmSessionTest, PinSaysWhereEachObjectStands) {
  const SealedObject absent = MakeTestWindow(99, 9);
  const v1::ShmPinned pinned = Pin(1, {&objects_[1], &absent, &objects_[0]});
  EXPECT_EQ(pinned.pin_id(), 1u);
  EXPECT_EQ(pinned.code(), kOk);
  ASSERT_EQ(pinned.extents_size(), 3);
  EXPECT_EQ(pinned.extents(1).code(), kNotFound);
  for (const auto& [index, object] : {std::pair{0, &objects_[1]}, std::pair{2, &objects_[0]}}) {
    EXPECT_EQ(pinned.extents(index).code(), kOk);
    EXPECT_EQ(pinned.extents(index).bytes(), object->bytes().size());
    EXPECT_EQ(pinned.extents(index).offset(), store_->Find(object->key()).arena_offset());
  }
  EXPECT_EQ(session_->pinned_bytes(), 2 * objects_[0].bytes().size());
}

TEST_F(ShmSessionTest, PinnedObjectsOutliveTheirDeletionUntilTheUnpin) {
  Pin(1, {&objects_[0]});
  EXPECT_EQ(store_->Delete(objects_[0].key()), DeleteResult::kDeleted);
  const uint64_t resident = store_->stats().resident_bytes;
  EXPECT_THAT(session_->OnMessage(ShmUnpinOf(1)), IsOk());
  EXPECT_LT(store_->stats().resident_bytes, resident);
  EXPECT_EQ(session_->pinned_bytes(), 0u);
  EXPECT_EQ(StorePinned(), 0u);
}

TEST_F(ShmSessionTest, ItsEndEndsItsPins) {
  Pin(1, {&objects_[0], &objects_[1]});
  EXPECT_GT(StorePinned(), 0u);
  session_.reset();
  EXPECT_EQ(StorePinned(), 0u);
  EXPECT_EQ(shared_.pinned_bytes, 0u);
}

TEST_F(ShmSessionTest, OneConnectionPinsNoMoreThanItsLimit) {
  Pin(1, {&objects_[0], &objects_[1]});
  const uint64_t pinned = StorePinned();
  EXPECT_EQ(Pin(2, {&objects_[0], &objects_[2]}).code(), kResourceExhausted);
  EXPECT_EQ(StorePinned(), pinned) << "what was refused stayed pinned";
  EXPECT_EQ(Pin(2, {&objects_[2]}).code(), kOk);
  EXPECT_EQ(Pin(3, {&objects_[2]}).code(), kResourceExhausted);
  EXPECT_THAT(session_->OnMessage(ShmUnpinOf(1)), IsOk());
  EXPECT_EQ(Pin(3, {&objects_[2]}).code(), kOk);
}

TEST_F(ShmSessionTest, AllConnectionsPinNoMoreThanTheirLimit) {
  const auto other = Welcomed();
  EXPECT_EQ(Pin(1, {&objects_[0], &objects_[1], &objects_[2]}).code(), kOk);
  EXPECT_EQ(Pin(1, {&objects_[0], &objects_[1]}, other.get()).code(), kResourceExhausted);
  EXPECT_EQ(Pin(1, {&objects_[0]}, other.get()).code(), kOk);
}

TEST_F(ShmSessionTest, TheNumberOfPinsIsBounded) {
  const SealedObject absent = MakeTestWindow(99, 9);
  for (int i = 0; i < kMaxShmPins; ++i) ASSERT_EQ(Pin(i, {&absent}).code(), kOk);
  EXPECT_EQ(Pin(kMaxShmPins, {&absent}).code(), kResourceExhausted);
}

TEST_F(ShmSessionTest, TheNumberOfPinnedObjectsIsBounded) {
  const SealedObject absent = MakeTestWindow(99, 9);
  const std::vector<const SealedObject*> keys(4096, &absent);
  for (size_t i = 0; i < kMaxShmObjects / keys.size(); ++i) ASSERT_EQ(Pin(i, keys).code(), kOk);
  EXPECT_EQ(Pin(1000, {&absent}).code(), kResourceExhausted);
}

TEST_F(ShmSessionTest, AKeyThatIsNoneIsToldWithoutEndingTheConnection) {
  v1::ShmMessage message = ShmPinOf(1, std::vector{objects_[0].key()});
  message.mutable_pin()->mutable_objects(0)->set_id("short");
  const auto answer = session_->OnMessage(message);
  ASSERT_THAT(answer, IsOk());
  EXPECT_EQ((*answer)->pinned().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
}

TEST_F(ShmSessionTest, ADamagedHeadIsDataLossAndGone) {
  FlipBit(store_->Find(objects_[0].key()), /*offset=*/40);
  EXPECT_EQ(Pin(1, {&objects_[0]}).extents(0).code(), kDataLoss);
  EXPECT_FALSE(Has(objects_[0]));
  EXPECT_EQ(Metric("pkv_integrity_failures_total{stage=\"dram\"}"), 1);
  EXPECT_EQ(Metric("pkv_block_gets_total{result=\"corrupt\"}"), 1);
}

TEST_F(ShmSessionTest, ReportedDamageIsLookedAtAndDropped) {
  FlipBit(store_->Find(objects_[0].key()), objects_[0].head().size() + 3);
  Pin(1, {&objects_[1], &objects_[0]});
  EXPECT_THAT(session_->OnMessage(ShmDamagedOf(1, 1)), IsOk());
  EXPECT_FALSE(Has(objects_[0]));
  EXPECT_EQ(Metric("pkv_integrity_failures_total{stage=\"dram\"}"), 1);
}

TEST_F(ShmSessionTest, AnIntactObjectSurvivesItsReportWhichIsAcceptedOnce) {
  Pin(1, {&objects_[0]});
  EXPECT_THAT(session_->OnMessage(ShmDamagedOf(1, 0)), IsOk());
  EXPECT_TRUE(Has(objects_[0]));
  EXPECT_EQ(Metric("pkv_integrity_failures_total{stage=\"dram\"}"), 0);
  EXPECT_THAT(session_->OnMessage(ShmDamagedOf(1, 0)),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ShmSessionTest, BytesAndObjectsAreCountedWhenPinned) {
  const SealedObject absent = MakeTestWindow(99, 9);
  Pin(1, {&objects_[0], &absent});
  EXPECT_EQ(Metric("pkv_payload_bytes_total{direction=\"out\",transport=\"shm\"}"),
            objects_[0].bytes().size() - objects_[0].head().size());
  EXPECT_EQ(Metric("pkv_payload_bytes_total{direction=\"out\",transport=\"grpc\"}"), 0);
  EXPECT_EQ(Metric("pkv_block_gets_total{result=\"hit\"}"), 1);
  EXPECT_EQ(Metric("pkv_block_gets_total{result=\"miss\"}"), 1);
}

TEST_F(ShmSessionTest, ExpiresWithoutAHello) {
  const ShmSession session(&shared_);
  EXPECT_EQ(session.expiry().time, clock_.MonotonicNow() + kShmHelloTimeout);
}

TEST_F(ShmSessionTest, RenewingPutsOffItsExpiryButNotAPins) {
  const absl::Time began = clock_.MonotonicNow();
  Pin(1, {&objects_[0]});
  EXPECT_EQ(session_->expiry().time, began + shared_.limits.silence);
  EXPECT_EQ(session_->expiry().reason, ShmEnd::kSilent);
  for (int i = 1; i <= 11; ++i) {
    clock_.Advance(absl::Seconds(5));
    EXPECT_THAT(session_->OnMessage(ShmRenewMessage()), IsOk());
  }
  EXPECT_EQ(session_->expiry().time, began + shared_.limits.pin_age);
  EXPECT_EQ(session_->expiry().reason, ShmEnd::kHeld);
  EXPECT_THAT(session_->OnMessage(ShmUnpinOf(1)), IsOk());
  EXPECT_EQ(session_->expiry().time, clock_.MonotonicNow() + shared_.limits.silence);
}

// Others may have more use for it, and who has none needs no more than another hello.
TEST_F(ShmSessionTest, RenewingDoesNotPutOffTheEndOfAStageThatNoPutUses) {
  ShmSession session(&shared_);
  const auto answer = session.OnMessage(ShmPutHelloOf(shared_.token));
  ASSERT_THAT(answer, IsOk());
  clock_.Advance(kShmStageIdle / 2);
  ASSERT_NE(stages_.Find((*answer)->welcome().stage_token()), nullptr);
  const absl::Time used = clock_.MonotonicNow();
  clock_.Advance(kShmStageIdle / 2);
  EXPECT_THAT(session.OnMessage(ShmRenewMessage()), IsOk());
  EXPECT_EQ(session.expiry().reason, ShmEnd::kSilent);
  clock_.Advance(kShmStageIdle / 2 - absl::Seconds(1));
  EXPECT_THAT(session.OnMessage(ShmRenewMessage()), IsOk());
  EXPECT_EQ(session.expiry().time, used + kShmStageIdle);
  EXPECT_EQ(session.expiry().reason, ShmEnd::kIdle);
}

class ShmSessionOnDiskTest : public ShmSessionTest {
 protected:
  void SetUp() override {
    MakeLog();
    ShmSessionTest::SetUp();
    shared_.disk = parts_.disk;
    shared_.wake = [this] {
      MutexLock lock(&mu_);
      ++num_woken_;
      woken_.SignalAll();
    };
    MoveToDisk(objects_[0]);
  }
  void TearDown() override {
    session_.reset();
    pager_.reset();
  }
  bool WaitsForDisk(const v1::ShmMessage& message) {
    const auto answer = session_->OnMessage(message);
    return answer.ok() && !answer->has_value();
  }
  void AwaitWake(int count) {
    MutexLock lock(&mu_);
    while (num_woken_ < count) woken_.Wait(&mu_);
  }

  Mutex mu_;
  CondVar woken_;
  int num_woken_ ABSL_GUARDED_BY(mu_) = 0;
};

TEST_F(ShmSessionOnDiskTest, AnswersAPinOnceTheDiskWasRead) {
  const std::vector<ObjectKey> keys = {objects_[0].key(), objects_[1].key()};
  EXPECT_TRUE(WaitsForDisk(ShmPinOf(1, keys)));
  // Others are answered meanwhile, and the id is taken.
  EXPECT_EQ(Pin(2, {&objects_[1]}).extents(0).code(), kOk);
  EXPECT_THAT(session_->OnMessage(ShmPinOf(1, keys)), StatusIs(absl::StatusCode::kInvalidArgument));
  AwaitWake(1);
  const std::vector<v1::ShmMessage> ready = session_->TakeReady();
  ASSERT_EQ(ready.size(), 1u);
  EXPECT_EQ(ready[0].pinned().pin_id(), 1u);
  for (const v1::ShmExtent& extent : ready[0].pinned().extents()) EXPECT_EQ(extent.code(), kOk);
  EXPECT_TRUE(session_->TakeReady().empty());
  EXPECT_THAT(session_->OnMessage(ShmUnpinOf(1)), IsOk());
  EXPECT_EQ(Metric("pkv_tier_hits_total{tier=\"ssd\"}"), 1);
}

TEST_F(ShmSessionOnDiskTest, BringsInNothingThatCouldNotBePinned) {
  shared_.limits.connection_pinned_bytes = objects_[0].bytes().size();
  const std::vector<ObjectKey> keys = {objects_[0].key(), objects_[1].key()};
  const auto answer = session_->OnMessage(ShmPinOf(1, keys));
  ASSERT_THAT(answer, IsOk());
  ASSERT_TRUE(answer->has_value());
  EXPECT_EQ((*answer)->pinned().code(), kResourceExhausted);
  EXPECT_FALSE(Has(objects_[0]));
  // What waits counts, and is counted once.
  EXPECT_TRUE(WaitsForDisk(ShmPinOf(2, {&keys[0], 1})));
  EXPECT_EQ(shared_.pinned_bytes, objects_[0].bytes().size());
  EXPECT_EQ(Pin(3, {&objects_[1]}).code(), kResourceExhausted);
  AwaitWake(1);
  EXPECT_EQ(session_->TakeReady().at(0).pinned().extents(0).code(), kOk);
  EXPECT_EQ(session_->pinned_bytes(), objects_[0].bytes().size());
  EXPECT_THAT(session_->OnMessage(ShmUnpinOf(2)), IsOk());
  EXPECT_EQ(shared_.pinned_bytes, 0u);
}

TEST_F(ShmSessionOnDiskTest, MissesWhatIsDamagedOnDisk) {
  FlipBitOnDisk(objects_[0], 300);
  const ObjectKey key = objects_[0].key();
  EXPECT_TRUE(WaitsForDisk(ShmPinOf(1, {&key, 1})));
  AwaitWake(1);
  EXPECT_EQ(session_->TakeReady().at(0).pinned().extents(0).code(), kNotFound);
}

TEST_F(ShmSessionOnDiskTest, HoldsNothingForASessionThatEndedMeanwhile) {
  const ObjectKey key = objects_[0].key();
  EXPECT_TRUE(WaitsForDisk(ShmPinOf(1, {&key, 1})));
  session_.reset();
  EXPECT_EQ(shared_.pinned_bytes, 0u);
  AwaitWake(1);
  pager_.reset();
  EXPECT_EQ(StorePinned(), 0u);
}

}  // namespace
}  // namespace pkv
