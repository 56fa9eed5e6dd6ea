// The codec in the order of the equations: what the vectorized loops (head_encoder_simd.h) and the
// CUDA codec must equal byte for byte.

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "kernels/codec/block_codec_backends.h"
#include "kernels/codec/group_quantizer.h"
#include "kernels/codec/head_encoder_simd.h"
#include "kernels/codec/head_frame.h"
#include "kernels/codec/head_source.h"
#include "kernels/codec/key_encoder.h"
#include "kernels/pattern/finite_check.h"
#include "proto/base/status_macros.h"
#include "proto/base/thread_pool.h"

namespace pkv {
namespace {

using MutableHeadFrame = HeadFrame<std::byte>;

// One K group: slots [begin, end), the last `num_fine` of them on the finer grid.
void EncodeKGroup(const HeadSource& k, int begin, int end, int num_fine, const CodecParams& params,
                  const KeyFeedback* feedback, int kv_head, const MutableHeadFrame& frame) {
  const int d = k.head_dim, count = end - begin;
  std::vector<float> row(d), residuals(static_cast<size_t>(count) * d);
  for (int i = 0; i < count; ++i) {
    k.Residual(begin + i, row.data());
    for (int j = 0; j < d; ++j) residuals[static_cast<size_t>(j) * count + i] = row[j];
  }
  const KeyGroup group = {count - num_fine, num_fine};
  const KeyGroupCodes coded = EncodeKeyGroup(residuals, d, group, params, feedback, kv_head);
  const int params_at = begin / params.encoding.k_group_tokens * d;
  const CodeMap map(kBlockTokens, d, params.encoding.bits_k), fine_map(kFineTokens, d, kFineBits);
  for (int j = 0; j < d; ++j) {
    frame.k_scales[params_at + ColumnPosition(j, d)] = coded.params[j].scale;
    frame.k_zeros[params_at + ColumnPosition(j, d)] = coded.params[j].zero;
    const uint8_t* codes = coded.codes.data() + static_cast<size_t>(j) * count;
    for (int i = 0; i < group.num_coarse; ++i) {
      frame.k_codes[map.row_word[begin + i] + map.column_word[j]] |= uint32_t{codes[i]}
                                                                     << map.column_shift[j];
    }
    for (int i = group.num_coarse; i < count; ++i) {
      const int row_in_tile = begin + i - (kBlockTokens - kFineTokens);
      frame.k_fine_codes[fine_map.row_word[row_in_tile] + fine_map.column_word[j]] |=
          uint32_t{codes[i]} << fine_map.column_shift[j];
    }
  }
}

void EncodeK(const HeadSource& k, const CodecParams& params, const KeyFeedback* feedback,
             int kv_head, const MutableHeadFrame& frame) {
  const int group_tokens = params.encoding.k_group_tokens;
  for (int begin = 0; begin < kBlockTokens; begin += group_tokens) {
    const int end = begin + group_tokens;
    if (end <= k.first_token) continue;  // sinks only: stays zero
    const int num_fine = end == kBlockTokens ? params.encoding.k_fine_tokens : 0;
    EncodeKGroup(k, std::max(begin, k.first_token), end, num_fine, params, feedback, kv_head,
                 frame);
  }
  if (k.ids == nullptr) return;
  for (int t = 0; t < kBlockTokens; ++t) frame.k_ids[RowPosition(t, kBlockTokens)] = k.ids[t];
}

void EncodeV(const HeadSource& v, const CodecParams& codec_params, const MutableHeadFrame& frame) {
  const Encoding& encoding = codec_params.encoding;
  const int d = v.head_dim, num_groups = d / encoding.v_group_channels;
  const CodeMap map(d, kBlockTokens, encoding.bits_v);
  std::vector<float> residual(d), scale(d), zero(d);
  std::vector<GroupParams> params(num_groups);
  std::array<uint8_t, kBlockTokens> codes;
  for (int t = v.first_token; t < kBlockTokens; ++t) {
    v.Residual(t, residual.data());
    ChooseGroups(residual.data(), d, encoding.v_group_channels, encoding.bits_v,
                 codec_params.clip_v, /*with_error=*/false, params.data());
    for (int group = 0; group < num_groups; ++group) {
      const auto first = group * encoding.v_group_channels;
      const GroupValues values = {residual.data() + first, encoding.v_group_channels,
                                  encoding.bits_v};
      const GroupParams stored =
          codec_params.unbiased_v ? CorrectGain(values, params[group]) : params[group];
      frame.v_scales[group * kBlockTokens + RowPosition(t, kBlockTokens)] = stored.scale;
      frame.v_zeros[group * kBlockTokens + ColumnPosition(t, kBlockTokens)] = stored.zero;
      std::fill_n(scale.begin() + first, encoding.v_group_channels,
                  Float16ToFloat(params[group].scale));
      std::fill_n(zero.begin() + first, encoding.v_group_channels,
                  Float16ToFloat(params[group].zero));
    }
    QuantizeRow(residual.data(), scale.data(), zero.data(), d, encoding.bits_v, codes.data());
    for (int j = 0; j < d; ++j) {
      frame.v_codes[map.row_word[j] + map.column_word[t]] |= uint32_t{codes[j]}
                                                             << map.column_shift[t];
    }
  }
  if (v.ids == nullptr) return;
  for (int t = 0; t < kBlockTokens; ++t) frame.v_ids[ColumnPosition(t, kBlockTokens)] = v.ids[t];
}

// The fp16 sections: sinks or, in an fp16 block, everything; then appended patterns.
void CopyRows(const KvTensorView& kv, int kv_head, const Codebook& codebook,
              const MutableHeadFrame& frame) {
  const size_t bytes = static_cast<size_t>(frame.num_rows) * kv.head_dim * sizeof(Float16Bits);
  if (bytes > 0) {
    std::memcpy(frame.k_rows, kv.k_row(kv_head, 0), bytes);
    std::memcpy(frame.v_rows, kv.v_row(kv_head, 0), bytes);
  }
  if (frame.k_appended != nullptr) {
    const auto last = codebook.k(kv_head).last(kv.head_dim);
    std::copy(last.begin(), last.end(), frame.k_appended);
  }
  if (frame.v_appended != nullptr) {
    const auto last = codebook.v(kv_head).last(kv.head_dim);
    std::copy(last.begin(), last.end(), frame.v_appended);
  }
}

// Thread-safe (immutable).
class BlockCodecCpu final : public BlockCodec {
 public:
  BlockCodecCpu(const KvShape& shape, const CodecParams& params, CodecLoops loops)
      : shape_(shape), params_(params), loops_(loops) {}

