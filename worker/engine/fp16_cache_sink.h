#ifndef PKV_WORKER_ENGINE_FP16_CACHE_SINK_H_
#define PKV_WORKER_ENGINE_FP16_CACHE_SINK_H_

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "pkv/block/kv_shape.h"
#include "pkv/kernels/kv_tensor.h"
#include "worker/engine/attention_sink.h"

namespace pkv {

class ThreadPool;

// Keeps K and V of every layer as fp16 in one process, uncompressed: what every encoding is
// compared with, and the source of a prefill's K and V.
//
// Thread-compatible.
class Fp16CacheSink final : public AttentionSink {
 public:
  // `pool` may be null and must outlive the sink.
  Fp16CacheSink(const KvShape& shape, int num_qo_heads, ThreadPool* pool);

  // Appends, then attends over all tokens of the layer: one by PagedAttention, as decode does, more
  // by DenseAttention.
  //   FailedPrecondition  first_token is not the number of tokens the layer holds
  //   InvalidArgument     a layer outside the shape; a K or V that is not finite as fp16
  absl::Status Attend(const LayerQkv& qkv, float* out) override;

  // All cached tokens of `layer`. Valid until the next Attend() or Truncate().
  KvTensorView layer(int layer) const;

  // Tokens that every layer holds. A forward pass that failed midway leaves more in some layers;
  // Truncate(num_tokens()) drops them.
  int num_tokens() const;
  // Forgets all tokens from `num_tokens` on. No effect on layers that hold fewer.
  void Truncate(int num_tokens);

 private:
  // [kv_head][capacity][head_dim] each.
  struct Layer {
    std::vector<uint16_t> k, v;
    int num_tokens = 0;
    int capacity = 0;
  };

  void Reserve(int num_tokens, Layer& layer) const;
  // Rounds rows [token][kv_head][head_dim] to fp16 behind the tokens of `layer`. False when one is
  // not finite.
  bool Append(const float* rows, int num_tokens, const Layer& layer, std::vector<uint16_t>& to);

  const KvShape shape_;
  const int num_qo_heads_;
  ThreadPool* const pool_;
  std::vector<Layer> layers_;
};

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_FP16_CACHE_SINK_H_
