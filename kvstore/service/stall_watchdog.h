#ifndef PKV_KVSTORE_SERVICE_STALL_WATCHDOG_H_
#define PKV_KVSTORE_SERVICE_STALL_WATCHDOG_H_

#include <functional>
#include <memory>
#include <thread>

#include "absl/container/flat_hash_set.h"
#include "absl/time/time.h"
#include "proto/base/clock.h"
#include "proto/base/sync.h"

namespace pkv {

// Cancels streams on which nothing moved for a while, so that a stuck peer does not keep memory
// pinned or reserved.
//
// Thread-safe.
class StallWatchdog {
 public:
  // One watched stream, until destroyed. Must not outlive the watchdog.
  class Ticket {
   public:
    ~Ticket();
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;
    // Something moved just now.
    void Progress();

   private:
    friend class StallWatchdog;
    Ticket(StallWatchdog* watchdog, std::function<void()> cancel)
        : watchdog_(watchdog), cancel_(std::move(cancel)) {}
    StallWatchdog* const watchdog_;
    const std::function<void()> cancel_;
    absl::Time last_progress_;  // guarded by StallWatchdog::mu_
    bool cancelled_ = false;    // guarded by StallWatchdog::mu_
  };

  // `clock` outlives this. `on_stall` is told of each cancelled stream.
  StallWatchdog(Clock* clock, absl::Duration timeout, std::function<void()> on_stall);
  ~StallWatchdog();
  StallWatchdog(const StallWatchdog&) = delete;
  StallWatchdog& operator=(const StallWatchdog&) = delete;

  // `cancel` is called at most once, without a lock held, from the watchdog's thread; it may still
  // be running when the ticket is destroyed, so it must own what it uses.
  std::unique_ptr<Ticket> Watch(std::function<void()> cancel);

  // What the thread does four times per timeout. Returns how many streams it cancelled.
  int CancelStalled();

 private:
  void Run();

  Clock* const clock_;
  const absl::Duration timeout_;
  const std::function<void()> on_stall_;

  Mutex mu_;
  CondVar stop_requested_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::flat_hash_set<Ticket*> tickets_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;  // constant after construction
};

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_STALL_WATCHDOG_H_
