#ifndef PKV_TESTS_SUPPORT_TINY_MODEL_H_
#define PKV_TESTS_SUPPORT_TINY_MODEL_H_

// Writes Hugging Face model directories with random weights, for tests that need a model's shape
// and not its sense.

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "proto/base/float16.h"
#include "tests/support/scratch_folder.h"
#include "tests/support/tensor_gen.h"

namespace pkv {

struct StoredTensor {
  std::string name;
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};

// A safetensors file: length of the header, header, data.
inline std::string SafetensorsBytes(const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  std::string bytes(reinterpret_cast<const char*>(&size), sizeof(size));
  return bytes + header + data;
}

inline std::string SafetensorsBytes(const std::vector<StoredTensor>& tensors) {
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const StoredTensor& tensor : tensors) {
    header[tensor.name] = {{"dtype", tensor.dtype},
                           {"shape", tensor.shape},
                           {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  return SafetensorsBytes(header.dump(), data);
}

struct TinyModel {
  int hidden_size = 128;
  int intermediate_size = 192;
  int num_layers = 2;
  int num_qo_heads = 2;
  int num_kv_heads = 1;
  int head_dim = 64;
  int vocab_size = 64;
  int max_position_embeddings = 1024;
  double rope_theta = 10000;
  bool tie_word_embeddings = true;
  bool attention_bias = false;
  bool mlp_bias = false;
  uint32_t seed = 1;
  nlohmann::json extra_config = nlohmann::json::object();  // added to config.json, or overrides it

  nlohmann::json Config() const {
    nlohmann::json config = {{"architectures", {"LlamaForCausalLM"}},
                             {"model_type", "llama"},
                             {"hidden_act", "silu"},
                             {"hidden_size", hidden_size},
                             {"intermediate_size", intermediate_size},
                             {"num_hidden_layers", num_layers},
                             {"num_attention_heads", num_qo_heads},
                             {"num_key_value_heads", num_kv_heads},
                             {"head_dim", head_dim},
                             {"vocab_size", vocab_size},
                             {"max_position_embeddings", max_position_embeddings},
                             {"rms_norm_eps", 1e-5},
                             {"rope_theta", rope_theta},
                             {"tie_word_embeddings", tie_word_embeddings},
                             {"attention_bias", attention_bias},
                             {"mlp_bias", mlp_bias},
                             {"bos_token_id", 1},
                             {"eos_token_id", 2}};
    config.update(extra_config);
    return config;
  }

  // fp16, matrices of variance 1 / columns, so that activations keep their size; norms and biases
  // near 1 and 0. A function of the fields alone.
  std::vector<StoredTensor> Tensors() const {
    std::vector<StoredTensor> tensors;
    TestRandom random(seed);
    const auto add = [&](const std::string& name, std::vector<int64_t> shape, double mean,
                         double deviation) {
      int64_t size = 1;
      for (const int64_t dimension : shape) size *= dimension;
      std::vector<uint16_t> bits(size);
      for (uint16_t& b : bits)
        b = FloatToFloat16(static_cast<float>(mean + deviation * random.Normal()));
      tensors.push_back({name,
                         "F16",
                         std::move(shape),
                         {reinterpret_cast<const char*>(bits.data()), bits.size() * 2}});
    };
    const auto matrix = [&](const std::string& name, int64_t out, int64_t in, bool has_bias) {
      add(name + ".weight", {out, in}, 0, 1 / std::sqrt(static_cast<double>(in)));
      if (has_bias) add(name + ".bias", {out}, 0, 0.5);
    };
    const auto norm = [&](const std::string& name) { add(name, {hidden_size}, 1, 0.1); };

    const int q_size = num_qo_heads * head_dim, kv_size = num_kv_heads * head_dim;
    matrix("model.embed_tokens", vocab_size, hidden_size, false);
    for (int i = 0; i < num_layers; ++i) {
      const std::string prefix = absl::StrCat("model.layers.", i, ".");
      norm(prefix + "input_layernorm.weight");
      matrix(prefix + "self_attn.q_proj", q_size, hidden_size, attention_bias);
      matrix(prefix + "self_attn.k_proj", kv_size, hidden_size, attention_bias);
      matrix(prefix + "self_attn.v_proj", kv_size, hidden_size, attention_bias);
      matrix(prefix + "self_attn.o_proj", hidden_size, q_size, attention_bias);
      norm(prefix + "post_attention_layernorm.weight");
      matrix(prefix + "mlp.gate_proj", intermediate_size, hidden_size, mlp_bias);
      matrix(prefix + "mlp.up_proj", intermediate_size, hidden_size, mlp_bias);
      matrix(prefix + "mlp.down_proj", hidden_size, intermediate_size, mlp_bias);
    }
    norm("model.norm.weight");
    if (!tie_word_embeddings) matrix("lm_head", vocab_size, hidden_size, false);
    return tensors;
  }

  // config.json and model.safetensors, or `num_shards` shards and their index.
  void Write(const ScratchFolder& folder, int num_shards = 1) const {
    folder.Write("config.json", Config().dump());
    const std::vector<StoredTensor> tensors = Tensors();
    if (num_shards == 1) {
      folder.Write("model.safetensors", SafetensorsBytes(tensors));
      return;
    }
    nlohmann::json index = {{"metadata", nlohmann::json::object()}};
    std::vector<std::vector<StoredTensor>> shards(num_shards);
    for (size_t i = 0; i < tensors.size(); ++i) {
      const size_t shard = i * num_shards / tensors.size();
      shards[shard].push_back(tensors[i]);
      index["weight_map"][tensors[i].name] = absl::StrCat("model-", shard, ".safetensors");
    }
    for (int shard = 0; shard < num_shards; ++shard) {
      folder.Write(absl::StrCat("model-", shard, ".safetensors"), SafetensorsBytes(shards[shard]));
    }
    folder.Write("model.safetensors.index.json", index.dump());
  }
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_TINY_MODEL_H_
