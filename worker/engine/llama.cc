#include "worker/engine/llama.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "proto/base/thread_pool.h"
#include "worker/engine/gemm.h"
#include "worker/engine/layer_math.h"
#include "worker/engine/llama_profile.h"
#include "worker/engine/safetensors.h"

namespace pkv {
namespace {

// y = x weight^T + bias.
struct Linear {
  int in = 0, out = 0;
  std::vector<float> weight;  // [out, in]
  std::vector<float> bias;    // [out] or empty
};

struct Layer {
  std::vector<float> attention_norm, mlp_norm;  // [hidden]
  Linear q, k, v, o, gate, up, down;
};

class WeightLoader {
 public:
  WeightLoader(const WeightFiles& files, ThreadPool* pool) : files_(files), pool_(pool) {}

  absl::Status Vector(const std::string& name, int64_t size, std::vector<float>& out) const {
    PKV_ASSIGN_OR_RETURN(out, files_.Read(name, std::array{size}, pool_));
    return absl::OkStatus();
  }
  absl::Status Matrix(const std::string& name, int64_t rows, int64_t columns,
                      std::vector<float>& out) const {
    PKV_ASSIGN_OR_RETURN(out, files_.Read(name, std::array{rows, columns}, pool_));
    return absl::OkStatus();
  }
  absl::Status Projection(const std::string& name, int in, int out, bool has_bias,
                          Linear& linear) const {
    linear.in = in;
    linear.out = out;
    PKV_RETURN_IF_ERROR(Matrix(absl::StrCat(name, ".weight"), out, in, linear.weight));
    if (!has_bias) return absl::OkStatus();
    return Vector(absl::StrCat(name, ".bias"), out, linear.bias);
  }

 private:
  const WeightFiles& files_;
  ThreadPool* pool_;
};

struct Weights {
  ModelConfig config;
  ModelProfile profile;
  std::vector<float> embedding;  // [vocab, hidden]
  std::vector<Layer> layers;
  std::vector<float> final_norm;  // [hidden]
  Linear lm_head;                 // weight is empty when tied to the embedding
};

class LlamaExecutor final : public LlamaModel {
 public:
  LlamaExecutor(std::shared_ptr<const Weights> weights, ThreadPool* pool)
      : weights_(std::move(weights)), config_(weights_->config), pool_(pool), rotary_(config_) {}

  const ModelConfig& config() const override { return config_; }
  const ModelProfile& profile() const override { return weights_->profile; }
  std::unique_ptr<LlamaModel> MakeReplica(ThreadPool* pool) const override {
    return std::make_unique<LlamaExecutor>(weights_, pool);
  }
  absl::Status Forward(std::span<const int32_t> tokens, int64_t first_token, AttentionSink& sink,
                       int logits_from, float* logits) override;

 private:
  absl::Status CheckArguments(std::span<const int32_t> tokens, int64_t first_token,
                              int logits_from) const;
  // out = x weight^T + bias, or += without bias when `accumulate`.
  absl::Status Project(const Linear& linear, const float* x, int num_rows, bool accumulate,
                       float* out) const;
  // Normalises, projects, turns, and lets the sink attend. Leaves the result in attention_.
  absl::Status Attend(const Layer& layer, int layer_index, int64_t first_token, int num_tokens,
                      AttentionSink& sink);
  // hidden_ += o(attention_), then += mlp(norm(hidden_)), for tokens [first_row, + num_rows).
  absl::Status FinishLayer(const Layer& layer, int first_row, int num_rows);
  absl::Status ComputeLogits(int first_row, int num_rows, float* logits);

  // Shared with the replicas, whichever lives longest.
  const std::shared_ptr<const Weights> weights_;
  const ModelConfig& config_;
  ThreadPool* const pool_;

