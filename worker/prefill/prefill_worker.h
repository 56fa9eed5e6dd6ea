#ifndef PKV_WORKER_PREFILL_PREFILL_WORKER_H_
#define PKV_WORKER_PREFILL_PREFILL_WORKER_H_

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/client/cache_client.h"
#include "pkv/v1/worker_service.pb.h"
#include "worker/prefill/prefill_executor.h"
#include "worker/serve/model_host.h"
#include "worker/serve/worker_metrics.h"

namespace pkv {

// take -> mine -> encode -> put: turns prompts into stored blocks and a ticket to them.
//
// The longest stored prefix is fetched instead of computed, and its pattern table used for the
// rest. Layer L is mined, encoded and put while layer L + 1 computes. A cache that is away costs
// the store, never the answer: the ticket is still good, the decode worker computes what is not
// there.
//
// Thread-safe.
class PrefillWorker {
 public:
  // All outlive the worker.
  PrefillWorker(ModelHost* host, PrefillExecutor* executor, CacheClient* cache,
                WorkerMetrics* metrics)
      : host_(*host), executor_(*executor), cache_(*cache), metrics_(*metrics) {}

  // Asked after each layer; true ends the request. Null: never.
  using Cancelled = std::function<bool()>;

  //   InvalidArgument     prompt (see ModelHost::ResolvePrompt)
  //   NotFound            no such preset (lists them)
  //   FailedPrecondition  a preset that is not served here
  //   OutOfRange          K or V of a token is beyond fp16
  //   Cancelled           `cancelled` returned true
  absl::StatusOr<v1::PrefillResponse> Prefill(const v1::PrefillRequest& request,
                                              const Cancelled& cancelled = nullptr);

 private:
  struct Job;

  absl::Status Run(Job& job, bool ignore_cache);
  LookupResult FindCachedPrefix(Job& job);
  bool AnswerFromCache(Job& job, const LookupResult& found);
  absl::Status AttachCachedPrefix(Job& job, const LookupResult& found);
  absl::Status ComputeAndStore(Job& job);
  absl::Status StartPut(std::span<const ObjectBuilder* const> builders,
                        std::unique_ptr<PutStream>& put);
  absl::Status CommitAll(Job& job, PutStream& put);
  absl::Status AddForeignTables(Job& job, std::span<const PutDecision> decisions,
                                std::span<const PutOutcome> outcomes);

  ModelHost& host_;
  PrefillExecutor& executor_;
  CacheClient& cache_;
  WorkerMetrics& metrics_;
};

}  // namespace pkv

#endif  // PKV_WORKER_PREFILL_PREFILL_WORKER_H_
