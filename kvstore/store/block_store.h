#ifndef PKV_KVSTORE_STORE_BLOCK_STORE_H_
#define PKV_KVSTORE_STORE_BLOCK_STORE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/disk/segment_log.h"
#include "kvstore/store/eviction_policy.h"
#include "kvstore/store/lease.h"
#include "kvstore/store/reservation.h"
#include "kvstore/store/slab_arena.h"
#include "kvstore/store/stored_object.h"
#include "pkv/block/object_header.h"
#include "pkv/block/object_key.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"

namespace pkv {

enum class EvictionReason {
  kCapacity,   // made room for another object, and is gone
  kDemoted,    // made room, and is on disk
  kIntegrity,  // a block whose pattern table was damaged
};

enum class IntegrityStage {
  kWire,  // wrong on arrival
  kDram,  // changed since the commit
  kSsd,   // changed on disk
};

// Told what the store does, for metrics. Called without a lock held; must not call the store.
class StoreObserver {
 public:
  virtual ~StoreObserver() = default;
  // `idle`: time since its last use.
  virtual void OnEviction(EvictionReason reason, uint64_t object_bytes, absl::Duration idle) = 0;
  virtual void OnIntegrityFailure(IntegrityStage stage) = 0;
};

struct StoreStats {
  uint64_t capacity_bytes = 0;
  uint64_t resident_bytes = 0;  // of the arena in use; includes reserved
  uint64_t pinned_bytes = 0;    // of objects under lease, deleted ones included
  uint64_t reserved_bytes = 0;  // of objects not committed yet
  uint64_t num_objects = 0;
  uint64_t num_evictions = 0;  // of objects that are gone
};

struct PrefixMatch {
  int variant_index = 0;  // of the longest prefix; the earlier one when equal
  int num_blocks = 0;
  uint64_t bytes = 0;
  uint64_t ssd_bytes = 0;              // part of `bytes`: of blocks that are on disk alone
  std::vector<Digest> table_ids = {};  // each once, in order of first use
  std::vector<int> blocks_per_variant = {};
};

struct StoredStat {
  Lease lease;
  absl::Duration idle;  // since last use
};

// An object that is on disk and not in memory.
struct DiskCopy {
  ObjectKey key;
  LogRecord record;
  bool is_implied = false;  // a table that was not asked for, but a block's that was
};

// What is to be read from disk, the tables before the rest.
struct PageInPlan {
  std::vector<DiskCopy> tables, others;
  // Tables in memory that blocks among the others need: room for those is not made of them.
  std::vector<Lease> held;
};

// What would be evicted next.
struct DemotionCandidate {
  Lease lease = {};
  Lease table = {};  // of a block, when it is not on disk yet: it has to be there first
  absl::Time last_use = {};
  bool was_reused = false;  // got kGetsOfReuse times since it was put
  bool is_on_disk = false;  // and will be for a while
  bool is_needed = false;   // a table of blocks on disk
};

enum class CommitResult { kStored, kDuplicate };
enum class DeleteResult { kDeleted, kAbsent, kInUse };

// Objects by key, write-once, in one arena of fixed size, and which of them are on disk.
//
//   absent --Reserve--> reserved --Commit--> stored --evict, Delete, Quarantine--> absent
//                          |                   |
//                  PublishFromDisk          Demote (demoter.h)
//                          |                   v
//                          +-- pager.h -- on disk alone --Delete, its segment goes--> absent
//
// A key has one content in both tiers. What is on disk alone is found by LongestPrefix(), and by
// the others once a Pager has brought it in; a block there counts only while its table is in one of
// the tiers. The log's lock is taken under this one's; nothing here waits for a disk.
//
// A table is neither evicted nor deleted while a stored block refers to it. Memory in use never
// exceeds the capacity: used + reserved <= capacity, checked on every change. Payload is read and
// written without the lock; a lease or reservation owns the right to do so.
//
// Thread-safe.
class BlockStore {
 public:
  struct Options {
    uint64_t capacity_bytes = 0;
    Clock* clock = nullptr;             // outlives the store
    StoreObserver* observer = nullptr;  // may be null; outlives the store
    std::unique_ptr<EvictionPolicy> policy;
    SegmentLog* log = nullptr;              // what is on disk; null: nothing. Outlives the store
    uint64_t crowded_bytes = ~uint64_t{0};  // in use, from which AwaitCrowded() returns
  };

