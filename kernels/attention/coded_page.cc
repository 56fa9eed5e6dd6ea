#include "kernels/attention/coded_page.h"

#include <algorithm>

#include "kernels/attention/dense_rows.h"
#include "kernels/codec/codec_math.h"
#include "kernels/codec/float16_rows.h"

namespace pkv {
namespace {

constexpr int kTileRows = 16;
constexpr int kFirstFine = kBlockTokens - kFineTokens;

// out[i] = in[at[i]] as fp32.
void GatherFloat16(const Float16Bits* in, const uint8_t* at, int count, float* out) {
  Float16Bits placed[kBlockTokens];
  for (int i = 0; i < count; ++i) placed[i] = in[at[i]];
  ConvertToFloat(placed, count, out);
}

// The product of a code matrix, or some of its row tiles, with several vectors of one length.
struct VectorRows {
  const ByteOrder& order;
  const float* vectors;  // [count][stride], in byte order
  int stride, count;
};
struct RowTiles {
  const uint32_t* words;
  int first, last;
};
void AddProduct(const VectorRows& rows, const RowTiles& tiles, const float* scales,
                const float* zeros, CodeFactors& factors, float* out, int out_stride) {
  for (int first = 0; first < rows.count; first += CodeFactors::kMaxVectors) {
    const int count = std::min(CodeFactors::kMaxVectors, rows.count - first);
    const float* vectors = rows.vectors + static_cast<size_t>(first) * rows.stride;
    float offsets[CodeFactors::kMaxVectors];
    for (int i = 0; i < count; ++i) {
      offsets[i] = Dot(vectors + i * rows.stride, zeros, rows.order.num_columns);
    }
    MakeCodeFactors(rows.order, vectors, rows.stride, count, scales, &factors);
    MultiplyCodes(rows.order, tiles.words, tiles.first, tiles.last, factors, count, offsets,
                  out + static_cast<size_t>(first) * out_stride, out_stride);
  }
}

}  // namespace

CodedPage::CodedPage(const float* q, int num_rows, int head_dim)
    : q_(q), num_rows_(num_rows), head_dim_(head_dim) {}

const float* CodedPage::Place(const ByteOrder& order, PlacedQueries& queries) const {
  if (queries.order != &order) {
    queries.order = &order;
    queries.values.resize(static_cast<size_t>(num_rows_) * head_dim_);
    for (size_t at = 0; at < queries.values.size(); at += head_dim_) {
      order.Permute(q_ + at, queries.values.data() + at);
    }
  }
  return queries.values.data();
}

void CodedPage::AddScores(const HeadFrame<const std::byte>& frame, const PayloadLayout& layout,
                          float* scores) {
  const ByteOrder& order = ByteOrder::Of(head_dim_, layout.encoding.bits_k);
  const VectorRows rows = {order, Place(order, coarse_), head_dim_, num_rows_};
  const int num_coarse = kBlockTokens - layout.encoding.k_fine_tokens;
  for (int group = 0; group < layout.k_groups(); ++group) {
    const int at = group * head_dim_, begin = group * layout.encoding.k_group_tokens;
    const int end = std::min(begin + layout.encoding.k_group_tokens, num_coarse);
    GatherFloat16(frame.k_scales + at, order.stored_column.data(), head_dim_, scales_);
    GatherFloat16(frame.k_zeros + at, order.stored_column.data(), head_dim_, zeros_);
    AddProduct(rows, {frame.k_codes, begin / kTileRows, end / kTileRows}, scales_, zeros_, factors_,
               scores, kBlockTokens);
  }
  if (frame.k_fine_codes != nullptr) AddFineScores(frame, layout.k_groups() - 1, scores);
}

// The last row tile, on the finer grid of the last group: q . k = q . (zero - scale) + (q * scale /
// 3) . codes.
void CodedPage::AddFineScores(const HeadFrame<const std::byte>& frame, int group, float* scores) {
  const ByteOrder& order = ByteOrder::Of(head_dim_, kFineBits);
  const VectorRows rows = {order, Place(order, fine_), head_dim_, num_rows_};
  GatherFloat16(frame.k_scales + group * head_dim_, order.stored_column.data(), head_dim_, scales_);
  GatherFloat16(frame.k_zeros + group * head_dim_, order.stored_column.data(), head_dim_, zeros_);
  for (int i = 0; i < head_dim_; ++i) {
    const FineGrid fine = MakeFineGrid(scales_[i], zeros_[i]);
    scales_[i] = fine.step;
    zeros_[i] = fine.low;
  }
  AddProduct(rows, {frame.k_fine_codes, 0, 1}, scales_, zeros_, factors_, scores + kFirstFine,
             kBlockTokens);
}

void CodedPage::AddValues(const HeadFrame<const std::byte>& frame, const PayloadLayout& layout,
                          const float* weights, float* out) {
  const ByteOrder& order = ByteOrder::Of(kBlockTokens, layout.encoding.bits_v);
  placed_weights_.resize(static_cast<size_t>(num_rows_) * kBlockTokens);
  for (size_t at = 0; at < placed_weights_.size(); at += kBlockTokens) {
    order.Permute(weights + at, placed_weights_.data() + at);
  }
  const VectorRows rows = {order, placed_weights_.data(), kBlockTokens, num_rows_};
  const int group_tiles = layout.encoding.v_group_channels / kTileRows;
  for (int group = 0; group < layout.v_groups(); ++group) {
    const int at = group * kBlockTokens;
    GatherFloat16(frame.v_scales + at, order.stored_row.data(), kBlockTokens, scales_);
    GatherFloat16(frame.v_zeros + at, order.stored_column.data(), kBlockTokens, zeros_);
    AddProduct(rows, {frame.v_codes, group * group_tiles, (group + 1) * group_tiles}, scales_,
               zeros_, factors_, out, head_dim_);
  }
}

}  // namespace pkv
