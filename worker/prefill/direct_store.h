#ifndef PKV_WORKER_PREFILL_DIRECT_STORE_H_
#define PKV_WORKER_PREFILL_DIRECT_STORE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/object_builder.h"
#include "pkv/block/object_key.h"
#include "proto/base/sync.h"
#include "proto/transport/nccl/pair_calls.h"
#include "proto/transport/nccl/pair_source.h"
#include "worker/prefill/direct_metrics.h"

namespace pkv {

// The newest prompts of a prefill worker as they lie in its GPU's memory, for decode workers that
// fetch them from there.
//
// What one prefill makes is one group: table, blocks and window, layer by layer in one piece,
//
//   layer 0: table | block 0 | block 1 | ... | window    layer 1: table | ...
//
// which is the order of a decode worker's get, so that NCCL sends it from where it lies.
//
//   Reserve --> draft --Publish--> kept --least recently used, damaged--> gone
//
// Frames are copied on the device while the prompt is computed; their checksums are those of the
// frames on the host, so that a copy that went wrong is found by whoever receives it. A group that
// is being sent stays until it has been.
//
// Thread-safe.
class DirectStore final : public PairSource {
 public:
  // Takes `capacity_bytes` of device memory. `metrics` outlives this.
  //   ResourceExhausted  the device has no room
  static absl::StatusOr<std::unique_ptr<DirectStore>> Make(std::shared_ptr<PairCalls> calls,
                                                           uint64_t capacity_bytes,
                                                           DirectMetrics* metrics);
  // REQUIRES: no draft and no hold is left.
  ~DirectStore() override;
  DirectStore(const DirectStore&) = delete;
  DirectStore& operator=(const DirectStore&) = delete;

  // A place that is being filled; given back when destroyed.
  class Draft {
   public:
    ~Draft() { store_.GiveBack(*this); }
    Draft(const Draft&) = delete;
    Draft& operator=(const Draft&) = delete;

    // Device memory of a frame, aligned to 128 bytes. Valid as long as this.
    std::span<std::byte> frame(int object_index, int layer) const;

   private:
    friend class DirectStore;
    Draft(DirectStore* store, std::byte* data, uint64_t offset)
        : store_(*store), data_(data), offset_(offset) {}

    DirectStore& store_;
    std::byte* const data_;
    const uint64_t offset_;  // in the arena
    int num_layers_ = 0;
    uint64_t layer_bytes_ = 0;
    std::vector<uint64_t> frame_bytes_, frame_offsets_;  // by object, in a layer
    bool is_published_ = false;
  };
  // Room for objects of so many bytes a frame, multiples of 128, in the order in which a get names
  // them. Takes it from the groups that were used least recently; null, and none is evicted: those
  // that are held or being filled leave no room.
  std::unique_ptr<Draft> Reserve(std::span<const uint64_t> frame_bytes, int num_layers)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Everything has been copied: what is found under these keys from now on. `objects` are sealed,
  // in the order of Reserve().
  void Publish(std::unique_ptr<Draft> draft, std::span<const ObjectBuilder* const> objects)
      ABSL_LOCKS_EXCLUDED(mu_);

  // Whether a get of `keys` would find all of them now; counts as a use.
  bool HasAll(std::span<const ObjectKey> keys) ABSL_LOCKS_EXCLUDED(mu_);

  // PairSource. A block is only found together with the table that its header names: under an equal
  // key another prompt may have left one that refers to another.
  absl::StatusOr<std::unique_ptr<PairHold>> Hold(std::span<const ObjectKey> keys,
                                                 v1::PairManifest& manifest) override
      ABSL_LOCKS_EXCLUDED(mu_);
  // Drops the group, without looking: pkvd has its objects too.
  void OnDamaged(const ObjectKey& key) override ABSL_LOCKS_EXCLUDED(mu_);
  void OnTooLarge() override { metrics_.GetEnded(DirectGet::kShed); }
  void SetNumPairs(size_t num_pairs) override { metrics_.SetPairs(num_pairs); }
  void OnPairEnded(PairEnd reason) override { metrics_.PairEnded(reason); }

 private:
  struct Object {
    ObjectKey key;
    Digest table;      // that a block refers to; zero: none
    std::string head;  // header and frame table
    uint64_t frame_bytes = 0, frame_offset = 0;
  };
  // Memory that a draft or a group has.
  struct Extent {
    uint64_t bytes = 0;
    bool is_kept = false;   // published and found by its keys
    int num_holds = 0;      // of fetches
    uint64_t last_use = 0;  // the higher the later
    uint64_t layer_bytes = 0;
    int num_layers = 0;
    std::vector<Object> objects;
  };
  struct Place {
    uint64_t offset = 0;
    size_t object_index = 0;
  };
  class HoldOf;

  DirectStore(std::shared_ptr<PairCalls> calls, std::byte* arena, uint64_t capacity_bytes,
              DirectMetrics* metrics);

  static bool CanEvict(const Extent& extent) { return extent.is_kept && extent.num_holds == 0; }
  // Where `bytes` fit between the extents, but for those that `ignores`; capacity_bytes_: nowhere.
  uint64_t FindGap(uint64_t bytes, bool (*ignores)(const Extent&) = nullptr) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool EvictOne() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Nothing finds it any more; its memory goes with its last hold.
  void Drop(uint64_t offset, DirectEviction reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Free(uint64_t offset) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // One for each key, null for what is not here.
  std::vector<const Place*> FindAll(std::span<const ObjectKey> keys)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void GiveBack(const Draft& draft) ABSL_LOCKS_EXCLUDED(mu_);
  void EndHold(std::span<const uint64_t> offsets) ABSL_LOCKS_EXCLUDED(mu_);

  // Constant after construction. shared_ptr: as NcclPair wants it.
  const std::shared_ptr<PairCalls> calls_;
  std::byte* const arena_;
  const uint64_t capacity_bytes_;
  DirectMetrics& metrics_;

  Mutex mu_;
  std::map<uint64_t, Extent> extents_ ABSL_GUARDED_BY(mu_);  // by offset
  // The newest of each key.
  absl::flat_hash_map<ObjectKey, Place> index_ ABSL_GUARDED_BY(mu_);
  uint64_t resident_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t num_uses_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace pkv

#endif  // PKV_WORKER_PREFILL_DIRECT_STORE_H_
