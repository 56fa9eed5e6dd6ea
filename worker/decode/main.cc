// pkv-decode: continues prompts from the KV cache in pkvd.

#include <grpcpp/impl/codegen/service_type.h>

#include "proto/base/status_macros.h"
#include "worker/decode/decode_worker.h"
#include "worker/serve/serve_flags.h"

namespace {

absl::StatusOr<pkv::ServedWorker> MakeWorker(const pkv::WorkerParts& parts) {
  PKV_ASSIGN_OR_RETURN(std::unique_ptr<pkv::BatchEngine> engine,
                       parts.model.MakeEngine(parts.flags.max_batch, parts.flags.num_pages));
  pkv::BatchOptions batch;
  batch.max_waiting = parts.flags.queue.max_waiting;
  batch.layer_streaming = parts.flags.layer_streaming;
  batch.on_engine_failure = parts.on_failure;
  const auto worker = std::make_shared<pkv::DecodeWorker>(&parts.model.host(), std::move(engine),
                                                          &parts.cluster, &parts.metrics, batch);
  pkv::ServedWorker served;
  served.worker = worker;
  served.service = pkv::MakeDecodeService(worker.get(), &parts.metrics);
  served.drain = [worker] { worker->Drain(); };
  served.set_max_waiting = [worker](int n) { worker->SetMaxWaiting(n); };
  return served;
}

}  // namespace

int main(int argc, char** argv) {
  return pkv::WorkerMain(argc, argv,
                         {.name = "decode",
                          .description = "Decode worker of patternkv",
                          .default_listen = "127.0.0.1:7442",
                          .declare = pkv::DeclareDecodeOptions,
                          .make_worker = MakeWorker,
                          .takes_device_frames = true});
}
