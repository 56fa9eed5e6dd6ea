#ifndef PKV_KERNELS_ATTENTION_DECODE_SHARED_ITEMS_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_SHARED_ITEMS_CUH_

// Items that several CTAs share: the last CTA of an item to finish merges the parts of all, in the
// order of CTAs, so equal inputs give equal bits.

#include "kernels/attention/decode_merge.cuh"

namespace pkv {

// A CTA leaves its part of the item that it begins with in place 0, of the item that begins in it
// and goes on behind it in place 1: every query head for itself.
template <typename C>
struct SharedItems {
  static constexpr int kChannels = HeadSum<C>::kChannels;
  static constexpr int kFloats = C::kHeadDim + 32;  // a head: reference, sum, padding, out

  const DecodeLaunch& launch;
  int lane;

  __device__ float* Place(int cta, int place, int head) const {
    return launch.partials + ((int64_t{cta} * 2 + place) * C::kHeads + head) * kFloats;
  }

  // One warp; the head's sum of CTAs first .. last when it is the last of them, else false.
  __device__ bool Add(int first, int last, HeadSum<C>& mine) const {
    const int cta = static_cast<int>(blockIdx.x);
    float* to = Place(cta, cta == first ? 1 : 0, mine.head);
    if (lane == 0) *reinterpret_cast<float2*>(to) = {mine.reference, mine.sum};
    Values<float, kChannels> row;
#pragma unroll
    for (int i = 0; i < kChannels; ++i) row.x[i] = mine.out[i];
    reinterpret_cast<Values<float, kChannels>*>(to + 32)[lane] = row;
    __syncwarp();
    uint32_t arrived = 0;
    if (lane == 0) {
      uint32_t* ticket = launch.tickets + first * C::kHeads + mine.head;
      __threadfence();
      arrived = atomicAdd(ticket, 1) + 1;
      if (arrived == static_cast<uint32_t>(last - first + 1)) *ticket = 0;
      __threadfence();
    }
    __syncwarp();  // the other lanes see what lane 0 does
    arrived = __shfl_sync(0xffffffffu, arrived, 0);
    if (arrived != static_cast<uint32_t>(last - first + 1)) return false;
    Merge(first, last, mine);
    return true;
  }

 private:
  __device__ void Merge(int first, int last, HeadSum<C>& total) const {
    const int head = total.head;
    total = HeadSum<C>(head, lane);
    for (int begin = first; begin <= last; begin += 32) {
      // A lane has the reference and sum of a CTA. The first rows come along with them.
      const int count = min(32, last - begin + 1);
      Values<float, kChannels> rows[kAtOnce];
      LoadRows(begin, first, last, head, rows);
      float2 of_cta = {kLowest, 0};
      if (lane < count) {
        of_cta = __ldcg(reinterpret_cast<const float2*>(
            Place(begin + lane, begin + lane == first ? 1 : 0, head)));
      }
      const float top =
          fmaxf(total.reference,
                ReduceLanes(of_cta.x, 1, 16, [](float a, float b) { return fmaxf(a, b); }));
      const float before = ptx::Exp2(total.reference - top), factor = ptx::Exp2(of_cta.x - top);
      total.reference = top;
      total.sum = total.sum * before +
                  ReduceLanes(of_cta.y * factor, 1, 16, [](float a, float b) { return a + b; });
#pragma unroll
      for (int i = 0; i < kChannels; ++i) total.out[i] *= before;
      for (int i = 0; i < count; i += kAtOnce) {
        if (i > 0) LoadRows(begin + i, first, last, head, rows);
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
          const float its = __shfl_sync(0xffffffffu, factor, i + k);
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            total.out[c] = fmaf(rows[k].x[c], i + k < count ? its : 0.0f, total.out[c]);
          }
        }
      }
    }
  }

  static constexpr int kAtOnce = 16;  // rows on their way

  // Of CTAs from `begin` on; 0 behind the last.
  __device__ __forceinline__ void LoadRows(int begin, int first, int last, int head,
                                           Values<float, kChannels> (&rows)[kAtOnce]) const {
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int cta = begin + k;
      const float* row = Place(cta, cta == first ? 1 : 0, head) + 32 + lane * kChannels;
#pragma unroll
      for (int c = 0; c < kChannels; ++c) rows[k].x[c] = 0;
      if (cta > last) continue;
      if constexpr (kChannels == 4) {
        const float4 v = __ldcg(reinterpret_cast<const float4*>(row));
        rows[k].x[0] = v.x, rows[k].x[1] = v.y, rows[k].x[2] = v.z, rows[k].x[3] = v.w;
      } else {
        const float2 v = __ldcg(reinterpret_cast<const float2*>(row));
        rows[k].x[0] = v.x, rows[k].x[1] = v.y;
      }
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_SHARED_ITEMS_CUH_
