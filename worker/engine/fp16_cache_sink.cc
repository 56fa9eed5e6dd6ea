#include "worker/engine/fp16_cache_sink.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "pkv/kernels/paged_attention.h"
#include "proto/base/float16.h"
#include "worker/engine/dense_attention.h"

namespace pkv {

Fp16CacheSink::Fp16CacheSink(const KvShape& shape, int num_qo_heads, ThreadPool* pool)
    : shape_(shape), num_qo_heads_(num_qo_heads), pool_(pool), layers_(shape.num_layers) {}

void Fp16CacheSink::Reserve(int num_tokens, Layer& layer) const {
  if (num_tokens <= layer.capacity) return;
  // Doubling keeps the copies of a long decode linear in its length.
  const int capacity = std::max(num_tokens, 2 * layer.capacity);
  for (std::vector<uint16_t>* rows : {&layer.k, &layer.v}) {
    std::vector<uint16_t> grown(size_t(shape_.num_kv_heads) * capacity * shape_.head_dim);
    for (int head = 0; head < shape_.num_kv_heads; ++head) {
      std::copy_n(rows->data() + int64_t{head} * layer.capacity * shape_.head_dim,
                  int64_t{layer.num_tokens} * shape_.head_dim,
                  grown.data() + int64_t{head} * capacity * shape_.head_dim);
    }
    rows->swap(grown);
  }
  layer.capacity = capacity;
}

bool Fp16CacheSink::Append(const float* rows, int num_tokens, const Layer& layer,
                           std::vector<uint16_t>& to) {
  const int head_dim = shape_.head_dim;
  uint16_t largest = 0;  // of the magnitudes' bits, which order like the magnitudes
  for (int token = 0; token < num_tokens; ++token) {
    for (int head = 0; head < shape_.num_kv_heads; ++head) {
      const float* from = rows + (int64_t{token} * shape_.num_kv_heads + head) * head_dim;
      uint16_t* row =
          to.data() + (int64_t{head} * layer.capacity + layer.num_tokens + token) * head_dim;
      for (int c = 0; c < head_dim; ++c) {
        row[c] = FloatToFloat16(from[c]);
        largest = std::max<uint16_t>(largest, row[c] & 0x7fff);
      }
    }
  }
  return IsFiniteFloat16(largest);
}

absl::Status Fp16CacheSink::Attend(const LayerQkv& qkv, float* out) {
  if (qkv.layer < 0 || qkv.layer >= shape_.num_layers) {
    return absl::InvalidArgumentError(
        absl::StrCat("layer ", qkv.layer, " is not in [0, ", shape_.num_layers, ")"));
  }
  Layer& layer = layers_[qkv.layer];
  if (qkv.first_token != layer.num_tokens) {
    return absl::FailedPreconditionError(absl::StrCat("first_token ", qkv.first_token,
                                                      " does not follow the ", layer.num_tokens,
                                                      " tokens of layer ", qkv.layer));
  }
  Reserve(layer.num_tokens + qkv.num_tokens, layer);
  const bool k_finite = Append(qkv.k, qkv.num_tokens, layer, layer.k);
  const bool v_finite = Append(qkv.v, qkv.num_tokens, layer, layer.v);
  if (!k_finite || !v_finite) {
    return absl::InvalidArgumentError(
        absl::StrCat(k_finite ? "V" : "K", " of layer ", qkv.layer, ", tokens from ",
                     qkv.first_token, ", holds NaN or a magnitude above ", kFloat16Max));
  }
  layer.num_tokens += qkv.num_tokens;
  AttentionArgs args;
  args.q = qkv.q;
  args.num_queries = qkv.num_tokens;
  args.num_qo_heads = num_qo_heads_;
  args.sm_scale = 1 / std::sqrt(static_cast<float>(shape_.head_dim));
  args.window = this->layer(qkv.layer);
  args.out = out;
  if (qkv.num_tokens == 1) return PagedAttention(args, {.pool = pool_});
  return DenseAttention(args, pool_);
}

KvTensorView Fp16CacheSink::layer(int layer) const {
  const Layer& rows = layers_[layer];
  return {rows.k.data(),   rows.v.data(),   shape_.num_kv_heads,
          rows.num_tokens, shape_.head_dim, int64_t{rows.capacity} * shape_.head_dim};
}

int Fp16CacheSink::num_tokens() const {
  if (layers_.empty()) return 0;
  return std::min_element(
             layers_.begin(), layers_.end(),
             [](const Layer& a, const Layer& b) { return a.num_tokens < b.num_tokens; })
      ->num_tokens;
}

void Fp16CacheSink::Truncate(int num_tokens) {
  for (Layer& layer : layers_) layer.num_tokens = std::min(layer.num_tokens, num_tokens);
}

}  // namespace pkv
