#ifndef PKV_TESTS_SUPPORT_CODED_HEAD_H_
#define PKV_TESTS_SUPPORT_CODED_HEAD_H_

// Single values of an encoded frame, straight from BLOCK_FORMAT.md: no loop of the library.

#include <cmath>
#include <span>

#include "kernels/codec/codec_math.h"
#include "kernels/codec/head_frame.h"
#include "pkv/kernels/codebook.h"

namespace pkv {

struct CodedValue {
  bool is_exact = false;      // a sink, or a value of an fp16 block: `zero` is it
  bool is_fine = false;       // the code stands on the finer grid
  float scale = 0, zero = 0;  // as stored
  float code = 0;
  float pattern = 0;
  int bits = 0;

  // The residual that the code stands for.
  float Residual() const {
    if (!is_fine) return DequantizeOne(code, scale, zero);
    const FineGrid fine = MakeFineGrid(scale, zero);
    return DequantizeOne(code, fine.step, fine.low);
  }
  // What a code is multiplied by; 0 when there is none.
  float step() const {
    if (is_exact) return 0;
    return is_fine ? MakeFineGrid(scale, zero).step : scale;
  }
  // Sum of the magnitudes of what is added up to the value: step max_code + |low| + |pattern|.
  double Magnitude() const {
    const double sum = double{std::abs(zero)} + std::abs(pattern);
    if (is_exact) return sum;
    if (!is_fine) return double{scale} * MaxCode(bits) + sum;
    const FineGrid fine = MakeFineGrid(scale, zero);
    return double{fine.step} * MaxCode(kFineBits) + std::abs(fine.low) + std::abs(pattern);
  }
};

class CodedHead {
 public:
  // `codebook` is read for blocks with patterns only.
  CodedHead(const ObjectHeader& header, std::span<const std::byte> frame, const Codebook* codebook,
            int kv_head)
      : layout_(PayloadLayout::Of(header)),
        frame_(header, layout_, frame.data(), kv_head),
        codebook_(codebook),
        kv_head_(kv_head) {}

  CodedValue K(int slot, int channel) const {
    const int d = layout_.head_dim, num_coarse = kBlockTokens - layout_.encoding.k_fine_tokens;
    if (slot < frame_.num_rows) return Exact(frame_.k_rows[slot * d + channel]);
    const int params_at = slot / layout_.encoding.k_group_tokens * d + ColumnPosition(channel, d);
    CodedValue value;
    value.bits = layout_.encoding.bits_k;
    value.is_fine = slot >= num_coarse;
    value.scale = Float16ToFloat(frame_.k_scales[params_at]);
    value.zero = Float16ToFloat(frame_.k_zeros[params_at]);
    value.code = value.is_fine ? Code(frame_.k_fine_codes, slot - num_coarse, channel, d, kFineBits)
                               : Code(frame_.k_codes, slot, channel, d, value.bits);
    if (frame_.k_ids != nullptr) {
      value.pattern =
          Pattern(codebook_->k(kv_head_), frame_.k_ids[RowPosition(slot, kBlockTokens)], channel);
    }
    return value;
  }

  CodedValue V(int slot, int channel) const {
    const int d = layout_.head_dim;
    if (slot < frame_.num_rows) return Exact(frame_.v_rows[slot * d + channel]);
    const int first = channel / layout_.encoding.v_group_channels * kBlockTokens;
    CodedValue value;
    value.bits = layout_.encoding.bits_v;
    value.scale = Float16ToFloat(frame_.v_scales[first + RowPosition(slot, kBlockTokens)]);
    value.zero = Float16ToFloat(frame_.v_zeros[first + ColumnPosition(slot, kBlockTokens)]);
    value.code = Code(frame_.v_codes, channel, slot, kBlockTokens, value.bits);
    if (frame_.v_ids != nullptr) {
      value.pattern = Pattern(codebook_->v(kv_head_),
                              frame_.v_ids[ColumnPosition(slot, kBlockTokens)], channel);
    }
    return value;
  }

  CodedValue Value(bool is_k, int slot, int channel) const {
    return is_k ? K(slot, channel) : V(slot, channel);
  }

 private:
  static CodedValue Exact(uint16_t bits) {
    CodedValue value;
    value.is_exact = true;
    value.zero = Float16ToFloat(bits);
    return value;
  }
  static float Code(const uint32_t* words, int row, int column, int columns, int bits) {
    const CodePosition at = LocateCode(row, column, columns, bits);
    return static_cast<float>((words[at.word_index] >> at.shift) & ((1u << bits) - 1));
  }
  float Pattern(std::span<const uint16_t> patterns, int id, int channel) const {
    if (id == kRawPatternId) return 0;
    return Float16ToFloat(patterns[static_cast<size_t>(id) * layout_.head_dim + channel]);
  }

  PayloadLayout layout_;
  HeadFrame<const std::byte> frame_;
  const Codebook* codebook_;
  int kv_head_;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_CODED_HEAD_H_
