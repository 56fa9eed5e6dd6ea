#ifndef PKV_KERNELS_CODEC_QUERY_STATISTICS_KERNELS_H_
#define PKV_KERNELS_CODEC_QUERY_STATISTICS_KERNELS_H_

#include <cuda_runtime_api.h>

#include <cstdint>

#include "pkv/kernels/query_sample.h"

namespace pkv {

// Row r of a kv head is query r / group, head r % group of its group. Aligned as PrefillAttention
// asks for.
struct QueryRows {
  const uint16_t* q = nullptr;
  int64_t q_stride = 0;
  int num_queries = 0, num_kv_heads = 0, group = 0, head_dim = 0;
  bool is_bfloat16 = false;
};

inline constexpr int kMomentTileRows = 32;

// Queries first, first + stride, .. of `queries`, `count` of them. Row r of a kv head is the
// r / group-th of them.
struct MomentRows {
  QueryRows queries;
  int first = 0, stride = 1, count = 0;

  int num_rows() const { return count * queries.group; }
};

// Adds `stride` times the sum of q q^T over the rows to sums [kv_head][head_dim][head_dim].
// `num_parts` CTAs a kv head sum up rows of their own; partials:
// [kv_head][num_parts][head_dim][head_dim] of scratch.
cudaError_t AddMoments(const MomentRows& rows, int num_parts, float* partials, float* sums,
                       cudaStream_t stream);

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

// Writes samples [begin, end), which are among `rows`, the first of which stands at first_token.
// lse: [num_queries][num_qo_heads]; null: SumScores() finds what belongs to the samples.
cudaError_t TakeSamples(const QueryRows& rows, const float* lse, int first_token, float score_scale,
                        int begin, int end, const QuerySampleRows& samples, cudaStream_t stream);

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
