#ifndef PKV_KERNELS_CODEC_BLOCK_CODEC_BACKENDS_H_
#define PKV_KERNELS_CODEC_BLOCK_CODEC_BACKENDS_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/kernels/block_codec.h"

namespace pkv {

// Which loops the CPU encodes with. Bytes are equal: kPlain is what tests hold kSimd to.
enum class CodecLoops { kSimd, kPlain };

// What MakeBlockCodec() chooses from. REQUIRES: params are valid for shape.
std::unique_ptr<BlockCodec> MakeBlockCodecCpu(const KvShape& shape, const CodecParams& params,
                                              CodecLoops loops);
// FailedPrecondition: no CUDA device.
absl::StatusOr<std::unique_ptr<BlockCodec>> MakeBlockCodecCuda(const KvShape& shape,
                                                               const CodecParams& params);

// What Encode() refuses on every device, but for what stands in K and V themselves.
absl::Status CheckEncodeArguments(const KvShape& shape, const CodecParams& params,
                                  const ObjectHeader& header, const KvTensorView& kv,
                                  const PatternAssignment& assignment, const Codebook& codebook,
                                  std::span<const std::byte> frame);
absl::Status CheckDecodeArguments(const KvShape& shape, const CodecParams& params,
                                  const ObjectHeader& header, std::span<const std::byte> frame,
                                  const Codebook& codebook, const MutableKvTensorView& kv_out);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_BLOCK_CODEC_BACKENDS_H_
