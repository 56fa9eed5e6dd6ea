#include <algorithm>
#include <vector>

#include "kernels/codec/codec_math.h"
#include "kernels/codec/float16_rows.h"
#include "kernels/codec/head_frame.h"
#include "kernels/device/cpu_clones.h"
#include "pkv/kernels/block_codec.h"

namespace pkv {
namespace {

using ConstHeadFrame = HeadFrame<const std::byte>;

PKV_CPU_CLONES void AddRow(const float* pattern, int count, float* row) {
  for (int j = 0; j < count; ++j) row[j] = row[j] + pattern[j];
}

// Adds to each row its pattern. `id_of(token)` gives the id.
template <typename IdOf>
void AddPatterns(std::span<const uint16_t> patterns, int head_dim, const IdOf& id_of, float* tile) {
  std::vector<float> values(patterns.size());
  ConvertToFloat(patterns.data(), static_cast<int>(patterns.size()), values.data());
  for (int t = 0; t < kBlockTokens; ++t) {
    const int id = id_of(t);
    if (id == kRawPatternId) continue;
    AddRow(values.data() + static_cast<size_t>(id) * head_dim, head_dim,
           tile + static_cast<size_t>(t) * head_dim);
  }
}

// Codes of one row of a code matrix, in column order. The shifts of a row's words come from a
// table, so that this is the same loop for both widths.
PKV_CPU_CLONES void UnpackRow(const uint32_t* words, const int* column_word,
                              const int* column_shift, int columns, uint32_t mask, float* codes) {
  for (int c = 0; c < columns; ++c) {
    const uint32_t code = (words[column_word[c]] >> column_shift[c]) & mask;
    codes[c] = static_cast<float>(static_cast<int32_t>(code));
  }
}

PKV_CPU_CLONES void ScaleRow(const float* scales, const float* zeros, int count, float* row) {
  for (int j = 0; j < count; ++j) row[j] = DequantizeOne(row[j], scales[j], zeros[j]);
}

void DequantizeK(const ConstHeadFrame& frame, const PayloadLayout& layout, float* tile) {
  const int d = layout.head_dim, bits = layout.encoding.bits_k;
  const int group_tokens = layout.encoding.k_group_tokens;
  const int num_coarse = kBlockTokens - layout.encoding.k_fine_tokens;
  const CodeMap map(kBlockTokens, d, bits), fine_map(kFineTokens, d, kFineBits);
  std::vector<float> scales(d), zeros(d);
  for (int t = 0; t < kBlockTokens; ++t) {
    if (t % group_tokens == 0) {
      const int first = t / group_tokens * d;
      for (int j = 0; j < d; ++j) {
        scales[j] = Float16ToFloat(frame.k_scales[first + ColumnPosition(j, d)]);
        zeros[j] = Float16ToFloat(frame.k_zeros[first + ColumnPosition(j, d)]);
      }
    }
    float* row = tile + static_cast<size_t>(t) * d;
    if (t == num_coarse) {
      for (int j = 0; j < d; ++j) {
        const FineGrid fine = MakeFineGrid(scales[j], zeros[j]);
        scales[j] = fine.step;
        zeros[j] = fine.low;
      }
    }
    if (t < num_coarse) {
      UnpackRow(frame.k_codes + map.row_word[t], map.column_word, map.column_shift, d,
                (1u << bits) - 1, row);
    } else {
      UnpackRow(frame.k_fine_codes + fine_map.row_word[t - num_coarse], fine_map.column_word,
                fine_map.column_shift, d, (1u << kFineBits) - 1, row);
    }
    ScaleRow(scales.data(), zeros.data(), d, row);
  }
}

void DequantizeV(const ConstHeadFrame& frame, const PayloadLayout& layout, float* tile) {
  const int d = layout.head_dim, bits = layout.encoding.bits_v;
  const int group_channels = layout.encoding.v_group_channels;
  const CodeMap map(d, kBlockTokens, bits);
  std::vector<float> scales(kBlockTokens), zeros(kBlockTokens), row(kBlockTokens);
  for (int j = 0; j < d; ++j) {
    if (j % group_channels == 0) {
      const int first = j / group_channels * kBlockTokens;
      for (int t = 0; t < kBlockTokens; ++t) {
        scales[t] = Float16ToFloat(frame.v_scales[first + RowPosition(t, kBlockTokens)]);
        zeros[t] = Float16ToFloat(frame.v_zeros[first + ColumnPosition(t, kBlockTokens)]);
      }
    }
    UnpackRow(frame.v_codes + map.row_word[j], map.column_word, map.column_shift, kBlockTokens,
              (1u << bits) - 1, row.data());
    ScaleRow(scales.data(), zeros.data(), kBlockTokens, row.data());
    for (int t = 0; t < kBlockTokens; ++t) tile[static_cast<size_t>(t) * d + j] = row[t];
  }
}

}  // namespace

void DequantizeKTile(const ObjectHeader& header, std::span<const std::byte> frame,
                     const Codebook& codebook, int kv_head, float* tile) {
  const PayloadLayout layout = PayloadLayout::Of(header);
  const ConstHeadFrame head(header, layout, frame.data(), kv_head);
  if (head.k_codes != nullptr) DequantizeK(head, layout, tile);
  if (head.k_ids != nullptr) {
    AddPatterns(
        codebook.k(kv_head), layout.head_dim,
        [&](int t) { return head.k_ids[RowPosition(t, kBlockTokens)]; }, tile);
  }
  ConvertToFloat(head.k_rows, head.num_rows * layout.head_dim, tile);
}

void DequantizeVTile(const ObjectHeader& header, std::span<const std::byte> frame,
                     const Codebook& codebook, int kv_head, float* tile) {
  const PayloadLayout layout = PayloadLayout::Of(header);
  const ConstHeadFrame head(header, layout, frame.data(), kv_head);
  if (head.v_codes != nullptr) DequantizeV(head, layout, tile);
  if (head.v_ids != nullptr) {
    AddPatterns(
        codebook.v(kv_head), layout.head_dim,
        [&](int t) { return head.v_ids[ColumnPosition(t, kBlockTokens)]; }, tile);
  }
  ConvertToFloat(head.v_rows, head.num_rows * layout.head_dim, tile);
}

}  // namespace pkv