  absl::Status Encode(const ObjectHeader& header, const KvTensorView& kv,
                      const PatternAssignment& assignment, const Codebook& codebook,
                      const ComputeContext& ctx, std::span<std::byte> frame) const override {
    PKV_RETURN_IF_ERROR(
        CheckEncodeArguments(shape_, params_, header, kv, assignment, codebook, frame));
    PKV_RETURN_IF_ERROR(CheckFinite(kv, ctx.pool));
    std::memset(frame.data(), 0, frame.size());
    const PayloadLayout layout = PayloadLayout::Of(header);
    ParallelFor(ctx.pool, shape_.num_kv_heads, [&](int head) {
      const MutableHeadFrame head_frame(header, layout, frame.data(), head);
      CopyRows(kv, head, codebook, head_frame);
      if (params_.encoding.is_fp16()) return;
      HeadSource k = {kv.k_row(head, 0), shape_.head_dim, header.num_sinks, {}};
      HeadSource v = {kv.v_row(head, 0), shape_.head_dim, header.num_sinks, {}};
      if (params_.encoding.has_patterns) {
        k.patterns = codebook.k(head);
        v.patterns = codebook.v(head);
        k.ids = assignment.k.data() + static_cast<size_t>(head) * kBlockTokens;
        v.ids = assignment.v.data() + static_cast<size_t>(head) * kBlockTokens;
      }
      if (loops_ == CodecLoops::kPlain) {
        EncodeK(k, params_, assignment.feedback.get(), head, head_frame);
        EncodeV(v, params_, head_frame);
      } else {
        EncodeKSimd(k, params_, assignment.feedback.get(), head, head_frame);
        EncodeVSimd(v, params_, head_frame);
      }
    });
    return absl::OkStatus();
  }

  absl::Status Decode(const ObjectHeader& header, std::span<const std::byte> frame,
                      const Codebook& codebook, const ComputeContext& ctx,
                      const MutableKvTensorView& kv_out) const override {
    PKV_RETURN_IF_ERROR(CheckDecodeArguments(shape_, params_, header, frame, codebook, kv_out));
    const int count = kBlockTokens * shape_.head_dim;
    ParallelFor(ctx.pool, shape_.num_kv_heads, [&](int head) {
      std::vector<float> tile(count);
      const int64_t at = head * kv_out.head_stride;
      DequantizeKTile(header, frame, codebook, head, tile.data());
      std::transform(tile.begin(), tile.end(), kv_out.k + at, ToFiniteFloat16);
      DequantizeVTile(header, frame, codebook, head, tile.data());
      std::transform(tile.begin(), tile.end(), kv_out.v + at, ToFiniteFloat16);
    });
    return absl::OkStatus();
  }

 private:
  const KvShape shape_;
  const CodecParams params_;
  const CodecLoops loops_;
};

}  // namespace

std::unique_ptr<BlockCodec> MakeBlockCodecCpu(const KvShape& shape, const CodecParams& params,
                                              CodecLoops loops) {
  return std::make_unique<BlockCodecCpu>(shape, params, loops);
}

}  // namespace pkv
