#ifndef PKV_TESTS_SUPPORT_FAKE_CLOCK_H_
#define PKV_TESTS_SUPPORT_FAKE_CLOCK_H_

#include "absl/time/time.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"

namespace pkv {

// A clock that moves when told to.
// Thread-safe.
class FakeClock : public Clock {
 public:
  absl::Time MonotonicNow() override {
    MutexLock lock(&mu_);
    return now_;
  }

  void Advance(absl::Duration duration) {
    MutexLock lock(&mu_);
    now_ += duration;
  }

 private:
  Mutex mu_;
  absl::Time now_ ABSL_GUARDED_BY(mu_) = absl::UnixEpoch();
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_FAKE_CLOCK_H_
