#include "kvstore/store/block_store.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "pkv/block/aligned_buffer.h"
#include "pkv/block/object_view.h"
#include "proto/base/checked_math.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// One reservation evicts at most this multiple of its own bytes, and at least kEvictedBytesMin may
// go: past that, evicting in order of use is a lottery for neighbouring holes, and one request
// could empty the store and still be refused.
constexpr uint64_t kEvictedPerReserved = 4;
constexpr uint64_t kEvictedBytesMin = uint64_t{64} << 20;

absl::StatusOr<uint64_t> ObjectBytes(const ReservationSpec& spec) {
  if (spec.num_layers < 1 || spec.num_layers > kMaxLayers) {
    return absl::InvalidArgumentError(
        absl::StrCat("num_layers ", spec.num_layers, " not in [1, ", kMaxLayers, "]"));
  }
  if (spec.frame_bytes == 0 || spec.frame_bytes % kFrameAlignment != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "frame_bytes ", spec.frame_bytes, " is not a positive multiple of ", kFrameAlignment));
  }
  PKV_ASSIGN_OR_RETURN(const uint64_t frames_bytes,
                       CheckedMultiply(static_cast<uint64_t>(spec.num_layers), spec.frame_bytes));
  return CheckedAdd(FramesOffset(spec.num_layers), frames_bytes);
}

