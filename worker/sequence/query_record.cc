#include "worker/sequence/query_record.h"

#include <algorithm>
#include <cmath>

#include "pkv/block/kv_shape.h"
#include "proto/base/float16.h"
#include "proto/base/log.h"
#include "worker/engine/gemm.h"
#include "worker/engine/layer_math.h"

namespace pkv {
namespace {

// c += weight rows^T rows. rows: [num_rows][dim].
void AddOuterProducts(const std::vector<float>& rows, int num_rows, int dim, float weight,
                      float* c) {
  // The rows transposed, so that the product is rows times rows.
  std::vector<float> columns(rows.size());
  for (int r = 0; r < num_rows; ++r) {
    for (int j = 0; j < dim; ++j) columns[size_t(j) * num_rows + r] = rows[size_t(r) * dim + j];
  }
  const absl::Status status = Gemm({.m = dim,
                                    .n = dim,
                                    .k = num_rows,
                                    .a = columns.data(),
                                    .b = columns.data(),
                                    .c = c,
                                    .a_stride = num_rows,
                                    .b_stride = num_rows,
                                    .c_stride = dim,
                                    .transpose_b = true,
                                    .alpha = weight,
                                    .beta = 1},
                                   nullptr);
  PKV_CHECK(status.ok(), status.ToString());
}

}  // namespace

QueryRecord::QueryRecord(int num_layers, int num_kv_heads, int num_qo_heads, int head_dim)
    : num_kv_heads_(num_kv_heads),
      group_(num_qo_heads / num_kv_heads),
      head_dim_(head_dim),
      layers_(num_layers) {
  for (Layer& layer : layers_) {
    layer.moment_sums.resize(size_t(num_kv_heads) * head_dim * head_dim);
    layer.q.resize(num_kv_heads);
    layer.lse.resize(num_kv_heads);
  }
}

void QueryRecord::Add(const LayerQkv& qkv, std::span<const float> lse) {
  Layer& layer = layers_[qkv.layer];
  AddMoments(qkv, layer);
  for (int i = 0; i < qkv.num_tokens; ++i) {
    if (QuerySample::IsSampled(qkv.first_token + i)) AddSample(qkv, lse, i, layer);
  }
}

void QueryRecord::AddMoments(const LayerQkv& qkv, Layer& layer) const {
  const int64_t token_elements = int64_t{num_kv_heads_} * group_ * head_dim_;
  const int64_t begin = layer.num_queries, end = begin + qkv.num_tokens;
  for (MomentSample::Run run; run.end < end;) {
    run = MomentSample::FirstRun(std::max(begin, run.end), end);
    const int num_rows = static_cast<int>(run.count) * group_;
    std::vector<float> rows(size_t(num_rows) * head_dim_);
    for (int head = 0; head < num_kv_heads_; ++head) {
      for (int64_t i = 0; i < run.count; ++i) {
        const int64_t token = run.first + i * run.stride - begin;
        const float* q = qkv.q + token * token_elements + int64_t{head} * group_ * head_dim_;
        std::copy_n(q, group_ * head_dim_, rows.data() + i * group_ * head_dim_);
      }
      if (run.count > 0) {
        AddOuterProducts(rows, num_rows, head_dim_, static_cast<float>(run.stride),
                         layer.moment_sums.data() + size_t(head) * head_dim_ * head_dim_);
      }
    }
  }
  layer.num_queries = end;
}

void QueryRecord::AddSample(const LayerQkv& qkv, std::span<const float> lse, int token,
                            Layer& layer) const {
  const bool is_full = layer.sample.Add(qkv.first_token + token);
  const int64_t first_head = int64_t{token} * num_kv_heads_ * group_;
  for (int head = 0; head < num_kv_heads_; ++head) {
    const int64_t at = first_head + int64_t{head} * group_;
    const float* q = qkv.q + at * head_dim_;
    layer.q[head].insert(layer.q[head].end(), q, q + group_ * head_dim_);
    layer.lse[head].insert(layer.lse[head].end(), lse.begin() + at, lse.begin() + at + group_);
  }
  if (is_full) ThinOut(layer);
}

void QueryRecord::ThinOut(Layer& layer) const {
  size_t kept = 0;
  for (const int64_t i : layer.sample.kept()) {
    for (int head = 0; head < num_kv_heads_; ++head) {
      const int64_t row = int64_t{group_} * head_dim_;
      std::copy_n(layer.q[head].begin() + i * row, row, layer.q[head].begin() + kept * row);
      std::copy_n(layer.lse[head].begin() + i * group_, group_,
                  layer.lse[head].begin() + kept * group_);
    }
    ++kept;
  }
  for (int head = 0; head < num_kv_heads_; ++head) {
    layer.q[head].resize(kept * group_ * head_dim_);
    layer.lse[head].resize(kept * group_);
  }
}

std::vector<float> QueryRecord::Moments(int layer) const {
  std::vector<float> moments = layers_[layer].moment_sums;
  const int64_t moment_weight = MomentSample::Weight(layers_[layer].num_queries) * group_;
  const float scale = 1.0f / static_cast<float>(std::max<int64_t>(moment_weight, 1));
  for (float& value : moments) value *= scale;
  return moments;
}

std::vector<float> QueryRecord::Importance(int layer_index, const KvTensorView& block,
                                           int64_t first_token) const {
  const Layer& layer = layers_[layer_index];
  const std::vector<int64_t>& positions = layer.sample.positions();
  std::vector<float> importance(size_t(num_kv_heads_) * kBlockTokens);
  const auto first =
      std::lower_bound(positions.begin(), positions.end(), first_token + kBlockTokens);
  const auto first_sample = first - positions.begin();
  const int num_rows = static_cast<int>(positions.end() - first) * group_;
  if (num_rows == 0) return importance;
  std::vector<float> keys(size_t(kBlockTokens) * head_dim_),
      scores(size_t(num_rows) * kBlockTokens);
  for (int head = 0; head < num_kv_heads_; ++head) {
    const uint16_t* k = block.k_row(head, 0);
    for (size_t i = 0; i < keys.size(); ++i) keys[i] = Float16ToFloat(k[i]);
    const absl::Status status = Gemm({.m = num_rows,
                                      .n = kBlockTokens,
                                      .k = head_dim_,
                                      .a = layer.q[head].data() + first_sample * group_ * head_dim_,
                                      .b = keys.data(),
                                      .c = scores.data(),
                                      .a_stride = head_dim_,
                                      .b_stride = head_dim_,
                                      .c_stride = kBlockTokens,
                                      .transpose_b = true,
                                      .alpha = 1.0f / std::sqrt(static_cast<float>(head_dim_))},
                                     nullptr);
    PKV_CHECK(status.ok(), status.ToString());
    float* sums = importance.data() + size_t(head) * kBlockTokens;
    for (int row = 0; row < num_rows; ++row) {
      const float lse = layer.lse[head][first_sample * group_ + row];
      const int64_t position = first[row / group_];
      const int visible = static_cast<int>(
          std::min<int64_t>(position - kBlockTokens - first_token + 1, kBlockTokens));
      const float* score = scores.data() + size_t(row) * kBlockTokens;
      for (int t = 0; t < visible; ++t) sums[t] += ExpNonPositive(std::min(score[t] - lse, 0.0f));
    }
  }
  return importance;
}

}  // namespace pkv
