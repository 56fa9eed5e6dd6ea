#include "proto/base/clock.h"

#include <chrono>

namespace pkv {
namespace {

class RealClock : public Clock {
 public:
  absl::Time MonotonicNow() override {
    return absl::UnixEpoch() +
           absl::FromChrono(std::chrono::steady_clock::now().time_since_epoch());
  }
};

}  // namespace

Clock* Clock::Real() {
  // Never destroyed: threads may outlive static destruction.
  static Clock* const clock = new RealClock;
  return clock;
}

}  // namespace pkv
