#ifndef PKV_WORKER_SERVE_WORKER_SERVICES_H_
#define PKV_WORKER_SERVE_WORKER_SERVICES_H_

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

// The gRPC face of a worker (proto/pkv/v1/worker_service.proto). Arguments outlive the service.
std::unique_ptr<grpc::Service> MakePrefillService(PrefillWorker* worker, WorkerMetrics* metrics,
                                                  const QueueOptions& queue);
// No request has a thread of its own.
std::unique_ptr<grpc::Service> MakeDecodeService(DecodeWorker* worker, WorkerMetrics* metrics);

}  // namespace pkv

#endif  // PKV_WORKER_SERVE_WORKER_SERVICES_H_
