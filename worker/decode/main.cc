// pkv-decode: continues prompts from the KV cache in pkvd.

#include <grpcpp/impl/codegen/service_type.h>

#include "worker/decode/decode_worker.h"
#include "worker/serve/serve_flags.h"

namespace {

std::unique_ptr<grpc::Service> MakeService(pkv::ModelHost& host, pkv::CacheClient& cache,
                                           pkv::WorkerMetrics& metrics,
                                           const pkv::QueueOptions& queue) {
  // Lives as long as the process serves.
  static pkv::DecodeWorker worker(&host, &cache, &metrics);
  return pkv::MakeDecodeService(&worker, &metrics, queue);
}

}  // namespace

int main(int argc, char** argv) {
  return pkv::WorkerMain(argc, argv, "decode", "Decode worker of patternkv", "127.0.0.1:7442",
                         MakeService);
}
