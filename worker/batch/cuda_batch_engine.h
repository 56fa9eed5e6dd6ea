#ifndef PKV_WORKER_BATCH_CUDA_BATCH_ENGINE_H_
#define PKV_WORKER_BATCH_CUDA_BATCH_ENGINE_H_

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "pkv/kernels/codec_params.h"
#include "proto/base/thread_pool.h"
#include "worker/batch/batch_engine.h"
#include "worker/engine/cuda/cuda_model.h"

namespace pkv {

struct CudaEngineOptions {
  CodecParams params;  // of every sequence
  int num_slots = 64;  // sequences resident at a time
  int num_pages = 0;   // 0: what fits in memory_share of the free device memory
  double memory_share = 0.9;
  int max_blocks = 0;          // of one sequence; 0: what the model's context takes
  int num_joining = 4;         // first steps at a time: as many as BatchOptions has threads for
  ThreadPool* pool = nullptr;  // brings prefixes to the device; null: the joining thread
  // Longest prompt that is computed here when the cache does not deliver; 0: none is.
  int max_compute_tokens = 32768;
};

// The BatchEngine of one GPU: pages are filled with the bytes that were shipped, and attention
// reads them as they are.
//
// `model` and `pool` outlive the engine.
//   InvalidArgument     options are out of their range, or not valid for the model
//   ResourceExhausted   the device has no room for the pools
//   FailedPrecondition  no CUDA device
absl::StatusOr<std::unique_ptr<BatchEngine>> MakeCudaBatchEngine(const CudaModel* model,
                                                                 const CudaEngineOptions& options);

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_CUDA_BATCH_ENGINE_H_
