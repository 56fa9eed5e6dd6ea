#include "proto/transport/nccl/pair_call.h"

#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/base/sync.h"
#include "proto/transport/convert.h"

namespace pkv {
namespace {

// A reader has no more on its way than one report of damage and the next question, and reads the
// answer before it asks again.
constexpr size_t kMaxRequestsWaiting = 8;
constexpr size_t kMaxRepliesUnread = 4;

class PairReactor : public grpc::ServerBidiReactor<v1::PairRequest, v1::PairReply>,
                    public PairPeer {
 public:
  PairReactor(NcclServer* server, grpc::CallbackServerContext* context,
              const absl::Status& admitted, std::function<void(absl::StatusCode)> on_end)
      : server_(server), context_(context), on_end_(std::move(on_end)) {
    const absl::Status status = admitted.ok() ? TakePlace() : admitted;
    if (!status.ok()) {
      Close(status);
      return;
    }
    session_ = std::make_unique<NcclSession>(&server_->shared(), this);
    StartRead(&received_);
    thread_ = std::thread([this] { RunSession(); });
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      EndReads();
      return;
    }
    {
      MutexLock lock(&mu_);
      if (requests_.size() == kMaxRequestsWaiting) {
        flood_ = absl::InvalidArgumentError("more requests than a reader has");
        // Whatever the session waits for: it has ended.
        if (session_ != nullptr) session_->PeerGone();
        changed_.SignalAll();
        return;
      }
      requests_.push_back(std::move(received_));
      changed_.SignalAll();
    }
    received_.Clear();
    StartRead(&received_);
  }

  void OnCancel() override { EndReads(); }

  void OnWriteDone(bool ok) override {
    {
      MutexLock lock(&mu_);
      replies_.pop_front();
      writing_ = false;
      if (!ok) replies_.clear();
    }
    Continue();
  }

  void OnDone() override {
    if (thread_.joinable()) thread_.join();
    place_.reset();
    absl::StatusCode code;
    {
      MutexLock lock(&mu_);
      code = final_status_->code();
    }
    // A reader whose process ends cancels its call: that is how most pairs end.
    if (code == absl::StatusCode::kOk && context_->IsCancelled()) {
      code = absl::StatusCode::kCancelled;
    }
    on_end_(code);
    delete this;
  }

 private:
  absl::Status TakePlace() {
    if (server_ == nullptr) return absl::UnimplementedError("this server has no GPU for NCCL");
    PKV_ASSIGN_OR_RETURN(place_, server_->TakePlace([this] {
      MutexLock lock(&mu_);
      stopping_ = true;
      changed_.SignalAll();
    }));
    return absl::OkStatus();
  }

  void RunSession() {
    absl::Status status = session_->Run();
    std::unique_ptr<NcclSession> session;
    bool is_gone, is_stopping, is_unopened;
    {
      MutexLock lock(&mu_);
      session = std::move(session_);
      is_unopened = session->is_unopened();
      is_gone = reads_done_;
      is_stopping = stopping_;
      if (!flood_.ok()) status = flood_;
    }
    session.reset();  // aborts the pair, on this thread
    const PairEnd reason = is_unopened   ? PairEnd::kUnopened
                           : is_gone     ? PairEnd::kReader
                           : is_stopping ? PairEnd::kStopped
                                         : PairEnd::kFailed;
    server_->shared().source->OnPairEnded(reason);
    if (!is_gone && !is_stopping) {
      Log(LogLevel::kWarning, "nccl: pair ended", {{"reason", status.ToString()}});
      // A call that ends so would say that this server is gone. It is the pair that is.
      if (absl::IsUnavailable(status)) status = absl::AbortedError(status.message());
    }
    // To a reader that is gone it does not matter.
    Close(is_gone ? absl::OkStatus() : status);
  }

  // PairPeer, on the session's thread.
  void Send(const v1::PairReply& reply) override {
    {
      MutexLock lock(&mu_);
      if (replies_.size() < kMaxRepliesUnread) {
        replies_.push_back(reply);
      } else {
        flood_ = absl::InvalidArgumentError("the reader does not read what it asks for");
      }
    }
    Continue();
  }
  absl::StatusOr<std::optional<v1::PairRequest>> Next(absl::Duration timeout) override {
    const absl::Time end = server_->shared().clock->MonotonicNow() + timeout;
    MutexLock lock(&mu_);
    for (;;) {
      if (!flood_.ok()) return flood_;
      if (!requests_.empty()) {
        std::optional<v1::PairRequest> next = std::move(requests_.front());
        requests_.pop_front();
        return next;
      }
      if (reads_done_) return std::nullopt;
      if (stopping_) return absl::UnavailableError("this server is about to end");
      const absl::Duration left = end - server_->shared().clock->MonotonicNow();
      if (left <= absl::ZeroDuration()) {
        return absl::DeadlineExceededError(
            absl::StrCat("the reader said nothing for ", absl::FormatDuration(timeout)));
      }
      changed_.WaitWithTimeout(&mu_, left);
    }
  }

  void EndReads() {
    MutexLock lock(&mu_);
    reads_done_ = true;
    changed_.SignalAll();
    if (session_ != nullptr) session_->PeerGone();
  }

  void Close(const absl::Status& status) {
    {
      MutexLock lock(&mu_);
      final_status_ = status;
    }
    Continue();
  }

  // Starts the next write, or ends the call when its status is known and there is nothing left to
  // write. Called after every change; no lock is held while gRPC is called.
  void Continue() {
    const v1::PairReply* next = nullptr;
    absl::Status status;
    {
      MutexLock lock(&mu_);
      if (writing_) return;
      if (!replies_.empty()) {
        writing_ = true;
        next = &replies_.front();
      } else if (!final_status_.has_value() || std::exchange(finished_, true)) {
        return;
      } else {
        status = *final_status_;
      }
    }
    if (next != nullptr) {
      StartWrite(next);
    } else {
      Finish(ToGrpc(status));
    }
  }

  NcclServer* const server_;
  grpc::CallbackServerContext* const context_;
  const std::function<void(absl::StatusCode)> on_end_;
  std::unique_ptr<NcclServer::Place> place_;
  std::thread thread_;
  // Touched by the reads alone, one at a time.
  v1::PairRequest received_;

  Mutex mu_;
  CondVar changed_;
  // Taken out by its thread, which alone uses it otherwise.
  std::unique_ptr<NcclSession> session_;
  std::deque<v1::PairRequest> requests_ ABSL_GUARDED_BY(mu_);
  std::deque<v1::PairReply> replies_ ABSL_GUARDED_BY(mu_);  // the front one may be under way
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool reads_done_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status flood_
      ABSL_GUARDED_BY(mu_);  // not OK: the reader sends too much, or reads too little
  bool finished_ ABSL_GUARDED_BY(mu_) = false;
  std::optional<absl::Status> final_status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace

grpc::ServerBidiReactor<v1::PairRequest, v1::PairReply>* ServePair(
    NcclServer* server, grpc::CallbackServerContext* context, absl::Status admitted,
    std::function<void(absl::StatusCode)> on_end) {
  return new PairReactor(server, context, admitted, std::move(on_end));
}

absl::Status CheckDeadline(const grpc::ServerContextBase& context) {
  if (context.deadline() != std::chrono::system_clock::time_point::max()) return absl::OkStatus();
  return absl::InvalidArgumentError("the call has no deadline: set one");
}

}  // namespace pkv
