#ifndef PKV_WORKER_ENGINE_ATTENTION_SINK_H_
#define PKV_WORKER_ENGINE_ATTENTION_SINK_H_

#include <cstdint>

#include "absl/status/status.h"

namespace pkv {

// Q, K, V of the tokens of one forward pass in one layer, after RoPE. fp32,
// [token][head][head_dim].
struct LayerQkv {
  int layer = 0;
  int num_tokens = 0;
  int64_t first_token = 0;   // position of the first one
  const float* q = nullptr;  // [num_tokens, num_qo_heads, head_dim]
  const float* k = nullptr;  // [num_tokens, num_kv_heads, head_dim]
  const float* v = nullptr;  // [num_tokens, num_kv_heads, head_dim]
};

// The seam where an inference engine meets the cache: the engine computes everything but attention,
// the sink takes K and V (it is also the KV source of prefill) and answers with the attention
// output.
//
// Thread-compatible. Layers are called in order, each once per forward pass.
class AttentionSink {
 public:
  virtual ~AttentionSink() = default;

  // Stores K and V of these tokens, rounded to fp16, and writes softmax(q K^T / sqrt(head_dim)) V
  // over all cached tokens up to each query's own to `out` [num_tokens, num_qo_heads, head_dim]. An
  // error ends the forward pass and is returned by it.
  virtual absl::Status Attend(const LayerQkv& qkv, float* out) = 0;
};

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_ATTENTION_SINK_H_
