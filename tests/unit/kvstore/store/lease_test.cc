#include "kvstore/store/lease.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <utility>
#include <vector>

#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/store/store_fixture.h"

namespace pkv {
namespace {

class LeaseTest : public StoreFixture {
 protected:
  void SetUp() override {
    MakeStore(8);
    ASSERT_THAT(Put(object_), IsOk());
    lease_ = store_->Find(object_.key());
    ASSERT_TRUE(lease_);
  }
  void TearDown() override { lease_ = Lease(); }

  // Everything a reader is given.
  absl::Status VerifyAll() const {
    absl::Status status = lease_.VerifyHead().status();
    for (int layer = 0; status.ok() && layer < lease_.num_layers(); ++layer) {
      status = lease_.VerifyFrame(layer);
    }
    return status;
  }

  const SealedObject object_ = MakeTestWindow(2, 1);
  Lease lease_;
};

TEST_F(LeaseTest, ShowsWhatWasPut) {
  EXPECT_TRUE(std::ranges::equal(lease_.bytes(), object_.bytes()));
  EXPECT_TRUE(std::ranges::equal(lease_.head(), object_.head()));
  EXPECT_TRUE(std::ranges::equal(lease_.frame(1), object_.frame(1)));
  EXPECT_THAT(lease_.VerifyHead(), IsOkAndHolds(object_.header));
  EXPECT_THAT(VerifyAll(), IsOk());
}

// What another process needs to find the object.
TEST_F(LeaseTest, SaysWhereItStandsInTheArenasFile) {
  std::vector<std::byte> bytes(object_.bytes().size());
  ASSERT_EQ(pread(store_->arena_fd(), bytes.data(), bytes.size(),
                  static_cast<off_t>(lease_.arena_offset())),
            static_cast<ssize_t>(bytes.size()));
  EXPECT_TRUE(std::ranges::equal(bytes, object_.bytes()));
}

TEST_F(LeaseTest, KeepsBytesOfADeletedObject) {
  EXPECT_EQ(store_->Delete(object_.key()), DeleteResult::kDeleted);
  EXPECT_FALSE(store_->Find(object_.key()));
  EXPECT_TRUE(std::ranges::equal(lease_.bytes(), object_.bytes()));
  EXPECT_GT(store_->stats().resident_bytes, 0u);
  lease_ = Lease();
  EXPECT_EQ(store_->stats().resident_bytes, 0u);
}

TEST_F(LeaseTest, PinsUntilTheLastOneEnds) {
  Lease second = store_->Find(object_.key());
  EXPECT_EQ(store_->stats().pinned_bytes, kArenaUnitBytes);
  lease_ = Lease();
  EXPECT_EQ(store_->stats().pinned_bytes, kArenaUnitBytes);
  second = Lease();
  EXPECT_EQ(store_->stats().pinned_bytes, 0u);
}

TEST_F(LeaseTest, MovingKeepsOnePin) {
  Lease moved = std::move(lease_);
  EXPECT_FALSE(lease_);
  EXPECT_TRUE(moved);
  moved = Lease();
  EXPECT_EQ(store_->stats().pinned_bytes, 0u);
}

// Any bit of the object: header, frame table, padding, frames.
TEST_F(LeaseTest, NoticesAFlippedBitAnywhere) {
  std::vector<uint64_t> offsets = {0,
                                   200,
                                   252,
                                   sizeof(ObjectHeader),
                                   object_.head().size() - 1,
                                   object_.head().size(),
                                   object_.bytes().size() - 1};
  constexpr uint32_t kSeed = 7;
  SCOPED_TRACE(kSeed);
  std::mt19937 random(kSeed);
  for (int i = 0; i < 200; ++i) offsets.push_back(random() % object_.bytes().size());
  for (const uint64_t offset : offsets) {
    FlipBit(lease_, offset);
    EXPECT_THAT(VerifyAll(), StatusIs(absl::StatusCode::kDataLoss)) << "offset " << offset;
    FlipBit(lease_, offset);
    EXPECT_THAT(VerifyAll(), IsOk());
  }
}

}  // namespace
}  // namespace pkv
