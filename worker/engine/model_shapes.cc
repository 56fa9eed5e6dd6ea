#include "worker/engine/model_shapes.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace pkv {
namespace {

// Rotary scaling of Llama 3.1 and 3.2; only the factor differs.
void SetLlama3Rope(double factor, ModelConfig& config) {
  config.rope_theta = 500000;
  config.rope_factor = factor;
  config.rope_low_freq_factor = 1;
  config.rope_high_freq_factor = 4;
  config.rope_original_max_position = 8192;
}

ModelConfig Llama318b() {
  ModelConfig config;
  config.hidden_size = 4096;
  config.intermediate_size = 14336;
  config.num_layers = 32;
  config.num_qo_heads = 32;
  config.num_kv_heads = 8;
  config.head_dim = 128;
  config.vocab_size = 128256;
  config.max_position_embeddings = 131072;
  config.rms_norm_eps = 1e-5;
  SetLlama3Rope(8, config);
  return config;
}

ModelConfig Llama321b() {
  ModelConfig config = Llama318b();
  config.hidden_size = 2048;
  config.intermediate_size = 8192;
  config.num_layers = 16;
  config.head_dim = 64;
  config.tie_word_embeddings = true;
  SetLlama3Rope(32, config);
  return config;
}

ModelConfig Qwen257b() {
  ModelConfig config;
  config.hidden_size = 3584;
  config.intermediate_size = 18944;
  config.num_layers = 28;
  config.num_qo_heads = 28;
  config.num_kv_heads = 4;
  config.head_dim = 128;
  config.vocab_size = 152064;
  config.max_position_embeddings = 32768;
  config.rms_norm_eps = 1e-6;
  config.rope_theta = 1000000;
  config.attention_bias = true;
  return config;
}

struct NamedShape {
  const char* name;
  ModelConfig (*make)();
};

constexpr NamedShape kShapes[] = {
    {"llama-3.1-8b", Llama318b},
    {"llama-3.2-1b", Llama321b},
    {"qwen2.5-7b", Qwen257b},
};

}  // namespace

absl::StatusOr<ModelConfig> ModelShapeByName(absl::string_view name) {
  for (const NamedShape& shape : kShapes) {
    if (name == shape.name) return shape.make();
  }
  return absl::NotFoundError(absl::StrCat("model shape \"", name, "\" not in {",
                                          absl::StrJoin(ModelShapeNames(), ", "), "}"));
}

std::vector<std::string> ModelShapeNames() {
  std::vector<std::string> names;
  for (const NamedShape& shape : kShapes) names.emplace_back(shape.name);
  return names;
}

}  // namespace pkv
