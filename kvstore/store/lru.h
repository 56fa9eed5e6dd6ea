#ifndef PKV_KVSTORE_STORE_LRU_H_
#define PKV_KVSTORE_STORE_LRU_H_

#include <cstdint>
#include <optional>
#include <set>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "kvstore/store/eviction_policy.h"

namespace pkv {

// Least recently used first. An object that was not evictable for a while comes back at the place
// its last use gives it. Every call is O(log n).
//
// Thread-compatible.
class Lru : public EvictionPolicy {
 public:
  void Insert(EvictionId id) override;
  void Touch(EvictionId id) override;
  void SetEvictable(EvictionId id, bool evictable) override;
  void Erase(EvictionId id) override;
  std::optional<EvictionId> Victim() const override;

 private:
  struct Entry {
    uint64_t last_use = 0;
    bool evictable = true;
  };
  Entry& Get(EvictionId id);

  uint64_t num_uses_ = 0;  // grows with every use: the time of LRU
  absl::flat_hash_map<EvictionId, Entry> entries_;
  std::set<std::pair<uint64_t, EvictionId>> evictable_;  // {last_use, id}
};

}  // namespace pkv

#endif  // PKV_KVSTORE_STORE_LRU_H_
