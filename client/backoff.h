#ifndef PKV_CLIENT_BACKOFF_H_
#define PKV_CLIENT_BACKOFF_H_

#include <cstdint>
#include <random>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace pkv {

// How long to wait before each retry: initial, doubled each time up to max, times a random factor
// in [0.5, 1] so that clients that failed together do not return together. Thread-compatible.
class Backoff {
 public:
  // REQUIRES: 0 < initial <= max.
  Backoff(absl::Duration initial, absl::Duration max, uint64_t seed);

  absl::Duration Next();

 private:
  absl::Duration next_;
  absl::Duration max_;
  std::mt19937_64 random_;
};

// Whether the same call may succeed a little later: Unavailable and ResourceExhausted.
bool IsRetryable(const absl::Status& status);

}  // namespace pkv

#endif  // PKV_CLIENT_BACKOFF_H_
