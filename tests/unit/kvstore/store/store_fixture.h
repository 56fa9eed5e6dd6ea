#ifndef PKV_TESTS_UNIT_KVSTORE_STORE_STORE_FIXTURE_H_
#define PKV_TESTS_UNIT_KVSTORE_STORE_STORE_FIXTURE_H_

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "kvstore/store/block_store.h"
#include "kvstore/store/lru.h"
#include "proto/base/checked_math.h"
#include "proto/base/sync.h"
#include "tests/support/arena_memory.h"
#include "tests/support/fake_clock.h"
#include "tests/support/fake_disk.h"
#include "tests/support/sealed_object.h"

namespace pkv {

// Remembers what the store told: from many threads, to be read once they rest.
// Thread-safe, but for its members.
class RecordingObserver : public StoreObserver {
 public:
  struct Eviction {
    EvictionReason reason;
    uint64_t object_bytes;
    absl::Duration idle;
  };
  void OnEviction(EvictionReason reason, uint64_t object_bytes, absl::Duration idle) override {
    MutexLock lock(&mu_);
    evictions.push_back({reason, object_bytes, idle});
  }
  void OnIntegrityFailure(IntegrityStage stage) override {
    MutexLock lock(&mu_);
    failures.push_back(stage);
  }

  std::vector<Eviction> evictions;
  std::vector<IntegrityStage> failures;

 private:
  Mutex mu_;
};

// A store over a fake clock, with MakeLog() before MakeStore() over a disk in memory as well. Test
// objects take one unit (windows) or more of the arena.
class StoreFixture : public ::testing::Test {
 protected:
  void MakeStore(uint64_t units) { MakeStore(units, &observer_); }
  void MakeStore(uint64_t units, StoreObserver* observer) {
    store_ = BlockStore::Create({.capacity_bytes = units * kArenaUnitBytes,
                                 .clock = &clock_,
                                 .observer = observer,
                                 .policy = std::make_unique<Lru>(),
                                 .log = log_.get(),
                                 .crowded_bytes = crowded_units_ * kArenaUnitBytes})
                 .value();
  }

  // Opened again on the same disk: as after a restart. REQUIRES: no store uses the one before.
  void MakeLog() {
    log_.reset();
    log_ = SegmentLog::Open({.disk = &disk_,
                             .capacity_bytes = 4 * kLogBytesMin,
                             .salt = ++salt_,
                             .clock = &clock_,
                             .observer = nullptr})
               .value();
  }

  // Moves a stored object to disk, as a Demoter does.
  void MoveToDisk(const SealedObject& object) {
    std::optional<DemotionCandidate> candidate = store_->FindToDemote(object.key());
    ASSERT_TRUE(candidate.has_value());
    WriteToDisk(object);
    candidate->table = Lease();
    ASSERT_TRUE(store_->LetGo(std::move(candidate->lease), candidate->last_use));
  }
  // And leaves it in memory.
  void WriteToDisk(const SealedObject& object) {
    const std::optional<DemotionCandidate> candidate = store_->FindToDemote(object.key());
    ASSERT_TRUE(candidate.has_value());
    DiskBuffer units(AlignUp(object.bytes().size(), kDiskUnitBytes));
    std::ranges::copy(object.bytes(), units.span().begin());
    const auto record =
        log_->Append(object.key(), DescribeObject(object.header, object.head()), units.span());
    ASSERT_TRUE(record.ok()) << record.status();
    store_->PublishDemoted(candidate->lease, *record);
  }
  // Changes one bit of an object on disk.
  void FlipBitOnDisk(const SealedObject& object, uint64_t offset) {
    const std::optional<LogRecord> record = log_->Find(object.key());
    ASSERT_TRUE(record.has_value());
    const std::string name = absl::StrFormat("%016x.pkvlog", record->segment);
    disk_.bytes(name)[record->offset + kDiskUnitBytes + offset] ^= std::byte{1};
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
  FakeDisk disk_;
  uint64_t salt_ = 0;
  std::unique_ptr<SegmentLog> log_;
  uint64_t crowded_units_ = uint64_t{1} << 40;  // never
  std::unique_ptr<BlockStore> store_;
};

}  // namespace pkv

#endif  // PKV_TESTS_UNIT_KVSTORE_STORE_STORE_FIXTURE_H_
