#ifndef PKV_WORKER_BATCH_BATCH_SCHEDULER_H_
#define PKV_WORKER_BATCH_BATCH_SCHEDULER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/client/cache_client.h"
#include "proto/base/sync.h"
#include "proto/base/thread_pool.h"
#include "worker/batch/batch_engine.h"
#include "worker/batch/batch_metrics.h"
#include "worker/batch/batch_request.h"
#include "worker/batch/page_pool.h"
#include "worker/batch/put_back.h"
#include "worker/batch/sequence_run.h"
#include "worker/serve/worker_metrics.h"

namespace pkv {

struct BatchOptions {
  // Requests without a slot, beyond those that find one at once; until SetMaxWaiting().
  int max_waiting = 64;
  int num_fetch_threads = 4;
  // False: a request's first step starts when all layers of its prefix are here. To measure what
  // starting with the first one is worth.
  bool layer_streaming = true;
  // Called once, when the engine has failed: nothing will be served any more. May be null.
  std::function<void(const absl::Status&)> on_engine_failure;
};

// Continuous batching: requests join the batch and leave it at every step of a BatchEngine.
//
//   Submit -> waiting --slot and pages--> fetching --first token--> running -> put-back -> end
//             (FIFO)                      (fetch threads)           (step thread)
//
// A request leaves the queue when a slot is free and all pages that it can ever need are: those of
// its blocks which no page holds yet, and those of the blocks that max_tokens tokens can fill. So
// nothing that runs is ever put out again, and the first in the queue, for which the others wait,
// needs only that running ones end.
//
// The prefix is fetched, or computed when the cache does not deliver, beside the steps of the
// others. A request that must compute waits for its place anew, as the first in the queue: it may
// write into no page that it shared.
//
// An engine that fails ends every request with its status.
//
// Thread-safe.
class BatchScheduler {
 public:
  // All outlive the scheduler. The engine is its alone.
  BatchScheduler(BatchEngine* engine, CacheCluster* cluster, WorkerMetrics* metrics,
                 const BatchOptions& options);
  // Cancels what has not ended and waits for it.
  ~BatchScheduler();
  BatchScheduler(const BatchScheduler&) = delete;
  BatchScheduler& operator=(const BatchScheduler&) = delete;

  // Takes a request and returns its id; its callbacks may run before this returns. After an error
  // they never do.
  //   InvalidArgument     sampling out of range, too many blocks or window tokens
  //   FailedPrecondition  the engine does not serve these parameters
  //   ResourceExhausted   the queue is full, or the request needs more pages than there are
  //   Unavailable         draining
  //   Internal            the engine has failed
  absl::StatusOr<uint64_t> Submit(BatchRequest request) ABSL_LOCKS_EXCLUDED(mu_);

  // The request ends soon, with Cancelled, unless it has ended. One that waits ends before this
  // returns.
  void Cancel(uint64_t id) ABSL_LOCKS_EXCLUDED(mu_);

  // Of requests that come from now on; what waits goes on waiting.
  void SetMaxWaiting(int max_waiting) ABSL_LOCKS_EXCLUDED(mu_);

  // From now on nothing is taken: what waits ends with Unavailable, what has a slot goes on.
  void Drain() ABSL_LOCKS_EXCLUDED(mu_);

  PagePool::Counts page_counts() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  using Run = std::shared_ptr<SequenceRun>;  // of its queue or thread, and of runs_ for Cancel()

  absl::Status CheckRequest(const BatchRequest& request);
  absl::Status Enqueue(const Run& run) ABSL_LOCKS_EXCLUDED(mu_);
  void AdmitWaiting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool PlaceRun(SequenceRun& run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void TakePlace(SequenceRun& run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void UpdateMetrics() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  // On fetch threads.
  void StartRun(const Run& run);
  absl::Status FetchPrefix(SequenceRun& run, StepOutput& output);
  absl::Status ComputePrompt(SequenceRun& run, StepOutput& output);
  void SharePages(const SequenceRun& run) ABSL_LOCKS_EXCLUDED(mu_);
  bool WaitAgain(const Run& run, const absl::Status& reason) ABSL_LOCKS_EXCLUDED(mu_);

  // On the step thread.
  void RunSteps();
  void Step(std::vector<Run>& running);
  void FlushDue(std::span<const Run> runs);
  void Retire(std::vector<Run>& running);

  // On any.
  absl::Status StopReason(const SequenceRun& run) const ABSL_LOCKS_EXCLUDED(mu_);
  void FailEngine(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  void Leave(const Run& run, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  void End(const Run& run, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);

  BatchEngine& engine_;
  CacheCluster& cluster_;
  WorkerMetrics& worker_metrics_;
  const BatchOptions options_;
  const EngineLimits limits_;
  BatchMetrics metrics_;

  mutable Mutex mu_;
  CondVar step_work_;  // ready_ or stopping_ changed
  CondVar run_ended_;
  PagePool pool_ ABSL_GUARDED_BY(mu_);
  std::vector<int> free_slots_ ABSL_GUARDED_BY(mu_);
  uint64_t next_id_ ABSL_GUARDED_BY(mu_) = 1;
  std::map<uint64_t, Run> runs_ ABSL_GUARDED_BY(mu_);  // all that have not ended
  int max_waiting_ ABSL_GUARDED_BY(mu_);
  std::deque<Run> waiting_ ABSL_GUARDED_BY(mu_);  // at most that, and those that wait again
  int num_fetching_ ABSL_GUARDED_BY(mu_) = 0;
  std::vector<Run> ready_ ABSL_GUARDED_BY(mu_);  // with a first token; at most num_slots
  bool draining_ ABSL_GUARDED_BY(mu_) = false;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);
  int64_t evictions_counted_ ABSL_GUARDED_BY(mu_) = 0, shared_counted_ ABSL_GUARDED_BY(mu_) = 0;

  // Their threads use what stands above.
  PutBackQueue put_back_;
  ThreadPool fetch_threads_;
  std::thread step_thread_;
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_BATCH_SCHEDULER_H_
