#ifndef PKV_KERNELS_CODEC_BLOCK_CODEC_KERNELS_H_
#define PKV_KERNELS_CODEC_BLOCK_CODEC_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "kernels/codec/head_sections.h"
#include "pkv/block/kv_shape.h"

namespace pkv {

// What the encode and decode kernels read and write. All pointers are on the device.
struct CodecKernelArgs {
  const HeadSections<std::byte>* frames = nullptr;  // [kv_head]
  Encoding encoding;
  int num_kv_heads = 0;
  int head_dim = 0;
  int num_sinks = 0;
  // Encoder: shrink ratios tried, 1 for none; gain correction.
  int num_ratios_k = 1, num_ratios_v = 1;
  bool unbiased_k = false, unbiased_v = false;
  // [kv_head][num_patterns][head_dim] fp16; null without patterns.
  const uint16_t* k_patterns = nullptr;
  const uint16_t* v_patterns = nullptr;
  int num_k = 0, num_v = 0;
  // [kv_head][128]; null without patterns. Read by the encoder only.
  const uint8_t* k_ids = nullptr;
  const uint8_t* v_ids = nullptr;
  // KeyFeedback's order [kv_head][step] and weights [kv_head][step][earlier step]; null without.
  const uint8_t* k_order = nullptr;
  const float* k_weights = nullptr;
  // [kv_head][128][head_dim] fp16, heads head_stride elements apart. Input of the encoder, output
  // of the decoder.
  const uint16_t* k_in = nullptr;
  const uint16_t* v_in = nullptr;
  uint16_t* k_out = nullptr;
  uint16_t* v_out = nullptr;
  int64_t head_stride = 0;
};

// Index of the first value that is NaN or infinity: ((is_v * num_kv_heads + kv_head) * 128 + token)
// * head_dim + channel. `place` holds UINT64_MAX before and, when all are finite, after.
cudaError_t LaunchFiniteCheck(const CodecKernelArgs& args, unsigned long long* place,
                              cudaStream_t stream);
// Writes the frames, which are zero before.
cudaError_t LaunchEncode(const CodecKernelArgs& args, cudaStream_t stream);
cudaError_t LaunchDecode(const CodecKernelArgs& args, cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_BLOCK_CODEC_KERNELS_H_
