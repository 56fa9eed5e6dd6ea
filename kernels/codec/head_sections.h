#ifndef PKV_KERNELS_CODEC_HEAD_SECTIONS_H_
#define PKV_KERNELS_CODEC_HEAD_SECTIONS_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "proto/base/float16.h"

namespace pkv {

// The sections of one kv head of a block's layer frame, as typed pointers (BLOCK_FORMAT.md, "Layer
// frame"). Byte is std::byte or const std::byte. Points into a frame aligned to 4 bytes at least.
template <typename Byte>
struct HeadSections {
  template <typename T>
  using Pointer = std::conditional_t<std::is_const_v<Byte>, const T*, T*>;

  // Quantized blocks; null for fp16.
  Pointer<uint32_t> k_codes = nullptr;
  Pointer<uint32_t> k_fine_codes = nullptr;  // of the last k_fine_tokens slots; null without
  Pointer<uint32_t> v_codes = nullptr;
  Pointer<Float16Bits> k_scales = nullptr;  // [k_groups][head_dim in column order]
  Pointer<Float16Bits> k_zeros = nullptr;
  Pointer<Float16Bits> v_scales = nullptr;  // [v_groups][128 tokens in row order]
  Pointer<Float16Bits> v_zeros = nullptr;   // [v_groups][128 tokens in column order]
  Pointer<uint8_t> k_ids = nullptr;         // [128 in row order]; null without patterns
  Pointer<uint8_t> v_ids = nullptr;         // [128 in column order]; null without patterns
  // Sinks [num_sinks][head_dim]; for an fp16 block all 128 tokens.
  Pointer<Float16Bits> k_rows = nullptr;
  Pointer<Float16Bits> v_rows = nullptr;
  int num_rows = 0;
  // One pattern [head_dim] each, or null.
  Pointer<Float16Bits> k_appended = nullptr;
  Pointer<Float16Bits> v_appended = nullptr;
};

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_HEAD_SECTIONS_H_
