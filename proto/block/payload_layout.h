#ifndef PKV_PROTO_BLOCK_PAYLOAD_LAYOUT_H_
#define PKV_PROTO_BLOCK_PAYLOAD_LAYOUT_H_

#include <cstdint>

#include "pkv/block/kv_shape.h"

namespace pkv {

struct ObjectHeader;

// Byte offsets inside the frames of one header (BLOCK_FORMAT.md, "Layer frame"). Trivially
// copyable, for kernels.
//
// Quantized block frame:
//   num_kv_heads heads of head_bytes, each
//     K codes | K fine codes | V codes | K scales | K zero points | V scales | V zero points |
//     K pattern ids | V pattern ids
//   then, in block 0 with sinks:       per head { K fp16 [num_sinks][head_dim], V the same }
//   then, when patterns are appended:  per head { K pattern fp16 [head_dim] if kFlagAppendsK,
//                                                 V likewise }
// fp16 block frame:  per head { K fp16 [128][head_dim], V the same }
// window frame:      per head { K fp16 [num_tokens][head_dim], V the same }
// table frame:       per head { K fp16 [num_patterns_k][head_dim],
//                               V fp16 [num_patterns_v][head_dim] }
// All padded with zeros to 128 bytes at the end of the frame.
//
// Rows are slots; slot i holds token i unless K has fine codes (BLOCK_FORMAT.md, "Slots").
// K codes: slots [0, 128 - k_fine_tokens); K fine codes: the others, as a matrix of their own.
// K scales and zero points: fp16 [128 / k_group_tokens][head_dim in column order].
// V scales: fp16 [head_dim / v_group_channels][128 slots in row order]; V zero points: the same in
// column order. K pattern ids: u8 [128 slots in row order]; V pattern ids: u8 [128 slots in
// column order].
struct PayloadLayout {
  int num_kv_heads = 0;
  int head_dim = 0;
  Encoding encoding;
  int num_sinks = 0;
  // Offsets within one head.
  int64_t k_codes = 0, k_fine_codes = 0, v_codes = 0, k_scales = 0, k_zeros = 0, v_scales = 0,
          v_zeros = 0, k_ids = 0, v_ids = 0;
  int64_t head_bytes = 0;  // stride of heads; for windows and tables, bytes of one head
  int64_t page_bytes = 0;  // num_kv_heads * head_bytes: what one page of a decode pool holds
  int64_t sinks = 0;       // offset in the frame; sink_head_bytes a head, K then V
  int64_t sink_head_bytes = 0;
  int64_t appended = 0;  // offset in the frame; appended_head_bytes a head, K then V
  int64_t appended_head_bytes = 0;
  int64_t frame_bytes = 0;

  int k_groups() const { return encoding.is_fp16() ? 0 : kBlockTokens / encoding.k_group_tokens; }
  int v_groups() const { return encoding.is_fp16() ? 0 : head_dim / encoding.v_group_channels; }

  // REQUIRES: every field of `header` that enters is within its limits (ComputeObjectSizes has
  // accepted it).
  static PayloadLayout Of(const ObjectHeader& header);
  // Of a block of `shape` and `encoding` without sinks and appended patterns: what head_bytes and
  // page_bytes need.
  static PayloadLayout OfBlock(const KvShape& shape, const Encoding& encoding);
};

}  // namespace pkv

#endif  // PKV_PROTO_BLOCK_PAYLOAD_LAYOUT_H_
