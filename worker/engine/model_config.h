#ifndef PKV_WORKER_ENGINE_MODEL_CONFIG_H_
#define PKV_WORKER_ENGINE_MODEL_CONFIG_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "pkv/block/kv_shape.h"

namespace pkv {

// The fields of a Hugging Face config.json that the executor uses.
struct ModelConfig {
  int hidden_size = 0;
  int intermediate_size = 0;
  int num_layers = 0;
  int num_qo_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  int vocab_size = 0;
  int max_position_embeddings = 0;
  double rms_norm_eps = 0;
  double rope_theta = 0;
  bool tie_word_embeddings = false;
  bool attention_bias = false;  // q, k, v (and o) projections have a bias
  bool mlp_bias = false;
  int32_t bos_token_id = -1;
  std::vector<int32_t> eos_token_ids;
  // rope_scaling of type "llama3" (Llama 3.1); factor 0: none.
  double rope_factor = 0, rope_low_freq_factor = 0, rope_high_freq_factor = 0;
  int rope_original_max_position = 0;

  KvShape kv_shape() const { return {num_layers, num_kv_heads, head_dim}; }
};

// Reads `directory`/config.json.
//   NotFound        no such file
//   InvalidArgument not JSON, or a needed field is missing or of the wrong type (names it)
//   Unimplemented   a field has a value this executor does not run, e.g. "model_type
//                   'mistral-moe' is not 'llama'"
absl::StatusOr<ModelConfig> ReadModelConfig(const std::string& directory);

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_MODEL_CONFIG_H_
