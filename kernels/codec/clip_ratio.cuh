#ifndef PKV_KERNELS_CODEC_CLIP_RATIO_CUH_
#define PKV_KERNELS_CODEC_CLIP_RATIO_CUH_

// BestClipRatio() over lanes that share a group: four distances a word, a quarter of an instruction
// a value and ratio of 2 bits, 1.25 of 4.

#include <limits>

#include "kernels/codec/clip_ratio_math.h"
#include "kernels/codec/over_lanes.cuh"

namespace pkv {

// Four bytes, the last of each word.
__device__ inline uint32_t LastBytes(const uint32_t (&words)[4]) {
  return __byte_perm(__byte_perm(words[0], words[1], 0x0040),
                     __byte_perm(words[2], words[3], 0x0040), 0x5410);
}

// sum + |a - b| over the four bytes.
__device__ inline uint32_t AddDistances(uint32_t a, uint32_t b, uint32_t sum) {
  asm("vabsdiff4.u32.u32.u32.add %0, %1, %2, %0;" : "+r"(sum) : "r"(a), "r"(b));
  return sum;
}

// FoldedDistance() of four distances, a byte each, but for the distances themselves.
template <int kBits>
__device__ inline uint32_t AddFolded(uint32_t distances, uint32_t scale, uint32_t sum) {
  constexpr uint32_t kAll = 0x01010101u;
  if constexpr (kBits == 4) {
    distances = __vabsdiffu4(distances, 4 * kAll * scale);
    sum = __dp4a(distances, 4 * kAll, sum);
    distances = __vabsdiffu4(distances, 2 * kAll * scale);
    sum = __dp4a(distances, 2 * kAll, sum);
  }
  return AddDistances(distances, kAll * scale, sum);
}

// Of kLanes neighbouring lanes, the same in all of them. `distances`: the last bytes of
// ClipUnits::DistanceOnBase(), 0 where a place holds no value; num_values of them do. kAtOnce: how
// many ratios hide each other's latency.
template <int kBits, int kLanes, int kAtOnce, int kWords>
__device__ inline int BestClipRatio(const uint32_t (&distances)[kWords], int num_values,
                                    int num_ratios) {
  constexpr int kPlaces = 4 * kWords * kLanes;
  constexpr int kIndices = 8;  // errors leave room for them below
  static_assert(kNumShrinkRatios <= kIndices);
  uint32_t unfolded = 0;
#pragma unroll
  for (const uint32_t word : distances) {
    unfolded = __dp4a(word, (1u << (kBits - 1)) * 0x01010101u, unfolded);
  }
  // The index in the last bits: the least of equal errors has the least index.
  const auto least_from = [&](int first) {
    constexpr int kTried = kAtOnce < kNumShrinkRatios ? kAtOnce : kNumShrinkRatios;
    Numbers<kAtOnce, int> sums = {};
#pragma unroll
    for (int i = 0; i < kTried; ++i) {
      uint32_t sum = unfolded;
      const int scale = ClipScaleUnits(first + i, kBits);
#pragma unroll
      for (const uint32_t word : distances) sum = AddFolded<kBits>(word, scale, sum);
      sums.x[i] = static_cast<int>(sum);
    }
    const auto own = OverLanes<kLanes, 1>(sums, [](int a, int b) { return a + b; });
    constexpr int kOwn = sizeof(own) / sizeof(int);
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    int least = std::numeric_limits<int>::max();
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int ratio = first + lane * kAtOnce / kLanes + i;
      const int error = ClipRatioError(ClipScaleUnits(ratio, kBits), num_values, own.x[i], kBits,
                                       kPlaces - num_values);
      if (ratio < num_ratios) least = min(least, error * kIndices + ratio);
    }
    return least;
  };
  int least = least_from(0);
#pragma unroll 1
  for (int first = kAtOnce; first < num_ratios; first += kAtOnce) {
    least = min(least, least_from(first));
  }
  // Lanes that are nearer have the same.
  constexpr int kSame = kLanes > kAtOnce ? kLanes / kAtOnce : 1;
#pragma unroll
  for (int distance = kLanes / 2; distance >= kSame; distance /= 2) {
    least = min(least, __shfl_xor_sync(~0u, least, distance));
  }
  return least & (kIndices - 1);
}

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_CLIP_RATIO_CUH_
