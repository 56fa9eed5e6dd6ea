// Causal attention of many queries, on tensor cores.
//
// Grid: a CTA for each 128 rows of a kv head, those that see most tokens first. A row is a query
// vector; the vectors of a query's group are neighbours, so that a tile is full whatever the group
// and few of its scores are masked. Warpgroup 0 has one thread that copies tiles of 128 keys and of
// their values (cp.async.bulk.tensor), two ahead of their use; warpgroups 1 and 2 compute 64 rows
// each, from the last tile of keys to the first. While tensor cores add the values of one tile, the
// warpgroup works out the weights of the next; the two warpgroups take turns, so that one issues
// products while the other has its exponentials (FlashAttention-3, arXiv:2407.08608, 3.1 and 3.2).
//
// Shared memory of head_dim 128: queries 32 KiB, two tiles of K and of V 128 KiB. A tile of 64 KiB
// is read from the L2 cache for 8.4 M multiply-adds of two products: 128 operations a byte.
//
// Scores are products of fp16 numbers with fp32 sums. A query in bf16 becomes fp16 times a power of
// two of its own, chosen so that its largest element is in [2^14, 2^15): exact for every element
// down to 2^-28 of the largest, and off by 2^-39 of the largest below; any bf16 has a place. The
// factor is taken back in fp32, where scores are scaled anyway.
//
// Weights are 2^(score - largest so far + 15) as fp16: those down to 2^-29 of the largest keep
// fp16's full precision, and what is lost below that is 2^-40 of it each.

#include "kernels/attention/prefill_attention_kernels.h"
#include "kernels/device/ptx.cuh"
#include "kernels/device/wgmma.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace pkv {
namespace {

constexpr int kStages = 2;
constexpr int kGroupThreads = 128;  // of a warpgroup
constexpr int kGroupRows = 64;
constexpr int kComputingWarps = 8;
constexpr int kRowTiles = kPrefillTileTokens / 8;  // scores of a thread: 4 of each 8 tokens
constexpr int kProducerRegisters = 24, kConsumerRegisters = 240;
constexpr float kWeightBits = 15;
constexpr float kLn2 = 0.693147180559945f;
constexpr float kInfinity = __builtin_huge_valf();
constexpr int kTurnBarrier = 1;   // and the next: the warpgroups' turns
constexpr int kQueryBarrier = 3;  // and the next: a warpgroup's queries are in shared memory

template <int kHeadDim>
struct Shared {
  static constexpr int kPanels = kHeadDim / ptx::kPanelColumns;
  static constexpr int kPanelBytes = kPrefillTileTokens * ptx::kPanelRowBytes;
  static constexpr int kTileBytes = kPanels * kPanelBytes;  // of queries, K or V
  static constexpr int kK = kTileBytes, kV = kK + kStages * kTileBytes;
  static constexpr int kBarriers = kV + kStages * kTileBytes;
  static constexpr int kRowScales = kBarriers + 4 * kStages * 8;
  static constexpr int kBytes = kRowScales + kPrefillTileRows * 4;
  static constexpr int kAlignment = 1024;

  uint32_t base;

  __device__ Shared() {
    extern __shared__ char memory[];
    base = (ptx::SharedAddress(memory) + kAlignment - 1) & ~(kAlignment - 1);
  }
  __device__ uint32_t queries() const { return base; }
  __device__ uint32_t k(int stage) const { return base + kK + stage * kTileBytes; }
  __device__ uint32_t v(int stage) const { return base + kV + stage * kTileBytes; }
  // Full: the copy has landed. Free: every computing warp is done with the tile.
  __device__ uint32_t k_full(int stage) const { return base + kBarriers + stage * 32; }
  __device__ uint32_t k_free(int stage) const { return k_full(stage) + 8; }
  __device__ uint32_t v_full(int stage) const { return k_full(stage) + 16; }
  __device__ uint32_t v_free(int stage) const { return k_full(stage) + 24; }
  __device__ uint32_t row_scale(int row) const { return base + kRowScales + row * 4; }
};

// What a CTA works on.
struct Tile {
  int kv_head, first_row, num_tiles;  // of keys, counted from the first token

