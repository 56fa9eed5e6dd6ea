#include "client/backoff.h"

#include <algorithm>

namespace pkv {

Backoff::Backoff(absl::Duration initial, absl::Duration max, uint64_t seed)
    : next_(initial), max_(max), random_(seed) {}

absl::Duration Backoff::Next() {
  const absl::Duration full = next_;
  next_ = std::min(2 * next_, max_);
  return full * std::uniform_real_distribution<double>(0.5, 1.0)(random_);
}

bool IsRetryable(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsResourceExhausted(status);
}

}  // namespace pkv
