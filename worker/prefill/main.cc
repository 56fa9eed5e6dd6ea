// pkv-prefill: computes prompts and stores their KV cache in pkvd.

#include <grpcpp/impl/codegen/service_type.h>

#include "proto/base/status_macros.h"
#include "worker/prefill/prefill_worker.h"
#include "worker/serve/serve_flags.h"

namespace {

// A worker and what it stands on.
struct Worker {
  Worker(std::unique_ptr<pkv::PrefillExecutor> made, const pkv::WorkerParts& parts)
      : executor(std::move(made)),
        worker(&parts.model.host(), executor.get(), &parts.cluster, &parts.metrics,
               parts.on_failure),
        limits(parts.flags.queue) {}

  const std::unique_ptr<pkv::PrefillExecutor> executor;
  pkv::PrefillWorker worker;
  pkv::QueueLimits limits;
};

absl::StatusOr<pkv::ServedWorker> MakeWorker(const pkv::WorkerParts& parts) {
  PKV_ASSIGN_OR_RETURN(std::unique_ptr<pkv::PrefillExecutor> executor, parts.model.MakeExecutor());
  const auto worker = std::make_shared<Worker>(std::move(executor), parts);
  pkv::ServedWorker served;
  served.worker = worker;
  served.service = pkv::MakePrefillService(&worker->worker, &parts.metrics, &worker->limits);
  served.set_max_waiting = [worker](int n) { worker->limits.SetMaxWaiting(n); };
  return served;
}

}  // namespace

int main(int argc, char** argv) {
  return pkv::WorkerMain(argc, argv,
                         {.name = "prefill",
                          .description = "Prefill worker of patternkv",
                          .default_listen = "127.0.0.1:7441",
                          .declare = pkv::DeclarePrefillOptions,
                          .make_worker = MakeWorker});
}
