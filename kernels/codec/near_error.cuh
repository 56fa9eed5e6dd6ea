#ifndef PKV_KERNELS_CODEC_NEAR_ERROR_CUH_
#define PKV_KERNELS_CODEC_NEAR_ERROR_CUH_

// The squared error of a group to within a bound, for the clip searches of K and V: four operations
// a value of 2 bits in place of eleven exact ones. Where the bound leaves the best ratio open the
// exact errors decide.

#include <cuda_fp16.h>

#include "kernels/codec/code_steps_math.h"

namespace pkv {

// Levels stand at odd multiples of scale / 2 about their middle, so the distance of a value to the
// nearest one comes by folding: 2 bits: | |x - middle| - scale | - scale / 2; 4 bits: folds at 4,
// 2, 1 and 1/2 scales. Beyond the last level it is the distance to that.
template <int kBits>
class NearLevels {
 public:
  __device__ explicit NearLevels(GroupParams params)
      : scale_(StoredToFloat(params.scale)),
        middle_(FusedMultiplyAdd(0.5f * ((1 << kBits) - 1), scale_, StoredToFloat(params.zero))) {}

  __device__ float AddSquare(float sum, float x) const {
    float distance = x - middle_;
#pragma unroll
    for (int folds = 1 << kBits; folds > 1; folds /= 2) {
      distance = fabsf(distance) - (0.25f * static_cast<float>(folds)) * scale_;
    }
    return FusedMultiplyAdd(distance, distance, sum);
  }

 private:
  float scale_, middle_;
};

// How far the sum of a group's at most 128 squares may be from the exact error, of any ratio. With
// R the largest magnitude of the range, w the scale of the widest range and E the error:
//   - A distance rounds at most fourteen times, each time a number of at most R (middle, exact
//     level) or 2 R (differences, folds): it is off by less than 2^-20 R, squares together by
//     2 sqrt(128 E) 2^-20 R + 128 2^-40 R^2 < 2^-16 (E + R^2) + 2^-33 R^2.
//   - The codec rounds the quotient of which a code is taken, by 2^-23 of at most M - 1/2 codes: so
//     near a boundary it may take the level that is further, by (2 M - 1) 2^-23 w^2 in the square,
//     128 times: 2^-13.7 w^2 for M = 3, 2^-11.1 w^2 for M = 15.
//   - Either sum has 15 roundings: 2^-19 E.
template <int kBits>
__device__ inline float NearErrorSlack(float error, float2 range, float widest_scale) {
  constexpr float kOfCodes = kBits == 2 ? 0x1p-13f : 0x1p-11f;
  const float reach = fmaxf(fabsf(range.x), fabsf(range.y));
  return 0x1.2p-16f * error + 0x1.01p-16f * reach * reach + kOfCodes * widest_scale * widest_scale;
}

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_NEAR_ERROR_CUH_
