#include "worker/engine/cuda/cuda_model.h"

#include <array>
#include <bit>
#include <cmath>
#include <filesystem>
#include <span>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/float16.h"
#include "proto/base/status_macros.h"
#include "proto/base/thread_pool.h"
#include "worker/engine/layer_math.h"
#include "worker/engine/llama_profile.h"
#include "worker/engine/safetensors.h"

namespace pkv {
namespace {

// To nearest, ties to even. NaN stays NaN.
uint16_t FloatToBfloat16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if (std::isnan(value)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// The parts of a matrix that stand one below another on the device.
struct MatrixPart {
  std::string name;
  int rows = 0;
};

// What the layer kernels load 16 bytes at a time, and hold.
absl::Status CheckWidths(const ModelConfig& config) {
  if (config.hidden_size % 4 == 0 && config.hidden_size <= kNormDimMax &&
      config.intermediate_size % 8 == 0) {
    return absl::OkStatus();
  }
  return absl::UnimplementedError(
      absl::StrCat("hidden_size ", config.hidden_size, " is no multiple of 4 up to ", kNormDimMax,
                   ", or intermediate_size ", config.intermediate_size, " none of 8"));
}

}  // namespace

// Fills a model from files.
class CudaModelLoader {
 public:
  CudaModelLoader(const WeightFiles& files, ThreadPool* pool, CudaModel& model)
      : files_(files), pool_(pool), model_(model) {}

  absl::Status LoadAll();
  // The same places with random values.
  static absl::Status FillAll(uint64_t seed, CudaModel& model);

 private:
  absl::Status Floats(const std::string& name, int64_t size, DeviceBuffer& out) const {
    PKV_ASSIGN_OR_RETURN(const std::vector<float> values,
                         files_.Read(name, std::array{size}, pool_));
    PKV_ASSIGN_OR_RETURN(out, DeviceBuffer::CopyOf(std::as_bytes(std::span(values)), nullptr));
    return absl::OkStatus();
  }
  absl::Status Matrix(std::span<const MatrixPart> parts, int columns, DeviceBuffer& out) const;
  absl::Status Linear(std::span<const MatrixPart> parts, int in, bool has_bias,
                      DeviceLinear& out) const;
  absl::Status LoadLayer(int index, DeviceLayer& layer) const;

