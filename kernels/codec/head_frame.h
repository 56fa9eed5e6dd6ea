#ifndef PKV_KERNELS_CODEC_HEAD_FRAME_H_
#define PKV_KERNELS_CODEC_HEAD_FRAME_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "pkv/block/object_header.h"
#include "proto/base/float16.h"
#include "proto/block/fragment_order.h"
#include "proto/block/payload_layout.h"

namespace pkv {

// The sections of one kv head of a block's layer frame, as typed pointers (BLOCK_FORMAT.md, "Layer
// frame"). Byte is std::byte or const std::byte. Points into a frame aligned to 4 bytes at least.
template <typename Byte>
struct HeadFrame {
  template <typename T>
  using Pointer = std::conditional_t<std::is_const_v<Byte>, const T*, T*>;

  // Quantized blocks; null for fp16.
  Pointer<uint32_t> k_codes = nullptr;
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

  HeadFrame(const ObjectHeader& header, const PayloadLayout& layout, Byte* frame, int kv_head) {
    const int head_dim = layout.head_dim;
    Byte* head = frame + kv_head * layout.head_bytes;
    if (layout.encoding.is_fp16()) {
      SetRows(At<Float16Bits>(head, 0), kBlockTokens, head_dim);
      return;
    }
    k_codes = At<uint32_t>(head, layout.k_codes);
    v_codes = At<uint32_t>(head, layout.v_codes);
    k_scales = At<Float16Bits>(head, layout.k_scales);
    k_zeros = At<Float16Bits>(head, layout.k_zeros);
    v_scales = At<Float16Bits>(head, layout.v_scales);
    v_zeros = At<Float16Bits>(head, layout.v_zeros);
    if (layout.encoding.has_patterns) {
      k_ids = At<uint8_t>(head, layout.k_ids);
      v_ids = At<uint8_t>(head, layout.v_ids);
    }
    if (layout.num_sinks > 0) {
      SetRows(At<Float16Bits>(frame, layout.sinks + kv_head * layout.sink_head_bytes),
              layout.num_sinks, head_dim);
    }
    auto* appended = At<Float16Bits>(frame, layout.appended + kv_head * layout.appended_head_bytes);
    if ((header.flags & kFlagAppendsK) != 0) {
      k_appended = appended;
      appended += head_dim;
    }
    if ((header.flags & kFlagAppendsV) != 0) v_appended = appended;
  }

 private:
  template <typename T>
  static Pointer<T> At(Byte* base, int64_t offset) {
    return reinterpret_cast<Pointer<T>>(base + offset);
  }
  void SetRows(Pointer<Float16Bits> rows, int count, int head_dim) {
    k_rows = rows;
    v_rows = rows + static_cast<int64_t>(count) * head_dim;
    num_rows = count;
  }
};

// LocateCode() of a whole matrix of `columns` columns: the word index is the sum of a term of the
// row and a term of the column, and the shift depends on the column alone.
struct CodeMap {
  int row_word[kBlockTokens];
  int column_word[kBlockTokens];
  int column_shift[kBlockTokens];

  CodeMap(int rows, int columns, int bits) {
    for (int row = 0; row < rows; ++row) {
      row_word[row] = LocateCode(row, 0, columns, bits).word_index;
    }
    for (int column = 0; column < columns; ++column) {
      const CodePosition position = LocateCode(0, column, columns, bits);
      column_word[column] = position.word_index;
      column_shift[column] = position.shift;
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_HEAD_FRAME_H_
