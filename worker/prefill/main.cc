// pkv-prefill: computes prompts and stores their KV cache in pkvd.

#include <grpcpp/impl/codegen/service_type.h>

#include "worker/prefill/cpu_prefill_executor.h"
#include "worker/prefill/prefill_worker.h"
#include "worker/serve/serve_flags.h"

namespace {

// A worker and what it stands on.
struct Worker {
  explicit Worker(const pkv::WorkerParts& parts)
      : executor(&parts.host), worker(&parts.host, &executor, &parts.cache, &parts.metrics) {}

  pkv::CpuPrefillExecutor executor;
  pkv::PrefillWorker worker;
};

pkv::ServedWorker MakeWorker(const pkv::WorkerParts& parts) {
  const auto worker = std::make_shared<Worker>(parts);
  pkv::ServedWorker served;
  served.worker = worker;
  served.service = pkv::MakePrefillService(&worker->worker, &parts.metrics, parts.flags.queue);
  return served;
}

}  // namespace

int main(int argc, char** argv) {
  return pkv::WorkerMain(argc, argv,
                         {.name = "prefill",
                          .description = "Prefill worker of patternkv",
                          .default_listen = "127.0.0.1:7441",
                          .add_flags = pkv::AddPrefillFlags,
                          .make_worker = MakeWorker});
}
