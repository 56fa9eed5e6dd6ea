#ifndef PKV_PROTO_BASE_SYNC_H_
#define PKV_PROTO_BASE_SYNC_H_

// Mutex, MutexLock and CondVar over the standard library, with Clang's thread-safety annotations.
//
// Not absl::Mutex: Debian's libabsl is not instrumented, so under TSan every access guarded by it
// is reported as a race (measured: a counter guarded by absl::Mutex, clang 14). std::mutex goes
// through pthread, which TSan sees.

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"

namespace pkv {

// Thread-safe.
class ABSL_LOCKABLE Mutex {
 public:
  Mutex() = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void Lock() ABSL_EXCLUSIVE_LOCK_FUNCTION() { mutex_.lock(); }
  void Unlock() ABSL_UNLOCK_FUNCTION() { mutex_.unlock(); }
  void AssertHeld() const ABSL_ASSERT_EXCLUSIVE_LOCK() {}

 private:
  friend class CondVar;
  std::mutex mutex_;
};

// Holds `mutex` for its lifetime.
class ABSL_SCOPED_LOCKABLE MutexLock {
 public:
  explicit MutexLock(Mutex* mutex) ABSL_EXCLUSIVE_LOCK_FUNCTION(mutex) : mutex_(mutex) {
    mutex_->Lock();
  }
  ~MutexLock() ABSL_UNLOCK_FUNCTION() { mutex_->Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex* mutex_;
};

// Thread-safe. Spurious wake-ups happen: wait in a loop over the condition.
class CondVar {
 public:
  CondVar() = default;
  CondVar(const CondVar&) = delete;
  CondVar& operator=(const CondVar&) = delete;

  void Wait(Mutex* mutex) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    std::unique_lock<std::mutex> lock(mutex->mutex_, std::adopt_lock);
    condition_.wait(lock);
    lock.release();
  }

  // Returns false when `timeout` passed first. A negative timeout counts as zero, one above a year
  // (infinity too) as a year.
  bool WaitWithTimeout(Mutex* mutex, absl::Duration timeout) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex) {
    std::unique_lock<std::mutex> lock(mutex->mutex_, std::adopt_lock);
    // Bounded, so that the sum does not overflow.
    const absl::Duration bounded = std::clamp(timeout, absl::ZeroDuration(), absl::Hours(365 * 24));
    const auto deadline = WaitClock::now() + absl::ToChronoMicroseconds(bounded);
    const bool notified = condition_.wait_until(lock, deadline) == std::cv_status::no_timeout;
    lock.release();
    return notified;
  }

  void Signal() { condition_.notify_one(); }
  void SignalAll() { condition_.notify_all(); }

 private:
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define PKV_WAIT_ON_SYSTEM_CLOCK
#endif
#endif
#ifdef PKV_WAIT_ON_SYSTEM_CLOCK
  // Debian's TSan does not intercept pthread_cond_clockwait.
  using WaitClock = std::chrono::system_clock;
#undef PKV_WAIT_ON_SYSTEM_CLOCK
#else
  using WaitClock = std::chrono::steady_clock;
#endif
  std::condition_variable condition_;
};

}  // namespace pkv

#endif  // PKV_PROTO_BASE_SYNC_H_