  // InvalidArgument, ResourceExhausted: as SlabArena::Create.
  static absl::StatusOr<std::unique_ptr<BlockStore>> Create(Options options);
  // REQUIRES: no lease or reservation is left.
  ~BlockStore();

  // Takes memory for an object, evicting others when needed.
  //   AlreadyExists      stored: nothing to write
  //   InvalidArgument    num_layers not in [1, kMaxLayers], or frame_bytes not a multiple of 128
  //   ResourceExhausted  larger than all that is not pinned or reserved, or than `room` gives
  absl::StatusOr<Reservation> Reserve(const ReservationSpec& spec, Room room = Room::kOfAny);

  // Publishes an object whose frames were all written. `head` is its header and frame table.
  // kDuplicate: equal bytes were stored meanwhile, or are on disk. The reservation is used up in
  // every case.
  //   InvalidArgument     a frame is not complete, or the head describes another object
  //   DataLoss            a checksum does not fit
  //   FailedPrecondition  "TableMissing": the table it refers to is not stored
  //   AlreadyExists       different bytes are stored under this key; or "ChainTaken": the block
  //   before
  //                       it is stored with another bank, so that no reader could use this one
  absl::StatusOr<CommitResult> Commit(Reservation reservation, std::span<const std::byte> head);

  // Pins, and counts as a use unless kNone; empty on a miss.
  Lease Find(const ObjectKey& key, Use use = Use::kGet);
  // One lease per key, in order, empty for misses. The first key counts as the most recently used,
  // so that a sequence loses its last blocks first and what is left is still a prefix.
  std::vector<Lease> FindAll(std::span<const ObjectKey> keys, Use use = Use::kGet);
  // Counts as uses of those stored, the first key as the most recent one.
  void TouchAll(std::span<const ObjectKey> keys);

  // The longest run of stored blocks from the start, for each variant. Counts as no use.
  PrefixMatch LongestPrefix(std::span<const Digest> prefix_ids,
                            std::span<const Variant> variants) const;
  // Counts as no use.
  std::optional<StoredStat> Stat(const ObjectKey& key);

  // kInUse: a table to which stored blocks refer. A pinned object is gone from the index at once,
  // its memory is free when the last lease ends.
  DeleteResult Delete(const ObjectKey& key);
  // Drops a damaged object, counts it once, and with a table the blocks that refer to it. What is
  // on disk stays.
  void Quarantine(const Lease& lease);

  // The tier on disk; without a log it is empty.

  // A block or window that is on disk alone, where it can be read: a put of it has nothing to
  // write. Not tables: they have to be in memory before their blocks are put.
  std::optional<LogRecord> FindOnDisk(const ObjectKey& key) const;
  // Which of `keys` are on disk alone, and the tables that blocks among them need.
  PageInPlan PlanPageIn(std::span<const ObjectKey> keys);
  // Of those of `keys` that are in either tier. Counts as no use.
  uint64_t StoredBytes(std::span<const ObjectKey> keys) const;
  // Publishes what was read from `record` into reservation.units(), checks it and pins it.
  //   DataLoss  a checksum does not fit, or another object stood there: it is dropped from the disk
  //   NotFound  deleted meanwhile, or its table is not in memory
  absl::StatusOr<Lease> PublishFromDisk(Reservation reservation, const LogRecord& record);

  // Waits until more than crowded_bytes are in use, at most `timeout`. Whether they are; false from
  // StopWaiting() on.
  bool AwaitCrowded(absl::Duration timeout);
  void StopWaiting();
  // Pins what would be evicted next; not a use. Nothing when all is in use.
  std::optional<DemotionCandidate> NextToDemote();
  // What to write before an end: all objects, the most recently used first, and of blocks that were
  // used at once the first of their chain.
  struct Listed {
    ObjectKey key;
    uint64_t object_bytes = 0;
  };
  std::vector<Listed> ListByLastUse() const;
  // As NextToDemote(), of one object; nothing on a miss.
  std::optional<DemotionCandidate> FindToDemote(const ObjectKey& key);
  // The object is on disk now, unless it was deleted meanwhile.
  void PublishDemoted(const Lease& lease, const LogRecord& record);
  // Lets an object go, unless somebody has used it since `last_use` or uses it now.
  bool LetGo(Lease lease, absl::Time last_use);

