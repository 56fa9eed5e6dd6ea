#ifndef PKV_KERNELS_DECODE_ATTENTION_H_
#define PKV_KERNELS_DECODE_ATTENTION_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/kv_shape.h"
#include "pkv/kernels/compute_context.h"

namespace pkv {

enum class QueryType { kFloat16, kBfloat16 };

// kTensorCore: the fused kernel. kCudaCore: its plain twin, for every encoding that there is and
// any number of query heads; for tests, and for what kTensorCore does not take.
enum class DecodeKernel { kTensorCore, kCudaCore };

// What is fixed for all launches of a DecodeAttention.
struct DecodeAttentionShape {
  int num_qo_heads = 0;  // query head h reads kv head h / (num_qo_heads / num_kv_heads)
  int num_kv_heads = 0;
  int head_dim = 0;
  Encoding encoding;  // of every page
  int num_sinks = 0;  // fp16 tokens of a request's first block (its slots [0, num_sinks))
  QueryType query_type = QueryType::kFloat16;
  DecodeKernel kernel = DecodeKernel::kTensorCore;
  // kTensorCore: a launch may begin while the kernel before it in the stream ends (programmatic
  // dependent launch; captured graphs keep it). REQUIRES: that kernel writes neither block tables
  // and lengths nor pages; what else `args` lead to it may write.
  bool overlaps_previous = false;
};

// One layer of one decode step: one query token for each of `batch` requests. All pointers are on
// the device. A captured CUDA graph holds this struct; what the pointers lead to may change between
// replays, the tables and lengths too.
//
// A request's tokens are those of its blocks, its window, and its new token, in this order; only
// the first block's sinks make the order of the block table matter.
struct DecodeAttentionArgs {
  int batch = 0;
  bool is_planned = false;  // by Plan()
  float sm_scale = 0;       // above 0, usually 1 / sqrt(head_dim)
  const void* q = nullptr;  // [batch, num_qo_heads, head_dim], after RoPE, query_type
  void* out = nullptr;      // the same shape and type
  float* lse = nullptr;     // optional [batch, num_qo_heads]: log of the sum of exp, natural base

  // Page p is at pages + p * page_stride: page_bytes of PayloadLayout::OfBlock, as shipped. Any
  // requests may share pages. The stride is a multiple of 128 bytes, the pool aligned to 128.
  const std::byte* pages = nullptr;
  int64_t page_stride = 0;
  const int32_t* block_table =
      nullptr;  // [batch, block_table_stride] pages; past num_blocks unread
  int block_table_stride = 0;
  const int32_t* num_blocks = nullptr;  // [batch]

  // fp16 windows: window w is at windows + w * window_stride elements, K [num_kv_heads]
  // [window_capacity][head_dim], then V. A request's tokens stand from the front.
  uint16_t* windows = nullptr;
  int64_t window_stride = 0;
  int window_capacity = 0;
  const int32_t* window_ids = nullptr;         // [batch]
  const int32_t* num_window_tokens = nullptr;  // [batch], the new token not counted

  // Optional [batch, num_kv_heads, head_dim] fp16: K and V of the token that q belongs to. It is
  // attended to, and written to the window behind the others, which must have room for it.
  const uint16_t* token_k = nullptr;
  const uint16_t* token_v = nullptr;

  // With num_sinks: sinks s is at sinks + s * sink_stride elements, per kv head K [num_sinks]
  // [head_dim], then V, as in the frame of block 0 (rotated when the encoding is).
  const uint16_t* sinks = nullptr;
  int64_t sink_stride = 0;
  const int32_t* sink_ids = nullptr;  // [batch]; unread for a request without blocks

  // With patterns: bank b is at banks + b * bank_stride elements, K [num_kv_heads][bank_capacity]
  // [head_dim] fp16, then V. Ids in pages refer to it; 255 means none.
  const uint16_t* banks = nullptr;
  int64_t bank_stride = 0;
  int bank_capacity = 0;                  // 0..255
  const int32_t* bank_ids = nullptr;      // [batch]
  const int32_t* num_patterns = nullptr;  // [batch][K, V]; at most bank_capacity
};

// Attention over paged blocks, sinks, fp16 window and new token in one launch, exact softmax, as
// PagedAttention() (kernels/README.md, "Attend"), on the shipped bytes.
//
// Split along tokens over the whole device by a plan that a kernel makes from the lengths, so no
// launch waits for the host; partial results merge in the order of tokens: equal inputs give equal
// bits. Owns the scratch memory of one launch at a time. Thread-compatible; launches of one object
// must follow each other on one stream.
class DecodeAttention {
 public:
  virtual ~DecodeAttention() = default;

  //   InvalidArgument     head counts, head_dim, encoding or num_sinks are not valid together
  //   Unimplemented       a build without CUDA; kTensorCore for more than 8 query heads a kv head,
  //                       for K and V of different bits, or for fine K codes with several groups
  //   FailedPrecondition  no CUDA device; kTensorCore on one that is not of compute capability 9.0
  static absl::StatusOr<std::unique_ptr<DecodeAttention>> Make(const DecodeAttentionShape& shape,
                                                               const ComputeContext& ctx);

  // Enqueues on ctx.stream the plan of launches to come, which else each makes for itself: those
  // with is_planned, with equal batch, lengths, block table and bank_capacity, and with a new token
  // if these have one, as of the layers of one decode step. Valid until the next Plan(). A captured
  // graph replays it as any launch. REQUIRES: a kernel that does not overlap its predecessor comes
  // before the first of them.
  //   as Run()
  virtual absl::Status Plan(const DecodeAttentionArgs& args, const ComputeContext& ctx) = 0;

  // Enqueues the launch on ctx.stream and returns. A request without tokens gets 0, and -infinity
  // as lse. What the device arrays hold is not checked: lengths must be within the capacities, and
  // ids and pages within the pools.
  //   InvalidArgument  a missing pointer, a misaligned pool, a stride that is too short, a
  //                    negative batch, or an sm_scale that is not finite and above 0
  //   FailedPrecondition  is_planned, and Plan() was never called
  //   Internal         the launch failed
  virtual absl::Status Run(const DecodeAttentionArgs& args, const ComputeContext& ctx) = 0;
};

}  // namespace pkv

#endif  // PKV_KERNELS_DECODE_ATTENTION_H_
