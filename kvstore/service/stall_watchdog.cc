#include "kvstore/service/stall_watchdog.h"

#include <utility>
#include <vector>

#include "proto/base/log.h"

namespace pkv {

StallWatchdog::Ticket::~Ticket() {
  MutexLock lock(&watchdog_->mu_);
  watchdog_->tickets_.erase(this);
}

void StallWatchdog::Ticket::Progress() {
  const absl::Time now = watchdog_->clock_->MonotonicNow();
  MutexLock lock(&watchdog_->mu_);
  last_progress_ = now;
}

StallWatchdog::StallWatchdog(Clock* clock, absl::Duration timeout, std::function<void()> on_stall)
    : clock_(clock),
      timeout_(timeout),
      on_stall_(std::move(on_stall)),
      thread_([this] { Run(); }) {}

StallWatchdog::~StallWatchdog() {
  {
    MutexLock lock(&mu_);
    stopping_ = true;
  }
  stop_requested_.SignalAll();
  thread_.join();
  MutexLock lock(&mu_);
  PKV_CHECK(tickets_.empty(), tickets_.size(), " streams are still watched");
}

std::unique_ptr<StallWatchdog::Ticket> StallWatchdog::Watch(std::function<void()> cancel) {
  std::unique_ptr<Ticket> ticket(new Ticket(this, std::move(cancel)));
  ticket->Progress();
  MutexLock lock(&mu_);
  tickets_.insert(ticket.get());
  return ticket;
}

int StallWatchdog::CancelStalled() {
  const absl::Time now = clock_->MonotonicNow();
  std::vector<std::function<void()>> stalled;
  {
    MutexLock lock(&mu_);
    for (Ticket* ticket : tickets_) {
      if (ticket->cancelled_ || now - ticket->last_progress_ < timeout_) continue;
      ticket->cancelled_ = true;
      stalled.push_back(ticket->cancel_);
    }
  }
  for (const auto& cancel : stalled) {
    on_stall_();
    cancel();
  }
  return static_cast<int>(stalled.size());
}

void StallWatchdog::Run() {
  for (;;) {
    {
      MutexLock lock(&mu_);
      if (!stopping_) stop_requested_.WaitWithTimeout(&mu_, timeout_ / 4);
      if (stopping_) return;
    }
    CancelStalled();
  }
}

}  // namespace pkv
