#ifndef PKV_WORKER_SEQUENCE_QUERY_RECORD_H_
#define PKV_WORKER_SEQUENCE_QUERY_RECORD_H_

#include <cstdint>
#include <span>
#include <vector>

#include "pkv/kernels/kv_tensor.h"
#include "pkv/kernels/query_sample.h"
#include "worker/engine/attention_sink.h"

namespace pkv {

// What the encoder of a sequence needs to know of the queries that have read its cache so far:
// their second moment, for error feedback (key_feedback.h), and a sample of them, for how much
// attention a token receives.
//
// Thread-compatible; different layers may be touched from different threads.
class QueryRecord {
 public:
  static constexpr int kSampleStride = QuerySample::kStride;
  static constexpr int kMaxSamples = QuerySample::kMaxSamples;

  QueryRecord(int num_layers, int num_kv_heads, int num_qo_heads, int head_dim);

  // Takes the queries of one forward pass in one layer. lse: [num_tokens, num_qo_heads], log of the
  // sum of exp of each query's scores.
  void Add(const LayerQkv& qkv, std::span<const float> lse);

  // Query vectors of each kv head so far that count in its moments (MomentSample).
  int64_t num_vectors(int layer) const {
    return MomentSample::Count(layers_[layer].num_queries) * group_;
  }
  // Mean of q q^T over those of each kv head, by their weights: [kv_head][head_dim][head_dim];
  // zeros without any.
  std::vector<float> Moments(int layer) const;
  // The attention that each of 128 tokens received, summed over the sampled queries that came at
  // least 128 positions after it: [kv_head][128]. block: their K, fp16, not rotated; first_token:
  // position of the first.
  std::vector<float> Importance(int layer, const KvTensorView& block, int64_t first_token) const;

 private:
  struct Layer {
    std::vector<float> moment_sums;  // [kv_head][head_dim][head_dim]
    int64_t num_queries = 0;
    QuerySample sample;
    std::vector<std::vector<float>> q;    // [kv_head] -> [sample][group][head_dim]
    std::vector<std::vector<float>> lse;  // [kv_head] -> [sample][group]
  };

  void AddMoments(const LayerQkv& qkv, Layer& layer) const;
  void AddSample(const LayerQkv& qkv, std::span<const float> lse, int token, Layer& layer) const;
  // Drops what the sample dropped.
  void ThinOut(Layer& layer) const;

  int num_kv_heads_, group_, head_dim_;  // group_: query heads that read one kv head
  std::vector<Layer> layers_;
};

}  // namespace pkv

#endif  // PKV_WORKER_SEQUENCE_QUERY_RECORD_H_
