#ifndef PKV_WORKER_PREFILL_PREFILL_WORKER_H_
#define PKV_WORKER_PREFILL_PREFILL_WORKER_H_

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/client/cache_client.h"
#include "pkv/v1/worker_service.pb.h"
#include "worker/prefill/prefill_executor.h"
#include "worker/prefill/prefill_metrics.h"
#include "worker/prefill/prefix_turns.h"
#include "worker/serve/model_host.h"
#include "worker/serve/worker_metrics.h"

namespace pkv {

class DirectStore;

// take -> mine -> encode -> put: turns prompts into stored blocks and a ticket to them.
//
// The longest stored prefix is fetched instead of computed, and its pattern table used for the
// rest. Layer L is mined, encoded and put while layer L + 1 computes. Prompts that begin alike are
// computed one after another (prefix_turns.h); when another worker stores blocks of a prompt
// meanwhile, what they lack is computed once more, behind them. One server of the cluster serves a
// whole request; one that goes away meanwhile costs the store, never the answer: the ticket is
// still good, the decode worker computes what is not there. With a direct store, what is computed
// stays on the GPU too, and tickets say so as long as all that they name is there.
//
// Thread-safe.
class PrefillWorker {
 public:
  // Told when the executor can compute no more (Internal), from the request's thread.
  using OnFailure = std::function<void(const absl::Status&)>;

  // Where decode workers may fetch prompts from this worker's GPU.
  struct Direct {
    DirectStore* store;   // null: nowhere
    std::string address;  // host:port, for tickets
  };

  // All outlive the worker. A `direct` store is of the executor's GPU.
  PrefillWorker(ModelHost* host, PrefillExecutor* executor, CacheCluster* cluster,
                WorkerMetrics* metrics, OnFailure on_failure = nullptr,
                Direct direct = {nullptr, ""})
      : host_(*host),
        executor_(*executor),
        cluster_(*cluster),
        worker_metrics_(*metrics),
        metrics_(*metrics->registry()),
        on_failure_(std::move(on_failure)),
        direct_(std::move(direct)) {}

  // Asked after each layer; true ends the request. Null: never.
  using Cancelled = std::function<bool()>;

  //   InvalidArgument     prompt (see ModelHost::ResolvePrompt)
  //   NotFound            no such preset (lists them)
  //   FailedPrecondition  a preset that is not served here
  //   OutOfRange          K or V of a token is beyond fp16
  //   Cancelled           `cancelled` returned true
  //   Internal            the device failed
  absl::StatusOr<v1::PrefillResponse> Prefill(const v1::PrefillRequest& request,
                                              const Cancelled& cancelled = nullptr);

  // For the queue before this worker.
  PrefillMetrics& metrics() { return metrics_; }

 private:
  struct Job;

  bool ChooseServer(Job& job);
  absl::Status Run(Job& job, bool ignore_cache);
  absl::Status ComputeFrom(Job& job, const LookupResult& found);
  absl::StatusOr<PrefixTurns::Turn> FindCachedPrefix(Job& job, LookupResult& found);
  LookupResult Lookup(Job& job);
  bool AnswerFromCache(Job& job, const LookupResult& found);
  absl::Status AttachCachedPrefix(Job& job, const LookupResult& found);
  absl::Status ComputeAndStore(Job& job);
  absl::Status StartPut(Job& job, std::span<const ObjectBuilder* const> builders,
                        std::unique_ptr<PutStream>& put);
  absl::Status Compute(Job& job, const DeviceFrames& device_frames, std::unique_ptr<PutStream>& put,
                       absl::Status& put_status);
  void CountWork(Job& job);
  absl::Status CommitAll(Job& job, PutStream& put);
  void OfferDirect(Job& job);
  absl::Status AdoptStoredChain(Job& job);

  ModelHost& host_;
  PrefillExecutor& executor_;
  CacheCluster& cluster_;
  WorkerMetrics& worker_metrics_;
  PrefillMetrics metrics_;
  const OnFailure on_failure_;
  const Direct direct_;
  PrefixTurns turns_;
};

}  // namespace pkv

#endif  // PKV_WORKER_PREFILL_PREFILL_WORKER_H_