  const WeightFiles& files_;
  ThreadPool* const pool_;
  CudaModel& model_;
};

absl::Status CudaModelLoader::Matrix(std::span<const MatrixPart> parts, int columns,
                                     DeviceBuffer& out) const {
  std::vector<uint16_t> values;
  for (const MatrixPart& part : parts) {
    PKV_ASSIGN_OR_RETURN(
        const std::vector<float> rows,
        files_.Read(part.name, std::array{int64_t{part.rows}, int64_t{columns}}, pool_));
    const size_t first = values.size();
    values.resize(first + rows.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      if (model_.type() == WeightType::kBfloat16) {
        values[first + i] = FloatToBfloat16(rows[i]);
        continue;
      }
      values[first + i] = FloatToFloat16(rows[i]);
      if (!IsFiniteFloat16(values[first + i])) {
        return absl::OutOfRangeError(
            absl::StrCat("tensor ", part.name, ": element ", i, " is ", rows[i], ", beyond fp16"));
      }
    }
  }
  // Copying from pageable memory returns when it is staged.
  PKV_ASSIGN_OR_RETURN(out, DeviceBuffer::CopyOf(std::as_bytes(std::span(values)), nullptr));
  return absl::OkStatus();
}

absl::Status CudaModelLoader::Linear(std::span<const MatrixPart> parts, int in, bool has_bias,
                                     DeviceLinear& out) const {
  std::vector<MatrixPart> weights;
  std::vector<float> bias;
  out.in = in;
  for (const MatrixPart& part : parts) {
    out.out += part.rows;
    weights.push_back({absl::StrCat(part.name, ".weight"), part.rows});
    if (!has_bias) continue;
    PKV_ASSIGN_OR_RETURN(
        const std::vector<float> rows,
        files_.Read(absl::StrCat(part.name, ".bias"), std::array{int64_t{part.rows}}, pool_));
    bias.insert(bias.end(), rows.begin(), rows.end());
  }
  PKV_RETURN_IF_ERROR(Matrix(weights, in, out.weight));
  PKV_ASSIGN_OR_RETURN(out.bias, DeviceBuffer::CopyOf(std::as_bytes(std::span(bias)), nullptr));
  return absl::OkStatus();
}

absl::Status CudaModelLoader::LoadLayer(int index, DeviceLayer& layer) const {
  const ModelConfig& config = model_.config_;
  const int q_size = config.num_qo_heads * config.head_dim;
  const int kv_size = config.num_kv_heads * config.head_dim;
  const std::string prefix = absl::StrCat("model.layers.", index, ".");
  const std::array<MatrixPart, 3> qkv = {{{prefix + "self_attn.q_proj", q_size},
                                          {prefix + "self_attn.k_proj", kv_size},
                                          {prefix + "self_attn.v_proj", kv_size}}};
  const std::array<MatrixPart, 1> o = {{{prefix + "self_attn.o_proj", config.hidden_size}}};
  const std::array<MatrixPart, 2> gate_up = {{{prefix + "mlp.gate_proj", config.intermediate_size},
                                              {prefix + "mlp.up_proj", config.intermediate_size}}};
  const std::array<MatrixPart, 1> down = {{{prefix + "mlp.down_proj", config.hidden_size}}};
  PKV_RETURN_IF_ERROR(Linear(qkv, config.hidden_size, config.attention_bias, layer.qkv));
  PKV_RETURN_IF_ERROR(Linear(o, q_size, config.attention_bias, layer.o));
  PKV_RETURN_IF_ERROR(Linear(gate_up, config.hidden_size, config.mlp_bias, layer.gate_up));
  PKV_RETURN_IF_ERROR(Linear(down, config.intermediate_size, config.mlp_bias, layer.down));
  PKV_RETURN_IF_ERROR(
      Floats(prefix + "input_layernorm.weight", config.hidden_size, layer.attention_norm));
  return Floats(prefix + "post_attention_layernorm.weight", config.hidden_size, layer.mlp_norm);
}

absl::Status CudaModelLoader::LoadAll() {
  const ModelConfig& config = model_.config_;
  const std::array<MatrixPart, 1> embedding = {{{"model.embed_tokens.weight", config.vocab_size}}};
  PKV_RETURN_IF_ERROR(Matrix(embedding, config.hidden_size, model_.embedding_));
  model_.layers_.resize(config.num_layers);
  for (int i = 0; i < config.num_layers; ++i) {
    PKV_RETURN_IF_ERROR(LoadLayer(i, model_.layers_[i]));
  }
  PKV_RETURN_IF_ERROR(Floats("model.norm.weight", config.hidden_size, model_.final_norm_));
  if (config.tie_word_embeddings) return absl::OkStatus();
  const std::array<MatrixPart, 1> lm_head = {{{"lm_head.weight", config.vocab_size}}};
  return Matrix(lm_head, config.hidden_size, model_.lm_head_);
}

absl::Status CudaModelLoader::FillAll(uint64_t seed, CudaModel& model) {
  const ModelConfig& config = model.config_;
  const auto fill = [&](int64_t rows, int64_t columns, DeviceBuffer& out) -> absl::Status {
    PKV_ASSIGN_OR_RETURN(out, DeviceBuffer::Make(rows * columns * 2, nullptr));
    // Variance 1 / columns: activations keep their size.
    const float scale = std::sqrt(3.0f / static_cast<float>(columns));
    return CudaStatus(
        LaunchRandomWeights(model.type_, seed++, scale, rows * columns, out.data(), nullptr),
        "random weights");
  };
  const auto linear = [&](int in, int rows, bool has_bias, DeviceLinear& out) -> absl::Status {
    out.in = in;
    out.out = rows;
    const std::vector<float> zeros(has_bias ? rows : 0);
    PKV_ASSIGN_OR_RETURN(out.bias, DeviceBuffer::CopyOf(std::as_bytes(std::span(zeros)), nullptr));
    return fill(rows, in, out.weight);
  };
  const std::vector<float> ones(config.hidden_size, 1.0f);
  const auto norm = [&](DeviceBuffer& out) -> absl::Status {
    PKV_ASSIGN_OR_RETURN(out, DeviceBuffer::CopyOf(std::as_bytes(std::span(ones)), nullptr));
    return absl::OkStatus();
  };
  const int q_size = config.num_qo_heads * config.head_dim;
  const int qkv_size = q_size + 2 * config.num_kv_heads * config.head_dim;
  PKV_RETURN_IF_ERROR(fill(config.vocab_size, config.hidden_size, model.embedding_));
  model.layers_.resize(config.num_layers);
  for (DeviceLayer& layer : model.layers_) {
    PKV_RETURN_IF_ERROR(linear(config.hidden_size, qkv_size, config.attention_bias, layer.qkv));
    PKV_RETURN_IF_ERROR(linear(q_size, config.hidden_size, config.attention_bias, layer.o));
    PKV_RETURN_IF_ERROR(
        linear(config.hidden_size, 2 * config.intermediate_size, config.mlp_bias, layer.gate_up));
    PKV_RETURN_IF_ERROR(
        linear(config.intermediate_size, config.hidden_size, config.mlp_bias, layer.down));
    PKV_RETURN_IF_ERROR(norm(layer.attention_norm));
    PKV_RETURN_IF_ERROR(norm(layer.mlp_norm));
  }
  PKV_RETURN_IF_ERROR(norm(model.final_norm_));
  if (config.tie_word_embeddings) return absl::OkStatus();
  return fill(config.vocab_size, config.hidden_size, model.lm_head_);
}

absl::StatusOr<std::unique_ptr<CudaModel>> CudaModel::Load(const std::string& directory,
                                                           ThreadPool* pool) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) {
    return absl::NotFoundError(absl::StrCat(directory, ": no such directory"));
  }
  PKV_ASSIGN_OR_RETURN(const ModelConfig config, ReadModelConfig(directory));
  PKV_RETURN_IF_ERROR(CheckWidths(config));
  PKV_ASSIGN_OR_RETURN(const WeightFiles files, WeightFiles::Open(directory));
  const bool is_bf16 = files.dtype("model.embed_tokens.weight") == "BF16";
  auto model = std::unique_ptr<CudaModel>(
      new CudaModel(config, is_bf16 ? WeightType::kBfloat16 : WeightType::kFloat16));
  model->profile_ = ProfileOf(config, files);
  PKV_RETURN_IF_ERROR(CudaModelLoader(files, pool, *model).LoadAll());
  PKV_RETURN_IF_ERROR(model->FillRotaryTable());
  return model;
}

