#ifndef PKV_WORKER_DECODE_DECODE_WORKER_H_
#define PKV_WORKER_DECODE_DECODE_WORKER_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/client/cache_client.h"
#include "pkv/v1/worker_service.pb.h"
#include "worker/batch/batch_engine.h"
#include "worker/batch/batch_scheduler.h"
#include "worker/batch/cpu_batch_engine.h"
#include "worker/serve/model_host.h"
#include "worker/serve/worker_metrics.h"

namespace pkv {

// get -> attend: continues prompts whose KV cache tickets name, many at once.
//
// Attention on layer 0 starts while later layers are on their way. What the cache does not deliver,
// whole and undamaged, is computed here instead, or refused; a wrong byte never reaches attention.
// Generated tokens leave the fp16 window for new blocks by the preset's rule.
//
// Thread-safe.
class DecodeWorker {
 public:
  // Sends one event; false means that nobody listens any more. Must not block.
  using Emit = std::function<bool(const v1::DecodeEvent&)>;
  using Done = std::function<void(const absl::Status&)>;

  // All outlive the worker.
  DecodeWorker(ModelHost* host, CacheCluster* cluster, WorkerMetrics* metrics,
               const CpuEngineOptions& engine = {}, const BatchOptions& batch = {});
  // On an engine of the caller's, of `host`'s model.
  DecodeWorker(ModelHost* host, std::unique_ptr<BatchEngine> engine, CacheCluster* cluster,
               WorkerMetrics* metrics, const BatchOptions& batch);

  // Takes a request and returns its id. Emits one event a token, then the stats, then calls `done`
  // once; all of that may happen before this returns. After an error neither is ever called.
  //   InvalidArgument, FailedPrecondition  as ReadTicket
  //   and errors of BatchScheduler::Submit
  // `done` gets OK, or
  //   OutOfRange  K or V of a token is beyond fp16
  //   Cancelled   emit returned false, or Cancel()
  //   Unavailable draining began before it had a slot
  //   Internal    the engine failed
  //   and errors of the fetch, when request.refuse_recompute().
  absl::StatusOr<uint64_t> Start(const v1::DecodeRequest& request, Emit emit, Done done);
  // The request ends soon, unless it has ended.
  void Cancel(uint64_t id) { scheduler_.Cancel(id); }
  // Start() for a caller with a thread to spare: returns what `done` is given.
  absl::Status Decode(const v1::DecodeRequest& request, const Emit& emit);

  // Takes nothing from now on; what has a slot goes on.
  void Drain() { scheduler_.Drain(); }
  // As BatchScheduler.
  void SetMaxWaiting(int max_waiting) { scheduler_.SetMaxWaiting(max_waiting); }

 private:
  ModelHost& host_;
  WorkerMetrics& metrics_;
  const std::unique_ptr<BatchEngine> engine_;
  BatchScheduler scheduler_;
};

}  // namespace pkv

#endif  // PKV_WORKER_DECODE_DECODE_WORKER_H_
