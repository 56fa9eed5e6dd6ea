#ifndef PKV_KVSTORE_STORE_STORED_OBJECT_H_
#define PKV_KVSTORE_STORE_STORED_OBJECT_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/time/time.h"
#include "kvstore/store/eviction_policy.h"
#include "kvstore/store/slab_arena.h"
#include "pkv/block/object_key.h"

namespace pkv {

// What the index keeps of one committed object. Private to BlockStore and Lease.
struct StoredObject {
  // Constant after commit.
  ObjectKey key;
  SlabArena::Extent extent;
  std::span<std::byte> bytes;  // header, frame table and frames; inside the extent
  int num_layers = 0;
  uint64_t frame_bytes = 0;
  StoredObject* table = nullptr;  // a block's pattern table, which outlives it in the index

  // Guarded by BlockStore::mu_.
  absl::Time last_use;
  int num_gets = 0;        // that found it since its commit; up to kGetsOfReuse
  int num_pins = 0;        // leases
  int num_dependents = 0;  // table: indexed blocks that refer to it
  bool indexed = false;    // false once deleted: only leases keep it
};

// An object's address: unique while it is indexed, which is as long as its policy knows it.
inline EvictionId IdOf(const StoredObject* object) { return reinterpret_cast<EvictionId>(object); }
inline StoredObject* ObjectOf(EvictionId id) { return reinterpret_cast<StoredObject*>(id); }

}  // namespace pkv

#endif  // PKV_KVSTORE_STORE_STORED_OBJECT_H_
