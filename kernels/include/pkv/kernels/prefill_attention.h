#ifndef PKV_KERNELS_PREFILL_ATTENTION_H_
#define PKV_KERNELS_PREFILL_ATTENTION_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/kernels/compute_context.h"
#include "pkv/kernels/decode_attention.h"
#include "pkv/kernels/kv_tensor.h"

namespace pkv {

// What is fixed for all launches of a PrefillAttention.
struct PrefillAttentionShape {
  int num_qo_heads = 0;  // query head h reads kv head h / (num_qo_heads / num_kv_heads)
  int num_kv_heads = 0;
  int head_dim = 0;                             // 64 or 128
  QueryType query_type = QueryType::kFloat16;   // of q
  QueryType output_type = QueryType::kFloat16;  // of out
};

// One layer of a chunk of one prompt: its last `num_queries` tokens so far attend to all of its
// tokens so far. All pointers are on the device.
struct PrefillAttentionArgs {
  int num_queries = 0;
  float sm_scale = 0;  // above 0, usually 1 / sqrt(head_dim)
  // [num_queries][num_qo_heads][head_dim] after RoPE; queries are q_stride elements apart, so that
  // q may be a part of wider rows. Aligned to 16 bytes, the stride a multiple of 8.
  const void* q = nullptr;
  int64_t q_stride = 0;
  // Keys and values of all tokens so far, those of the queries included and last: query i sees
  // tokens [0, kv.num_tokens - num_queries + i]. What stands behind the last token of a head is
  // not read. Aligned to 16 bytes, head_stride a multiple of 8.
  KvTensorView kv;
  void* out = nullptr;  // as q, out_stride apart
  int64_t out_stride = 0;
  float* lse =
      nullptr;  // optional [num_queries][num_qo_heads]: log of the sum of exp, natural base
};

// Exact causal softmax attention in one launch, on tensor cores (FlashAttention-3,
// arXiv:2407.08608, sections 3.1 and 3.2; kernels/README.md, "Prefill on a GPU"). Equal inputs give
// equal bits, and a query's result does not depend on how its prompt is cut into chunks. A query
// that is not finite gives a row of NaN. A CTA has 128 query vectors:
// num_queries * num_qo_heads below 128 times the device's multiprocessors leave some of them idle.
//
// Thread-safe.
class PrefillAttention {
 public:
  virtual ~PrefillAttention() = default;

  //   InvalidArgument     head counts or head_dim are not valid
  //   Unimplemented       a build without CUDA
  //   FailedPrecondition  no CUDA device, or one that is not of compute capability 9.0
  static absl::StatusOr<std::unique_ptr<PrefillAttention>> Make(const PrefillAttentionShape& shape,
                                                                const ComputeContext& ctx);

  // Enqueues the launch on ctx.stream and returns; what args point to must live until the stream
  // has passed. No queries: nothing to do.
  //   InvalidArgument  a missing pointer, a misaligned one, a stride that is too short, a kv of
  //                    another shape or of fewer tokens than queries, an sm_scale that is not
  //                    finite and above 0
  //   Internal         the launch failed
  virtual absl::Status Run(const PrefillAttentionArgs& args, const ComputeContext& ctx) const = 0;
};

}  // namespace pkv

#endif  // PKV_KERNELS_PREFILL_ATTENTION_H_
