#ifndef PKV_WORKER_DECODE_DECODE_WORKER_H_
#define PKV_WORKER_DECODE_DECODE_WORKER_H_

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/client/cache_client.h"
#include "pkv/v1/worker_service.pb.h"
#include "worker/engine/sampler.h"
#include "worker/serve/model_host.h"
#include "worker/serve/worker_metrics.h"

namespace pkv {

// get -> attend: continues a prompt whose KV cache a ticket names.
//
// Attention on layer 0 starts while later layers are on their way. What the cache does not deliver,
// whole and undamaged, is computed here instead, or refused; a wrong byte never reaches attention.
// Generated tokens leave the fp16 window for new blocks by the preset's rule.
//
// Thread-safe.
class DecodeWorker {
 public:
  // Sends one event; false means that nobody listens any more.
  using Emit = std::function<bool(const v1::DecodeEvent&)>;
  // Asked after each layer of a prompt that is computed here; true ends the request.
  using Cancelled = std::function<bool()>;

  // All outlive the worker.
  DecodeWorker(ModelHost* host, CacheClient* cache, WorkerMetrics* metrics)
      : host_(*host), cache_(*cache), metrics_(*metrics) {}

  // Emits one event a token, then the stats.
  //   InvalidArgument     the ticket contradicts itself, or a sampling parameter is out of its
  //                       range
  //   FailedPrecondition  the ticket is of another model, or of a variant that this worker does
  //                       not know
  //   OutOfRange          K or V of a token is beyond fp16
  //   Cancelled           emit returned false
  // and errors of the fetch, when request.refuse_recompute().
  absl::Status Decode(const v1::DecodeRequest& request, const Emit& emit,
                      const Cancelled& cancelled = nullptr);

 private:
  struct Job;
  struct MadeObject;

  absl::StatusOr<Job> ReadTicket(const v1::DecodeRequest& request);
  absl::Status FetchAndForward(Job& job);
  absl::Status Recompute(Job& job);
  absl::Status ForwardLast(Job& job);
  absl::Status Generate(Job& job, const Emit& emit);
  absl::Status FlushAfterStep(Job& job);
  void KeepForPutBack(Job& job);
  void PutBack(Job& job);

  ModelHost& host_;
  CacheClient& cache_;
  WorkerMetrics& metrics_;
};

}  // namespace pkv

#endif  // PKV_WORKER_DECODE_DECODE_WORKER_H_
