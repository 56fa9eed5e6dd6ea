#ifndef PKV_WORKER_ENGINE_LLAMA_H_
#define PKV_WORKER_ENGINE_LLAMA_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/prefix_hash.h"
#include "worker/engine/attention_sink.h"
#include "worker/engine/model_config.h"

namespace pkv {

class ThreadPool;

// A compact executor of the Llama family (RMSNorm, RoPE, grouped-query attention, SwiGLU), fp32
// arithmetic on fp16, bf16 or fp32 weights, GEMM by oneDNN. Attention is the caller's
// AttentionSink.
//
// Thread-compatible: one forward pass at a time.
class LlamaModel {
 public:
  // Loads a Hugging Face directory: config.json, model.safetensors or model.safetensors.index.json
  // with its shards.
  //   NotFound         no such directory or file
  //   Unimplemented    a model this executor does not run; names the config field and its value
  //   DataLoss         a tensor is missing, or its shape or type is not what the config says
  //                    (names it)
  // `pool` may be null and must outlive the model.
  static absl::StatusOr<std::unique_ptr<LlamaModel>> Load(const std::string& directory,
                                                          ThreadPool* pool);
  virtual ~LlamaModel() = default;

  virtual const ModelConfig& config() const = 0;
  // Identity for cache keys: shape, rope and SHA-256 of the weight files.
  virtual const ModelProfile& profile() const = 0;
  // A model over the same weights, which are not copied, with activations of its own: for forward
  // passes beside this model's. `pool` may be null and must outlive it.
  virtual std::unique_ptr<LlamaModel> MakeReplica(ThreadPool* pool) const = 0;

  // Runs `tokens` at positions first_token.. through all layers, giving each layer's attention to
  // `sink`.
  //   logits_from   logits are computed for tokens [logits_from, tokens.size()); tokens.size()
  //                 computes none and stops after the last layer's attention
  //   logits        [tokens.size() - logits_from, vocab_size], or null with none
  // InvalidArgument: a token id outside the vocabulary, a position outside max_position_embeddings.
  // Errors of the sink.
  virtual absl::Status Forward(std::span<const int32_t> tokens, int64_t first_token,
                               AttentionSink& sink, int logits_from, float* logits) = 0;
};

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_LLAMA_H_