  __device__ explicit Tile(const PrefillLaunch& launch) {
    const int num_rows = launch.num_queries * launch.group;
    const int row_tiles = (num_rows + kPrefillTileRows - 1) / kPrefillTileRows;
    kv_head = blockIdx.x / row_tiles;
    first_row = (row_tiles - 1 - blockIdx.x % row_tiles) * kPrefillTileRows;
    const int last_row = min(first_row + kPrefillTileRows, num_rows) - 1;
    const int visible = launch.first_token + last_row / launch.group + 1;
    num_tiles = (visible + kPrefillTileTokens - 1) / kPrefillTileTokens;
  }
  // Of the i-th tile of keys: they are visited from the last to the first.
  __device__ __forceinline__ int FirstToken(int i) const {
    return (num_tiles - 1 - i) * kPrefillTileTokens;
  }
};

template <int kHeadDim>
__device__ void CopyTiles(const PrefillLaunch& launch, const Tile& tile,
                          const Shared<kHeadDim>& shared) {
  using S = Shared<kHeadDim>;
  const auto copy = [&](uint32_t to, const CUtensorMap* map, int token, uint32_t full) {
    ptx::ArriveExpecting(full, S::kTileBytes);
#pragma unroll
    for (int panel = 0; panel < S::kPanels; ++panel) {
      ptx::CopyBox(to + panel * S::kPanelBytes, map, panel * ptx::kPanelColumns, token,
                   tile.kv_head, full);
    }
  };
#pragma unroll 1
  for (int i = 0; i < tile.num_tiles; ++i) {
    const int stage = i % kStages, token = tile.FirstToken(i);
    const uint32_t free_phase = (i / kStages & 1) ^ 1;
    ptx::WaitBarrier(shared.k_free(stage), free_phase);
    copy(shared.k(stage), &launch.k, token, shared.k_full(stage));
    ptx::WaitBarrier(shared.v_free(stage), free_phase);
    copy(shared.v(stage), &launch.v, token, shared.v_full(stage));
  }
}

// Largest magnitude of 8 numbers of bf16, as its bits: they order as the numbers do.
__device__ __forceinline__ uint32_t LargestBits(const uint4& piece) {
  constexpr uint32_t kMagnitudes = 0x7fff7fff;
  const uint32_t most = __vmaxu2(__vmaxu2(piece.x & kMagnitudes, piece.y & kMagnitudes),
                                 __vmaxu2(piece.z & kMagnitudes, piece.w & kMagnitudes));
  return max(most & 0xffff, most >> 16);
}

__device__ __forceinline__ uint32_t ScaledHalf2(uint32_t bfloat2, float factor) {
  return ptx::PackHalf2(__uint_as_float(bfloat2 << 16) * factor,
                        __uint_as_float(bfloat2 & 0xffff0000) * factor);
}

// Two threads a row: reads half a row each, converts it, and leaves in row_scale what a product of
// the row with a key is to be multiplied by for a score in log2.
template <int kHeadDim>
__device__ __forceinline__ void LoadQueries(const PrefillLaunch& launch, const Tile& tile,
                                            const Shared<kHeadDim>& shared, int thread) {
  using S = Shared<kHeadDim>;
  constexpr int kPieces = kHeadDim / 16;  // of 8 elements
  const int row = thread / 2, first_piece = thread % 2 * kPieces;
  const int of_head = min(tile.first_row + row, launch.num_queries * launch.group - 1);
  const int query = of_head / launch.group;
  const int head = tile.kv_head * launch.group + of_head % launch.group;
  const uint4* from = reinterpret_cast<const uint4*>(launch.q + query * launch.q_stride +
                                                     int64_t{head} * kHeadDim) +
                      first_piece;
  uint4 pieces[kPieces];
#pragma unroll
  for (int i = 0; i < kPieces; ++i) pieces[i] = __ldg(from + i);
  float scale = launch.score_scale;
  if (launch.is_q_bfloat16) {
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) largest = max(largest, LargestBits(pieces[i]));
    largest = max(largest, __shfl_xor_sync(~0u, largest, 1));
    // Exponents with binary32's bias of 127. What is below 2^-86 is multiplied by 2^100 only.
    const uint32_t exponent = min(127 + 127 + 14 - (largest >> 7), 127u + 100);
    const float factor = __uint_as_float(exponent << 23);
    scale *= __uint_as_float((254 - exponent) << 23);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      uint4& piece = pieces[i];
      piece = {ScaledHalf2(piece.x, factor), ScaledHalf2(piece.y, factor),
               ScaledHalf2(piece.z, factor), ScaledHalf2(piece.w, factor)};
    }
  }
