#ifndef PKV_TESTS_SUPPORT_LLAMA_REFERENCE_H_
#define PKV_TESTS_SUPPORT_LLAMA_REFERENCE_H_

// The Llama forward pass in fp64, written down from its definition, and an attention that keeps K
// and V as fp32. Slow.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <numbers>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "proto/base/float16.h"
#include "tests/support/tiny_model.h"
#include "worker/engine/attention_sink.h"

namespace pkv {

// softmax(q k^T / sqrt(head_dim)) v of one query over `num_tokens` rows that lie `stride` apart.
template <typename T>
void ReferenceAttend(const T* q, const T* k, const T* v, int num_tokens, int64_t stride,
                     int head_dim, T* out) {
  std::vector<double> weights(num_tokens);
  double largest = -1e300, sum = 0;
  for (int t = 0; t < num_tokens; ++t) {
    for (int c = 0; c < head_dim; ++c) weights[t] += double{q[c]} * k[t * stride + c];
    weights[t] /= std::sqrt(static_cast<double>(head_dim));
    largest = std::max(largest, weights[t]);
  }
  std::vector<double> total(head_dim);
  for (int t = 0; t < num_tokens; ++t) {
    const double weight = std::exp(weights[t] - largest);
    sum += weight;
    for (int c = 0; c < head_dim; ++c) total[c] += weight * v[t * stride + c];
  }
  for (int c = 0; c < head_dim; ++c) out[c] = static_cast<T>(total[c] / sum);
}

// Keeps K and V unrounded; what Fp16CacheSink would answer without fp16.
class ReferenceSink final : public AttentionSink {
 public:
  ReferenceSink(const KvShape& shape, int num_qo_heads)
      : shape_(shape), num_qo_heads_(num_qo_heads), k_(shape.num_layers), v_(shape.num_layers) {}

  absl::Status Attend(const LayerQkv& qkv, float* out) override {
    const int head_dim = shape_.head_dim, group = num_qo_heads_ / shape_.num_kv_heads;
    const int64_t row = int64_t{shape_.num_kv_heads} * head_dim;
    std::vector<float>&k = k_[qkv.layer], &v = v_[qkv.layer];
    k.insert(k.end(), qkv.k, qkv.k + qkv.num_tokens * row);
    v.insert(v.end(), qkv.v, qkv.v + qkv.num_tokens * row);
    for (int i = 0; i < qkv.num_tokens; ++i) {
      for (int head = 0; head < num_qo_heads_; ++head) {
        const int64_t at = (int64_t{i} * num_qo_heads_ + head) * head_dim;
        const int64_t kv_at = int64_t{head / group} * head_dim;
        ReferenceAttend(qkv.q + at, k.data() + kv_at, v.data() + kv_at,
                        static_cast<int>(qkv.first_token) + i + 1, row, head_dim, out + at);
      }
    }
    return absl::OkStatus();
  }

 private:
  const KvShape shape_;
  const int num_qo_heads_;
  std::vector<std::vector<float>> k_, v_;  // [layer], [token][kv_head][head_dim]
};

// Logits of every token of `tokens`, [token][vocab].
class LlamaReference {
 public:
  explicit LlamaReference(const TinyModel& model) : model_(model) {
    for (const StoredTensor& tensor : model.Tensors()) {
      std::vector<double>& values = weights_[tensor.name];
      values.resize(tensor.bytes.size() / 2);
      for (size_t i = 0; i < values.size(); ++i) {
        uint16_t bits;
        std::memcpy(&bits, tensor.bytes.data() + 2 * i, 2);
        values[i] = Float16ToFloat(bits);
      }
    }
  }

