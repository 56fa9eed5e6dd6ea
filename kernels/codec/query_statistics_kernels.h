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

// Two numbers of a sampled row that make an exponent of its product with a key: product * scale -
// lse, in log2.
struct SampleTerms {
  float scale = 0, lse = 0;
};
// Sampled rows of a kv head as products take them: fp16 times a power of two of their own
// (prefill_attention_kernels.cu), in panels of 64 columns (wgmma.cuh). A row is a head of a
// sample's group; rows are in order of position.
inline constexpr int kSampleTileRows = 64;
template <int kHeadDim>
struct SampleTile {
  alignas(16) char q[kSampleTileRows * kHeadDim * 2];
  SampleTerms terms[kSampleTileRows];
  int32_t positions[kSampleTileRows];
};
static_assert(sizeof(SampleTile<128>) == 16384 + 512 + 256);
constexpr size_t SampleTileBytes(int head_dim) {
  return head_dim == 64 ? sizeof(SampleTile<64>) : sizeof(SampleTile<128>);
}

struct QuerySampleRows {
  int num_samples = 0;  // in positions
  int num_tiles = 0;    // of a kv head that there is room for: kMaxSamples * group rows
  int32_t positions[QuerySample::kMaxSamples];
  void* tiles = nullptr;  // [kv_head][num_tiles], SampleTile
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

// importance: [kv_head][num_tokens]. num_sms: of the device.
cudaError_t SumImportance(const SampledKeys& keys, const QuerySampleRows& samples, int num_kv_heads,
                          int group, int head_dim, int num_sms, float* importance,
                          cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_QUERY_STATISTICS_KERNELS_H_