  // Of the forward pass at hand; [token][...].
  Rotary rotary_;
  std::vector<float> hidden_, normed_, q_, k_, v_, attention_, gate_, up_;
};

absl::Status LoadLayer(const WeightLoader& loader, const ModelConfig& config, int index,
                       Layer& layer) {
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const int hidden = config.hidden_size, ffn = config.intermediate_size;
  const int q_size = config.num_qo_heads * config.head_dim;
  const int kv_size = config.num_kv_heads * config.head_dim;
  const bool attention_bias = config.attention_bias, mlp_bias = config.mlp_bias;
  struct {
    const char* name;
    int in, out;
    bool has_bias;
    Linear& to;
  } const projections[] = {
      {"self_attn.q_proj", hidden, q_size, attention_bias, layer.q},
      {"self_attn.k_proj", hidden, kv_size, attention_bias, layer.k},
      {"self_attn.v_proj", hidden, kv_size, attention_bias, layer.v},
      {"self_attn.o_proj", q_size, hidden, attention_bias, layer.o},
      {"mlp.gate_proj", hidden, ffn, mlp_bias, layer.gate},
      {"mlp.up_proj", hidden, ffn, mlp_bias, layer.up},
      {"mlp.down_proj", ffn, hidden, mlp_bias, layer.down},
  };
  for (const auto& p : projections) {
    PKV_RETURN_IF_ERROR(
        loader.Projection(absl::StrCat(prefix, p.name), p.in, p.out, p.has_bias, p.to));
  }
  PKV_RETURN_IF_ERROR(
      loader.Vector(absl::StrCat(prefix, "input_layernorm.weight"), hidden, layer.attention_norm));
  return loader.Vector(absl::StrCat(prefix, "post_attention_layernorm.weight"), hidden,
                       layer.mlp_norm);
}

absl::Status LoadWeights(const WeightFiles& files, ThreadPool* pool, Weights& weights) {
  const WeightLoader loader(files, pool);
  const ModelConfig& config = weights.config;
  PKV_RETURN_IF_ERROR(loader.Matrix("model.embed_tokens.weight", config.vocab_size,
                                    config.hidden_size, weights.embedding));
  weights.layers.resize(config.num_layers);
  for (int i = 0; i < config.num_layers; ++i) {
    PKV_RETURN_IF_ERROR(LoadLayer(loader, config, i, weights.layers[i]));
  }
  PKV_RETURN_IF_ERROR(loader.Vector("model.norm.weight", config.hidden_size, weights.final_norm));
  if (!config.tie_word_embeddings) {
    PKV_RETURN_IF_ERROR(loader.Projection("lm_head", config.hidden_size, config.vocab_size,
                                          /*has_bias=*/false, weights.lm_head));
  }
  weights.profile = ProfileOf(config, files);
  return absl::OkStatus();
}

absl::Status LlamaExecutor::CheckArguments(std::span<const int32_t> tokens, int64_t first_token,
                                           int logits_from) const {
  const int64_t num_tokens = tokens.size();
  if (first_token < 0 || num_tokens > config_.max_position_embeddings ||
      first_token > config_.max_position_embeddings - num_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("positions [", first_token, ", ", first_token, " + ", num_tokens,
                     ") are not within max_position_embeddings ", config_.max_position_embeddings));
  }
  if (logits_from < 0 || logits_from > num_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("logits_from ", logits_from, " is not in [0, ", num_tokens, "]"));
  }
  for (int64_t i = 0; i < num_tokens; ++i) {
    if (tokens[i] < 0 || tokens[i] >= config_.vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("token ", i, " has id ", tokens[i],
                                                     ", not in [0, ", config_.vocab_size, ")"));
    }
  }
  return absl::OkStatus();
}

absl::Status LlamaExecutor::Project(const Linear& linear, const float* x, int num_rows,
                                    bool accumulate, float* out) const {
  PKV_RETURN_IF_ERROR(Gemm({.m = num_rows,
                            .n = linear.out,
                            .k = linear.in,
                            .a = x,
                            .b = linear.weight.data(),
                            .c = out,
                            .a_stride = linear.in,
                            .b_stride = linear.in,
                            .c_stride = linear.out,
                            .transpose_b = true,
                            .beta = accumulate ? 1.0f : 0.0f},
                           pool_));
  if (!linear.bias.empty()) AddBias(linear.bias.data(), num_rows, linear.out, out);
  return absl::OkStatus();
}

absl::Status LlamaExecutor::Attend(const Layer& layer, int layer_index, int64_t first_token,
                                   int num_tokens, AttentionSink& sink) {
  RmsNorm(hidden_.data(), layer.attention_norm.data(), config_.rms_norm_eps, num_tokens,
          config_.hidden_size, normed_.data(), pool_);
  PKV_RETURN_IF_ERROR(Project(layer.q, normed_.data(), num_tokens, false, q_.data()));
  PKV_RETURN_IF_ERROR(Project(layer.k, normed_.data(), num_tokens, false, k_.data()));
  PKV_RETURN_IF_ERROR(Project(layer.v, normed_.data(), num_tokens, false, v_.data()));
  rotary_.Apply(config_.num_qo_heads, q_.data(), pool_);
  rotary_.Apply(config_.num_kv_heads, k_.data(), pool_);
  return sink.Attend({.layer = layer_index,
                      .num_tokens = num_tokens,
                      .first_token = first_token,
                      .q = q_.data(),
                      .k = k_.data(),
                      .v = v_.data()},
                     attention_.data());
}