absl::StatusOr<std::unique_ptr<CudaModel>> CudaModel::MakeRandom(const std::string& name,
                                                                 const ModelConfig& config,
                                                                 WeightType type, uint64_t seed) {
  PKV_RETURN_IF_ERROR(CheckWidths(config));
  auto model = std::unique_ptr<CudaModel>(new CudaModel(config, type));
  model->profile_.shape = config.kv_shape();
  model->profile_.rope_theta = config.rope_theta;
  const std::string identity =
      absl::StrCat("random:", name, ":", static_cast<int>(type), ":", seed);
  model->profile_.weights = Sha256({std::as_bytes(std::span(identity))});
  PKV_RETURN_IF_ERROR(CudaModelLoader::FillAll(seed, *model));
  PKV_RETURN_IF_ERROR(model->FillRotaryTable());
  return model;
}

absl::Status CudaModel::FillRotaryTable() {
  const Rotary rotary(config_);
  const std::vector<double>& frequencies = rotary.frequencies();
  std::vector<float2> table(size_t(config_.max_position_embeddings) * frequencies.size());
  for (int64_t position = 0; position < config_.max_position_embeddings; ++position) {
    for (size_t c = 0; c < frequencies.size(); ++c) {
      const double angle = static_cast<double>(position) * frequencies[c];
      table[position * frequencies.size() + c] = {static_cast<float>(std::cos(angle)),
                                                  static_cast<float>(std::sin(angle))};
    }
  }
  PKV_ASSIGN_OR_RETURN(cos_sin_, DeviceBuffer::CopyOf(std::as_bytes(std::span(table)), nullptr));
  return CudaStatus(cudaStreamSynchronize(nullptr), "loading weights");
}

int64_t CudaModel::weight_bytes() const {
  int64_t bytes = embedding_.size() + final_norm_.size() + lm_head_.size() + cos_sin_.size();
  for (const DeviceLayer& layer : layers_) {
    bytes += layer.attention_norm.size() + layer.mlp_norm.size();
    for (const DeviceLinear* linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) {
      bytes += linear->weight.size() + linear->bias.size();
    }
  }
  return bytes;
}

}  // namespace pkv
