#ifndef PKV_WORKER_SEQUENCE_STOPWATCH_H_
#define PKV_WORKER_SEQUENCE_STOPWATCH_H_

#include "absl/time/time.h"
#include "proto/base/clock.h"

namespace pkv {

// Seconds since its creation. Thread-compatible.
class Stopwatch {
 public:
  double Seconds() const { return absl::ToDoubleSeconds(Clock::Real()->MonotonicNow() - start_); }

 private:
  absl::Time start_ = Clock::Real()->MonotonicNow();
};

}  // namespace pkv

#endif  // PKV_WORKER_SEQUENCE_STOPWATCH_H_
