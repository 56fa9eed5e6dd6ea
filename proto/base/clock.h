#ifndef PKV_PROTO_BASE_CLOCK_H_
#define PKV_PROTO_BASE_CLOCK_H_

#include "absl/time/time.h"

namespace pkv {

// Where time comes from, so that the store and its tests can be given another one.
// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;

  // Never runs backwards. Only differences mean anything.
  virtual absl::Time MonotonicNow() = 0;

  // The machine's clock: CLOCK_MONOTONIC. Lives as long as the process.
  static Clock* Real();
};

}  // namespace pkv

#endif  // PKV_PROTO_BASE_CLOCK_H_
