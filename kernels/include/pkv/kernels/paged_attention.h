#ifndef PKV_KERNELS_PAGED_ATTENTION_H_
#define PKV_KERNELS_PAGED_ATTENTION_H_

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "pkv/block/object_header.h"
#include "pkv/kernels/codebook.h"
#include "pkv/kernels/compute_context.h"
#include "pkv/kernels/kv_tensor.h"

namespace pkv {

// One block of the sequence in one layer: its frame exactly as shipped. Does not own.
struct BlockPage {
  const ObjectHeader* header = nullptr;
  std::span<const std::byte> frame;
  const Codebook* codebook = nullptr;  // the bank its ids refer to; null without patterns
};

struct AttentionArgs {
  // [num_queries, num_qo_heads, head_dim] fp32, after RoPE. Query head h reads kv head h /
  // (num_qo_heads / num_kv_heads).
  const float* q = nullptr;
  int num_queries = 1;
  int num_qo_heads = 0;
  float sm_scale = 0;                // usually 1 / sqrt(head_dim)
  std::span<const BlockPage> pages;  // all before every query
  // fp16 tokens after the last page, the queries' own included: the last num_queries tokens are
  // theirs, and query i sees none later than its own. With num_tokens 0 every query sees all pages
  // and nothing else; num_kv_heads and head_dim are read all the same.
  KvTensorView window;
  float* out = nullptr;  // [num_queries, num_qo_heads, head_dim] fp32
  // Optional [num_queries, num_qo_heads]: log of the sum of exp, natural base.
  float* lse = nullptr;
};

// Attention of one layer over blocks, sinks and fp16 window, exact softmax.
//
// Nothing is dequantized to memory: scores are q . pattern + q . zero + (q * scale) . codes, values
// likewise (kernels/README.md, "Attend"). What meets codes is rounded to 16 bits, all else is fp32.
// No token at all: out is 0 and lse -infinity. Equal bits for any thread pool and instruction set.
//   InvalidArgument  head counts or head_dim disagree; num_qo_heads is no multiple of num_kv_heads
//   Unimplemented    ctx.device is kCuda: decode_attention.h has the GPU's
absl::Status PagedAttention(const AttentionArgs& args, const ComputeContext& ctx);

}  // namespace pkv

#endif  // PKV_KERNELS_PAGED_ATTENTION_H_
