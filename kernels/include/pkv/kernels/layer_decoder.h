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

// Blocks of one layer of one sequence, from its start, all on the device.
struct LayerDecode {
  // Block b is page_bytes at pages + p * page_stride, p = page_ids[b] (on the device), or b without
  // page_ids, as LayerCompression writes them.
  const std::byte* pages = nullptr;
  int64_t page_stride = 0;
  const int32_t* page_ids = nullptr;
  int num_blocks = 0;
  const uint16_t* sinks = nullptr;   // of variants with sinks: those of the first block
  const DeviceBank* bank = nullptr;  // of variants with patterns
  // Takes 128 num_blocks tokens: K and V as fp16, not rotated, a block's tokens in the order of its
  // slots (block_slots.h): which that was is not stored. Rows aligned to 16 bytes.
  MutableKvTensorView out;
};

// Decodes blocks into K and V for a prefill that goes on behind a cached prefix: its queries attend
// to all of these tokens, so their order within a block does not matter. Decoding needs no such
// copy (decode_attention.h).
//
// Thread-safe; nothing waits for the host.
class LayerDecoder {
 public:
  virtual ~LayerDecoder() = default;

  //   InvalidArgument     params are not valid for shape
  //   Unimplemented       a build without CUDA
  //   FailedPrecondition  no CUDA device
  static absl::StatusOr<std::unique_ptr<LayerDecoder>> Make(const KvShape& shape,
                                                            const CodecParams& params,
                                                            const ComputeContext& ctx);

  // Enqueues on ctx.stream and returns; values equal BlockCodec::Decode's, rotated back where the
  // encoding rotates.
  //   InvalidArgument  a shape differs, a missing pointer, a misaligned address or stride
  //   Internal         the launch failed
  virtual absl::Status Decode(const LayerDecode& layer, const ComputeContext& ctx) const = 0;
};

}  // namespace pkv

#endif  // PKV_KERNELS_LAYER_DECODER_H_
