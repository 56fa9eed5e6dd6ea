#ifndef PKV_KERNELS_LAYER_COMPRESSOR_H_
#define PKV_KERNELS_LAYER_COMPRESSOR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "pkv/block/kv_shape.h"
#include "pkv/kernels/codec_params.h"
#include "pkv/kernels/compute_context.h"
#include "pkv/kernels/kv_tensor.h"

namespace pkv {

// The patterns of one layer of one request on the device, as decode attention reads them
// (decode_attention.h): K [num_kv_heads][capacity][head_dim] fp16, then V. Aligned to 16 bytes. How
// many stand in it is known to the host. Does not own.
struct DeviceBank {
  uint16_t* patterns = nullptr;
  int capacity = 0;  // 0..255
  int num_k = 0, num_v = 0;
};

// KeyFeedback (key_feedback.h) on the device: order [kv_head][step], weights [kv_head][step]
// [earlier step], aligned to 16 bytes, scales [kv_head][step]. Null: every channel is rounded by
// itself.
struct DeviceKeyFeedback {
  const uint8_t* order = nullptr;
  const int8_t* weights = nullptr;
  const float* scales = nullptr;
};

// Ids chosen elsewhere, [kv_head][token] on the device, kv heads `head_stride` bytes apart: used as
// they are, 255 for raw vectors and sinks. Null: patterns are assigned here.
struct DevicePatternIds {
  const uint8_t* k = nullptr;
  const uint8_t* v = nullptr;
  int64_t head_stride = 0;
};

// One layer of a prompt, or of its part behind a stored prefix.
struct LayerCompression {
  // On the device, neither rotated nor arranged; rows aligned to 16 bytes. Its full blocks are
  // compressed; what stands behind them is mined only.
  KvTensorView kv;
  // The kv's first token stands at the start of the sequence: the variant's sinks are there.
  bool at_start = true;
  // Patterns are mined from kv into `bank`, which holds them when the stream has passed, and whose
  // counts are set on return. Else the bank is used as it is.
  bool mine = true;
  DeviceBank* bank = nullptr;  // of variants with patterns
  DevicePatternIds ids;
  DeviceKeyFeedback feedback;
  // What the tokens received of attention, [kv_head][num_tokens] fp32 on the device: decides which
  // have fine codes (block_slots.h); NaN counts as -infinity. Null: the last of each block. Unread
  // without fine codes.
  const float* importance = nullptr;
  // ctx.stream has a few multiprocessors of its own (an SmPartition), which are to do all but the
  // mining, whose clusters of thread blocks such a stream cannot launch.
  bool is_confined = false;
  // Optional, a cudaEvent_t: feedback and importance are there when it has passed. The stream waits
  // for it, no sooner than it needs them: mining and assigning need neither.
  void* queries_asked = nullptr;
  // Block b goes to pages + p * page_stride, p = page_ids[b] (on the device), or b without
  // page_ids: page_bytes of PayloadLayout::OfBlock, equal to the first bytes of its layer frame.
  // The stride is a multiple of 128 bytes, the pages aligned to 128.
  std::byte* pages = nullptr;
  int64_t page_stride = 0;
  const int32_t* page_ids = nullptr;
  // What the frame of a first block with sinks has behind its page: per kv head K [num_sinks]
  // [head_dim], then V, fp16. Aligned to 128 bytes.
  uint16_t* sinks = nullptr;
};

// One block that leaves a request's window while decoding; never the first of a sequence, which
// LayerCompression takes.
struct WindowFlush {
  KvTensorView kv;             // 128 tokens on the device, as in LayerCompression
  DeviceBank* bank = nullptr;  // centres are appended as AppendCentres() does; counts set on return
  DevicePatternIds ids;
  DeviceKeyFeedback feedback;
  const float* importance = nullptr;  // [kv_head][128], as in LayerCompression
  std::byte* page = nullptr;          // page_bytes, aligned to 128
  // Optional: what the frame has behind its page when patterns are appended: per kv head the K
  // pattern, if one is, then the V pattern, fp16 [head_dim].
  uint16_t* appended = nullptr;
  uint8_t append_flags = 0;  // set on return: kFlagAppends* of the block's header
};

// Compresses K and V of whole layers on a GPU: rotation, mining, assignment, gate, slots, encoding
// (kernels/README.md). Pages have the bytes that BlockCodec writes for the same ids, slots and
// feedback.
//
// Nothing waits for the host: calls enqueue and return, on ctx.stream and, of a layer, in part on a
// stream of their own that starts behind ctx.stream and that it waits for. Arguments on the device
// must live until the stream has passed. Owns scratch memory for one call at a time.
// Thread-compatible; calls of one object must follow each other on one stream, or on streams of
// which each waits for the one before.
class LayerCompressor {
 public:
  virtual ~LayerCompressor() = default;

  // For layers of up to `max_tokens` tokens.
  //   InvalidArgument     params are not valid for shape; max_tokens is below 128
  //   Unimplemented       a build without CUDA
  //   FailedPrecondition  no CUDA device
  //   ResourceExhausted   out of device memory
  static absl::StatusOr<std::unique_ptr<LayerCompressor>> Make(const KvShape& shape,
                                                               const CodecParams& params,
                                                               int max_tokens,
                                                               const ComputeContext& ctx);

  //   InvalidArgument  a shape differs, too many tokens, a missing pointer, a misaligned address or
  //                    stride, a bank that is too small
  //   Internal         a launch failed
  virtual absl::Status Compress(const LayerCompression& layer, const ComputeContext& ctx) = 0;
  // Many requests at once. Status as Compress().
  virtual absl::Status Flush(std::span<WindowFlush> flushes, const ComputeContext& ctx) = 0;

  // Waits for ctx.stream. InvalidArgument: a value of K or V was NaN or infinite in a call since
  // the last CheckFinite(); what these calls wrote is of no use.
  virtual absl::Status CheckFinite(const ComputeContext& ctx) = 0;
};

}  // namespace pkv

#endif  // PKV_KERNELS_LAYER_COMPRESSOR_H_
