#ifndef PKV_KERNELS_ATTENTION_PREFILL_ATTENTION_KERNELS_H_
#define PKV_KERNELS_ATTENTION_PREFILL_ATTENTION_KERNELS_H_

#include <cuda.h>

#include <cstdint>

namespace pkv {

inline constexpr int kPrefillTileRows = 128;    // rows of a CTA: query vectors of one kv head
inline constexpr int kPrefillTileTokens = 128;  // keys of a step
inline constexpr int kPrefillThreads = 384;     // a warpgroup that copies, two that compute

// One launch. Row r of a kv head is query r / group, head r % group of its group.
struct PrefillLaunch {
  CUtensorMap k, v;  // [kv_head][token][head_dim], boxes of 128 tokens and 64 channels
  const uint16_t* q = nullptr;
  uint16_t* out = nullptr;
  float* lse = nullptr;
  int64_t q_stride = 0, out_stride = 0;
  int num_queries = 0, first_token = 0;  // position of query 0
  int num_kv_heads = 0, group = 0;
  float score_scale = 0;  // sm_scale / ln 2
  bool is_q_bfloat16 = false, is_out_bfloat16 = false;

  int num_rows() const { return num_queries * group; }
};

struct PrefillKernel {
  const void* kernel = nullptr;
  int shared_bytes = 0;
};

// REQUIRES: head_dim is 64 or 128
PrefillKernel FindPrefillKernel(int head_dim);

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_PREFILL_ATTENTION_KERNELS_H_