#pragma unroll
  for (int i = 0; i < kPieces; ++i) {
    const int piece = first_piece + i;
    ptx::StoreShared128(
        shared.queries() + piece / 8 * S::kPanelBytes + ptx::PanelOffset(row, piece % 8),
        pieces[i]);
  }
  if (first_piece == 0) ptx::StoreSharedFloat(shared.row_scale(row), scale);
}

// The 64 rows of a warpgroup; a thread has rows g and g + 8 of its warp's 16, as the sums of
// products lie (wgmma.cuh). Arrays of two are of these rows.
template <int kHeadDim>
struct Rows {
  float scores[4 * kRowTiles];  // then weights
  float out[kHeadDim / 2];
  uint32_t weights[2 * kRowTiles];  // fp16, as operand
  float largest[2], offset[2], sum[2], scale[2];
  int last_token[2];  // that the row sees

  __device__ __forceinline__ void Start(const PrefillLaunch& launch, const Tile& tile,
                                        const Shared<kHeadDim>& shared, int row) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) out[i] = 0;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      largest[h] = -kInfinity;
      offset[h] = kInfinity;
      sum[h] = 0;
      scale[h] = ptx::LoadSharedFloat(shared.row_scale(row + 8 * h));
      const int of_head = min(tile.first_row + row + 8 * h, launch.num_queries * launch.group - 1);
      last_token[h] = launch.first_token + of_head / launch.group;
    }
  }

  // Of the tile that begins at first_token; first_row_sees: the last token that the warpgroup's
  // first row sees, and so all of its rows.
  __device__ __forceinline__ void Mask(int first_token, int first_row_sees, int lane_column) {
    if (first_token + kPrefillTileTokens - 1 <= first_row_sees) return;
#pragma unroll
    for (int i = 0; i < 4 * kRowTiles; ++i) {
      const int token = first_token + lane_column + i / 4 * 8 + i % 2;
      if (token > last_token[i / 2 % 2]) scores[i] = -kInfinity;
    }
  }

  // Scores to weights. factor: what earlier sums are to be multiplied by. A row may see nothing of
  // the tiles so far: its weights are 0, and its sums too, until it does.
  __device__ __forceinline__ void Weigh(float (&factor)[2]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float most = largest[h];
#pragma unroll
      for (int j = 0; j < kRowTiles; ++j) {
        most = fmaxf(most, fmaxf(scores[4 * j + 2 * h], scores[4 * j + 2 * h + 1]));
      }
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 1));
      most = fmaxf(most, __shfl_xor_sync(~0u, most, 2));
      largest[h] = most;
      const bool sees_none = most == -kInfinity;
      const float used = sees_none ? kWeightBits : kWeightBits - __fmul_rn(most, scale[h]);
      factor[h] = ptx::Exp2(used - offset[h]);
      offset[h] = sees_none ? kInfinity : used;
      float of_tile[2] = {};
