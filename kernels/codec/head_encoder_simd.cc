#include "kernels/codec/head_encoder_simd.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/codec/byte_order.h"
#include "kernels/codec/code_pack_simd.h"
#include "kernels/codec/group_fit_simd.h"
#include "kernels/codec/key_encoder.h"
#include "kernels/codec/key_feedback_math.h"

namespace pkv {
namespace {

constexpr int kTileRows = 16;

// One K group: slots [begin, begin + group.num_slots()). What channel j's slots hold stands at
// [j][128]: residuals from the group's first slot on, codes from the block's.
struct KeyGroupPlace {
  KeyGroup group;
  int begin;
  const float* residuals;
  uint8_t* codes;
};

// Codes one channel; in `errors` comes decoded less original where it is wanted.
GroupParams EncodeChannel(const KeyGroupPlace& place, int channel, const float* targets,
                          const CodecParams& params, float* errors) {
  const GroupRule rule = {.bits = params.encoding.bits_k,
                          .num_ratios = NumKeyRatios(params),
                          .unbiased = params.unbiased_k};
  const int num_coarse = place.group.num_coarse, num_fine = place.group.num_fine;
  // Groups are fitted in whole vectors: more is written than there are codes.
  uint8_t codes[kBlockTokens];
  const GroupFit fit = FitGroup(targets, num_coarse, rule, codes);
  const float scale = Float16ToFloat(fit.stored.scale), zero = Float16ToFloat(fit.stored.zero);
  const FineGrid fine = MakeFineGrid(scale, zero);
  uint8_t fine_codes[kFineTokens];
  if (num_fine > 0) QuantizeFine(targets + num_coarse, fine, fine_codes);
  if (errors != nullptr) {
    const float* originals = place.residuals + channel * kBlockTokens;
    DecodedErrors(codes, originals, num_coarse, scale, zero, errors);
    if (num_fine > 0) {
      DecodedErrors(fine_codes, originals + num_coarse, num_fine, fine.step, fine.low,
                    errors + num_coarse);
    }
  }
  uint8_t* out = place.codes + channel * kBlockTokens + place.begin;
  std::copy_n(codes, num_coarse, out);
  std::copy_n(fine_codes, num_fine, out + num_coarse);
  return fit.stored;
}

void EncodeKeyGroupSimd(const KeyGroupPlace& place, int head_dim, const CodecParams& params,
                        const KeyFeedback* feedback, int kv_head, GroupParams* out) {
  if (feedback == nullptr) {
    for (int channel = 0; channel < head_dim; ++channel) {
      out[channel] =
          EncodeChannel(place, channel, place.residuals + channel * kBlockTokens, params, nullptr);
    }
    return;
  }
  const int num_slots = place.group.num_slots();
  float largest = 0;
  for (int channel = 0; channel < head_dim; ++channel) {
    const float* x = place.residuals + channel * kBlockTokens;
    for (int i = 0; i < num_slots; ++i) largest = std::max(largest, std::abs(x[i]));
  }
  const ErrorUnit unit = ErrorUnitFor(ToFiniteFloat16(largest));
  std::vector<ErrorPair> counted(static_cast<size_t>(head_dim) / 2 * kBlockTokens);
  float target[kBlockTokens], errors[kBlockTokens] = {};
  for (int step = 0; step < head_dim; ++step) {
    const int channel = feedback->order_of(kv_head)[step];
    SubtractFeedback(place.residuals + channel * kBlockTokens,
                     feedback->weights_of(kv_head).data() + step * head_dim, counted.data(),
                     step / kFeedbackRun * kFeedbackRun,
                     unit.value * feedback->scales_of(kv_head)[step], target);
    out[channel] = EncodeChannel(place, channel, target, params, errors);
    CountErrors(errors, unit.inverse, step, counted.data());
  }
}

}  // namespace

void EncodeKSimd(const HeadSource& k, const CodecParams& params, const KeyFeedback* feedback,
                 int kv_head, const HeadFrame<std::byte>& frame) {
  const int d = k.head_dim, group_tokens = params.encoding.k_group_tokens;
  const size_t size = static_cast<size_t>(d) * kBlockTokens;
  std::vector<float> rows(size), residuals(size);
  std::vector<uint8_t> codes(size);
  std::vector<GroupParams> group_params(d);
  for (int begin = 0; begin < kBlockTokens; begin += group_tokens) {
    const int end = begin + group_tokens, first = std::max(begin, k.first_token);
    if (first >= end) continue;  // sinks only: stays zero
    const int num_fine = end == kBlockTokens ? params.encoding.k_fine_tokens : 0;
    for (int slot = first; slot < end; ++slot) {
      k.Residual(slot, rows.data() + static_cast<size_t>(slot - first) * d);
    }
    TransposeRows(rows.data(), end - first, d, residuals.data());
    const KeyGroupPlace place = {
        {end - first - num_fine, num_fine}, first, residuals.data(), codes.data()};
    EncodeKeyGroupSimd(place, d, params, feedback, kv_head, group_params.data());
    const int params_at = begin / group_tokens * d;
    for (int j = 0; j < d; ++j) {
      frame.k_scales[params_at + ColumnPosition(j, d)] = group_params[j].scale;
      frame.k_zeros[params_at + ColumnPosition(j, d)] = group_params[j].zero;
    }
  }
  const int num_coarse = kBlockTokens - params.encoding.k_fine_tokens;
  PackCodes(ByteOrder::Of(d, params.encoding.bits_k), codes.data(), num_coarse / kTileRows,
            frame.k_codes);
  if (params.encoding.k_fine_tokens > 0) {
    PackCodes(ByteOrder::Of(d, kFineBits), codes.data() + num_coarse, 1, frame.k_fine_codes);
  }
  if (k.ids == nullptr) return;
  for (int t = 0; t < kBlockTokens; ++t) frame.k_ids[RowPosition(t, kBlockTokens)] = k.ids[t];
}

void EncodeVSimd(const HeadSource& v, const CodecParams& params,
                 const HeadFrame<std::byte>& frame) {
  const Encoding& encoding = params.encoding;
  const int d = v.head_dim, group_channels = encoding.v_group_channels;
  const GroupRule rule = {.bits = encoding.bits_v,
                          .num_ratios = params.clip_v == Clip::kNone ? 1 : kNumShrinkRatios,
                          .unbiased = params.unbiased_v};
  std::vector<uint8_t> codes(static_cast<size_t>(kBlockTokens) * kBlockTokens);
  float residual[kBlockTokens];
  for (int t = v.first_token; t < kBlockTokens; ++t) {
    v.Residual(t, residual);
    for (int group = 0; group < d / group_channels; ++group) {
      const int first = group * group_channels;
      const GroupFit fit =
          FitGroup(residual + first, group_channels, rule, codes.data() + t * kBlockTokens + first);
      frame.v_scales[group * kBlockTokens + RowPosition(t, kBlockTokens)] = fit.stored.scale;
      frame.v_zeros[group * kBlockTokens + ColumnPosition(t, kBlockTokens)] = fit.stored.zero;
    }
  }
  PackCodes(ByteOrder::Of(kBlockTokens, encoding.bits_v), codes.data(), d / kTileRows,
            frame.v_codes);
  if (v.ids == nullptr) return;
  for (int t = 0; t < kBlockTokens; ++t) frame.v_ids[ColumnPosition(t, kBlockTokens)] = v.ids[t];
}

}  // namespace pkv