bool Equal(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

absl::Status Conflict(const ObjectKey& key) {
  return absl::AlreadyExistsError(absl::StrCat("different bytes are stored under ",
                                               key.id.ToShortHex(), " ", key.variant.name,
                                               ": an object is written once"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockStore>> BlockStore::Create(Options options) {
  PKV_CHECK(options.clock != nullptr && options.policy != nullptr);
  PKV_ASSIGN_OR_RETURN(std::unique_ptr<SlabArena> arena, SlabArena::Create(options.capacity_bytes));
  return std::unique_ptr<BlockStore>(new BlockStore(std::move(options), std::move(arena)));
}

BlockStore::BlockStore(Options options, std::unique_ptr<SlabArena> arena)
    : clock_(options.clock),
      observer_(options.observer),
      log_(options.log),
      crowded_bytes_(options.crowded_bytes),
      arena_(std::move(arena)),
      policy_(std::move(options.policy)) {}

BlockStore::~BlockStore() {
  MutexLock lock(&mu_);
  PKV_CHECK(reserved_bytes_ == 0 && pinned_bytes_ == 0, "reserved ", reserved_bytes_, " pinned ",
            pinned_bytes_);
}

absl::StatusOr<Reservation> BlockStore::Reserve(const ReservationSpec& spec, Room room) {
  PKV_ASSIGN_OR_RETURN(const uint64_t object_bytes, ObjectBytes(spec));
  const absl::Time now = clock_->MonotonicNow();
  std::vector<Eviction> evictions;
  std::optional<SlabArena::Extent> extent;
  uint64_t free_bytes = 0, pinned_bytes = 0, reserved_bytes = 0;
  {
    MutexLock lock(&mu_);
    if (FindLocked(spec.key) != nullptr) {
      return absl::AlreadyExistsError(absl::StrCat(spec.key.id.ToShortHex(), " is stored"));
    }
    // What cannot fit, however much is evicted, must not push others out.
    const uint64_t taken_bytes = reserved_bytes_ + pinned_bytes_;
    if (object_bytes <= arena_->capacity_bytes() - taken_bytes) {
      extent = AllocateLocked(object_bytes, room, now, evictions);
    }
    if (extent) reserved_bytes_ += extent->bytes;
    free_bytes = arena_->capacity_bytes() - arena_->used_bytes();
    pinned_bytes = pinned_bytes_;
    reserved_bytes = reserved_bytes_;
    CheckAccountingLocked();
    if (arena_->used_bytes() > crowded_bytes_) crowded_.SignalAll();
  }
  Report(evictions);
  if (!extent) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "no memory for an object of ", object_bytes, " bytes: capacity ", arena_->capacity_bytes(),
        ", free ", free_bytes, ", pinned ", pinned_bytes, ", reserved ", reserved_bytes));
  }
  const std::span<std::byte> units = arena_->Bytes(*extent);
  // What stood there before is nobody's business, least of all a disk's.
  std::ranges::fill(units.subspan(object_bytes), std::byte{0});
  return Reservation(this, spec, *extent, units.first(object_bytes));
}

std::optional<SlabArena::Extent> BlockStore::AllocateLocked(uint64_t bytes, Room room,
                                                            absl::Time now,
                                                            std::vector<Eviction>& evictions) {
  uint64_t evicted_bytes = 0;
  for (;;) {
    if (std::optional<SlabArena::Extent> extent = arena_->Allocate(bytes)) return extent;
    if (evicted_bytes >= std::max(kEvictedPerReserved * bytes, kEvictedBytesMin)) {
      return std::nullopt;
    }
    const std::optional<EvictionId> victim = policy_->Victim();
    if (!victim) return std::nullopt;
    StoredObject* object = ObjectOf(*victim);
    PKV_CHECK(object->indexed && object->num_pins == 0 && object->num_dependents == 0, "pins ",
              object->num_pins, " dependents ", object->num_dependents);
    if (!MayMakeRoomLocked(*object, room)) return std::nullopt;
    evicted_bytes += object->extent.bytes;
    evictions.push_back(EvictLocked(object, now));
  }
}

absl::StatusOr<ObjectHeader> BlockStore::CheckContent(const Reservation& reservation,
                                                      std::span<const std::byte> head) const {
  const ReservationSpec& spec = reservation.spec_;
  PKV_ASSIGN_OR_RETURN(const ObjectHeader header, ParseHeader(head));
  if (header.key() != spec.key) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the header's key ", header.id.ToShortHex(), " ", header.variant().name, " is not ",
        spec.key.id.ToShortHex(), " ", spec.key.variant.name, " as begun"));
  }
  if (header.num_layers != spec.num_layers || header.frame_bytes != spec.frame_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the header has ", header.num_layers, " layers of ", header.frame_bytes,
                     " bytes, begun ", spec.num_layers, " of ", spec.frame_bytes));
  }
  if (head.size() != FramesOffset(spec.num_layers)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a head of ", head.size(), " bytes, not ", FramesOffset(spec.num_layers)));
  }
  PKV_ASSIGN_OR_RETURN(const std::vector<uint32_t> crcs,
                       ParseFrameTable(head.subspan(sizeof(ObjectHeader)), spec.num_layers));
  for (int layer = 0; layer < spec.num_layers; ++layer) {
    const Reservation::Frame& frame = reservation.frames_[layer];
    if (frame.written_bytes != spec.frame_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("layer ", layer, " has ", frame.written_bytes,
                                                     " of ", spec.frame_bytes, " bytes"));
    }
    if (frame.crc32c != crcs[layer]) {
      return absl::DataLossError(absl::StrCat("layer ", layer, " arrived with checksum ",
                                              absl::Hex(frame.crc32c), ", sealed with ",
                                              absl::Hex(crcs[layer])));
    }
  }
  return header;
}

