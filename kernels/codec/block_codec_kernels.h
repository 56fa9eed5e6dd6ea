#ifndef PKV_KERNELS_CODEC_BLOCK_CODEC_KERNELS_H_
#define PKV_KERNELS_CODEC_BLOCK_CODEC_KERNELS_H_

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#include "kernels/codec/head_sections.h"
#include "pkv/block/kv_shape.h"

namespace pkv {

// What the finite check reads and the decoder reads and writes. All pointers are on the device.
struct CodecKernelArgs {
  const HeadSections<std::byte>* frames = nullptr;  // [kv_head]; of the decoder
  Encoding encoding;
  int num_kv_heads = 0;
  int head_dim = 0;
  // [kv_head][num_patterns][head_dim] fp16; null without patterns.
  const uint16_t* k_patterns = nullptr;
  const uint16_t* v_patterns = nullptr;
  int num_k = 0, num_v = 0;
  // [kv_head][128][head_dim] fp16, heads head_stride elements apart. Input of the check, output of
  // the decoder.
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
cudaError_t LaunchDecode(const CodecKernelArgs& args, cudaStream_t stream);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_BLOCK_CODEC_KERNELS_H_
