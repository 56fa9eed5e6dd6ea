#include "proto/transport/nccl/pair_offers.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {

absl::StatusOr<std::unique_ptr<PairOffers::Offer>> PairOffers::Begin() {
  MutexLock lock(&mu_);
  PKV_RETURN_IF_ERROR(CheckLocked());
  ++num_opening_;
  return std::make_unique<Offer>(this);
}

absl::Status PairOffers::Check() const {
  MutexLock lock(&mu_);
  return CheckLocked();
}

absl::Status PairOffers::CheckLocked() const {
  if (num_unopened_ >= kMaxUnopened) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no pair is offered any more: ", kMaxUnopened, " were that did not open"));
  }
  if (num_unopened_ + num_opening_ >= kMaxUnopened) {
    return absl::ResourceExhaustedError("as many pairs are being opened as still may fail to");
  }
  if (clock_->MonotonicNow() < paused_until_) {
    return absl::ResourceExhaustedError("no pair is offered for a while: the last did not open");
  }
  return absl::OkStatus();
}

void PairOffers::End(bool has_opened) {
  bool is_last = false;
  {
    MutexLock lock(&mu_);
    --num_opening_;
    if (has_opened) {
      next_pause_ = kFirstPause;
      paused_until_ = absl::InfinitePast();
      return;
    }
    // Those that were offered at once end one after another: the longest pause counts.
    paused_until_ = std::max(paused_until_, clock_->MonotonicNow() + next_pause_);
    next_pause_ = std::min(2 * next_pause_, kLongestPause);
    is_last = ++num_unopened_ == kMaxUnopened;
  }
  if (is_last) {
    Log(LogLevel::kError, "nccl: no pair is offered any more, until this process starts anew",
        {{"unopened", kMaxUnopened}});
  }
}

}  // namespace pkv