absl::Status LlamaExecutor::FinishLayer(const Layer& layer, int first_row, int num_rows) {
  const float* attention = attention_.data() + int64_t{first_row} * layer.o.in;
  float* hidden = hidden_.data() + int64_t{first_row} * config_.hidden_size;
  PKV_RETURN_IF_ERROR(Project(layer.o, attention, num_rows, true, hidden));
  RmsNorm(hidden, layer.mlp_norm.data(), config_.rms_norm_eps, num_rows, config_.hidden_size,
          normed_.data(), pool_);
  PKV_RETURN_IF_ERROR(Project(layer.gate, normed_.data(), num_rows, false, gate_.data()));
  PKV_RETURN_IF_ERROR(Project(layer.up, normed_.data(), num_rows, false, up_.data()));
  SwiGlu(gate_.data(), up_.data(), int64_t{num_rows} * config_.intermediate_size, pool_);
  return Project(layer.down, gate_.data(), num_rows, true, hidden);
}

absl::Status LlamaExecutor::ComputeLogits(int first_row, int num_rows, float* logits) {
  const int hidden = config_.hidden_size;
  RmsNorm(hidden_.data() + int64_t{first_row} * hidden, weights_->final_norm.data(),
          config_.rms_norm_eps, num_rows, hidden, normed_.data(), pool_);
  const std::vector<float>& weight =
      config_.tie_word_embeddings ? weights_->embedding : weights_->lm_head.weight;
  return Gemm({.m = num_rows,
               .n = config_.vocab_size,
               .k = hidden,
               .a = normed_.data(),
               .b = weight.data(),
               .c = logits,
               .a_stride = hidden,
               .b_stride = hidden,
               .c_stride = config_.vocab_size,
               .transpose_b = true},
              pool_);
}

absl::Status LlamaExecutor::Forward(std::span<const int32_t> tokens, int64_t first_token,
                                    AttentionSink& sink, int logits_from, float* logits) {
  PKV_RETURN_IF_ERROR(CheckArguments(tokens, first_token, logits_from));
  const int num_tokens = static_cast<int>(tokens.size());
  if (num_tokens == 0) return absl::OkStatus();
  const int64_t rows = num_tokens, hidden_size = config_.hidden_size;
  const int64_t q_size = int64_t{config_.num_qo_heads} * config_.head_dim;
  const int64_t kv_size = int64_t{config_.num_kv_heads} * config_.head_dim;
  for (auto& [buffer, width] : {std::pair(&hidden_, hidden_size),
                                {&normed_, hidden_size},
                                {&q_, q_size},
                                {&k_, kv_size},
                                {&v_, kv_size},
                                {&attention_, q_size},
                                {&gate_, int64_t{config_.intermediate_size}},
                                {&up_, int64_t{config_.intermediate_size}}}) {
    // Kept from pass to pass: allocation would cost more than the arithmetic of a decode step.
    if (static_cast<int64_t>(buffer->size()) < rows * width) buffer->resize(rows * width);
  }

  for (int64_t i = 0; i < rows; ++i) {
    std::copy_n(weights_->embedding.data() + tokens[i] * hidden_size, hidden_size,
                hidden_.data() + i * hidden_size);
  }
  rotary_.SetPositions(first_token, num_tokens, pool_);
  for (int i = 0; i < config_.num_layers; ++i) {
    PKV_RETURN_IF_ERROR(Attend(weights_->layers[i], i, first_token, num_tokens, sink));
    // After the last attention nothing reads the tokens without logits.
    const int first_row = i + 1 < config_.num_layers ? 0 : logits_from;
    if (first_row == num_tokens) return absl::OkStatus();
    PKV_RETURN_IF_ERROR(FinishLayer(weights_->layers[i], first_row, num_tokens - first_row));
  }
  return ComputeLogits(logits_from, num_tokens - logits_from, logits);
}

}  // namespace

absl::StatusOr<std::unique_ptr<LlamaModel>> LlamaModel::Load(const std::string& directory,
                                                             ThreadPool* pool) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) {
    return absl::NotFoundError(absl::StrCat(directory, ": no such directory"));
  }
  auto weights = std::make_shared<Weights>();
  PKV_ASSIGN_OR_RETURN(weights->config, ReadModelConfig(directory));
  PKV_ASSIGN_OR_RETURN(const WeightFiles files, WeightFiles::Open(directory));
  PKV_RETURN_IF_ERROR(LoadWeights(files, pool, *weights));
  return std::make_unique<LlamaExecutor>(std::move(weights), pool);
}

}  // namespace pkv
