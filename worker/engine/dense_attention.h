#ifndef PKV_WORKER_ENGINE_DENSE_ATTENTION_H_
#define PKV_WORKER_ENGINE_DENSE_ATTENTION_H_

#include <span>

#include "absl/status/status.h"
#include "pkv/kernels/kv_tensor.h"
#include "pkv/kernels/paged_attention.h"

namespace pkv {

class ThreadPool;

// Same contract as PagedAttention on the CPU, for many queries at once: tile by tile of 128 tokens
// (DequantizeKTile, one tile in cache at a time), scores and outputs by oneDNN GEMM, online
// softmax. For prefill; PagedAttention is for decode.
absl::Status DenseAttention(const AttentionArgs& args, ThreadPool* pool);

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_DENSE_ATTENTION_H_
