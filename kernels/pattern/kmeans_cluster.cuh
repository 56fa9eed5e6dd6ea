#ifndef PKV_KERNELS_PATTERN_KMEANS_CLUSTER_CUH_
#define PKV_KERNELS_PATTERN_KMEANS_CLUSTER_CUH_

// What a cluster of CTAs that mines one (kv head, K or V) shares (kmeans_kernels.cu).

#include <cstdint>
#include <limits>
#include <type_traits>

#include <cuda_fp16.h>

#include "kernels/pattern/kmeans_kernels.h"
#include "kernels/pattern/kmeans_list.cuh"
#include "kernels/pattern/mined_sample.h"
#include "kernels/pattern/nearest_mma.cuh"

namespace pkv {

// Instances for this many patterns at most: 32, 64, 256 (255). Beyond 64, sums in global memory.
template <int kCapacity>
inline constexpr bool kIsWide = kCapacity > 64;
// Of six CTAs with a multiprocessor each an H200 has room for 17 clusters, of seven or eight for
// 15: K and V of eight heads are sixteen.
inline constexpr int kClusterCtas = 6;
inline constexpr int kMineThreads = 256;
inline constexpr int kMineWarps = kMineThreads / 32;
inline constexpr int kMoves = 64;  // two a lane
static_assert(kMoves >= kClusterCtas * kMineWarps);
// Patterns whose factors a warp keeps in registers while it goes through its tokens.
inline constexpr int kChunkPatterns = 32;
inline constexpr int kChunkTiles = kChunkPatterns / kMmaPatterns;
inline constexpr int kTileTokens = 2 * kMmaTokens;
constexpr int QuotientUp(int a, int b) { return (a + b - 1) / b; }
inline constexpr int kCtaTokens =
    QuotientUp(kMaxMinedTokens, kClusterCtas* kTileTokens) * kTileTokens;
inline constexpr int kTilesPerWarp = QuotientUp(kCtaTokens / kTileTokens, kMineWarps);
static_assert(kTileTokens % kListStep == 0);
inline constexpr int kMaxBankPatterns = 256;  // 255, rounded up to a chunk
inline constexpr int kNoCluster = 255;

// Of one launch. A problem is one kv head of K, then of V.
struct MineTask {
  KMeansKernelArgs args;
  int max_patterns;
  float rotation_norm;           // of a bank that is rotated
  uint16_t* history;             // [problem][iteration][max_patterns][head_dim]
  float* moves;                  // [problem][iteration] largest move of a coordinate
  int* iterations;               // [problem] that were run: later ones would change nothing
  unsigned long long* farthest;  // [problem][CTA][kMaxBankPatterns]
  // Of wide instances.
  float* sums;      // [problem][CTA][kMaxBankPatterns][head_dim]
  int* counts;      // [problem][CTA][kMaxBankPatterns]
  uint32_t* lists;  // [problem][CTA][kCtaTokens]
};

template <int kHeadDim, int kCapacity>
struct MineShared {
  static constexpr bool kHasSums = !kIsWide<kCapacity>;
  uint4 tokens[kCtaTokens * kHeadDim / 8];    // at SwizzledPiece()
  uint4 centroids[kCapacity * kHeadDim / 8];  // fp16, at CentroidPiece()
  float biases[kCapacity];                    // -|c|^2 / 2
  // Of this CTA's tokens. Wide: in global memory.
  float sums[kHasSums ? kCapacity * kHeadDim : 4];  // at SumPair()
  int counts[kHasSums ? kCapacity : 4];
  uint32_t list[kHasSums ? kCtaTokens : 4];  // ListEntry()
  uint16_t total_counts[kCapacity];
  uint16_t refill_tokens[kCapacity];  // the n-th is for the n-th empty cluster
  float moves[kMoves];                // of a warp of a CTA each; 0 where there is none
  int warp_changes[kMineWarps];
  unsigned long long warp_keys[kMineWarps];
};

// Where channels 8 `piece` .. 8 `piece` + 7 of a centroid stand, in pieces of 16 bytes: a lane
// reads its channels of patterns g and g + 8, of 32 channels the first factors of two products.
// Pieces are of one centroid, so that other CTAs write as few of them as there can be.
template <int kHeadDim>
__device__ inline int CentroidPiece(int pattern, int piece) {
  const int tile = pattern / kMmaPatterns, is_high = pattern / 8 % 2, row = pattern % 8;
  return ((tile * (kHeadDim / 32) + piece / 4) * 2 + is_high) * 32 + row * 4 + piece % 4;
}

// Where the sums of channels 2 `pair` and 2 `pair` + 1 stand, in pairs. Lanes write four pairs of
// each of four patterns at the same time: those lie in other banks.
template <int kHeadDim>
__device__ inline int SumPair(int pattern, int pair) {
  return pattern * (kHeadDim / 2) + (pair ^ (pattern & 3) << 2);
}

inline constexpr int kSharedBytesLimit = 227 * 1024;
static_assert(sizeof(MineShared<128, 32>) <= kSharedBytesLimit);
static_assert(sizeof(MineShared<128, 64>) <= kSharedBytesLimit);
static_assert(sizeof(MineShared<128, kMaxBankPatterns>) <= kSharedBytesLimit);

__device__ inline float WarpSum(float value) {
#pragma unroll
  for (int distance = 16; distance >= 1; distance /= 2) {
    value += __shfl_xor_sync(~0u, value, distance);
  }
  return value;
}

__device__ inline unsigned long long WarpMax(unsigned long long value) {
#pragma unroll
  for (int distance = 16; distance >= 1; distance /= 2) {
    value = max(value, __shfl_xor_sync(~0u, value, distance));
  }
  return value;
}

// Of floats that are not negative.
__device__ inline float WarpMax(float value) {
  return __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(value)));
}

