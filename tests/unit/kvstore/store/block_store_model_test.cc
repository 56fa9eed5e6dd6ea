// Thousands of random steps on the store and on a model made of a std::map. The model knows what
// was put, what is pinned and which table each block needs; the store may forget (evict) anything
// else, but must never show other bytes, free pinned memory, lose a needed table or exceed its
// capacity.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <utility>
#include <vector>

#include "tests/support/status_matchers.h"
#include "tests/unit/kvstore/store/store_fixture.h"

namespace pkv {
namespace {

constexpr uint64_t kUnits = 40;

class BlockStoreModelTest : public StoreFixture, public ::testing::WithParamInterface<uint32_t> {
 protected:
  struct Pin {
    const SealedObject* object;
    Lease lease;
  };

  void SetUp() override {
    MakeStore(kUnits);
    for (uint32_t i = 0; i < 4; ++i) catalog_.push_back(MakeTestTable(100 + i));
    for (uint32_t i = 0; i < 12; ++i) {
      catalog_.push_back(MakeTestBlock(20 + i, i, catalog_[i % 4].header.id));
    }
    for (uint32_t i = 0; i < 16; ++i) {
      catalog_.push_back(MakeTestWindow(40 + i, i, 1 + static_cast<int>(i)));
    }
    // The same key, other bytes.
    conflicting_ = MakeTestWindow(40, 999);
  }
  void TearDown() override {
    pins_.clear();
    open_.clear();
  }

  const SealedObject& Any() { return catalog_[random_() % catalog_.size()]; }
  const SealedObject* TableOf(const SealedObject& object) const {
    for (const SealedObject& other : catalog_) {
      if (!object.header.table.IsZero() && other.header.id == object.header.table) return &other;
    }
    return nullptr;
  }

  void StepPut() {
    const SealedObject& object = Any();
    const bool present = Has(object);
    const SealedObject* table = TableOf(object);
    absl::StatusOr<Reservation> reservation = ReserveAndWrite(object);
    if (present) {
      ASSERT_THAT(reservation, StatusIs(absl::StatusCode::kAlreadyExists));
    } else if (!reservation.ok()) {
      ASSERT_THAT(reservation, StatusIs(absl::StatusCode::kResourceExhausted));
    } else {
      // Only now: making room may have evicted the table.
      const bool has_table = table == nullptr || Has(*table);
      const auto result = store_->Commit(*std::move(reservation), object.head());
      if (has_table) {
        ASSERT_THAT(result, IsOkAndHolds(CommitResult::kStored));
      } else {
        ASSERT_THAT(result, StatusIs(absl::StatusCode::kFailedPrecondition));
      }
    }
  }

  void StepOpenOrFinish() {
    if (open_.size() < 3) {
      absl::StatusOr<Reservation> reservation = Reserve(Any());
      if (reservation.ok()) open_.push_back(*std::move(reservation));
    } else {
      open_.erase(open_.begin() + static_cast<int>(random_() % open_.size()));
    }
  }

  void StepConflict() {
    absl::StatusOr<Reservation> reservation = ReserveAndWrite(conflicting_);
    const SealedObject& original = catalog_[16];
    ASSERT_EQ(original.key(), conflicting_.key());
    if (!reservation.ok()) return;
    const bool raced = random_() % 2 == 0 && Put(original).ok();
    const auto result = store_->Commit(*std::move(reservation), conflicting_.head());
    if (raced) {
      ASSERT_THAT(result, StatusIs(absl::StatusCode::kAlreadyExists));
    } else {
      ASSERT_THAT(result, IsOkAndHolds(CommitResult::kStored));
      ASSERT_EQ(store_->Delete(conflicting_.key()), DeleteResult::kDeleted);
    }
  }

