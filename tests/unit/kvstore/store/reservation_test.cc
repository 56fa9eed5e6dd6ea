#include "kvstore/store/reservation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>

#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/store/store_fixture.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

class ReservationTest : public StoreFixture {
 protected:
  void SetUp() override {
    MakeStore(8);
    reservation_ = Reserve(object_).value();
  }
  // Leases and reservations end before their store.
  void TearDown() override { reservation_ = Reservation(); }

  const SealedObject object_ = MakeTestWindow(2, 1);
  Reservation reservation_;
};

TEST_F(ReservationTest, TakesPiecesInOrderAndLayersInAnyOrder) {
  const auto last = object_.frame(1), first = object_.frame(0);
  EXPECT_THAT(reservation_.Write(1, 0, last.first(100)), IsOk());
  EXPECT_THAT(reservation_.Write(0, 0, first), IsOk());
  EXPECT_THAT(reservation_.Write(1, 100, last.subspan(100)), IsOk());
  EXPECT_THAT(store_->Commit(std::move(reservation_), object_.head()),
              IsOkAndHolds(CommitResult::kStored));
}

TEST_F(ReservationTest, RefusesAGapAnOverlapAndARepetition) {
  const auto frame = object_.frame(0);
  EXPECT_THAT(reservation_.Write(0, 1, frame.first(10)),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("offset 1, next byte is 0")));
  ASSERT_THAT(reservation_.Write(0, 0, frame.first(10)), IsOk());
  EXPECT_THAT(reservation_.Write(0, 9, frame.subspan(9, 10)),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(reservation_.Write(0, 0, frame.first(10)),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ReservationTest, RefusesBytesBeyondTheFrame) {
  const std::vector<std::byte> long_frame(object_.header.frame_bytes + 1);
  EXPECT_THAT(reservation_.Write(0, 0, long_frame),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("piece of 257 bytes")));
  EXPECT_THAT(reservation_.Prepare(0, 0, uint64_t{1} << 63),
              StatusIs(absl::StatusCode::kInvalidArgument));
  ASSERT_THAT(reservation_.Write(0, 0, object_.frame(0)), IsOk());
  EXPECT_THAT(reservation_.Prepare(0, object_.header.frame_bytes, 1),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ReservationTest, RefusesAnEmptyPiece) {
  EXPECT_THAT(reservation_.Prepare(0, 0, 0), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ReservationTest, RefusesALayerOutsideTheObject) {
  EXPECT_THAT(reservation_.Prepare(2, 0, 1),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("layer 2 not in [0, 2)")));
  EXPECT_THAT(reservation_.Prepare(-1, 0, 1), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ReservationTest, GivesItsMemoryBackWhenDestroyed) {
  EXPECT_EQ(store_->stats().reserved_bytes, kArenaUnitBytes);
  reservation_ = Reservation();
  EXPECT_EQ(store_->stats().reserved_bytes, 0u);
  EXPECT_EQ(store_->stats().resident_bytes, 0u);
}

TEST_F(ReservationTest, MovingKeepsWhatWasWritten) {
  ASSERT_THAT(reservation_.Write(0, 0, object_.frame(0)), IsOk());
  Reservation moved = std::move(reservation_);
  EXPECT_FALSE(reservation_);
  EXPECT_TRUE(moved);
  ASSERT_THAT(moved.Write(1, 0, object_.frame(1)), IsOk());
  EXPECT_THAT(store_->Commit(std::move(moved), object_.head()),
              IsOkAndHolds(CommitResult::kStored));
}

}  // namespace
}  // namespace pkv
