#include "worker/batch/put_back.h"

#include <span>
#include <utility>

#include "proto/base/log.h"

namespace pkv {

void PutBackQueue::Put(CacheClient& cache, std::vector<std::unique_ptr<ObjectBuilder>> objects,
                       std::function<void(int num_blocks)> done) {
  if (num_waiting_.fetch_add(1) >= kMaxWaiting) {
    num_waiting_.fetch_sub(1);
    Log(LogLevel::kWarning, "not put back",
        {{"reason", "too many requests wait for it"}, {"limit", kMaxWaiting}});
    done(0);
    return;
  }
  // shared_ptr: what a std::function holds must be copyable.
  const auto held =
      std::make_shared<std::vector<std::unique_ptr<ObjectBuilder>>>(std::move(objects));
  thread_.Schedule([this, &cache, held, done = std::move(done)] {
    const int num_blocks = PutNow(cache, *held);
    held->clear();
    num_waiting_.fetch_sub(1);
    done(num_blocks);
  });
}

int PutBackQueue::PutNow(CacheClient& cache,
                         const std::vector<std::unique_ptr<ObjectBuilder>>& objects) {
  std::vector<std::span<const std::byte>> bytes;
  for (const auto& object : objects) bytes.push_back(object->bytes());
  const std::vector<PutOutcome> outcomes = cache.Put(bytes);
  int num_blocks = 0;
  for (size_t i = 0; i < outcomes.size(); ++i) {
    if (!outcomes[i].status.ok()) {
      Log(LogLevel::kWarning, "not put back", {{"reason", outcomes[i].status.ToString()}});
    } else if (objects[i]->header().kind == ObjectKind::kBlock) {
      ++num_blocks;
    }
  }
  return num_blocks;
}

}  // namespace pkv
