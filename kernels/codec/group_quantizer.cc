#include "kernels/codec/group_quantizer.h"

#include <type_traits>

#include "kernels/codec/clip_ratio_math.h"
#include "kernels/device/cpu_clones.h"
#include "pkv/block/kv_shape.h"

namespace pkv {
namespace {

// The decoded squared error of a group, in the order FoldErrorSums fixes.
PKV_CPU_CLONES float SquaredError(const float* values, int count, float scale, float zero,
                                  float max_code) {
  float sums[kErrorSums] = {};
  const auto add = [=](float value, float& sum) __attribute__((always_inline)) {
    const float code = QuantizeOne(value, scale, zero, max_code);
    const float error = value - DequantizeOne(code, scale, zero);
    sum = sum + error * error;
  };
  int i = 0;
  for (; i + kErrorSums <= count; i += kErrorSums) {
    for (int lane = 0; lane < kErrorSums; ++lane) add(values[i + lane], sums[lane]);
  }
  for (int lane = 0; i + lane < count; ++lane) add(values[i + lane], sums[lane]);
  return FoldErrorSums(sums);
}

// Means of codes and values, then sums of products about them, each in FoldErrorSums' order.
PKV_CPU_CLONES void CodeMeans(const float* values, int count, float scale, float zero,
                              float max_code, float* mean_code, float* mean_value) {
  float codes[kErrorSums] = {}, sums[kErrorSums] = {};
  const auto add = [=](float value, float& code_sum, float& sum) __attribute__((always_inline)) {
    code_sum = code_sum + QuantizeOne(value, scale, zero, max_code);
    sum = sum + value;
  };
  int i = 0;
  for (; i + kErrorSums <= count; i += kErrorSums) {
    for (int lane = 0; lane < kErrorSums; ++lane) add(values[i + lane], codes[lane], sums[lane]);
  }
  for (int lane = 0; i + lane < count; ++lane) add(values[i + lane], codes[lane], sums[lane]);
  *mean_code = FoldErrorSums(codes) / static_cast<float>(count);
  *mean_value = FoldErrorSums(sums) / static_cast<float>(count);
}

PKV_CPU_CLONES void CodeProducts(const float* values, int count, float scale, float zero,
                                 float max_code, float mean_code, float mean_value,
                                 float* covariance, float* variance) {
  float products[kErrorSums] = {}, squares[kErrorSums] = {};
  const auto add = [=](float value, float& product, float& square) __attribute__((always_inline)) {
    const float code = QuantizeOne(value, scale, zero, max_code) - mean_code;
    const float centred = value - mean_value;
    product = product + code * centred;
    square = square + centred * centred;
  };
  int i = 0;
  for (; i + kErrorSums <= count; i += kErrorSums) {
    for (int lane = 0; lane < kErrorSums; ++lane) {
      add(values[i + lane], products[lane], squares[lane]);
    }
  }
  for (int lane = 0; i + lane < count; ++lane) {
    add(values[i + lane], products[lane], squares[lane]);
  }
  *covariance = FoldErrorSums(products);
  *variance = FoldErrorSums(squares);
}

float SquaredError(const float* values, int count, int bits, GroupParams params) {
  return SquaredError(values, count, Float16ToFloat(params.scale), Float16ToFloat(params.zero),
                      MaxCode(bits));
}

}  // namespace

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

PKV_CPU_CLONES int BestClipRatio(const GroupValues& group, Range range, int num_ratios) {
  if (num_ratios == 1 || !(range.min < range.max)) return 0;
  const ClipUnits units = ClipUnits::Of(range.min, range.max, group.bits);
  uint8_t distances[kBlockTokens];
  for (int n = 0; n < group.count; ++n) {
    distances[n] = static_cast<uint8_t>(units.DistanceOf(group.values[n]));
  }
  const auto folded_sum = [&](int scale, auto bits_of) __attribute__((always_inline)) {
    int sum = 0;
    for (int n = 0; n < group.count; ++n) sum += FoldedDistance(distances[n], scale, bits_of());
    return sum;
  };
  int best = 0, least = 0;
  for (int i = 0; i < num_ratios; ++i) {
    const int scale = ClipScaleUnits(i, group.bits);
    const int folded = group.bits == 2 ? folded_sum(scale, std::integral_constant<int, 2>())
                                       : folded_sum(scale, std::integral_constant<int, 4>());
    const int error = ClipRatioError(scale, group.count, folded, group.bits);
    if (i > 0 && error >= least) continue;
    best = i;
    least = error;
  }
  return best;
}

GroupParams SearchParams(const GroupValues& group, int num_ratios) {
  const Range range = RangeOf(group.values, group.count);
  const int ratio = BestClipRatio(group, range, num_ratios);
  return ShrunkGroupParams(range.min, range.max, ratio, group.bits);
}

GroupParams CorrectGain(const GroupValues& group, GroupParams searched) {
  const float scale = Float16ToFloat(searched.scale), zero = Float16ToFloat(searched.zero);
  const float max_code = MaxCode(group.bits);
  float mean_code, mean_value, covariance, variance;
  CodeMeans(group.values, group.count, scale, zero, max_code, &mean_code, &mean_value);
  CodeProducts(group.values, group.count, scale, zero, max_code, mean_code, mean_value, &covariance,
               &variance);
  return UnbiasedParams(searched, mean_code, mean_value, covariance, variance);
}

GroupChoice ChooseGroup(const float* values, int count, int bits, Clip clip, bool with_error) {
  GroupChoice best;
  best.params = SearchParams({values, count, bits}, clip == Clip::kNone ? 1 : kNumShrinkRatios);
  if (with_error) best.squared_error = SquaredError(values, count, bits, best.params);
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
