#ifndef PKV_KERNELS_CODEC_KEY_FIT_CUH_
#define PKV_KERNELS_CODEC_KEY_FIT_CUH_

// Scale, zero point and codes of one K channel of a block, all of it one group, by a half warp:
// SearchParams() and CorrectGain() of group_quantizer.h, bit by bit. A lane holds eight slots, one
// of the sixteen partial sums of FoldErrorSums(), whole.

#include "kernels/codec/clip_ratio.cuh"
#include "kernels/codec/code_steps_math.h"
#include "pkv/block/kv_shape.h"

namespace pkv::key_search {

constexpr int kLanes = 16;        // of a channel
constexpr int kSlots = 8;         // of a lane
constexpr int kSurelyCoarse = 3;  // of a lane's slots: at most 64 sinks and 16 fine ones
constexpr unsigned kAllLanes = ~0u;
static_assert(kLanes == kErrorSums && kLanes * kSlots == kBlockTokens);

struct Octet {
  float x[kSlots];
};

__device__ inline int Lane() { return static_cast<int>(threadIdx.x) % kLanes; }

// Which of a block's slots the lane holds: element Lane() + 16 q of the group at q.
//
// kCoarse: how many of them are coarse, and the rest fine, in every lane, as in all blocks without
// sinks. 0: told by the block.
template <int kCoarse>
struct LaneSlots {
  int num_coarse;  // of the group
  float inverse;   // 1 / num_coarse, rounded
  int coarse_of_lane;
  bool has_fine;

  __device__ LaneSlots(int first_slot, int num_fine) {
    num_coarse = kCoarse > 0 ? kCoarse * kLanes : kBlockTokens - num_fine - first_slot;
    inverse = 1.0f / static_cast<float>(num_coarse);
    coarse_of_lane = (num_coarse - Lane() + kLanes - 1) / kLanes;
    has_fine = num_fine > 0;
  }
  __device__ static int Element(int q) { return Lane() + kLanes * q; }
  __device__ bool IsCoarse(int q) const {
    return kCoarse > 0 ? q < kCoarse : q < kSurelyCoarse || q < coarse_of_lane;
  }
  // The fine slots follow the coarse ones, one in each lane.
  __device__ bool IsFine(int q) const { return q == (kCoarse > 0 ? kCoarse : coarse_of_lane); }
  __device__ bool HasFine() const { return kCoarse > 0 ? kCoarse < kSlots : has_fine; }
};
static_assert(kFineTokens == kLanes);
// kCoarse of blocks without sinks: with fine codes at 2 bits, without them at 4.
template <int kBits>
constexpr int kKnownCoarse = kBits == 2 ? kSlots - 1 : kSlots;

// Over the lanes of a channel.
template <typename T, typename Combine>
__device__ inline T OverChannel(T value, const Combine& combine) {
#pragma unroll
  for (int half = kLanes / 2; half >= 1; half /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, half));
  }
  return value;
}
__device__ inline float Added(float a, float b) { return a + b; }

// Sum over the coarse elements, as FoldErrorSums() has it.
template <int kCoarse>
__device__ inline float OrderedSum(const LaneSlots<kCoarse>& slots, const Octet& terms) {
  float sum = 0;
#pragma unroll
  for (int q = 0; q < kSlots; ++q) {
    if (slots.IsCoarse(q)) sum = sum + terms.x[q];
  }
  return OverChannel(sum, Added);
}

// RangeOf(): of equal values 0 and -0 it keeps the first. The machine's minimum is -0 when any is.
template <int kCoarse>
__device__ inline float2 RangeOfGroup(const LaneSlots<kCoarse>& slots, const Octet& target) {
  float low = target.x[0], high = low;
#pragma unroll
  for (int q = 1; q < kSlots; ++q) {
    if (!slots.IsCoarse(q)) continue;
    low = fminf(low, target.x[q]);
    high = fmaxf(high, target.x[q]);
  }
  low = OverChannel(low, [](float a, float b) { return fminf(a, b); });
  high = OverChannel(high, [](float a, float b) { return fmaxf(a, b); });
  if (__any_sync(kAllLanes, __float_as_uint(low) == 0x80000000u)) {
    int first = 2 * kBlockTokens;
#pragma unroll
    for (int q = 0; q < kSlots; ++q) {
      if (!slots.IsCoarse(q) || target.x[q] != 0.0f) continue;
      first = min(first, 2 * slots.Element(q) + (__float_as_int(target.x[q]) < 0 ? 1 : 0));
    }
    first = OverChannel(first, [](int a, int b) { return min(a, b); });
    if (low == 0.0f) low = first % 2 == 0 ? 0.0f : -0.0f;
  }
  return make_float2(low, high);
}

// BestClipRatio().
template <int kBits, int kCoarse>
__device__ inline int BestRatio(const LaneSlots<kCoarse>& slots, const Octet& target, float2 range,
                                int num_ratios) {
  const ClipUnits units = ClipUnits::Of(range.x, range.y, kBits);
  uint32_t distances[kSlots / 4];
#pragma unroll
  for (int word = 0; word < kSlots / 4; ++word) {
    uint32_t on_base[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int q = 4 * word + i;
      on_base[i] = slots.IsCoarse(q) ? __float_as_uint(units.DistanceOnBase(target.x[q])) : 0u;
    }
    distances[word] = LastBytes(on_base);
  }
  constexpr int kAtOnce = kBits == 2 ? 4 : 2;  // as the presets try, or one more
  const int best = BestClipRatio<kBits, kLanes, kAtOnce>(distances, slots.num_coarse, num_ratios);
  return range.x < range.y ? best : 0;
}

// SearchParams().
template <int kBits, int kCoarse>
__device__ inline GroupParams Search(const LaneSlots<kCoarse>& slots, const Octet& target,
                                     int num_ratios) {
  const float2 range = RangeOfGroup(slots, target);
  const int ratio = num_ratios > 1 ? BestRatio<kBits>(slots, target, range, num_ratios) : 0;
  return ShrunkParamsOf<kBits>(range.x, range.y, ratio);
}

// CorrectGain(), from the codes of the coarse elements.
template <int kCoarse>
__device__ inline GroupParams Corrected(const LaneSlots<kCoarse>& slots, const Octet& target,
                                        const Octet& codes, GroupParams searched) {
  // Codes are small integers: their sum is exact in any order.
  const auto count = static_cast<float>(slots.num_coarse);
  const float mean_code = MeanOf(OrderedSum(slots, codes), count, slots.inverse);
  const float mean_value = MeanOf(OrderedSum(slots, target), count, slots.inverse);
  Octet covariances, variances;
#pragma unroll
  for (int q = 0; q < kSlots; ++q) {
    const float code = codes.x[q] - mean_code, centred = target.x[q] - mean_value;
    covariances.x[q] = code * centred;
    variances.x[q] = centred * centred;
  }
  const float covariance = OrderedSum(slots, covariances);
  return UnbiasedParams(searched, mean_code, mean_value, covariance, OrderedSum(slots, variances));
}

}  // namespace pkv::key_search

#endif  // PKV_KERNELS_CODEC_KEY_FIT_CUH_
