#ifndef PKV_KERNELS_ATTENTION_DECODE_SHARED_ITEMS_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_SHARED_ITEMS_CUH_

// Items that several teams share: the last team of an item to finish merges the parts of all, in
// the order of teams, so equal inputs give equal bits.

#include "kernels/attention/decode_merge.cuh"

namespace pkv {

// A team leaves its part of the item that it begins with in place 0, of the item that begins in it
// and goes on behind it in place 1: every query head for itself.
template <typename C>
struct SharedItems {
  static constexpr int kChannels = C::kHeadDim / 32;
  static constexpr int kFloats = C::kHeadDim + 32;  // a head: reference, sum, padding, out

  const DecodeLaunch& launch;
  int lane;
  int line, lines;  // the item's, and of the launch
  int first, last;  // the item's teams on it

  __device__ float* Place(int team, int head) const {
    const int place = team == first ? 1 : 0;
    const int64_t index = (int64_t{team} * lines + line) * 2 + place;
    return launch.partials + (index * C::kHeads + head) * kFloats;
  }

  // One warp, of team `team`; the heads' sums of all teams when it is the last of them, else false.
  template <int kCount>
  __device__ bool Add(int team, HeadSums<C, kCount>& mine) const {
#pragma unroll
    for (int h = 0; h < kCount; ++h) {
      float* to = Place(team, mine.first_head + h);
      if (lane == 0) *reinterpret_cast<float2*>(to) = {mine.reference[h], mine.sum[h]};
      Values<float, kChannels> row;
#pragma unroll
      for (int i = 0; i < kChannels; ++i) row.x[i] = mine.out[h][i];
      reinterpret_cast<Values<float, kChannels>*>(to + 32)[lane] = row;
    }
    __syncwarp();
    const auto all = static_cast<uint32_t>(last - first + 1);
    uint32_t arrived = 0;
    if (lane == 0) {
      uint32_t* ticket =
          launch.tickets + (int64_t{first} * lines + line) * C::kHeads + mine.first_head;
      arrived = ptx::AddAcquireRelease(ticket, 1) + 1;
      if (arrived == all) *ticket = 0;
    }
    __syncwarp();  // the other lanes see what lane 0 does
    arrived = __shfl_sync(0xffffffffu, arrived, 0);
    if (arrived != all) return false;
    mine.Clear();
    for (int begin = first; begin <= last; begin += 32) Merge(begin, mine);
    return true;
  }

 private:
  // Up to 32 teams from `begin` on.
  template <int kCount>
  __device__ __forceinline__ void Merge(int begin, HeadSums<C, kCount>& total) const {
    // Rows of every head on their way. An eighth of 132 CTAs is parts of 18.
    constexpr int kAtOnce = kCount == 1 ? 18 : 2;
    const int count = min(32, last - begin + 1);
    Values<float, kChannels> rows[kCount][kAtOnce];
    // A lane has the references and sums of a team. The first rows come along with them.
    LoadRows(begin, total.first_head, rows);
    float2 of_team[kCount];
#pragma unroll
    for (int h = 0; h < kCount; ++h) {
      of_team[h] = {kLowest, 0};
      if (lane < count) {
        of_team[h] =
            __ldcg(reinterpret_cast<const float2*>(Place(begin + lane, total.first_head + h)));
      }
    }
    float factor[kCount];
#pragma unroll
    for (int h = 0; h < kCount; ++h) {
      const float top =
          fmaxf(total.reference[h],
                ReduceLanes(of_team[h].x, 1, 16, [](float a, float b) { return fmaxf(a, b); }));
      const float before = ptx::Exp2(total.reference[h] - top);
      factor[h] = ptx::Exp2(of_team[h].x - top);
      total.reference[h] = top;
      total.sum[h] = total.sum[h] * before + ReduceLanes(of_team[h].y * factor[h], 1, 16,
                                                         [](float a, float b) { return a + b; });
#pragma unroll
      for (int i = 0; i < kChannels; ++i) total.out[h][i] *= before;
    }
    for (int i = 0; i < count; i += kAtOnce) {
      if (i > 0) LoadRows(begin + i, total.first_head, rows);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
        for (int h = 0; h < kCount; ++h) {
          const float its = __shfl_sync(0xffffffffu, factor[h], i + k);
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            total.out[h][c] = fmaf(rows[h][k].x[c], i + k < count ? its : 0.0f, total.out[h][c]);
          }
        }
      }
    }
  }

  // Of teams from `begin` on; 0 behind the last.
  template <int kCount, int kAtOnce>
  __device__ __forceinline__ void LoadRows(
      int begin, int first_head, Values<float, kChannels> (&rows)[kCount][kAtOnce]) const {
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
#pragma unroll
      for (int h = 0; h < kCount; ++h) {
        Values<float, kChannels>& to = rows[h][k];
#pragma unroll
        for (int c = 0; c < kChannels; ++c) to.x[c] = 0;
        if (begin + k > last) continue;
        const float* row = Place(begin + k, first_head + h) + 32 + lane * kChannels;
        if constexpr (kChannels == 4) {
          const float4 v = __ldcg(reinterpret_cast<const float4*>(row));
          to.x[0] = v.x, to.x[1] = v.y, to.x[2] = v.z, to.x[3] = v.w;
        } else {
          const float2 v = __ldcg(reinterpret_cast<const float2*>(row));
          to.x[0] = v.x, to.x[1] = v.y;
        }
      }
    }
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_SHARED_ITEMS_CUH_
