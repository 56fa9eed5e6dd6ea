#ifndef PKV_KERNELS_QUERY_STATISTICS_H_
#define PKV_KERNELS_QUERY_STATISTICS_H_

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/kernels/compute_context.h"
#include "pkv/kernels/decode_attention.h"
#include "pkv/kernels/kv_tensor.h"
#include "pkv/kernels/layer_compressor.h"

namespace pkv {

struct QueryStatisticsShape {
  int num_qo_heads = 0;  // query head h reads kv head h / (num_qo_heads / num_kv_heads)
  int num_kv_heads = 0;
  int head_dim = 0;  // 64 or 128
  QueryType query_type = QueryType::kFloat16;
};

// The queries of one chunk in one layer, on the device.
struct QueryChunk {
  int64_t first_token = 0;  // position of query 0
  int num_queries = 0;
  // As PrefillAttentionArgs has them.
  const void* q = nullptr;
  int64_t q_stride = 0;
  // [num_queries][num_qo_heads], as PrefillAttention wrote them; null where nobody computes the
  // attention: ScoreSamples() finds what is needed.
  const float* lse = nullptr;
};

// What the encoder of one layer of a prompt needs to know of its queries, on the device: the sum of
// their second moments, for error feedback, and a sample of them, for the attention that each token
// received (kernels/README.md, "Error feedback" and "Arrange"). Which queries count is said by
// query_sample.h.
//
// Nothing waits for the host: calls enqueue on ctx.stream and return, and equal prompts give equal
// bits, however they are cut into chunks. Owns its results and scratch. Thread-compatible. Calls
// must follow each other on one stream, or on streams of which each waits for the one before.
class QueryStatistics {
 public:
  virtual ~QueryStatistics() = default;

  //   InvalidArgument     a shape that is not valid
  //   Unimplemented       a build without CUDA
  //   FailedPrecondition  no CUDA device, or one that is not of compute capability 9.0
  //   ResourceExhausted   out of device memory
  static absl::StatusOr<std::unique_ptr<QueryStatistics>> Make(const QueryStatisticsShape& shape,
                                                               const ComputeContext& ctx);

  // Forgets everything: what follows is a layer of a prompt whose queries stand at
  // [first_token, end).
  //   InvalidArgument    first_token is negative or past end, or end is past 2^31 - 1
  //   ResourceExhausted  out of device memory, which a longer prompt than those before may take
  virtual absl::Status Start(int64_t first_token, int64_t end, const ComputeContext& ctx) = 0;

  // Takes the queries of one chunk, which may be overwritten when the stream has passed this call.
  // Chunks come in order, without gaps. Copies alone, which take no multiprocessor.
  //   InvalidArgument  not what comes next, a missing or misaligned pointer, a stride that is too
  //                    short
  //   Internal         a copy failed
  virtual absl::Status Add(const QueryChunk& chunk, const ComputeContext& ctx) = 0;

  // Works on what was taken, in one launch. What follows needs it: FailedPrecondition before.
  //   FailedPrecondition  a chunk is missing
  //   Internal            the launch failed
  virtual absl::Status Sum(const ComputeContext& ctx) = 0;

  // Query vectors of each kv head that count in the moments (MomentSample).
  virtual int64_t num_vectors() const = 0;
  // What they weigh together.
  virtual int64_t moment_weight() const = 0;
  // [kv_head][head_dim][head_dim]: weighted sums of q q^T over those. Valid from Sum() to the next
  // one.
  virtual const float* moment_sums() const = 0;

  // Where a chunk came without lse: finds that of the sampled queries. kv holds the tokens from
  // position 0 to the last query, K neither rotated nor arranged; V is not read.
  //   InvalidArgument     kv of another shape or misaligned, or too short
  //   FailedPrecondition  all chunks came with lse
  //   Internal            a launch failed
  virtual absl::Status ScoreSamples(const KvTensorView& kv, const ComputeContext& ctx) = 0;

  // Writes what the tokens of kv, the first of which stands at position first_token, received of
  // attention from the sampled queries that came at least 128 positions after them: importance
  // [kv_head][kv.num_tokens] fp32, as LayerCompression takes it. K neither rotated nor arranged; V
  // is not read.
  //   InvalidArgument     kv of another shape or misaligned, missing pointer
  //   FailedPrecondition  a chunk came without lse, and ScoreSamples() was not called
  //   Internal            a launch failed
  virtual absl::Status Importance(const KvTensorView& kv, int64_t first_token, float* importance,
                                  const ComputeContext& ctx) = 0;

  // Makes key feedback of the moments, as MakeKeyFeedback() does of their mean, after
  // RotateMoments() when is_rotated; with `damping` the caller has taken shrinkage in (usually
  // feedback_damping + head_dim / num_vectors). The result is of this object, and holds until the
  // stream reaches the next call of Feedback(). Without any vectors: null pointers.
  //   InvalidArgument  damping is not above 0
  //   Internal         the launch failed
  virtual absl::StatusOr<DeviceKeyFeedback> Feedback(bool is_rotated, double damping,
                                                     const ComputeContext& ctx) = 0;
};

}  // namespace pkv

#endif  // PKV_KERNELS_QUERY_STATISTICS_H_