#pragma unroll
      for (int j = 0; j < kRowTiles; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = scores[4 * j + 2 * h + i];
          x = ptx::Exp2(fmaf(x, scale[h], used));
          of_tile[i] += x;
        }
      }
      sum[h] = fmaf(sum[h], factor[h], of_tile[0] + of_tile[1]);
    }
  }

  __device__ __forceinline__ void Pack() {
#pragma unroll
    for (int i = 0; i < 2 * kRowTiles; ++i) {
      weights[i] = ptx::PackHalf2(scores[2 * i], scores[2 * i + 1]);
    }
  }

  __device__ __forceinline__ void Rescale(const float (&factor)[2]) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) out[i] *= factor[i / 2 % 2];
  }

  __device__ __forceinline__ void IssueScores(uint32_t queries, uint32_t k) {
    using S = Shared<kHeadDim>;
#pragma unroll
    for (int step = 0; step < kHeadDim / 16; ++step) {
      const uint32_t at = step / 4 * S::kPanelBytes + step % 4 * 32;
      ptx::ProductOfRows128(scores, ptx::PanelOperand(queries + at, 0),
                            ptx::PanelOperand(k + at, 0), step > 0);
    }
    ptx::CommitProducts();
  }

  __device__ __forceinline__ void IssueValues(uint32_t v) {
    using S = Shared<kHeadDim>;
#pragma unroll
    for (int step = 0; step < kPrefillTileTokens / 16; ++step) {
      ptx::AddProduct(out, weights + 4 * step,
                      ptx::PanelOperand(v + step * 16 * ptx::kPanelRowBytes, S::kPanelBytes));
    }
    ptx::CommitProducts();
  }

  __device__ __forceinline__ void Store(const PrefillLaunch& launch, const Tile& tile, int row,
                                        int lane_column) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
      sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
      const int of_head = tile.first_row + row + 8 * h;
      if (of_head >= launch.num_queries * launch.group) continue;
      const int query = of_head / launch.group;
      const int head = tile.kv_head * launch.group + of_head % launch.group;
      const float inverse = 1 / sum[h];
      uint16_t* to =
          launch.out + query * launch.out_stride + int64_t{head} * kHeadDim + lane_column;
#pragma unroll
      for (int j = 0; j < kHeadDim / 8; ++j) {
        const float low = out[4 * j + 2 * h] * inverse, high = out[4 * j + 2 * h + 1] * inverse;
        if (launch.is_out_bfloat16) {
          *reinterpret_cast<__nv_bfloat162*>(to + 8 * j) = __floats2bfloat162_rn(low, high);
        } else {
          *reinterpret_cast<__half2*>(to + 8 * j) = __floats2half2_rn(low, high);
        }
      }
      if (launch.lse != nullptr && lane_column == 0) {
        const int num_qo_heads = launch.num_kv_heads * launch.group;
        launch.lse[int64_t{query} * num_qo_heads + head] = (__log2f(sum[h]) - offset[h]) * kLn2;
      }
    }
  }
};

__device__ __forceinline__ void Release(uint32_t barrier, int lane) {
  __syncwarp();
  if (lane == 0) ptx::Arrive(barrier);
}

