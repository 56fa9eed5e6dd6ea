#ifndef PKV_PROTO_BASE_THREAD_POOL_H_
#define PKV_PROTO_BASE_THREAD_POOL_H_

#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "proto/base/sync.h"

namespace pkv {

// A fixed set of threads. Schedule() runs one task later; ParallelFor() splits a loop and waits for
// it. Thread-safe.
class ThreadPool {
 public:
  // `num_threads` >= 1.
  explicit ThreadPool(int num_threads);
  // Runs what is scheduled, then joins.
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()); }

  void Schedule(std::function<void()> task);

  // Calls body(i) for i in [0, count), each exactly once, on this pool's threads and the caller's,
  // and returns when all are done. The order is unspecified: results must not depend on it. May be
  // called from a pool thread.
  void ParallelFor(int count, const std::function<void(int)>& body);

 private:
  void Run();

  Mutex mu_;
  CondVar work_ready_;
  std::deque<std::function<void()>> tasks_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;  // constant after construction
};

// body(0..count-1) on `pool`, or in order on this thread when `pool` is null.
void ParallelFor(ThreadPool* pool, int count, const std::function<void(int)>& body);

}  // namespace pkv

#endif  // PKV_PROTO_BASE_THREAD_POOL_H_
