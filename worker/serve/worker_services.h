#ifndef PKV_WORKER_SERVE_WORKER_SERVICES_H_
#define PKV_WORKER_SERVE_WORKER_SERVICES_H_

#include <atomic>
#include <memory>

#include "worker/serve/worker_metrics.h"

namespace grpc {
class Service;
}

namespace pkv {

class DecodeWorker;
class PrefillWorker;

// How many requests a prefill worker runs and keeps waiting; beyond that it answers
// ResourceExhausted. A decode worker has BatchOptions.
struct QueueOptions {
  int max_running = 4;
  int max_waiting = 64;
};

// The same while it serves. Thread-safe.
class QueueLimits {
 public:
  explicit QueueLimits(const QueueOptions& options)
      : max_running_(options.max_running), max_waiting_(options.max_waiting) {}

  int max_running() const { return max_running_; }
  int max_waiting() const { return max_waiting_; }
  // Of requests that come from now on.
  void SetMaxWaiting(int max_waiting) { max_waiting_ = max_waiting; }

 private:
  const int max_running_;
  std::atomic<int> max_waiting_;
};

// The gRPC face of a worker (proto/pkv/v1/worker_service.proto). Arguments outlive the service.
std::unique_ptr<grpc::Service> MakePrefillService(PrefillWorker* worker, WorkerMetrics* metrics,
                                                  const QueueLimits* limits);
// No request has a thread of its own.
std::unique_ptr<grpc::Service> MakeDecodeService(DecodeWorker* worker, WorkerMetrics* metrics);

}  // namespace pkv

#endif  // PKV_WORKER_SERVE_WORKER_SERVICES_H_