absl::StatusOr<CommitResult> BlockStore::Commit(Reservation reservation,
                                                std::span<const std::byte> head) {
  PKV_CHECK(reservation.store_ == this, "a reservation of another store");
  const absl::StatusOr<ObjectHeader> header = CheckContent(reservation, head);
  if (!header.ok()) {
    if (absl::IsDataLoss(header.status()) && observer_ != nullptr) {
      observer_->OnIntegrityFailure(IntegrityStage::kWire);
    }
    return header.status();
  }
  std::memcpy(reservation.bytes_.data(), head.data(), head.size());
  const absl::Time now = clock_->MonotonicNow();
  for (;;) {
    Lease stored;
    {
      MutexLock lock(&mu_);
      StoredObject* existing = FindLocked(reservation.spec_.key);
      if (existing == nullptr) {
        PKV_ASSIGN_OR_RETURN(const bool is_on_disk, CompareOnDiskLocked(*header, head));
        StoredObject* table = nullptr;
        if (!header->table.IsZero()) {
          table = FindLocked({ObjectKind::kTable, header->table, header->variant()});
          if (table == nullptr) {
            return absl::FailedPreconditionError(
                absl::StrCat("TableMissing: pattern table ", header->table.ToShortHex(),
                             " is not stored; put it before its blocks"));
          }
          PKV_RETURN_IF_ERROR(CheckParentLocked(*header));
        }
        PublishLocked(reservation, table, now);
        return is_on_disk ? CommitResult::kDuplicate : CommitResult::kStored;
      }
      stored = PinLocked(existing);
    }
    const absl::Status status = CompareStored(stored, reservation);
    if (status.ok()) return CommitResult::kDuplicate;
    if (!absl::IsAborted(status)) return status;
  }
}

absl::Status BlockStore::CheckParentLocked(const ObjectHeader& header) const {
  const ObjectKey key{ObjectKind::kBlock, header.parent, header.variant()};
  // One that nobody can read has no say.
  std::optional<LogRecord> parent;
  if (log_ != nullptr && !log_->reads_suspended()) parent = FindOnDiskLocked(key);
  if (const StoredObject* stored = FindLocked(key)) {
    const absl::StatusOr<ObjectHeader> before = ParseHeader(stored->bytes);
    // Whoever reads a damaged parent finds out.
    if (!before.ok()) return absl::OkStatus();
    parent = DescribeObject(*before, {});
  }
  if (!parent) return absl::OkStatus();
  // A reader has one bank for all blocks of a chain: the parent's, and what the parent appended.
  if (header.table == parent->table && header.num_patterns_k == parent->num_patterns_k &&
      header.num_patterns_v == parent->num_patterns_v) {
    return absl::OkStatus();
  }
  return absl::AlreadyExistsError(absl::StrCat(
      "ChainTaken: what follows block ", header.parent.ToShortHex(), " has table ",
      parent->table.ToShortHex(), " and ", parent->num_patterns_k, "+", parent->num_patterns_v,
      " patterns; block ", header.id.ToShortHex(), " has ", header.table.ToShortHex(), " and ",
      header.num_patterns_k, "+", header.num_patterns_v));
}

absl::Status BlockStore::CompareStored(const Lease& stored, const Reservation& reservation) {
  if (Equal(stored.bytes(), reservation.bytes_)) return absl::OkStatus();
  // They differ. If the stored one no longer fits its own checksums it is memory that rotted, and
  // the arriving one, just verified, takes its place.
  absl::Status intact = stored.VerifyHead().status();
  for (int layer = 0; intact.ok() && layer < stored.num_layers(); ++layer) {
    intact = stored.VerifyFrame(layer);
  }
  if (intact.ok()) return Conflict(stored.key());
  Quarantine(stored);
  return absl::AbortedError(intact.message());
}

StoredObject* BlockStore::PublishLocked(Reservation& reservation, StoredObject* table,
                                        absl::Time now) {
  auto object = std::make_unique<StoredObject>();
  object->key = reservation.spec_.key;
  object->extent = reservation.extent_;
  object->bytes = reservation.bytes_;
  object->num_layers = reservation.spec_.num_layers;
  object->frame_bytes = reservation.spec_.frame_bytes;
  object->table = table;
  object->last_use = now;
  object->indexed = true;
  policy_->Insert(IdOf(object.get()));
  if (table != nullptr) {
    ++table->num_dependents;
    UpdateEvictableLocked(table);
  }
  reserved_bytes_ -= object->extent.bytes;
  committed_bytes_ += object->extent.bytes;
  reservation.store_ = nullptr;
  const ObjectKey key = object->key;
  StoredObject* const published = object.get();
  index_.emplace(key, std::move(object));
  CheckAccountingLocked();
  return published;
}

