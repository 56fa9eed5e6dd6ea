#ifndef PKV_WORKER_BATCH_PUT_BACK_H_
#define PKV_WORKER_BATCH_PUT_BACK_H_

#include <atomic>
#include <functional>
#include <memory>
#include <vector>

#include "pkv/block/object_builder.h"
#include "pkv/client/cache_client.h"
#include "proto/base/thread_pool.h"

namespace pkv {

// Stores what decoding made, one request after another on a thread of its own: the answer was given
// already, and neither slot nor page waits for it. Destruction puts what waits. Thread-safe.
class PutBackQueue {
 public:
  // Requests that may wait; beyond it a request's blocks are not put, and that is logged. Each
  // holds its blocks in memory.
  static constexpr int kMaxWaiting = 256;

  // Puts `objects`, sealed, each table before its blocks, then calls `done` with the number of
  // blocks that pkvd holds now. What the cache refuses is only logged. `done` may run before this
  // returns. `cache` outlives the queue.
  void Put(CacheClient& cache, std::vector<std::unique_ptr<ObjectBuilder>> objects,
           std::function<void(int num_blocks)> done);

 private:
  static int PutNow(CacheClient& cache, const std::vector<std::unique_ptr<ObjectBuilder>>& objects);

  std::atomic<int> num_waiting_{0};
  ThreadPool thread_{1};
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_PUT_BACK_H_
