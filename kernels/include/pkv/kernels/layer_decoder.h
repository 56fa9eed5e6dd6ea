#ifndef PKV_KERNELS_LAYER_DECODER_H_
#define PKV_KERNELS_LAYER_DECODER_H_

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/kv_shape.h"
#include "pkv/kernels/codec_params.h"
#include "pkv/kernels/compute_context.h"
#include "pkv/kernels/kv_tensor.h"
#include "pkv/kernels/layer_compressor.h"

namespace pkv {

// Blocks of one call: 8,388,480 tokens.
inline constexpr int kMaxDecodedBlocks = 65535;

// Blocks of one layer of one sequence, from its start, all on the device. Everything must live
// until the stream has passed, but for `bank` itself, which is read before Decode() returns.
struct LayerDecode {
  // Block b is page_bytes at pages + p * page_stride, p = page_ids[b] (on the device), or b without
  // page_ids, as LayerCompression writes them. The stride is a multiple of 128 bytes, the pages
  // aligned to 128.
  const std::byte* pages = nullptr;
  int64_t page_stride = 0;
  const int32_t* page_ids = nullptr;
  int num_blocks = 0;  // 0..kMaxDecodedBlocks; 0 writes nothing
  // Of variants with sinks: those of the first block, as LayerCompression writes them. Aligned to
  // 128 bytes.
  const uint16_t* sinks = nullptr;
  // Of variants with patterns. REQUIRES: it holds every pattern that the blocks' ids name, those
  // included that later blocks appended; the counts are not read.
  const DeviceBank* bank = nullptr;
  // Takes 128 num_blocks tokens: K and V as fp16, not rotated, a block's tokens in the order of its
  // slots (block_slots.h): which that was is not stored. Rows aligned to 16 bytes. What stands
  // between heads is left alone.
  MutableKvTensorView out;
};

// Decodes blocks into K and V for a prefill that goes on behind a cached prefix: its queries attend
// to all of these tokens, so their order within a block does not matter. Decoding needs no such
// copy (decode_attention.h).
//
// One launch on ctx.stream; nothing is allocated, nothing waits for the host. Thread-safe
// (immutable).
class LayerDecoder {
 public:
  virtual ~LayerDecoder() = default;

  //   InvalidArgument     params are not valid for shape
  //   Unimplemented       a build without CUDA
  //   FailedPrecondition  no CUDA device
  static absl::StatusOr<std::unique_ptr<LayerDecoder>> Make(const KvShape& shape,
                                                            const CodecParams& params,
                                                            const ComputeContext& ctx);

  // Enqueues on ctx.stream and returns. Rows have the bits of BlockCodec::Decode on the CPU and,
  // where the encoding rotates, of RotateFloat16Rows() (rotation.h) behind it, which undoes the
  // rotation up to its rounding.
  //   InvalidArgument  a shape differs, too many blocks, a missing pointer, a misaligned address or
  //                    stride
  //   Internal         the launch failed
  virtual absl::Status Decode(const LayerDecode& layer, const ComputeContext& ctx) const = 0;
};

}  // namespace pkv

#endif  // PKV_KERNELS_LAYER_DECODER_H_
