#ifndef PKV_KERNELS_CODEC_GROUP_LANES_MATH_H_
#define PKV_KERNELS_CODEC_GROUP_LANES_MATH_H_

// The loops of group_quantizer.cc over a group's values, cut into lanes: lane l of kErrorSums adds
// elements l, l + 16, ... in order, so that lanes may run one after another or in threads of their
// own. `value_at(i)` is element i of the group; it is called more than once.

#include "kernels/codec/clip_ratio_math.h"
#include "kernels/codec/codec_math.h"

namespace pkv {

// Sum of squared errors of decoded values.
template <typename ValueAt>
PKV_HOST_DEVICE inline float ErrorLane(const ValueAt& value_at, int lane, int count,
                                       GroupParams params, int bits) {
  const float scale = Float16ToFloat(params.scale), zero = Float16ToFloat(params.zero);
  float sum = 0;
  for (int i = lane; i < count; i += kErrorSums) {
    const float value = value_at(i);
    const float code = QuantizeOne(value, scale, zero, MaxCode(bits));
    const float error = value - DequantizeOne(code, scale, zero);
    sum = sum + error * error;
  }
  return sum;
}

// Sums of codes and of values; with all lanes folded and divided by the count, their means.
struct CodeMeans {
  float code = 0;
  float value = 0;
};
template <typename ValueAt>
PKV_HOST_DEVICE inline CodeMeans CodeSumLane(const ValueAt& value_at, int lane, int count,
                                             GroupParams params, int bits) {
  const float scale = Float16ToFloat(params.scale), zero = Float16ToFloat(params.zero);
  CodeMeans sums;
  for (int i = lane; i < count; i += kErrorSums) {
    const float value = value_at(i);
    sums.code = sums.code + QuantizeOne(value, scale, zero, MaxCode(bits));
    sums.value = sums.value + value;
  }
  return sums;
}

// Sums of products about the means.
struct CodeProducts {
  float covariance = 0;
  float variance = 0;
};
template <typename ValueAt>
PKV_HOST_DEVICE inline CodeProducts CodeProductLane(const ValueAt& value_at, int lane, int count,
                                                    GroupParams params, int bits, CodeMeans means) {
  const float scale = Float16ToFloat(params.scale), zero = Float16ToFloat(params.zero);
  CodeProducts sums;
  for (int i = lane; i < count; i += kErrorSums) {
    const float value = value_at(i);
    const float code = QuantizeOne(value, scale, zero, MaxCode(bits)) - means.code;
    const float centred = value - means.value;
    sums.covariance = sums.covariance + code * centred;
    sums.variance = sums.variance + centred * centred;
  }
  return sums;
}

// The least and the largest value, of equal zeros the first. REQUIRES: count > 0.
struct LaneRange {
  float low = 0;
  float high = 0;

  template <typename ValueAt>
  PKV_HOST_DEVICE static LaneRange Of(const ValueAt& value_at, int count) {
    LaneRange range = {value_at(0), value_at(0)};
    for (int i = 1; i < count; ++i) {
      const float value = value_at(i);
      range.low = value < range.low ? value : range.low;
      range.high = value > range.high ? value : range.high;
    }
    return range;
  }
};

// SearchParams() of group_quantizer.cc. REQUIRES: count > 0.
template <typename ValueAt>
PKV_HOST_DEVICE inline GroupParams SearchLanes(const ValueAt& value_at, int count, int bits,
                                               int num_ratios) {
  const auto [low, high] = LaneRange::Of(value_at, count);
  const int ratio = BestClipRatio(value_at, count, low, high, bits, num_ratios);
  return ShrunkGroupParams(low, high, ratio, bits);
}

// CorrectGain() of group_quantizer.cc, lane after lane.
template <typename ValueAt>
PKV_HOST_DEVICE inline GroupParams CorrectLanes(const ValueAt& value_at, int count, int bits,
                                                GroupParams searched) {
  float first[kErrorSums], second[kErrorSums];
  for (int lane = 0; lane < kErrorSums; ++lane) {
    const CodeMeans sums = CodeSumLane(value_at, lane, count, searched, bits);
    first[lane] = sums.code;
    second[lane] = sums.value;
  }
  const CodeMeans means = {FoldErrorSums(first) / static_cast<float>(count),
                           FoldErrorSums(second) / static_cast<float>(count)};
  for (int lane = 0; lane < kErrorSums; ++lane) {
    const CodeProducts sums = CodeProductLane(value_at, lane, count, searched, bits, means);
    first[lane] = sums.covariance;
    second[lane] = sums.variance;
  }
  const float covariance = FoldErrorSums(first), variance = FoldErrorSums(second);
  return UnbiasedParams(searched, means.code, means.value, covariance, variance);
}

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_GROUP_LANES_MATH_H_