Lease BlockStore::Find(const ObjectKey& key, Use use) {
  return std::move(FindAll({&key, 1}, use).front());
}

std::vector<Lease> BlockStore::FindAll(std::span<const ObjectKey> keys, Use use) {
  const absl::Time now = clock_->MonotonicNow();
  std::vector<Lease> leases(keys.size());
  MutexLock lock(&mu_);
  for (size_t i = keys.size(); i-- > 0;) {
    if (StoredObject* object = FindLocked(keys[i])) {
      if (use != Use::kNone) TouchLocked(object, now);
      if (use == Use::kGet) object->num_gets = std::min(object->num_gets + 1, kGetsOfReuse);
      leases[i] = PinLocked(object);
    }
  }
  return leases;
}

void BlockStore::TouchAll(std::span<const ObjectKey> keys) {
  const absl::Time now = clock_->MonotonicNow();
  MutexLock lock(&mu_);
  for (size_t i = keys.size(); i-- > 0;) {
    if (StoredObject* object = FindLocked(keys[i])) TouchLocked(object, now);
  }
}

PrefixMatch BlockStore::LongestPrefix(std::span<const Digest> prefix_ids,
                                      std::span<const Variant> variants) const {
  PrefixMatch match;
  const bool with_disk = log_ != nullptr && !log_->reads_suspended();
  for (size_t v = 0; v < variants.size(); ++v) {
    PrefixMatch found{.variant_index = static_cast<int>(v)};
    absl::flat_hash_set<Digest> seen;
    ObjectKey key{ObjectKind::kBlock, {}, variants[v]};
    {
      MutexLock lock(&mu_);
      for (const Digest& id : prefix_ids) {
        key.id = id;
        const std::optional<Placed> block = FindInTiersLocked(key, with_disk);
        if (!block) break;
        ++found.num_blocks;
        found.bytes += block->object_bytes;
        if (block->is_on_disk) found.ssd_bytes += block->object_bytes;
        if (!block->table.IsZero() && seen.insert(block->table).second) {
          found.table_ids.push_back(block->table);
        }
      }
    }
    match.blocks_per_variant.push_back(found.num_blocks);
    if (found.num_blocks > match.num_blocks) {
      found.blocks_per_variant = std::move(match.blocks_per_variant);
      match = std::move(found);
    }
  }
  return match;
}

std::optional<StoredStat> BlockStore::Stat(const ObjectKey& key) {
  const absl::Time now = clock_->MonotonicNow();
  MutexLock lock(&mu_);
  StoredObject* object = FindLocked(key);
  if (object == nullptr) return std::nullopt;
  return StoredStat{PinLocked(object), now - object->last_use};
}

DeleteResult BlockStore::Delete(const ObjectKey& key) {
  MutexLock lock(&mu_);
  StoredObject* object = FindLocked(key);
  if (object != nullptr && object->num_dependents > 0) return DeleteResult::kInUse;
  if (log_ != nullptr && log_->HasDependents(key)) return DeleteResult::kInUse;
  const bool was_on_disk = log_ != nullptr && log_->Erase(key);
  if (object == nullptr) return was_on_disk ? DeleteResult::kDeleted : DeleteResult::kAbsent;
  RemoveLocked(object);
  CheckAccountingLocked();
  return DeleteResult::kDeleted;
}