  void StepGet() {
    const SealedObject& object = Any();
    Lease lease = store_->Find(object.key());
    if (!lease) return;
    ASSERT_TRUE(std::ranges::equal(lease.bytes(), object.bytes()));
    if (pins_.size() < 6) pins_.push_back({&object, std::move(lease)});
  }

  void StepUnpin() {
    if (pins_.empty()) return;
    std::swap(pins_[random_() % pins_.size()], pins_.back());
    pins_.pop_back();
  }

  void StepDelete() {
    const SealedObject& object = Any();
    const bool present = Has(object);
    switch (store_->Delete(object.key())) {
      case DeleteResult::kDeleted:
        ASSERT_TRUE(present && !Has(object));
        break;
      case DeleteResult::kAbsent:
        ASSERT_FALSE(present);
        break;
      case DeleteResult::kInUse:
        ASSERT_TRUE(object.header.kind == ObjectKind::kTable && Has(object));
        break;
    }
  }

  void CheckInvariants() {
    const StoreStats stats = store_->stats();
    ASSERT_LE(stats.resident_bytes, stats.capacity_bytes);
    uint64_t num_objects = 0, stored_bytes = 0;
    for (const SealedObject& object : catalog_) {
      const auto stat = store_->Stat(object.key());
      if (!stat) continue;
      ++num_objects;
      stored_bytes += AlignUp(object.bytes().size());
      const SealedObject* table = TableOf(object);
      ASSERT_TRUE(table == nullptr || Has(*table)) << "a block outlived its table";
    }
    ASSERT_EQ(stats.num_objects, num_objects);
    ASSERT_LE(stored_bytes + stats.reserved_bytes, stats.resident_bytes);
    std::map<const std::byte*, uint64_t> pinned;
    for (const Pin& pin : pins_) {
      pinned[pin.lease.bytes().data()] = AlignUp(pin.object->bytes().size());
    }
    uint64_t pinned_bytes = 0;
    for (const auto& [data, bytes] : pinned) pinned_bytes += bytes;
    ASSERT_EQ(stats.pinned_bytes, pinned_bytes);
  }

  static uint64_t AlignUp(uint64_t bytes) {
    return (bytes + kArenaUnitBytes - 1) / kArenaUnitBytes * kArenaUnitBytes;
  }

  std::mt19937 random_{GetParam()};
  std::vector<SealedObject> catalog_;
  SealedObject conflicting_;
  std::vector<Pin> pins_;
  std::vector<Reservation> open_;
};

TEST_P(BlockStoreModelTest, AgreesWithTheModel) {
  for (int step = 0; step < 6000; ++step) {
    SCOPED_TRACE(testing::Message() << "seed " << GetParam() << " step " << step);
    clock_.Advance(absl::Milliseconds(random_() % 100));
    const uint32_t choice = random_() % 100;
    if (choice < 40) {
      StepPut();
    } else if (choice < 50) {
      StepOpenOrFinish();
    } else if (choice < 55) {
      StepConflict();
    } else if (choice < 75) {
      StepGet();
    } else if (choice < 90) {
      StepUnpin();
    } else {
      StepDelete();
    }
    if (HasFatalFailure()) return;
    CheckInvariants();
    if (HasFatalFailure()) return;
    for (const Pin& pin : pins_) {
      ASSERT_TRUE(std::ranges::equal(pin.lease.bytes(), pin.object->bytes()));
    }
  }
  // The steps above meant something.
  EXPECT_GT(store_->stats().num_evictions, 100u);
  pins_.clear();
  open_.clear();
  for (const SealedObject& object : catalog_) {
    if (object.header.kind != ObjectKind::kTable) store_->Delete(object.key());
  }
  for (const SealedObject& object : catalog_) store_->Delete(object.key());
  EXPECT_EQ(store_->stats().resident_bytes, 0u);
  EXPECT_EQ(store_->stats().num_objects, 0u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, BlockStoreModelTest, ::testing::Values(1u, 2u, 3u));

}  // namespace
}  // namespace pkv
