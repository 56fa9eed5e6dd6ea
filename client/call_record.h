#ifndef PKV_CLIENT_CALL_RECORD_H_
#define PKV_CLIENT_CALL_RECORD_H_

#include <memory>
#include <utility>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "pkv/client/call_statistics.h"
#include "proto/base/clock.h"

namespace pkv {

// Counts one call from construction to End(); one that is destroyed before has been cancelled. Goes
// along when a call is continued elsewhere.
// Thread-compatible.
class CallRecord {
 public:
  // Counts nothing: for what is part of a call that another record counts.
  CallRecord() = default;
  // shared_ptr: a stream may outlive the client that started it.
  CallRecord(std::shared_ptr<CallStatistics> statistics, CallMethod method, Clock* clock)
      : statistics_(std::move(statistics)),
        method_(method),
        clock_(clock),
        began_(clock->MonotonicNow()) {
    statistics_->Began(method_);
  }
  CallRecord(CallRecord&& other) = default;
  CallRecord& operator=(CallRecord&&) = delete;
  ~CallRecord() { End(absl::StatusCode::kCancelled); }

  // The first call counts.
  void End(absl::StatusCode code) {
    if (statistics_ == nullptr) return;
    statistics_->Ended(method_, code, clock_->MonotonicNow() - began_);
    statistics_ = nullptr;
  }

 private:
  std::shared_ptr<CallStatistics> statistics_;  // null once ended, or moved from
  const CallMethod method_ = CallMethod::kGet;
  Clock* const clock_ = nullptr;
  const absl::Time began_{};
};

// One retry: in its pause until destroyed. Thread-compatible.
class RetryPause {
 public:
  // `statistics` outlives this.
  RetryPause(CallStatistics* statistics, CallMethod method)
      : statistics_(statistics), method_(method) {
    statistics_->RetryBegan(method_);
  }
  ~RetryPause() { statistics_->PauseEnded(method_); }
  RetryPause(const RetryPause&) = delete;
  RetryPause& operator=(const RetryPause&) = delete;

 private:
  CallStatistics* const statistics_;
  const CallMethod method_;
};

}  // namespace pkv

#endif  // PKV_CLIENT_CALL_RECORD_H_
