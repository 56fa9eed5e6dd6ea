#include "kernels/codec/group_quantizer.h"

#include "kernels/device/cpu_clones.h"

namespace pkv {
namespace {

// The decoded squared error of a group, in the order FoldErrorSums fixes.
PKV_CPU_CLONES float SquaredError(const float* values, int count, float scale, float zero,
                                  float max_code) {
  float sums[kErrorSums] = {};
  for (int i = 0; i < count; i += kErrorSums) {
    for (int lane = 0; lane < kErrorSums; ++lane) {
      const float value = values[i + lane];
      const float code = QuantizeOne(value, scale, zero, max_code);
      const float error = value - DequantizeOne(code, scale, zero);
      sums[lane] = sums[lane] + error * error;
    }
  }
  return FoldErrorSums(sums);
}

float SquaredError(const float* values, int count, int bits, GroupParams params) {
  return SquaredError(values, count, Float16ToFloat(params.scale), Float16ToFloat(params.zero),
                      MaxCode(bits));
}

}  // namespace

PKV_CPU_CLONES void ConvertToFloat(const Float16Bits* in, int count, float* out) {
  for (int i = 0; i < count; ++i) out[i] = Float16ToFloat(in[i]);
}

PKV_CPU_CLONES Range RangeOf(const float* values, int count) {
  Range range = {values[0], values[0]};
  for (int i = 1; i < count; ++i) {
    range.min = values[i] < range.min ? values[i] : range.min;
    range.max = values[i] > range.max ? values[i] : range.max;
  }
  return range;
}

PKV_CPU_CLONES void WidenRanges(const float* row, int count, float* min, float* max) {
  for (int i = 0; i < count; ++i) {
    min[i] = row[i] < min[i] ? row[i] : min[i];
    max[i] = row[i] > max[i] ? row[i] : max[i];
  }
}

PKV_CPU_CLONES void QuantizeRow(const float* values, const float* scales, const float* zeros,
                                int count, int bits, uint8_t* codes) {
  const float max_code = MaxCode(bits);
  for (int i = 0; i < count; ++i) {
    const float code = QuantizeOne(values[i], scales[i], zeros[i], max_code);
    codes[i] = static_cast<uint8_t>(static_cast<int>(code));
  }
}

GroupChoice ChooseGroup(const float* values, int count, int bits, Clip clip, bool with_error) {
  const Range range = RangeOf(values, count);
  GroupChoice best;
  best.params = ShrunkGroupParams(range.min, range.max, 0, bits);
  if (clip == Clip::kNone && !with_error) return best;
  best.squared_error = SquaredError(values, count, bits, best.params);
  if (clip == Clip::kNone) return best;
  for (int i = 1; i < kNumShrinkRatios; ++i) {
    const GroupParams params = ShrunkGroupParams(range.min, range.max, i, bits);
    const float error = SquaredError(values, count, bits, params);
    if (error < best.squared_error) best = {params, error};
  }
  return best;
}

float ChooseGroups(const float* values, int head_dim, int group_channels, int bits, Clip clip,
                   bool with_error, GroupParams* out) {
  float error = 0;
  for (int group = 0; group < head_dim / group_channels; ++group) {
    const GroupChoice choice =
        ChooseGroup(values + group * group_channels, group_channels, bits, clip, with_error);
    error = error + choice.squared_error;
    if (out != nullptr) out[group] = choice.params;
  }
  return error;
}

}  // namespace pkv