// group: 0 or 1, of the two that compute.
template <int kHeadDim>
__device__ void Compute(const PrefillLaunch& launch, const Tile& tile,
                        const Shared<kHeadDim>& shared, int group) {
  const int thread = threadIdx.x % kGroupThreads, lane = thread % 32;
  LoadQueries(launch, tile, shared, group * kGroupThreads + thread);
  ptx::FenceSharedForCopies();
  ptx::SyncNamed(kQueryBarrier + group, kGroupThreads);

  const uint32_t queries = shared.queries() + group * kGroupRows * ptx::kPanelRowBytes;
  const int row = group * kGroupRows + thread / 32 * 16 + lane / 4, column = lane % 4 * 2;
  Rows<kHeadDim> rows;
  rows.Start(launch, tile, shared, row);
  const int first_row_sees =
      launch.first_token + (tile.first_row + group * kGroupRows) / launch.group;

  float factor[2];
  ptx::WaitBarrier(shared.k_full(0), 0);
  ptx::FenceProducts();
  rows.IssueScores(queries, shared.k(0));
  ptx::WaitProducts<0>();
  ptx::Pin(rows.scores);
  Release(shared.k_free(0), lane);
  rows.Mask(tile.FirstToken(0), first_row_sees, column);
  rows.Weigh(factor);
  rows.Pack();

  if (tile.num_tiles > 1) ptx::WaitBarrier(shared.k_full(1), 0);
  if (group == 1 && tile.num_tiles > 1) ptx::ArriveNamed(kTurnBarrier, 2 * kGroupThreads);
  for (int i = 1; i < tile.num_tiles; ++i) {
    const int stage = i % kStages, before = (i - 1) % kStages;
    ptx::SyncNamed(kTurnBarrier + group, 2 * kGroupThreads);
    ptx::Pin(rows.scores);
    ptx::Pin(rows.out);
    ptx::FenceProducts();
    rows.IssueScores(queries, shared.k(stage));
    ptx::WaitBarrier(shared.v_full(before), (i - 1) / kStages & 1);
    rows.IssueValues(shared.v(before));
    // The last turn of group 1 is followed by none.
    if (group == 0 || i + 1 < tile.num_tiles) {
      ptx::ArriveNamed(kTurnBarrier + 1 - group, 2 * kGroupThreads);
    }
    ptx::WaitProducts<1>();
    ptx::Pin(rows.scores);
    Release(shared.k_free(stage), lane);
    rows.Mask(tile.FirstToken(i), first_row_sees, column);
    rows.Weigh(factor);
    // Waiting for the next keys here costs nothing, and keeps ptxas from moving the exponentials
    // behind the wait for products that they are to hide.
    ptx::Pin(rows.scores);
    if (i + 1 < tile.num_tiles) {
      const int next = (i + 1) % kStages;
      ptx::WaitBarrier(shared.k_full(next), (i + 1) / kStages & 1);
    }
    ptx::WaitProducts<0>();
    ptx::Pin(rows.out);
    Release(shared.v_free(before), lane);
    rows.Rescale(factor);
    rows.Pack();
  }
  const int last = tile.num_tiles - 1;
  ptx::WaitBarrier(shared.v_full(last % kStages), last / kStages & 1);
  ptx::Pin(rows.out);
  ptx::FenceProducts();
  rows.IssueValues(shared.v(last % kStages));
  ptx::WaitProducts<0>();
  ptx::Pin(rows.out);
  rows.Store(launch, tile, row, column);
}

template <int kHeadDim>
__global__ void __launch_bounds__(kPrefillThreads, 1)
    PrefillAttentionKernel(const __grid_constant__ PrefillLaunch launch) {
  const Shared<kHeadDim> shared;
  const Tile tile(launch);
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      ptx::InitBarrier(shared.k_full(stage), 1);
      ptx::InitBarrier(shared.v_full(stage), 1);
      ptx::InitBarrier(shared.k_free(stage), kComputingWarps);
      ptx::InitBarrier(shared.v_free(stage), kComputingWarps);
    }
    ptx::FenceBarrierInit();
  }
  __syncthreads();
  // The same number in all lanes, for branches that a warp takes together.
  const int group = __shfl_sync(~0u, threadIdx.x / kGroupThreads, 0);
  if (group == 0) {
    ptx::ShrinkRegisters<kProducerRegisters>();
    if (threadIdx.x == 0) CopyTiles(launch, tile, shared);
  } else {
    ptx::GrowRegisters<kConsumerRegisters>();
    Compute(launch, tile, shared, group - 1);
  }
}

template <int kHeadDim>
PrefillKernel KernelOf() {
  return {reinterpret_cast<const void*>(&PrefillAttentionKernel<kHeadDim>),
          Shared<kHeadDim>::kBytes + Shared<kHeadDim>::kAlignment};
}

}  // namespace

PrefillKernel FindPrefillKernel(int head_dim) {
  return head_dim == 64 ? KernelOf<64>() : KernelOf<128>();
}

}  // namespace pkv
