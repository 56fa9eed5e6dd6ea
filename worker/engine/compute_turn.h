#ifndef PKV_WORKER_ENGINE_COMPUTE_TURN_H_
#define PKV_WORKER_ENGINE_COMPUTE_TURN_H_

#include <functional>

#include "absl/time/time.h"
#include "proto/base/sync.h"

namespace pkv {

// The turn of whoever computes on something that takes one prompt at a time: a lock that a caller
// may give up waiting for. Thread-safe.
class ABSL_LOCKABLE ComputeTurn {
 public:
  // Waits for the turn. False, without it, as soon as `cancelled` returns true; null: never. It is
  // asked every 50 ms.
  bool TakeUnless(const std::function<bool()>& cancelled) ABSL_EXCLUSIVE_TRYLOCK_FUNCTION(true)
      ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(&mu_);
    while (taken_) {
      if (cancelled && cancelled()) return false;
      given_.WaitWithTimeout(&mu_, absl::Milliseconds(50));
    }
    taken_ = true;
    return true;
  }
  void Give() ABSL_UNLOCK_FUNCTION() ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(&mu_);
    taken_ = false;
    given_.Signal();
  }

 private:
  Mutex mu_;
  CondVar given_;
  bool taken_ ABSL_GUARDED_BY(mu_) = false;
};

// Gives a turn that was taken at the end of its scope.
class ABSL_SCOPED_LOCKABLE HeldTurn {
 public:
  explicit HeldTurn(ComputeTurn* turn) ABSL_EXCLUSIVE_LOCKS_REQUIRED(turn) : turn_(turn) {}
  ~HeldTurn() ABSL_UNLOCK_FUNCTION() { turn_->Give(); }
  HeldTurn(const HeldTurn&) = delete;
  HeldTurn& operator=(const HeldTurn&) = delete;

 private:
  ComputeTurn* turn_;
};

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_COMPUTE_TURN_H_
