#ifndef PKV_WORKER_PREFILL_CUDA_PREFILL_EXECUTOR_H_
#define PKV_WORKER_PREFILL_CUDA_PREFILL_EXECUTOR_H_

#include <memory>

#include "absl/status/statusor.h"
#include "proto/base/thread_pool.h"
#include "worker/engine/cuda/cuda_model.h"
#include "worker/prefill/prefill_executor.h"

namespace pkv {

struct CudaPrefillOptions {
  CodecParams params;          // of every prompt
  int max_tokens = 0;          // of one prompt; 0: the model's context
  int chunk_tokens = 4096;     // computed at a time in a layer
  int compression_sms = 0;     // CudaPrefill::Options
  ThreadPool* pool = nullptr;  // brings a cached prefix to the device; null: the caller's thread
};

// The executor of one GPU. A layer is mined and compressed on a stream of its own while the next
// one is computed, copied to pinned memory, and from there into the frames by a thread of the
// call's own; three layers may be on their way, then computation waits. A prefix that is cached is
// decoded layer by layer for the queries behind it. One prompt at a time.
//
// `model` and `pool` outlive it.
//   InvalidArgument     options are out of their range, or not valid for the model
//   ResourceExhausted   out of memory
//   FailedPrecondition  no CUDA device
absl::StatusOr<std::unique_ptr<PrefillExecutor>> MakeCudaPrefillExecutor(
    const CudaModel* model, const CudaPrefillOptions& options);

}  // namespace pkv

#endif  // PKV_WORKER_PREFILL_CUDA_PREFILL_EXECUTOR_H_
