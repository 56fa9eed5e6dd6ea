#ifndef PKV_KERNELS_PATTERN_PATTERN_BACKENDS_H_
#define PKV_KERNELS_PATTERN_PATTERN_BACKENDS_H_

#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/kernels/pattern_miner.h"

namespace pkv {

// What MinePatterns(), AssignPatterns() and AppendCentres() do with ctx.device kCuda: tensors are
// on the device, codebooks and assignments on the host, and the call waits for its result.
//   InvalidArgument     head_dim is not 64 or 128, or rows are not aligned to 16 bytes
//   FailedPrecondition  no CUDA device
//   ResourceExhausted   out of device memory
//   Unimplemented       a build without CUDA
//   Internal            a launch failed
absl::StatusOr<Codebook> MinePatternsCuda(const KvTensorView& kv, const CodecParams& params,
                                          const ComputeContext& ctx);
absl::StatusOr<PatternAssignment> AssignPatternsCuda(const KvTensorView& kv, int first_token,
                                                     const CodecParams& params,
                                                     const Codebook& codebook, Phase phase,
                                                     const ComputeContext& ctx);
// Appends where the flags say. REQUIRES: first_token < 128, and room in the codebook.
absl::Status AppendCentresCuda(const KvTensorView& kv, int first_token, bool append_k,
                               bool append_v, Codebook& codebook, const ComputeContext& ctx);

#ifndef PKV_WITH_CUDA
inline absl::Status NoCuda() {
  return absl::UnimplementedError("device CUDA: this build has no CUDA");
}
inline absl::StatusOr<Codebook> MinePatternsCuda(const KvTensorView&, const CodecParams&,
                                                 const ComputeContext&) {
  return NoCuda();
}
inline absl::StatusOr<PatternAssignment> AssignPatternsCuda(const KvTensorView&, int,
                                                            const CodecParams&, const Codebook&,
                                                            Phase, const ComputeContext&) {
  return NoCuda();
}
inline absl::Status AppendCentresCuda(const KvTensorView&, int, bool, bool, Codebook&,
                                      const ComputeContext&) {
  return NoCuda();
}
#endif

// 255 for every vector of a block.
PatternAssignment RawAssignment(int num_kv_heads);
AssignMetric AssignMetricFor(bool is_k, const CodecParams& params, Phase phase);
// The V gate of one kv head: sets the id of each row that does without its pattern to 255. `rows`
// is [ids.size()][head_dim] on the host. REQUIRES: every id is of a pattern.
void GateHead(const uint16_t* rows, std::span<const uint16_t> patterns, int head_dim,
              const CodecParams& params, std::span<uint8_t> ids);

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_PATTERN_BACKENDS_H_
