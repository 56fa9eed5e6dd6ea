#ifndef PKV_KERNELS_PATTERN_MINER_H_
#define PKV_KERNELS_PATTERN_MINER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "pkv/kernels/codebook.h"
#include "pkv/kernels/codec_params.h"
#include "pkv/kernels/compute_context.h"
#include "pkv/kernels/key_feedback.h"
#include "pkv/kernels/kv_tensor.h"

namespace pkv {

// Mines the patterns of one layer from its prompt: K-means per (kv head, K or V), squared L2, as
// PatternKV (arXiv:2510.05176) does at prefill.
//
// Deterministic: starts from tokens at equal strides, sums in token order, gives equal bits with
// any thread pool and any vector width. Of more than 2,304 tokens, as many at equal strides are
// mined. An empty cluster restarts at the token farthest from its centroid. With fewer tokens than
// patterns, fewer are mined (min(M, tokens)); with none, an empty codebook.
//
// Device kCuda: kv is on the device, the call waits for the codebook. The same rules, in other
// arithmetic (kernels/README.md, "Mine"): deterministic, but not the bits of the CPU.
//
//   kv   [num_kv_heads, num_tokens, head_dim] fp16, without the sink tokens
//   InvalidArgument     NaN or infinity in kv (names kv head, token, channel and K or V); on the
//                       device, head_dim is not 64 or 128, or rows are not aligned to 16 bytes
//   FailedPrecondition  no CUDA device
//   ResourceExhausted   out of device memory
//   Unimplemented       kCuda in a build without CUDA
//   Internal            the device failed
absl::StatusOr<Codebook> MinePatterns(const KvTensorView& kv, const CodecParams& params,
                                      const ComputeContext& ctx);

enum class Phase { kPrefill, kDecode };

// What is chosen about one block of one layer before it is encoded.
struct PatternAssignment {
  // Pattern ids, [kv_head][slot]; 255 = raw.
  std::vector<uint8_t> k, v;
  // For params with feedback_k; null: every channel is rounded by itself.
  std::shared_ptr<const KeyFeedback> feedback;
};

// Chooses a pattern for every vector: nearest by the phase's metric, ties to the lowest id; then
// the V gate. Tokens below `first_token` (sinks) get 255. With an empty codebook everything is 255.
//
// Device kCuda: kv is on the device, the call waits for the ids. Min-max gives the ids of the CPU;
// L2, but where two patterns are as near but for rounding.
//
//   kv   [num_kv_heads, 128, head_dim] fp16
// Fails on the device alone, as MinePatterns(), but for NaN and infinity: they are not looked for.
absl::StatusOr<PatternAssignment> AssignPatterns(const KvTensorView& kv, int first_token,
                                                 const CodecParams& params,
                                                 const Codebook& codebook, Phase phase,
                                                 const ComputeContext& ctx);

// Appends to `codebook` what a block flushed while decoding introduces: the Chebyshev centre (max +
// min) / 2 of each channel over tokens [first_token, 128), K and V as params.append_k / append_v
// say, unless 255 patterns stand there already. Returns the kFlagAppends* bits of what was added.
// Device kCuda: kv is on the device; equal bits. Fails as AssignPatterns().
absl::StatusOr<uint8_t> AppendCentres(const KvTensorView& kv, int first_token,
                                      const CodecParams& params, Codebook& codebook,
                                      const ComputeContext& ctx);

// The largest accepted ratio R_flat / R_raw of PatternKV's V gate (kernels/README.md): 0.91155 for
// head_dim 128, alpha 0.05.
double GateThreshold(int head_dim, double alpha);

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_MINER_H_
