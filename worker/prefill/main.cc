// pkv-prefill: computes prompts and stores their KV cache in pkvd.

#include <grpcpp/impl/codegen/service_type.h>

#include "proto/base/status_macros.h"
#include "proto/transport/nccl/nccl_port.h"
#include "worker/prefill/direct_handoff.h"
#include "worker/prefill/direct_metrics.h"
#include "worker/prefill/prefill_worker.h"
#include "worker/serve/serve_flags.h"

namespace {

// A worker and what it stands on.
struct Worker {
  Worker(std::unique_ptr<pkv::PrefillExecutor> made,
         std::unique_ptr<pkv::DirectMetrics> metrics_of_direct,
         std::unique_ptr<pkv::DirectHandoff> handoff, const pkv::WorkerParts& parts)
      : executor(std::move(made)),
        direct_metrics(std::move(metrics_of_direct)),
        direct(std::move(handoff)),
        worker(&parts.model.host(), executor.get(), &parts.cluster, &parts.metrics,
               parts.on_failure,
               {direct == nullptr ? nullptr : direct->store(),
                direct == nullptr ? "" : parts.flags.direct_address()}),
        limits(parts.flags.queue) {}

  const std::unique_ptr<pkv::PrefillExecutor> executor;
  const std::unique_ptr<pkv::DirectMetrics> direct_metrics;
  const std::unique_ptr<pkv::DirectHandoff> direct;  // null: without
  pkv::PrefillWorker worker;
  pkv::QueueLimits limits;
};

absl::StatusOr<pkv::ServedWorker> MakeWorker(const pkv::WorkerParts& parts) {
  PKV_ASSIGN_OR_RETURN(std::unique_ptr<pkv::PrefillExecutor> executor, parts.model.MakeExecutor());
  auto direct_metrics = std::make_unique<pkv::DirectMetrics>(*parts.metrics.registry());
  std::unique_ptr<pkv::DirectHandoff> direct;
  if (parts.flags.direct_memory > 0) {
    PKV_ASSIGN_OR_RETURN(const pkv::NcclPort port, pkv::OpenNcclPort(pkv::kModelDevice));
    PKV_ASSIGN_OR_RETURN(
        direct, pkv::DirectHandoff::Make(port, parts.flags.direct_memory, direct_metrics.get(),
                                         pkv::Clock::Real()));
  }
  const auto worker = std::make_shared<Worker>(std::move(executor), std::move(direct_metrics),
                                               std::move(direct), parts);
  pkv::ServedWorker served;
  served.worker = worker;
  served.service = pkv::MakePrefillService(&worker->worker, &parts.metrics, &worker->limits);
  if (worker->direct != nullptr) {
    served.handoff = worker->direct->service();
    served.drain = [worker] { worker->direct->Stop(); };
  }
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
