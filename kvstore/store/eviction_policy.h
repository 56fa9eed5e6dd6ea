#ifndef PKV_KVSTORE_STORE_EVICTION_POLICY_H_
#define PKV_KVSTORE_STORE_EVICTION_POLICY_H_

#include <cstdint>
#include <optional>

namespace pkv {

// Names one stored object to a policy; never used again after Erase().
using EvictionId = uint64_t;

// Decides the order in which objects are evicted. Knows no bytes, keys or pins: the store tells it
// what happened and which objects may go.
//
// Thread-compatible: the store calls it under its own lock.
class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  // A new object, used just now and evictable.
  virtual void Insert(EvictionId id) = 0;
  // It was used just now.
  virtual void Touch(EvictionId id) = 0;
  // Whether it may be chosen. Its history is kept while it may not.
  virtual void SetEvictable(EvictionId id, bool evictable) = 0;
  // It is gone: evicted or deleted.
  virtual void Erase(EvictionId id) = 0;

  // The evictable object that should go next; nothing when there is none. Does not erase it.
  virtual std::optional<EvictionId> Victim() const = 0;
};

}  // namespace pkv

#endif  // PKV_KVSTORE_STORE_EVICTION_POLICY_H_
