#ifndef PKV_TESTS_UNIT_KVSTORE_STORE_STORE_FIXTURE_H_
#define PKV_TESTS_UNIT_KVSTORE_STORE_STORE_FIXTURE_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "kvstore/store/block_store.h"
#include "kvstore/store/lru.h"
#include "tests/support/arena_memory.h"
#include "tests/support/fake_clock.h"
#include "tests/support/sealed_object.h"

namespace pkv {

// Remembers what the store told.
// Thread-compatible.
class RecordingObserver : public StoreObserver {
 public:
  struct Eviction {
    EvictionReason reason;
    uint64_t object_bytes;
    absl::Duration idle;
  };
  void OnEviction(EvictionReason reason, uint64_t object_bytes, absl::Duration idle) override {
    evictions.push_back({reason, object_bytes, idle});
  }
  void OnIntegrityFailure(IntegrityStage stage) override { failures.push_back(stage); }

  std::vector<Eviction> evictions;
  std::vector<IntegrityStage> failures;
};

// A store over a fake clock. Test objects take one unit (windows) or more of the arena.
class StoreFixture : public ::testing::Test {
 protected:
  void MakeStore(uint64_t units) { MakeStore(units, &observer_); }
  void MakeStore(uint64_t units, StoreObserver* observer) {
    store_ = BlockStore::Create({.capacity_bytes = units * kArenaUnitBytes,
                                 .clock = &clock_,
                                 .observer = observer,
                                 .policy = std::make_unique<Lru>()})
                 .value();
  }

  absl::StatusOr<Reservation> Reserve(const SealedObject& object) {
    return store_->Reserve({object.key(), object.header.num_layers, object.header.frame_bytes});
  }

  absl::StatusOr<Reservation> ReserveAndWrite(const SealedObject& object) {
    absl::StatusOr<Reservation> reservation = Reserve(object);
    for (int layer = 0; reservation.ok() && layer < object.header.num_layers; ++layer) {
      const absl::Status written = reservation->Write(layer, 0, object.frame(layer));
      if (!written.ok()) return written;
    }
    return reservation;
  }

  absl::StatusOr<CommitResult> Put(const SealedObject& object) {
    absl::StatusOr<Reservation> reservation = ReserveAndWrite(object);
    if (!reservation.ok()) return reservation.status();
    return store_->Commit(*std::move(reservation), object.head());
  }

  bool Has(const SealedObject& object) { return store_->Stat(object.key()).has_value(); }

  // Changes one bit of stored memory, as failing DRAM would.
  void FlipBit(const Lease& lease, uint64_t offset) {
    const std::span<const std::byte> bytes = lease.bytes();
    ArenaMemory arena(getpid(), store_->stats().capacity_bytes);
    ASSERT_TRUE(arena.FlipBit({reinterpret_cast<const char*>(bytes.data()), bytes.size()}, offset));
  }

  FakeClock clock_;
  RecordingObserver observer_;
  std::unique_ptr<BlockStore> store_;
};

}  // namespace pkv

#endif  // PKV_TESTS_UNIT_KVSTORE_STORE_STORE_FIXTURE_H_
