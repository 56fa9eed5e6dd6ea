#ifndef PKV_KERNELS_CODEC_QUERY_STATISTICS_KERNELS_H_
#define PKV_KERNELS_CODEC_QUERY_STATISTICS_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "pkv/kernels/query_sample.h"

namespace pkv {

// What was kept of the queries of a layer.
struct KeptQueries {
  const uint16_t* rows = nullptr;         // [num_queries][num_qo_heads][head_dim]: MomentSample
  const uint16_t* sample_rows = nullptr;  // [sample][num_qo_heads][head_dim]: QuerySample
  const float* sample_lse = nullptr;      // [sample][num_qo_heads]; null: not known yet
  int num_queries = 0, num_kv_heads = 0, group = 0, head_dim = 0;
  bool is_bfloat16 = false;
};

// Sampled queries as fp16 times a power of two of their own (prefill_attention_kernels.cu), and two
// numbers each that make an exponent of a product with a key: product * scale - lse, in log2.
struct SampleTerms {
  float scale = 0, lse = 0;
};
struct QuerySampleRows {
  int num_samples = 0;  // in position
  int capacity = 0;     // rows of a kv head: kMaxSamples * group
  int32_t positions[QuerySample::kMaxSamples];
  uint16_t* q = nullptr;         // [kv_head][capacity][head_dim]; row: sample * group + head
  SampleTerms* terms = nullptr;  // [kv_head][capacity]
};

// Writes the weighted sums of q q^T over the kept rows to sums [kv_head][head_dim][head_dim], and
// the samples; an lse that is not known yet is found by SumScores(). score_scale: of a product with
// a key, for a score in log2.
cudaError_t SumQueries(const KeptQueries& kept, float score_scale, const QuerySampleRows& samples,
                       float* sums, cudaStream_t stream);

// The tokens of K, fp16, [kv_head][num_tokens][head_dim], the first of which stands at first_token.
struct SampledKeys {
  const uint16_t* k = nullptr;
  int64_t head_stride = 0;
  int num_tokens = 0, first_token = 0;
};
// Writes the lse of the samples, over the tokens of keys that are not behind them.
cudaError_t SumScores(const SampledKeys& keys, const QuerySampleRows& samples, int num_kv_heads,
                      int group, int head_dim, cudaStream_t stream);

// importance: [kv_head][num_tokens]
cudaError_t SumImportance(const SampledKeys& keys, const QuerySampleRows& samples, int num_kv_heads,
                          int group, int head_dim, float* importance, cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_QUERY_STATISTICS_KERNELS_H_
