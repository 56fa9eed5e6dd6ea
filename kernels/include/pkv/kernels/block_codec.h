#ifndef PKV_KERNELS_BLOCK_CODEC_H_
#define PKV_KERNELS_BLOCK_CODEC_H_

#include <cstddef>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/object_header.h"
#include "pkv/kernels/codebook.h"
#include "pkv/kernels/codec_params.h"
#include "pkv/kernels/compute_context.h"
#include "pkv/kernels/kv_tensor.h"
#include "pkv/kernels/pattern_miner.h"

namespace pkv {

// Encodes K and V of one layer of one block into a layer frame and back.
//
// Given equal input and equal assignment, the CPU and CUDA codecs write equal bytes
// (BLOCK_FORMAT.md, "Rounding"). Residual to the pattern, then asymmetric group quantization with
// codes computed from the stored scale and zero point. PatternKV (arXiv:2510.05176); per-channel K
// and per-token V groups as in KIVI (arXiv:2402.02750).
//
// Thread-safe (immutable).
class BlockCodec {
 public:
  virtual ~BlockCodec() = default;

  // Encodes one layer frame. All pointers are on the codec's device.
  //   kv          [num_kv_heads, 128, head_dim] fp16, slot by slot (block_slots.h) and, for a
  //               rotated encoding, rotated (rotation.h); for an fp16 variant it is copied
  //   assignment  ids into `codebook`, 255 = raw, ignored for variants without patterns; feedback,
  //               its weights finite, ignored for fp16
  //   header      geometry; num_sinks > 0 stores tokens [0, num_sinks) as fp16 and leaves their
  //               codes, scales and zero points 0 and their ids 255; kFlagAppends* stores the last
  //               pattern(s) of `codebook`
  //   frame       header.frame_bytes bytes, 128-byte aligned
  // InvalidArgument     a shape, the feedback's too, differs from the header's; an id or a channel
  //                     is out of range; NaN or infinity in kv (names the place)
  virtual absl::Status Encode(const ObjectHeader& header, const KvTensorView& kv,
                              const PatternAssignment& assignment, const Codebook& codebook,
                              const ComputeContext& ctx, std::span<std::byte> frame) const = 0;

  // Inverse of Encode, rounded to fp16: for tests, evaluation and `pkvctl inspect`; slots and
  // rotation as Encode took them. For every value that was not clipped, of variants without
  // feedback and gain correction, |decoded - original| <= scale / 2 + the rounding of scale, zero
  // point and result; kernels/README.md, "Error bounds", has the others.
  // InvalidArgument     a shape differs from the header's; on CUDA, rows of kv_out are not aligned
  //                     to 16 bytes
  virtual absl::Status Decode(const ObjectHeader& header, std::span<const std::byte> frame,
                              const Codebook& codebook, const ComputeContext& ctx,
                              const MutableKvTensorView& kv_out) const = 0;
};

//   InvalidArgument     params are not valid for shape
//   Unimplemented       kCuda in a build without CUDA
//   FailedPrecondition  kCuda without a CUDA device
absl::StatusOr<std::unique_ptr<BlockCodec>> MakeBlockCodec(const KvShape& shape,
                                                           const CodecParams& params,
                                                           Device device);

// Dequantizes one kv head of one layer frame into fp32 [128][head_dim], patterns added: the tile an
// attention loop keeps in cache. Slots below header.num_sinks come from the stored fp16. Any
// variant; a rotated one stays rotated. No checks: the frame was verified.
void DequantizeKTile(const ObjectHeader& header, std::span<const std::byte> frame,
                     const Codebook& codebook, int kv_head, float* tile);
void DequantizeVTile(const ObjectHeader& header, std::span<const std::byte> frame,
                     const Codebook& codebook, int kv_head, float* tile);

}  // namespace pkv

#endif  // PKV_KERNELS_BLOCK_CODEC_H_
