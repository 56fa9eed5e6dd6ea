// BlockStore: what it knows of the tier on disk, and how objects go there and come back.

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "kvstore/store/block_store.h"
#include "proto/base/log.h"

namespace pkv {

static_assert(kArenaUnitBytes == kDiskUnitBytes, "objects move in whole units");

bool BlockStore::HasTableLocked(const Digest& table, const Variant& variant) const {
  const ObjectKey key{ObjectKind::kTable, table, variant};
  return FindLocked(key) != nullptr || (log_ != nullptr && log_->Find(key).has_value());
}

std::optional<LogRecord> BlockStore::FindOnDiskLocked(const ObjectKey& key) const {
  if (log_ == nullptr) return std::nullopt;
  std::optional<LogRecord> record = log_->Find(key);
  if (!record || record->table.IsZero() || HasTableLocked(record->table, key.variant)) {
    return record;
  }
  return std::nullopt;
}

std::optional<BlockStore::Placed> BlockStore::FindInTiersLocked(const ObjectKey& key,
                                                                bool with_disk) const {
  if (const StoredObject* object = FindLocked(key)) {
    return Placed{object->bytes.size(), object->table == nullptr ? Digest{} : object->table->key.id,
                  false};
  }
  if (!with_disk) return std::nullopt;
  const std::optional<LogRecord> record = FindOnDiskLocked(key);
  if (!record) return std::nullopt;
  return Placed{record->object_bytes, record->table, true};
}

absl::StatusOr<bool> BlockStore::CompareOnDiskLocked(const ObjectHeader& header,
                                                     std::span<const std::byte> head) {
  if (log_ == nullptr) return false;
  const std::optional<LogRecord> record = log_->Find(header.key());
  if (!record) return false;
  if (IsHeadOf(head, *record)) return true;
  // A table's blocks are not readable with another one, whenever the disk comes back.
  const bool may_replace = log_->reads_suspended() && header.kind != ObjectKind::kTable;
  if (!may_replace && FindOnDiskLocked(header.key()).has_value()) {
    return absl::AlreadyExistsError(absl::StrCat("different bytes are stored on disk under ",
                                                 header.id.ToShortHex(), " ", header.variant().name,
                                                 ": an object is written once"));
  }
  // Nobody could read that one: its table is gone, or the disk rests.
  log_->Erase(header.key());
  return false;
}

std::optional<LogRecord> BlockStore::FindOnDisk(const ObjectKey& key) const {
  if (log_ == nullptr || key.kind == ObjectKind::kTable || log_->reads_suspended()) {
    return std::nullopt;
  }
  MutexLock lock(&mu_);
  if (FindLocked(key) != nullptr) return std::nullopt;
  return FindOnDiskLocked(key);
}

void BlockStore::PlanLocked(const ObjectKey& key, bool is_implied,
                            absl::flat_hash_set<ObjectKey>& planned, PageInPlan& plan) {
  if (planned.contains(key)) return;
  if (StoredObject* stored = FindLocked(key)) {
    if (!is_implied) return;
    planned.insert(key);
    plan.held.push_back(PinLocked(stored));
    return;
  }
  const std::optional<LogRecord> record = FindOnDiskLocked(key);
  if (!record) return;
  planned.insert(key);
  auto& copies = key.kind == ObjectKind::kTable ? plan.tables : plan.others;
  copies.push_back({key, *record, is_implied});
  if (record->table.IsZero()) return;
  PlanLocked({ObjectKind::kTable, record->table, key.variant}, true, planned, plan);
}

PageInPlan BlockStore::PlanPageIn(std::span<const ObjectKey> keys) {
  PageInPlan plan;
  if (log_ == nullptr || log_->reads_suspended()) return plan;
  absl::flat_hash_set<ObjectKey> planned;
  MutexLock lock(&mu_);
  // Tables that were asked for are not implied, wherever they stand among the keys.
  for (const bool tables : {true, false}) {
    for (const ObjectKey& key : keys) {
      if ((key.kind == ObjectKind::kTable) == tables) PlanLocked(key, false, planned, plan);
    }
  }
  return plan;
}

uint64_t BlockStore::StoredBytes(std::span<const ObjectKey> keys) const {
  const bool with_disk = log_ != nullptr && !log_->reads_suspended();
  uint64_t bytes = 0;
  MutexLock lock(&mu_);
  for (const ObjectKey& key : keys) {
    const std::optional<Placed> placed = FindInTiersLocked(key, with_disk);
    if (placed) bytes += placed->object_bytes;
  }
  return bytes;
}

absl::StatusOr<Lease> BlockStore::PublishFromDisk(Reservation reservation,
                                                  const LogRecord& record) {
  PKV_CHECK(reservation.store_ == this && log_ != nullptr, "a reservation of another store");
  const ObjectKey key = reservation.spec_.key;
  if (const absl::Status intact = VerifyLogObject(reservation.bytes_, key); !intact.ok()) {
    if (log_->Holds(key, record)) log_->Erase(key);
    if (observer_ != nullptr) observer_->OnIntegrityFailure(IntegrityStage::kSsd);
    return intact;
  }
  const absl::StatusOr<ObjectHeader> header = ParseHeader(reservation.bytes_);
  PKV_CHECK(header.ok(), header.status().ToString());
  const absl::Time now = clock_->MonotonicNow();
  log_->Touch(key);
  MutexLock lock(&mu_);
  if (StoredObject* existing = FindLocked(key)) return PinLocked(existing);
  if (!log_->Holds(key, record)) return absl::NotFoundError("deleted while it was read");
  StoredObject* table = nullptr;
  if (!header->table.IsZero()) {
    table = FindLocked({ObjectKind::kTable, header->table, header->variant()});
    if (table == nullptr) return absl::NotFoundError("its table is not in memory");
  }
  StoredObject* const published = PublishLocked(reservation, table, now);
  // The get for which it was brought in is not its first: it had been let go.
  published->num_gets = kGetsOfReuse - 1;
  return PinLocked(published);
}

bool BlockStore::AwaitCrowded(absl::Duration timeout) {
  MutexLock lock(&mu_);
  if (!stop_waiting_ && arena_->used_bytes() <= crowded_bytes_) {
    crowded_.WaitWithTimeout(&mu_, timeout);
  }
  return !stop_waiting_ && arena_->used_bytes() > crowded_bytes_;
}

void BlockStore::StopWaiting() {
  MutexLock lock(&mu_);
  stop_waiting_ = true;
  crowded_.SignalAll();
}

DemotionCandidate BlockStore::MakeCandidateLocked(StoredObject* object) {
  DemotionCandidate candidate{.last_use = object->last_use,
                              .was_reused = object->num_gets >= kGetsOfReuse};
  const std::optional<LogRecord> record = log_->Find(object->key);
  candidate.is_on_disk = record.has_value() && !log_->IsAging(*record);
  candidate.is_needed = log_->HasDependents(object->key);
  if (object->table != nullptr && !log_->Find(object->table->key).has_value()) {
    candidate.table = PinLocked(object->table);
  }
  candidate.lease = PinLocked(object);
  return candidate;
}

std::optional<DemotionCandidate> BlockStore::NextToDemote() {
  MutexLock lock(&mu_);
  const std::optional<EvictionId> victim = policy_->Victim();
  if (!victim) return std::nullopt;
  return MakeCandidateLocked(ObjectOf(*victim));
}

std::vector<BlockStore::Listed> BlockStore::ListByLastUse() const {
  struct Found {
    absl::Time last_use;
    uint64_t first_token;
    Listed listed;
  };
  std::vector<Found> found;
  {
    MutexLock lock(&mu_);
    found.reserve(index_.size());
    for (const auto& [key, object] : index_) {
      const absl::StatusOr<ObjectHeader> header = ParseHeader(object->bytes);
      const uint64_t first_token = header.ok() ? header->first_token : 0;
      found.push_back({object->last_use, first_token, {key, object->bytes.size()}});
    }
  }
  std::ranges::sort(found, [](const Found& a, const Found& b) {
    return a.last_use != b.last_use ? a.last_use > b.last_use : a.first_token < b.first_token;
  });
  std::vector<Listed> listed;
  listed.reserve(found.size());
  for (Found& each : found) listed.push_back(std::move(each.listed));
  return listed;
}

std::optional<DemotionCandidate> BlockStore::FindToDemote(const ObjectKey& key) {
  MutexLock lock(&mu_);
  StoredObject* object = FindLocked(key);
  if (object == nullptr) return std::nullopt;
  return MakeCandidateLocked(object);
}

void BlockStore::PublishDemoted(const Lease& lease, const LogRecord& record) {
  MutexLock lock(&mu_);
  if (lease.object_->indexed) {
    log_->Publish(lease.key(), record);
  } else {
    log_->Discard(lease.key());
  }
}

bool BlockStore::LetGo(Lease lease, absl::Time last_use) {
  const absl::Time now = clock_->MonotonicNow();
  std::vector<Eviction> evictions;
  {
    MutexLock lock(&mu_);
    StoredObject* object = lease.object_;
    if (!object->indexed || object->num_pins > 1 || object->num_dependents > 0 ||
        object->last_use != last_use) {
      return false;
    }
    evictions.push_back(EvictLocked(object, now));
    CheckAccountingLocked();
  }
  Report(evictions);
  return true;
}

bool BlockStore::MayMakeRoomLocked(const StoredObject& object, Room room) const {
  return room == Room::kOfAny || object.key.kind == ObjectKind::kWindow ||
         (log_ != nullptr && log_->Find(object.key).has_value());
}

BlockStore::Eviction BlockStore::EvictLocked(StoredObject* object, absl::Time now) {
  const bool is_on_disk = log_ != nullptr && log_->Find(object->key).has_value();
  if (!is_on_disk) ++num_evictions_;
  const Eviction eviction{is_on_disk ? EvictionReason::kDemoted : EvictionReason::kCapacity,
                          object->bytes.size(), now - object->last_use};
  RemoveLocked(object);
  return eviction;
}

}  // namespace pkv