  StoreStats stats() const;
  // The whole arena, for who maps it elsewhere; bytes under no lease change at any time.
  std::span<std::byte> memory() const { return arena_->memory(); }
  // As SlabArena::Populate().
  absl::Status Populate(ThreadPool& pool) const { return arena_->Populate(pool); }
  // Of the arena's anonymous file; owned by the store.
  int arena_fd() const { return arena_->fd(); }

 private:
  friend class Lease;
  friend class Reservation;

  // An object in one of the tiers.
  struct Placed {
    uint64_t object_bytes;
    Digest table;
    bool is_on_disk;
  };
  struct Eviction {
    EvictionReason reason;
    uint64_t object_bytes;
    absl::Duration idle;
  };

  BlockStore(Options options, std::unique_ptr<SlabArena> arena);

  // Lease and Reservation.
  void Unpin(StoredObject* object);
  void Abandon(const SlabArena::Extent& extent);

  Lease PinLocked(StoredObject* object) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  StoredObject* FindLocked(const ObjectKey& key) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool HasTableLocked(const Digest& table, const Variant& variant) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // What is on disk and can be served: its table is in one of the tiers.
  std::optional<LogRecord> FindOnDiskLocked(const ObjectKey& key) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<Placed> FindInTiersLocked(const ObjectKey& key, bool with_disk) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void PlanLocked(const ObjectKey& key, bool is_implied, absl::flat_hash_set<ObjectKey>& planned,
                  PageInPlan& plan) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Whether the object that arrives is on disk. AlreadyExists: with other bytes.
  absl::StatusOr<bool> CompareOnDiskLocked(const ObjectHeader& header,
                                           std::span<const std::byte> head)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool MayMakeRoomLocked(const StoredObject& object, Room room) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // REQUIRES: not pinned, not depended on, or about to be unpinned.
  Eviction EvictLocked(StoredObject* object, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  DemotionCandidate MakeCandidateLocked(StoredObject* object) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TouchLocked(StoredObject* object, absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void UpdateEvictableLocked(StoredObject* object) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  StoredObject* PublishLocked(Reservation& reservation, StoredObject* table, absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RemoveLocked(StoredObject* object) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CheckAccountingLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::optional<SlabArena::Extent> AllocateLocked(uint64_t bytes, Room room, absl::Time now,
                                                  std::vector<Eviction>& evictions)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::StatusOr<ObjectHeader> CheckContent(const Reservation& reservation,
                                            std::span<const std::byte> head) const;
  // OK: equal. AlreadyExists: different. Aborted: the stored one was damaged and is gone.
  // AlreadyExists: the block's parent is stored and it does not continue the parent's bank.
  absl::Status CheckParentLocked(const ObjectHeader& header) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status CompareStored(const Lease& stored, const Reservation& reservation);
  void Report(const std::vector<Eviction>& evictions) const;

  // Constant after construction.
  Clock* const clock_;
  StoreObserver* const observer_;
  SegmentLog* const log_;  // null: none
  const uint64_t crowded_bytes_;

  mutable Mutex mu_;
  CondVar crowded_;
  bool stop_waiting_ ABSL_GUARDED_BY(mu_) = false;
  const std::unique_ptr<SlabArena> arena_;  // its accounting is guarded by mu_
  const std::unique_ptr<EvictionPolicy> policy_ ABSL_PT_GUARDED_BY(mu_);
  absl::flat_hash_map<ObjectKey, std::unique_ptr<StoredObject>> index_ ABSL_GUARDED_BY(mu_);
  // Deleted while pinned.
  absl::flat_hash_map<StoredObject*, std::unique_ptr<StoredObject>> detached_ ABSL_GUARDED_BY(mu_);
  uint64_t committed_bytes_ ABSL_GUARDED_BY(mu_) = 0;  // extents of indexed and detached objects
  uint64_t reserved_bytes_ ABSL_GUARDED_BY(mu_) = 0;   // extents of reservations
  uint64_t pinned_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t num_evictions_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace pkv

#endif  // PKV_KVSTORE_STORE_BLOCK_STORE_H_
