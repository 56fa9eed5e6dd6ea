#include "worker/serve/worker_services.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <deque>

#include "absl/strings/str_cat.h"
#include "pkv/v1/worker_service.grpc.pb.h"
#include "proto/base/sync.h"
#include "proto/base/thread_pool.h"
#include "proto/transport/convert.h"
#include "worker/decode/decode_worker.h"
#include "worker/prefill/prefill_worker.h"
#include "worker/sequence/stopwatch.h"

namespace pkv {
namespace {

// Runs requests on threads of its own: reactions of gRPC must not block.
// Thread-safe.
class RequestQueue {
 public:
  // Both outlive the queue.
  RequestQueue(const QueueLimits* limits, PrefillMetrics* metrics)
      : limits_(*limits), metrics_(*metrics), pool_(limits->max_running()) {}

  // ResourceExhausted when the queue is full; then `run` is not called.
  absl::Status Add(std::function<void()> run) {
    const int limit = limits_.max_running() + limits_.max_waiting();
    if (pending_.fetch_add(1) >= limit) {
      pending_.fetch_sub(1);
      metrics_.CountQueueFull();
      return absl::ResourceExhaustedError(
          absl::StrCat(limit, " requests are running or waiting already"));
    }
    metrics_.AddWaiting(1);
    pool_.Schedule([this, run = std::move(run), waiting = Stopwatch()] {
      metrics_.AddWaiting(-1);
      metrics_.ObserveQueueWait(waiting.Seconds());
      run();
      pending_.fetch_sub(1);
    });
    return absl::OkStatus();
  }

 private:
  const QueueLimits& limits_;
  PrefillMetrics& metrics_;
  std::atomic<int> pending_{0};
  ThreadPool pool_;
};

class PrefillService final : public v1::Prefill::CallbackService {
 public:
  PrefillService(PrefillWorker* worker, WorkerMetrics* metrics, const QueueLimits* limits)
      : worker_(*worker), metrics_(*metrics), queue_(limits, &worker->metrics()) {}

  grpc::ServerUnaryReactor* Prefill(grpc::CallbackServerContext* context,
                                    const v1::PrefillRequest* request,
                                    v1::PrefillResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    metrics_.RequestBegan();
    const Stopwatch since_request;
    const absl::Status queued =
        queue_.Add([this, context, request, response, reactor, since_request] {
          absl::Status status = absl::CancelledError("the caller went away");
          if (!context->IsCancelled()) {
            absl::StatusOr<v1::PrefillResponse> result =
                worker_.Prefill(*request, [context] { return context->IsCancelled(); });
            status = result.status();
            if (result.ok()) *response = *std::move(result);
          }
          metrics_.RequestEnded(status, since_request.Seconds());
          reactor->Finish(ToGrpc(status));
        });
    if (!queued.ok()) {
      metrics_.RequestEnded(queued, since_request.Seconds());
      reactor->Finish(ToGrpc(queued));
    }
    return reactor;
  }

 private:
  PrefillWorker& worker_;
  WorkerMetrics& metrics_;
  RequestQueue queue_;
};

// One decode stream: threads of the worker add events, gRPC writes them one at a time. Deletes
// itself when done.
class DecodeCall final : public grpc::ServerWriteReactor<v1::DecodeEvent> {
 public:
  explicit DecodeCall(DecodeWorker* worker) : worker_(*worker) {}

  // Under this id the worker knows the call. No reaction comes before the service has returned the
  // call to gRPC.
  void set_request_id(uint64_t id) {
    MutexLock lock(&mu_);
    request_id_ = id;
  }

  // False when the caller went away.
  bool Add(const v1::DecodeEvent& event) {
    MutexLock lock(&mu_);
    if (broken_) return false;
    events_.push_back(event);
    if (!writing_) StartNext();
    return true;
  }

  // The last call of the worker.
  void End(const absl::Status& status) {
    {
      MutexLock lock(&mu_);
      ended_ = true;
      status_ = status;
      if (writing_) return;  // OnWriteDone finishes
    }
    // Not under the lock: OnDone may delete this before Finish returns.
    Finish(ToGrpc(status));
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(&mu_);
    writing_ = false;
    events_.pop_front();
    broken_ |= !ok;
    if (!broken_ && !events_.empty()) {
      StartNext();
    } else if (ended_) {
      Finish(ToGrpc(status_));
    }
  }

  void OnCancel() override {
    uint64_t id = 0;
    {
      MutexLock lock(&mu_);
      broken_ = true;
      id = request_id_;
    }
    worker_.Cancel(id);
  }

  void OnDone() override { delete this; }

 private:
  void StartNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    writing_ = true;
    StartWrite(&events_.front());
  }

  DecodeWorker& worker_;
  Mutex mu_;
  uint64_t request_id_ ABSL_GUARDED_BY(mu_) = 0;
  // At most one event a generated token: bounded by the model's context.
  std::deque<v1::DecodeEvent> events_ ABSL_GUARDED_BY(mu_);
  bool writing_ ABSL_GUARDED_BY(mu_) = false;
  bool broken_ ABSL_GUARDED_BY(mu_) = false;
  bool ended_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

class DecodeService final : public v1::Decode::CallbackService {
 public:
  DecodeService(DecodeWorker* worker, WorkerMetrics* metrics)
      : worker_(*worker), metrics_(*metrics) {}

  grpc::ServerWriteReactor<v1::DecodeEvent>* Decode(grpc::CallbackServerContext* /*context*/,
                                                    const v1::DecodeRequest* request) override {
    auto* call = new DecodeCall(&worker_);
    metrics_.RequestBegan();
    const auto end = [this, call, since_request = Stopwatch()](const absl::Status& status) {
      metrics_.RequestEnded(status, since_request.Seconds());
      call->End(status);
    };
    const absl::StatusOr<uint64_t> id = worker_.Start(
        *request, [call](const v1::DecodeEvent& event) { return call->Add(event); }, end);
    if (id.ok()) {
      call->set_request_id(*id);
    } else {
      end(id.status());
    }
    return call;
  }

 private:
  DecodeWorker& worker_;
  WorkerMetrics& metrics_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakePrefillService(PrefillWorker* worker, WorkerMetrics* metrics,
                                                  const QueueLimits* limits) {
  return std::make_unique<PrefillService>(worker, metrics, limits);
}

std::unique_ptr<grpc::Service> MakeDecodeService(DecodeWorker* worker, WorkerMetrics* metrics) {
  return std::make_unique<DecodeService>(worker, metrics);
}

}  // namespace pkv