  std::vector<double> Logits(const std::vector<int32_t>& tokens) const {
    const int hidden = model_.hidden_size, count = static_cast<int>(tokens.size());
    std::vector<double> x;
    const std::vector<double>& embedding = weights_.at("model.embed_tokens.weight");
    for (const int32_t id : tokens) {
      x.insert(x.end(), embedding.begin() + id * hidden, embedding.begin() + (id + 1) * hidden);
    }
    for (int i = 0; i < model_.num_layers; ++i) {
      const std::string prefix = absl::StrCat("model.layers.", i, ".");
      Add(Attention(prefix, Norm(prefix + "input_layernorm.weight", x), count), x);
      const std::vector<double> normed = Norm(prefix + "post_attention_layernorm.weight", x);
      std::vector<double> gate = Product(prefix + "mlp.gate_proj", normed, hidden);
      const std::vector<double> up = Product(prefix + "mlp.up_proj", normed, hidden);
      for (size_t j = 0; j < gate.size(); ++j) gate[j] *= up[j] / (1 + std::exp(-gate[j]));
      Add(Product(prefix + "mlp.down_proj", gate, model_.intermediate_size), x);
    }
    const char* head = model_.tie_word_embeddings ? "model.embed_tokens" : "lm_head";
    return Product(head, Norm("model.norm.weight", x), hidden);
  }

 private:
  static void Add(const std::vector<double>& y, std::vector<double>& x) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }

  std::vector<double> Norm(const std::string& name, std::vector<double> x) const {
    const std::vector<double>& weight = weights_.at(name);
    const size_t dim = weight.size();
    for (size_t row = 0; row < x.size(); row += dim) {
      double squares = 0;
      for (size_t i = 0; i < dim; ++i) squares += x[row + i] * x[row + i];
      for (size_t i = 0; i < dim; ++i) x[row + i] *= weight[i] / std::sqrt(squares / dim + 1e-5);
    }
    return x;
  }

  // x weight^T + bias, for rows of `in` elements.
  std::vector<double> Product(const std::string& name, const std::vector<double>& x, int in) const {
    const std::vector<double>& weight = weights_.at(name + ".weight");
    const auto bias = weights_.find(name + ".bias");
    const size_t out = weight.size() / in;
    std::vector<double> y;
    for (size_t row = 0; row < x.size(); row += in) {
      for (size_t j = 0; j < out; ++j) {
        double sum = bias == weights_.end() ? 0 : bias->second[j];
        for (int i = 0; i < in; ++i) sum += x[row + i] * weight[j * in + i];
        y.push_back(sum);
      }
    }
    return y;
  }

  void Turn(std::vector<double>& rows, int num_heads) const {
    const int dim = model_.head_dim;
    for (size_t at = 0; at < rows.size(); at += dim) {
      const double position = static_cast<double>(at / dim / num_heads);
      for (int c = 0; c < dim / 2; ++c) {
        const double angle = position * std::pow(model_.rope_theta, -2.0 * c / dim);
        const double a = rows[at + c], b = rows[at + c + dim / 2];
        rows[at + c] = a * std::cos(angle) - b * std::sin(angle);
        rows[at + c + dim / 2] = b * std::cos(angle) + a * std::sin(angle);
      }
    }
  }

  std::vector<double> Attention(const std::string& prefix, const std::vector<double>& x,
                                int count) const {
    const int dim = model_.head_dim, qo = model_.num_qo_heads, kv = model_.num_kv_heads;
    std::vector<double> q = Product(prefix + "self_attn.q_proj", x, model_.hidden_size);
    std::vector<double> k = Product(prefix + "self_attn.k_proj", x, model_.hidden_size);
    const std::vector<double> v = Product(prefix + "self_attn.v_proj", x, model_.hidden_size);
    Turn(q, qo);
    Turn(k, kv);
    std::vector<double> out(q.size());
    for (int t = 0; t < count; ++t) {
      for (int head = 0; head < qo; ++head) {
        const int at = (t * qo + head) * dim, kv_at = head / (qo / kv) * dim;
        ReferenceAttend(q.data() + at, k.data() + kv_at, v.data() + kv_at, t + 1, kv * dim, dim,
                        out.data() + at);
      }
    }
    return Product(prefix + "self_attn.o_proj", out, qo * dim);
  }

  const TinyModel model_;
  std::map<std::string, std::vector<double>> weights_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_LLAMA_REFERENCE_H_
