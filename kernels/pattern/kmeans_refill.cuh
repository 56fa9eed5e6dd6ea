#ifndef PKV_KERNELS_PATTERN_KMEANS_REFILL_CUH_
#define PKV_KERNELS_PATTERN_KMEANS_REFILL_CUH_

// Where empty clusters restart. Rare: nothing here is worth speed, or registers of the caller.

#include <cstdint>

#include <cooperative_groups.h>

#include "kernels/pattern/kmeans_cluster.cuh"

namespace pkv {

// The clusters of a warp's tokens: in ids[t] of a lane below 16 that of OwnToken() of tile t.
struct TileIds {
  int ids[kTilesPerWarp];
};

template <int kHeadDim, int kCapacity>
__device__ float SquaredDistance(MineShared<kHeadDim, kCapacity>& shared, int row, int id,
                                 int lane) {
  constexpr int kOwn = kOwnChannels<kHeadDim>;
  float values[kOwn], centroid[kOwn], sum = 0;
  ToFloats(LoadToken<kHeadDim>(shared.tokens, row, lane), values);
  ToFloats(LoadCentroid<kHeadDim>(shared.centroids, id, lane), centroid);
  for (int j = 0; j < kOwn; ++j) {
    sum = fmaf(values[j] - centroid[j], values[j] - centroid[j], sum);
  }
  return WarpSum(sum);
}

// Writes the token with the n-th largest key of all CTAs to refill_tokens[n]. Lane r walks down the
// list of CTA r. One warp does this.
template <int kHeadDim, int kCapacity>
__device__ void MergeFarthest(MineShared<kHeadDim, kCapacity>& shared,
                              const unsigned long long* lists, int count) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const unsigned long long* list = lists + lane % kClusterCtas * kMaxBankPatterns;
  int at = 0;
  unsigned long long key = __ldcg(list);
#pragma unroll 1
  for (int n = 0; n < count; ++n) {
    const unsigned long long best = WarpMax(key);
    if (lane == 0) shared.refill_tokens[n] = static_cast<uint16_t>(~best);
    if (key == best) {
      ++at;
      key = at < count ? __ldcg(list + at) : 0;
    }
  }
}

// The `count` tokens of the sample that are farthest from their own centroids, in falling order,
// ties in rising order of tokens, into refill_tokens. All CTAs of the cluster come here together.
template <int kHeadDim, int kCapacity>
__device__ __noinline__ void FindFarthest(const MineTask& task,
                                          MineShared<kHeadDim, kCapacity>& shared, MinePlace place,
                                          TileIds tiles, int count) {
  // A key is the distance, whose bits order as it does, then the token; unique and not 0.
  unsigned long long keys[(kTilesPerWarp + 1) / 2] = {};
#pragma unroll
  for (int tile = 0; tile < kTilesPerWarp; ++tile) {
#pragma unroll 1
    for (int i = 0; i < kTileTokens; ++i) {
      const int row = place.TileRow(tile) + i;
      if (row >= place.num_own) break;
      const int id = __shfl_sync(~0u, tiles.ids[tile], LaneOfToken(i));
      const uint32_t distance =
          __float_as_uint(SquaredDistance<kHeadDim, kCapacity>(shared, row, id, place.lane));
      const uint32_t order = ~static_cast<uint32_t>(place.first + row);
      if (place.lane == tile % 2 * kTileTokens + i) {
        keys[tile / 2] = static_cast<unsigned long long>(distance) << 32 | order;
      }
    }
  }
  auto* lists = task.farthest + int64_t{place.problem} * kClusterCtas * kMaxBankPatterns;
  unsigned long long last = ~0ull;
#pragma unroll 1
  for (int n = 0; n < count; ++n) {
    unsigned long long best = 0;
#pragma unroll
    for (const unsigned long long key : keys) best = key < last ? max(best, key) : best;
    best = WarpMax(best);
    if (place.lane == 0) shared.warp_keys[place.warp] = best;
    __syncthreads();
    last = WarpMax(shared.warp_keys[place.lane % kMineWarps]);
    if (place.thread == 0) lists[place.rank * kMaxBankPatterns + n] = last;
    __syncthreads();
  }
  cooperative_groups::this_cluster().sync();  // the lists of all CTAs are written
  if (place.warp == 0) MergeFarthest(shared, lists, count);
  __syncthreads();
}

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_KMEANS_REFILL_CUH_