void BlockStore::Quarantine(const Lease& lease) {
  const absl::Time now = clock_->MonotonicNow();
  std::vector<Eviction> evictions;
  {
    MutexLock lock(&mu_);
    StoredObject* damaged = lease.object_;
    if (!damaged->indexed) return;
    if (damaged->num_dependents > 0) {
      std::vector<StoredObject*> dependents;
      for (const auto& [key, object] : index_) {
        if (object->table == damaged) dependents.push_back(object.get());
      }
      for (StoredObject* object : dependents) {
        evictions.push_back(
            {EvictionReason::kIntegrity, object->bytes.size(), now - object->last_use});
        ++num_evictions_;
        RemoveLocked(object);
      }
    }
    RemoveLocked(damaged);
    CheckAccountingLocked();
  }
  if (observer_ != nullptr) observer_->OnIntegrityFailure(IntegrityStage::kDram);
  Report(evictions);
}

StoreStats BlockStore::stats() const {
  MutexLock lock(&mu_);
  return {.capacity_bytes = arena_->capacity_bytes(),
          .resident_bytes = arena_->used_bytes(),
          .pinned_bytes = pinned_bytes_,
          .reserved_bytes = reserved_bytes_,
          .num_objects = index_.size(),
          .num_evictions = num_evictions_};
}

void BlockStore::Unpin(StoredObject* object) {
  MutexLock lock(&mu_);
  PKV_CHECK(object->num_pins > 0);
  if (--object->num_pins > 0) return;
  pinned_bytes_ -= object->extent.bytes;
  if (object->indexed) {
    UpdateEvictableLocked(object);
    return;
  }
  arena_->Free(object->extent);
  committed_bytes_ -= object->extent.bytes;
  detached_.erase(object);
  CheckAccountingLocked();
}

void BlockStore::Abandon(const SlabArena::Extent& extent) {
  MutexLock lock(&mu_);
  arena_->Free(extent);
  reserved_bytes_ -= extent.bytes;
  CheckAccountingLocked();
}

StoredObject* BlockStore::FindLocked(const ObjectKey& key) const {
  const auto found = index_.find(key);
  return found == index_.end() ? nullptr : found->second.get();
}

Lease BlockStore::PinLocked(StoredObject* object) {
  if (object->num_pins++ == 0) {
    pinned_bytes_ += object->extent.bytes;
    UpdateEvictableLocked(object);
  }
  return Lease(this, object);
}

void BlockStore::TouchLocked(StoredObject* object, absl::Time now) {
  object->last_use = now;
  policy_->Touch(IdOf(object));
}

void BlockStore::UpdateEvictableLocked(StoredObject* object) {
  policy_->SetEvictable(IdOf(object), object->num_pins == 0 && object->num_dependents == 0);
}

void BlockStore::RemoveLocked(StoredObject* object) {
  PKV_CHECK(object->num_dependents == 0, "dependents ", object->num_dependents);
  const auto found = index_.find(object->key);
  PKV_CHECK(found != index_.end() && found->second.get() == object);
  std::unique_ptr<StoredObject> owned = std::move(found->second);
  index_.erase(found);
  policy_->Erase(IdOf(object));
  object->indexed = false;
  if (StoredObject* table = std::exchange(object->table, nullptr)) {
    --table->num_dependents;
    UpdateEvictableLocked(table);
  }
  if (object->num_pins > 0) {
    detached_.emplace(object, std::move(owned));
    return;
  }
  arena_->Free(object->extent);
  committed_bytes_ -= object->extent.bytes;
}

void BlockStore::CheckAccountingLocked() const {
  PKV_CHECK(
      committed_bytes_ + reserved_bytes_ == arena_->used_bytes() &&
          arena_->used_bytes() <= arena_->capacity_bytes() && pinned_bytes_ <= committed_bytes_,
      "committed ", committed_bytes_, " reserved ", reserved_bytes_, " used ", arena_->used_bytes(),
      " pinned ", pinned_bytes_, " capacity ", arena_->capacity_bytes());
}

void BlockStore::Report(const std::vector<Eviction>& evictions) const {
  if (observer_ == nullptr) return;
  for (const Eviction& eviction : evictions) {
    observer_->OnEviction(eviction.reason, eviction.object_bytes, eviction.idle);
  }
}

}  // namespace pkv
