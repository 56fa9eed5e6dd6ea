#include "worker/prefill/prefix_turns.h"

#include "absl/time/time.h"

namespace pkv {
namespace {

constexpr absl::Duration kAskInterval = absl::Milliseconds(50);

}  // namespace

absl::StatusOr<PrefixTurns::Turn> PrefixTurns::Take(const Digest& block,
                                                    const std::function<bool()>& cancelled) {
  MutexLock lock(&mu_);
  if (taken_.insert(block).second) return Turn(this, block);
  while (taken_.count(block) > 0) {
    if (cancelled && cancelled()) return absl::CancelledError("the caller went away");
    left_.WaitWithTimeout(&mu_, kAskInterval);
  }
  return Turn();
}

void PrefixTurns::Leave(const Digest& block) {
  {
    MutexLock lock(&mu_);
    taken_.erase(block);
  }
  left_.SignalAll();
}

}  // namespace pkv