// The same place in the shared memory of another CTA of the cluster. Volatile: addresses of eight
// CTAs are not worth registers from one iteration to the next.
__device__ inline uint32_t PeerAddress(const void* at, int rank) {
  uint32_t address;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(address)
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(at))), "r"(rank));
  return address;
}

__device__ inline int LoadPeer(const int* at, int rank) {
  int value;
  asm volatile("ld.shared::cluster.s32 %0, [%1];"
               : "=r"(value)
               : "r"(PeerAddress(at, rank))
               : "memory");
  return value;
}
__device__ inline float2 LoadPeer(const float2* at, int rank) {
  float2 value;
  asm volatile("ld.shared::cluster.v2.f32 {%0,%1}, [%2];"
               : "=f"(value.x), "=f"(value.y)
               : "r"(PeerAddress(at, rank))
               : "memory");
  return value;
}
__device__ inline float4 LoadPeer(const float4* at, int rank) {
  float4 value;
  asm volatile("ld.shared::cluster.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(PeerAddress(at, rank))
               : "memory");
  return value;
}

__device__ inline void StorePeer(float* at, int rank, float value) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(PeerAddress(at, rank)), "f"(value)
               : "memory");
}
__device__ inline void StorePeer(uint4* at, int rank, uint4 value) {
  asm volatile("st.shared::cluster.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(PeerAddress(at, rank)),
               "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}
__device__ inline void CopyAsync(uint4* to, const uint16_t* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}

__device__ inline void WaitForCopies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// All threads of the cluster wait for each other. One warp's fence behind its CTA's barrier makes
// known what the others wrote: a fence a warp would wait as long eight times.
__device__ inline void SyncCluster(int warp) {
  __syncthreads();
  if (warp == 0) asm volatile("fence.acq_rel.cluster;" ::: "memory");
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Where a thread works: a CTA's part of a problem.
struct MinePlace {
  int thread, lane, warp;
  int rank;  // of the CTA in its cluster
  int problem;
  const uint16_t* rows;  // of the problem
  int num_tokens, num_sampled, num_patterns;
  int first, num_own;  // tokens of the sample that this CTA holds

  __device__ MinePlace(const KMeansKernelArgs& args, int cta_rank)
      : thread(static_cast<int>(threadIdx.x)),
        lane(thread % 32),
        // Read from one lane, so that the compiler knows it for equal in all.
        warp(__shfl_sync(~0u, thread / 32, 0)),
        rank(cta_rank),
        problem(static_cast<int>(blockIdx.x) / kClusterCtas),
        num_tokens(args.num_tokens),
        num_sampled(NumMinedTokens(num_tokens)) {
    const bool is_v = problem >= args.num_kv_heads;
    rows = (is_v ? args.v : args.k) + problem % args.num_kv_heads * args.head_stride;
    num_patterns = min(is_v ? args.num_patterns_v : args.num_patterns_k, num_sampled);
    constexpr int kStep = kClusterCtas * kTileTokens;
    const int cta_tokens = (num_sampled + kStep - 1) / kStep * kTileTokens;
    first = rank * cta_tokens;
    num_own = max(0, min(cta_tokens, num_sampled - first));
  }

  // Of the tile, of 16 tokens, that this warp has at `index`: the first of the CTA's rows.
  __device__ int TileRow(int index) const { return (index * kMineWarps + warp) * kTileTokens; }
};

// A lane owns this many channels of a row, from kOwnChannels lane on.
template <int kHeadDim>
inline constexpr int kOwnChannels = kHeadDim / 32;

// They are words of two fp16 each: 2 lane and 2 lane + 1, or the one at `lane`.
template <int kHeadDim>
using LaneWords = std::conditional_t<kHeadDim == 128, uint2, uint32_t>;

template <int kHeadDim>
__device__ inline LaneWords<kHeadDim> LoadRow(const uint16_t* row, int lane) {
  return reinterpret_cast<const LaneWords<kHeadDim>*>(row)[lane];
}
template <int kHeadDim>
__device__ inline LaneWords<kHeadDim> LoadToken(const uint4* tokens, int row, int lane) {
  constexpr int kLanesPerPiece = 256 / kHeadDim;
  const int piece = SwizzledPiece(row, lane / kLanesPerPiece, kHeadDim / 8);
  return reinterpret_cast<const LaneWords<kHeadDim>*>(tokens + piece)[lane % kLanesPerPiece];
}
template <int kHeadDim>
__device__ inline LaneWords<kHeadDim> LoadCentroid(const uint4* centroids, int id, int lane) {
  constexpr int kLanesPerPiece = 256 / kHeadDim;
  const int piece = CentroidPiece<kHeadDim>(id, lane / kLanesPerPiece);
  return reinterpret_cast<const LaneWords<kHeadDim>*>(centroids + piece)[lane % kLanesPerPiece];
}

__device__ inline void ToFloats(uint32_t word, float (&values)[2]) {
  const float2 pair = __half22float2(*reinterpret_cast<const __half2*>(&word));
  values[0] = pair.x;
  values[1] = pair.y;
}
__device__ inline void ToFloats(uint2 words, float (&values)[4]) {
  const float2 low = __half22float2(*reinterpret_cast<const __half2*>(&words.x));
  const float2 high = __half22float2(*reinterpret_cast<const __half2*>(&words.y));
  values[0] = low.x;
  values[1] = low.y;
  values[2] = high.x;
  values[3] = high.y;
}

__device__ inline uint32_t RoundToHalves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ inline uint32_t RoundToHalves(const float (&values)[2]) {
  return RoundToHalves(values[0], values[1]);
}
__device__ inline uint2 RoundToHalves(const float (&values)[4]) {
  return {RoundToHalves(values[0], values[1]), RoundToHalves(values[2], values[3])};
}

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_KMEANS_CLUSTER_CUH_
