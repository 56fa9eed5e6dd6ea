#include "proto/base/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <utility>

#include "proto/base/log.h"

namespace pkv {

ThreadPool::ThreadPool(int num_threads) {
  PKV_CHECK(num_threads >= 1, num_threads);
  threads_.reserve(num_threads);
  for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { Run(); });
}

ThreadPool::~ThreadPool() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  work_ready_.SignalAll();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Schedule(std::function<void()> task) {
  {
    MutexLock lock(&mu_);
    tasks_.push_back(std::move(task));
  }
  work_ready_.Signal();
}

void ThreadPool::Run() {
  while (true) {
    std::function<void()> task;
    {
      MutexLock lock(&mu_);
      while (tasks_.empty() && !stopping_) work_ready_.Wait(&mu_);
      if (tasks_.empty()) return;
      task = std::move(tasks_.front());
      tasks_.pop_front();
    }
    task();
  }
}

void ThreadPool::ParallelFor(int count, const std::function<void(int)>& body) {
  if (count <= 0) return;
  // Shared because a scheduled task may start after the loop is done, and must then still find the
  // counter. 64 bits: every task counts once past `count`, which may be the largest int.
  struct Loop {
    std::atomic<int64_t> next{0};
    Mutex mu;
    CondVar all_done;
    int done ABSL_GUARDED_BY(mu) = 0;
  };
  auto loop = std::make_shared<Loop>();
  // `body` outlives the call of every index below `count`; a late task takes none and never touches
  // it.
  auto work = [loop, count, &body] {
    int finished = 0;
    for (int64_t i = loop->next.fetch_add(1); i < count; i = loop->next.fetch_add(1)) {
      body(static_cast<int>(i));
      ++finished;
    }
    if (finished == 0) return;
    MutexLock lock(&loop->mu);
    loop->done += finished;
    if (loop->done == count) loop->all_done.SignalAll();
  };
  const int num_tasks = std::min(num_threads(), count - 1);
  for (int i = 0; i < num_tasks; ++i) Schedule(work);
  work();
  MutexLock lock(&loop->mu);
  while (loop->done < count) loop->all_done.Wait(&loop->mu);
}

void ParallelFor(ThreadPool* pool, int count, const std::function<void(int)>& body) {
  if (pool != nullptr) {
    pool->ParallelFor(count, body);
    return;
  }
  for (int i = 0; i < count; ++i) body(i);
}

}  // namespace pkv
