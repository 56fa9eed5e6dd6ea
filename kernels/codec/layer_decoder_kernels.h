#ifndef PKV_KERNELS_CODEC_LAYER_DECODER_KERNELS_H_
#define PKV_KERNELS_CODEC_LAYER_DECODER_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "proto/base/host_device.h"
#include "proto/block/payload_layout.h"

namespace pkv {

// Blocks of one layer, and where their rows go. All pointers are on the device.
struct LayerDecodeArgs {
  PayloadLayout layout;  // offsets in a head, and the encoding
  int num_blocks = 0;    // at most 65,535
  int num_sinks = 0;     // of the first block; the others have none
  bool rotate = false;   // the rows, once they are fp16

  // The heads of block b are at pages + page * page_stride, page = page_ids[b], or b without them.
  // Aligned to 16 bytes, both.
  const std::byte* pages = nullptr;
  int64_t page_stride = 0;
  const int32_t* page_ids = nullptr;
  // fp16 rows of the sinks, K [num_sinks][head_dim] and then V a head. Aligned to 16 bytes.
  const uint16_t* sinks = nullptr;
  // Patterns of head h: k_patterns + h * k_bank_head_stride, rows of head_dim; null without.
  // Aligned to 16 bytes.
  const uint16_t* k_patterns = nullptr;
  const uint16_t* v_patterns = nullptr;
  int64_t k_bank_head_stride = 0, v_bank_head_stride = 0;

  // Slot s of block b and head h goes to k + h * head_stride + (128 b + s) * head_dim. Rows aligned
  // to 16 bytes.
  uint16_t* k = nullptr;
  uint16_t* v = nullptr;
  int64_t head_stride = 0;

  PKV_HOST_DEVICE int head_dim() const { return layout.head_dim; }
  PKV_HOST_DEVICE bool is_fp16() const { return layout.encoding.bits_k == 16; }
  PKV_HOST_DEVICE const std::byte* HeadOf(int block, int head) const {
    const int64_t page = page_ids == nullptr ? block : page_ids[block];
    return pages + page * page_stride + head * layout.head_bytes;
  }
};

cudaError_t LaunchLayerDecode(const LayerDecodeArgs& args, cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_LAYER_DECODER_KERNELS_H_
