#ifndef PKV_KERNELS_CODEC_CLIP_RATIO_MATH_H_
#define PKV_KERNELS_CODEC_CLIP_RATIO_MATH_H_

// Which shrink ratio a group takes: that of the smallest squared error, counted in whole units, so
// that sums are exact and every order of them gives the same ratio.
//
// All ratios shrink the range about its middle: what counts of a value is its distance a from
// there. With M the largest code, the whole range's scale is 10 c units and the farthest value M /
// 2 scales, 5 c M units away: 255 (2 bits, c = 17) or 225 (4 bits, c = 3), a byte. Ratio i has a
// scale s of c (10 - i) units. Levels stand at odd multiples of s / 2 about the middle, so the
// distance to the nearest one comes by folding, bits - 1 times:
//
//     b_1 = a    b_(n+1) = | b_n - 2^(bits - 1 - n) s |    error = b_bits - s / 2
//
// of 2 bits | |a - s| - s / 2 |; beyond the last level it is the distance to that. With the squares
// multiplied out, n values have
//
//     4 sum error^2 = 4 sum a^2 + s (C n s - 4 F)    F = sum of 2^(bits - n) b_n    C = (4^bits -
//     1) / 3
//
// and the first sum is the same for every ratio. Left out are half a unit a value, which is less
// than what lies between two ratios, and the rounding of scale and zero point to fp16, which is too
// but where the range is below the largest code times 2^-14, so that the scale is stored as 0,
// where values are hundreds of ranges from zero, or where the scale saturates: any ratio may come
// out there, and the squared error may be a multiple of the best ratio's.

#include <bit>
#include <cmath>
#include <cstdint>

#include "kernels/codec/code_steps_math.h"
#include "kernels/codec/codec_math.h"

namespace pkv {

// How far the farthest value is from the middle, in units.
PKV_HOST_DEVICE constexpr int ClipReachUnits(int bits) { return bits == 2 ? 255 : 225; }

// The scale of the ratio with index i, in units.
PKV_HOST_DEVICE constexpr int ClipScaleUnits(int i, int bits) {
  static_assert(kNumShrinkRatios <= 10);
  return (bits == 2 ? 17 : 3) * (10 - i);
}

// units / reach as it rounds, for ClipReachUnits(), from 1 / reach to one place of it (checked for
// every mantissa): Markstein's correction.
PKV_HOST_DEVICE inline float UnitsPerValue(float units, float reach, float inverse) {
  const float quotient = units * inverse;
  return FusedMultiplyAdd(FusedMultiplyAdd(-reach, quotient, units), inverse, quotient);
}
PKV_HOST_DEVICE inline float UnitsPerValue(float units, float reach) {
#ifdef __CUDA_ARCH__
  float inverse;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(reach));
  return UnitsPerValue(units, reach, inverse);
#else
  return units / reach;
#endif
}

// The middle of a group's range, and units a value.
struct ClipUnits {
  float middle = 0;
  float per_value = 0;  // 0 when all values are equal

  // REQUIRES: a reach is 0 or in 2^-100..2^100, as of residuals and FeedbackTarget().
  PKV_HOST_DEVICE static ClipUnits Of(float min, float max, int bits) {
    const float middle = (min + max) * 0.5f;
    // As rounded no other value is farther away.
    const float below = middle - min, above = max - middle;
    const float reach = below > above ? below : above;
    const auto units = static_cast<float>(ClipReachUnits(bits));
    return {middle, reach > 0.0f ? UnitsPerValue(units, reach) : 0.0f};
  }

  // 2^23 plus a value's distance from the middle in units, rounded: its last byte is that distance.
  PKV_HOST_DEVICE float DistanceOnBase(float value) const {
    return std::fabs(value - middle) * per_value + 0x1p+23f;
  }
  PKV_HOST_DEVICE int DistanceOf(float value) const {
    return static_cast<int>(std::bit_cast<uint32_t>(DistanceOnBase(value)) & 0xffu);
  }
};

// F of one distance. REQUIRES: bits is 2 or 4.
PKV_HOST_DEVICE constexpr int FoldedDistance(int distance, int scale, int bits) {
  int folded = 0;
  for (int fold = bits - 1; fold >= 0; --fold) {
    folded += distance << fold;
    const int above = distance - (scale << fold >> 1);
    distance = above < 0 ? -above : above;
  }
  return folded;
}

// 4 sum error^2 less 4 sum a^2. Among the folded distances may be some of no value, all 0, which
// do not count. At most 128 of both: below 2^26.
PKV_HOST_DEVICE constexpr int ClipRatioError(int scale, int num_values, int folded, int bits,
                                             int num_others = 0) {
  const int c = bits == 2 ? 5 : 85;
  return scale * ((c * num_values + (c - 1) * num_others) * scale - 4 * folded);
}

// The index of the best of the first `num_ratios`, the widest of equals, 0 where all values are
// equal (a zero keeps its sign). `value_at(i)` is element i of the group; it is called more than
// once.
template <typename ValueAt>
PKV_HOST_DEVICE inline int BestClipRatio(const ValueAt& value_at, int count, float min, float max,
                                         int bits, int num_ratios) {
  if (num_ratios == 1 || !(min < max)) return 0;
  const ClipUnits units = ClipUnits::Of(min, max, bits);
  int best = 0, least = 0;
  for (int i = 0; i < num_ratios; ++i) {
    const int scale = ClipScaleUnits(i, bits);
    int folded = 0;
    for (int n = 0; n < count; ++n) {
      folded += FoldedDistance(units.DistanceOf(value_at(n)), scale, bits);
    }
    const int error = ClipRatioError(scale, count, folded, bits);
    if (i > 0 && error >= least) continue;
    best = i;
    least = error;
  }
  return best;
}

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_CLIP_RATIO_MATH_H_
