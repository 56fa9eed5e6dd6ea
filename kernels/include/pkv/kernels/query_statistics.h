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
  int num_layers = 0;
  int num_qo_heads = 0;  // query head h reads kv head h / (num_qo_heads / num_kv_heads)
  int num_kv_heads = 0;
  int head_dim = 0;  // 64 or 128
  QueryType query_type = QueryType::kFloat16;
};

// The queries of one chunk in one layer, on the device.
struct QueryChunk {
  int layer = 0;
  int64_t first_token = 0;  // position of query 0
  int num_queries = 0;
  // As PrefillAttentionArgs has them.
  const void* q = nullptr;
  int64_t q_stride = 0;
  // [num_queries][num_qo_heads], as PrefillAttention wrote them; null where nobody computes the
  // attention: ScoreSamples() finds what is needed.
  const float* lse = nullptr;
};

// What the encoder of one prompt needs to know of its queries, on the device: the sums of their
// second moments, for error feedback, and a sample of them, for the attention that each token
// received (kernels/README.md, "Error feedback" and "Arrange"). The sample is that of
// query_sample.h.
//
// Nothing waits for the host: calls enqueue on ctx.stream and return, and equal inputs give equal
// bits. Owns its results and scratch. Thread-compatible. Start() and Add() must follow each other
// on one stream, and so must ScoreSamples(), Importance() and Feedback(); where the latter is
// another stream, it waits for the layer's last Add(), and the next Start() waits for it.
class QueryStatistics {
 public:
  virtual ~QueryStatistics() = default;

  //   InvalidArgument     a shape that is not valid
  //   Unimplemented       a build without CUDA
  //   FailedPrecondition  no CUDA device, or one that is not of compute capability 9.0
  //   ResourceExhausted   out of device memory
  static absl::StatusOr<std::unique_ptr<QueryStatistics>> Make(const QueryStatisticsShape& shape,
                                                               const ComputeContext& ctx);

  // Forgets everything: what follows is a prompt whose queries stand at [first_token, end).
  //   InvalidArgument  first_token is negative or past end, or end is past 2^31 - 1
  virtual absl::Status Start(int64_t first_token, int64_t end, const ComputeContext& ctx) = 0;

  // Takes the queries of one chunk in one layer. A layer's chunks come in order, without gaps.
  //   InvalidArgument  not what follows in this layer, a missing or misaligned pointer, a stride
  //                    that is too short
  //   Internal         a launch failed
  virtual absl::Status Add(const QueryChunk& chunk, const ComputeContext& ctx) = 0;

  // Query vectors of each kv head so far that count in its moments (MomentSample).
  virtual int64_t num_vectors(int layer) const = 0;
  // What they weigh together.
  virtual int64_t moment_weight(int layer) const = 0;
  // [kv_head][head_dim][head_dim]: weighted sums of q q^T over those, in the order of calls. Valid
  // until the next call of Start().
  virtual const float* moment_sums(int layer) const = 0;

  // Of a layer of which a chunk came without lse: finds that of the sampled queries. kv holds the
  // tokens from position 0 to the layer's last query, K neither rotated nor arranged; V is not
  // read. REQUIRES: the layer's last chunk was added.
  //   InvalidArgument     kv of another shape or misaligned, or too short
  //   FailedPrecondition  all chunks came with lse
  //   Internal            a launch failed
  virtual absl::Status ScoreSamples(int layer, const KvTensorView& kv,
                                    const ComputeContext& ctx) = 0;

  // Writes what the tokens of kv, the first of which stands at position first_token, received of
  // attention from the sampled queries that came at least 128 positions after them: importance
  // [kv_head][kv.num_tokens] fp32, as LayerCompression takes it. K neither rotated nor arranged; V
  // is not read. REQUIRES: the layer's last chunk was added.
  //   InvalidArgument     kv of another shape or misaligned, missing pointer
  //   FailedPrecondition  a chunk came without lse, and ScoreSamples() was not called
  //   Internal            a launch failed
  virtual absl::Status Importance(int layer, const KvTensorView& kv, int64_t first_token,
                                  float* importance, const ComputeContext& ctx) = 0;

  // Makes key feedback of the moments so far, as MakeKeyFeedback() does of their mean, after
  // RotateMoments() when is_rotated; with `damping` the caller has taken shrinkage in (usually
  // feedback_damping + head_dim / num_vectors). The result is of this object, and holds until the
  // stream reaches the next call of Feedback(). Without any vectors: null pointers.
  //   InvalidArgument  damping is not above 0
  //   Internal         the launch failed
  virtual absl::StatusOr<DeviceKeyFeedback> Feedback(int layer, bool is_rotated, double damping,
                                                     const ComputeContext& ctx) = 0;
};

}  // namespace pkv

#endif  // PKV_KERNELS_QUERY_STATISTICS_H_
