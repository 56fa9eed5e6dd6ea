#include "kvstore/store/lru.h"

#include "proto/base/log.h"

namespace pkv {

Lru::Entry& Lru::Get(EvictionId id) {
  const auto found = entries_.find(id);
  PKV_CHECK(found != entries_.end(), "unknown object ", id);
  return found->second;
}

void Lru::Insert(EvictionId id) {
  const uint64_t use = ++num_uses_;
  PKV_CHECK(entries_.emplace(id, Entry{use, true}).second, "inserted twice: object ", id);
  evictable_.emplace(use, id);
}

void Lru::Touch(EvictionId id) {
  Entry& entry = Get(id);
  if (entry.evictable) evictable_.erase({entry.last_use, id});
  entry.last_use = ++num_uses_;
  if (entry.evictable) evictable_.emplace(entry.last_use, id);
}

void Lru::SetEvictable(EvictionId id, bool evictable) {
  Entry& entry = Get(id);
  if (entry.evictable == evictable) return;
  entry.evictable = evictable;
  if (evictable) {
    evictable_.emplace(entry.last_use, id);
  } else {
    evictable_.erase({entry.last_use, id});
  }
}

void Lru::Erase(EvictionId id) {
  const Entry entry = Get(id);
  if (entry.evictable) evictable_.erase({entry.last_use, id});
  entries_.erase(id);
}

std::optional<EvictionId> Lru::Victim() const {
  if (evictable_.empty()) return std::nullopt;
  return evictable_.begin()->second;
}

}  // namespace pkv
