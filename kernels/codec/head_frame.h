#ifndef PKV_KERNELS_CODEC_HEAD_FRAME_H_
#define PKV_KERNELS_CODEC_HEAD_FRAME_H_

#include <cstdint>

#include "kernels/codec/head_sections.h"
#include "pkv/block/object_header.h"
#include "proto/block/fragment_order.h"
#include "proto/block/payload_layout.h"

namespace pkv {

// The sections of one kv head, found by its layout.
template <typename Byte>
struct HeadFrame : HeadSections<Byte> {
  template <typename T>
  using Pointer = typename HeadSections<Byte>::template Pointer<T>;

  HeadFrame(const ObjectHeader& header, const PayloadLayout& layout, Byte* frame, int kv_head) {
    const int head_dim = layout.head_dim;
    Byte* head = frame + kv_head * layout.head_bytes;
    if (layout.encoding.is_fp16()) {
      SetRows(At<Float16Bits>(head, 0), kBlockTokens, head_dim);
      return;
    }
    this->k_codes = At<uint32_t>(head, layout.k_codes);
    if (layout.encoding.k_fine_tokens > 0) {
      this->k_fine_codes = At<uint32_t>(head, layout.k_fine_codes);
    }
    this->v_codes = At<uint32_t>(head, layout.v_codes);
    this->k_scales = At<Float16Bits>(head, layout.k_scales);
    this->k_zeros = At<Float16Bits>(head, layout.k_zeros);
    this->v_scales = At<Float16Bits>(head, layout.v_scales);
    this->v_zeros = At<Float16Bits>(head, layout.v_zeros);
    if (layout.encoding.has_patterns) {
      this->k_ids = At<uint8_t>(head, layout.k_ids);
      this->v_ids = At<uint8_t>(head, layout.v_ids);
    }
    if (layout.num_sinks > 0) {
      SetRows(At<Float16Bits>(frame, layout.sinks + kv_head * layout.sink_head_bytes),
              layout.num_sinks, head_dim);
    }
    auto* appended = At<Float16Bits>(frame, layout.appended + kv_head * layout.appended_head_bytes);
    if ((header.flags & kFlagAppendsK) != 0) {
      this->k_appended = appended;
      appended += head_dim;
    }
    if ((header.flags & kFlagAppendsV) != 0) this->v_appended = appended;
  }

 private:
  template <typename T>
  static Pointer<T> At(Byte* base, int64_t offset) {
    return reinterpret_cast<Pointer<T>>(base + offset);
  }
  void SetRows(Pointer<Float16Bits> rows, int count, int head_dim) {
    this->k_rows = rows;
    this->v_rows = rows + static_cast<int64_t>(count) * head_dim;
    this->num_rows = count;
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
