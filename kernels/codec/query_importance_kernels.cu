// The attention that tokens receive from a sample of the queries, and what the sample needs for it
// where nobody computed the attention; on tensor cores, fp32 sums. Every sum has one order: equal
// inputs give equal bits.

#include "kernels/codec/query_statistics_kernels.h"
#include "kernels/device/ptx.cuh"
#include "kernels/device/wgmma.cuh"
#include "pkv/block/kv_shape.h"

#include <algorithm>

#include <cooperative_groups.h>

namespace pkv {
namespace {

namespace cg = cooperative_groups;

constexpr int kRowPadding = 16;  // bytes: rows 8 apart then start in different banks

// Rows of fp16 in shared memory.
template <int kHeadDim>
struct RowTile {
  static constexpr int kRowBytes = 2 * kHeadDim + kRowPadding;
  static constexpr int kPieces = kHeadDim / 8;  // of 16 bytes
  // The address that this lane gives to ldmatrix for four 8 x 8 matrices at (row, column): rows
  // row and row + 8 of column, then of column + 8.
  static __device__ __forceinline__ uint32_t RowsFirst(uint32_t base, int lane, int row,
                                                       int column) {
    return base + (row + lane % 16) * kRowBytes + (column + lane / 16 * 8) * 2;
  }
  // The same with (row, column), (row, column + 8), (row + 8, column), (row + 8, column + 8).
  static __device__ __forceinline__ uint32_t ColumnsFirst(uint32_t base, int lane, int row,
                                                          int column) {
    return base + (row + lane % 8 + lane / 16 * 8) * kRowBytes + (column + lane / 8 % 2 * 8) * 2;
  }
};

// Importance of the tokens of a kv head. A CTA keeps up to eight tiles of 64 sampled rows in shared
// memory; its four warpgroups take blocks of 64 tokens in turn, whose keys are an operand in
// registers, each warp 16 of them: the next ones are copied meanwhile. While tensor cores multiply
// one tile, the warpgroup has the exponentials of the one before; after the start no warpgroup
// waits for another. More tiles are further passes over the tokens. A token's key is read once, and
// costs 2 head_dim operations and an exponential for each row.
// Grid: [CTAs of a head, num_kv_heads].
constexpr int kImportanceThreads = 512;
constexpr int kWarpgroups = kImportanceThreads / 128;
constexpr int kBlockKeys = 64;
constexpr int kPassTiles = 8;

struct ImportanceLaunch {
  SampledKeys keys;
  QuerySampleRows samples;
  int group;
  float* importance;
};

template <int kHeadDim>
class ImportanceCta {
 public:
  using Tile = RowTile<kHeadDim>;
  using Sample = SampleTile<kHeadDim>;
  using Products = float[kSampleTileRows / 2];  // of a thread
  static constexpr int kSteps = kHeadDim / 16;
  static constexpr int kAlignment = 1024;  // of panels
  static constexpr int kTileBytes =
      (static_cast<int>(sizeof(Sample)) + kAlignment - 1) / kAlignment * kAlignment;
  static constexpr int kKeys = kPassTiles * kTileBytes;
  static constexpr int kBarriers = kKeys + kImportanceThreads / 2 * Tile::kRowBytes;
  static constexpr int kSharedBytes = kBarriers + 8 * kPassTiles + kAlignment;

  __device__ ImportanceCta(const ImportanceLaunch& launch, uint32_t memory)
      : launch_(launch),
        memory_((memory + kAlignment - 1) & ~(kAlignment - 1)),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32) {}

  __device__ void Run() {
    if (threadIdx.x == 0) {
      for (int i = 0; i < kPassTiles; ++i) ptx::InitBarrier(Full(i), 1);
      ptx::FenceBarrierInit();
    }
    const int num_rows = launch_.samples.num_samples * launch_.group;
    const int num_tiles = (num_rows + kSampleTileRows - 1) / kSampleTileRows;
    int begin = 0;
    do {                // without samples too: zeros
      __syncthreads();  // barriers are there, and nobody reads the tiles of the pass before
      const int count = min(kPassTiles, num_tiles - begin);
      CopySamples(begin, count);
      Pass(begin, count);
      begin += kPassTiles;
    } while (begin < num_tiles);
  }

 private:
  // Tiles are counted from the first of the pass.
  __device__ __forceinline__ uint32_t Slot(int tile) const { return memory_ + tile * kTileBytes; }
  __device__ __forceinline__ uint32_t Full(int tile) const {
    return memory_ + kBarriers + tile * 8;
  }
  __device__ __forceinline__ uint32_t WarpKeys() const {
    return memory_ + kKeys + warp_ * 16 * Tile::kRowBytes;
  }
  __device__ __forceinline__ void CopySamples(int begin, int count) const {
    if (threadIdx.x != 0) return;
    const auto* of_head = static_cast<const Sample*>(launch_.samples.tiles) +
                          int64_t{blockIdx.y} * launch_.samples.num_tiles;
    for (int tile = 0; tile < count; ++tile) {
      ptx::ArriveExpecting(Full(tile), sizeof(Sample));
      ptx::CopyBulkKept(Slot(tile), of_head + begin + tile, sizeof(Sample), Full(tile));
    }
  }

  // The `count` tiles from `begin` on with the blocks of this warpgroup.
  __device__ __forceinline__ void Pass(int begin, int count) {
    first_token_ = (blockIdx.x * kWarpgroups + warp_ / 4) * kBlockKeys;
    CopyKeys(first_token_);
    for (int tile = 0; tile < count; ++tile) {
      ptx::WaitBarrier(Full(tile), begin / kPassTiles & 1);
    }
    for (; first_token_ < launch_.keys.num_tokens; first_token_ += Stride()) {
      LoadKeys();
      CopyKeys(first_token_ + Stride());
#pragma unroll
      for (float& sum : sums_) sum = 0;
      if (count > 0) AddTiles(count);
      Store(begin > 0);
    }
    ptx::WaitCopies<0>();
  }

  // From a block of this warpgroup to the next.
  __device__ __forceinline__ int Stride() const { return gridDim.x * kWarpgroups * kBlockKeys; }
  // The keys of this warp's 16 tokens of the block at `token`.
  __device__ __forceinline__ void CopyKeys(int token) const {
    const SampledKeys& keys = launch_.keys;
    if (token < keys.num_tokens) {
#pragma unroll 2
      for (int i = lane_; i < 16 * Tile::kPieces; i += 32) {
        const int in_warp = i / Tile::kPieces, piece = i % Tile::kPieces;
        const int row = min(token + warp_ % 4 * 16 + in_warp, keys.num_tokens - 1);
        ptx::CopyAsync16(
            WarpKeys() + in_warp * Tile::kRowBytes + piece * 16,
            keys.k + blockIdx.y * keys.head_stride + int64_t{row} * kHeadDim + piece * 8, 16);
      }
    }
    ptx::CommitCopies();
  }
  __device__ __forceinline__ void LoadKeys() {
    ptx::WaitCopies<0>();
    __syncwarp();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      keys_[step] = ptx::LoadMatrices(Tile::RowsFirst(WarpKeys(), lane_, 0, 16 * step));
    }
    __syncwarp();
  }

  // Tiles take turns with two sets of registers. Each turn begins the products of the tile behind,
  // without a condition: ptxas would wait for all products at the end of one. Tiles that do not
  // count for any token are not left out either: what the warpgroup does then depends on launch and
  // loop alone, which ptxas keeps in uniform registers.
  __device__ __forceinline__ void AddTiles(int count) {
    Products even, odd;
    StartProducts(even, 0);
    int tile = 0;
    for (; tile + 2 < count; tile += 2) {
      Turn(even, odd, tile);
      Turn(odd, even, tile + 1);
    }
    if (tile + 1 < count) {
      Turn(even, odd, tile);
      ptx::WaitProducts<0>();
      Add(odd, tile + 1);
    } else {
      ptx::WaitProducts<0>();
      Add(even, tile);
    }
  }
  // Products of `tile` are under way, and it is not the last.
  __device__ __forceinline__ void Turn(Products& products, Products& next, int tile) {
    StartProducts(next, tile + 1);
    ptx::WaitProducts<1>();
    Add(products, tile);
  }
  __device__ __forceinline__ void Add(Products& products, int tile) {
    ptx::Pin(products);
    // Rows are in order of position: when the first counts for the block's last token, all count
    // for all.
    const int first_position = ptx::LoadShared32(Slot(tile) + offsetof(Sample, positions));
    if (first_position >= launch_.keys.first_token + first_token_ + kBlockKeys - 1 + kBlockTokens) {
      AddWeights<false>(products, Slot(tile));
    } else {
      AddWeights<true>(products, Slot(tile));
    }
  }

  __device__ __forceinline__ void StartProducts(Products& products, int tile) {
    ptx::Pin(products);
    ptx::FenceProducts();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const uint32_t rows =
          Slot(tile) + step / 4 * kSampleTileRows * ptx::kPanelRowBytes + step % 4 * 32;
      ptx::ProductOfRows64(products, keys_[step], ptx::PanelOperand(rows, 0), step > 0);
    }
    ptx::CommitProducts();
  }

  // kMasked: some of the rows do not count for some of the tokens.
  template <bool kMasked>
  __device__ __forceinline__ void AddWeights(const Products& products, uint32_t stage) {
    const uint32_t terms = stage + offsetof(Sample, terms) + lane_ % 4 * 16;
    const uint32_t positions = stage + offsetof(Sample, positions) + lane_ % 4 * 8;
    // Position of the first token that comes 128 after this lane's.
    const int needed = launch_.keys.first_token + Token(0) + kBlockTokens;
#pragma unroll
    for (int j = 0; j < kSampleTileRows / 8; ++j) {
      // Scale and lse of two rows.
      const uint4 of = ptx::LoadShared128(terms + j * 64);
      const uint2 position = kMasked ? ptx::LoadShared64(positions + j * 32) : uint2{};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float scale = __uint_as_float(i % 2 == 0 ? of.x : of.z);
        const float lse = __uint_as_float(i % 2 == 0 ? of.y : of.w);
        // fminf() makes 0 of what is not a number: sums stay finite. (The CPU adds next to
        // nothing there; here it is 1.)
        const float weight = ptx::Exp2(fminf(fmaf(products[4 * j + i], scale, -lse), 0));
        const bool counts = !kMasked || static_cast<int>(i % 2 == 0 ? position.x : position.y) >=
                                            needed + i / 2 * 8;
        sums_[i] += counts ? weight : 0.0f;
      }
    }
  }

  // Of the rows of this lane in products, the h-th.
  __device__ __forceinline__ int Token(int h) const {
    return first_token_ + warp_ % 4 * 16 + lane_ / 4 + 8 * h;
  }

  __device__ __forceinline__ void Store(bool adds) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum = sums_[2 * h] + sums_[2 * h + 1];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (lane_ % 4 == 0 && Token(h) < launch_.keys.num_tokens) {
        float& to = launch_.importance[int64_t{blockIdx.y} * launch_.keys.num_tokens + Token(h)];
        to = adds ? to + sum : sum;
      }
    }
  }

  const ImportanceLaunch& launch_;
  const uint32_t memory_;
  const int lane_, warp_;
  int first_token_ = 0;  // of the block
  uint4 keys_[kSteps];
  float sums_[4];  // of token h and the rows of this lane in even, odd columns: [2 h], [2 h + 1]
};

template <int kHeadDim>
__global__ void __launch_bounds__(kImportanceThreads)
    ImportanceKernel(const __grid_constant__ ImportanceLaunch launch) {
  extern __shared__ char memory[];
  ImportanceCta<kHeadDim>(launch, ptx::SharedAddress(memory)).Run();
}

// The lse of 64 sampled rows of a kv head: warp w of 4 has 16 of them, which stay in registers;
// tiles of 64 keys are copied one ahead. The CTAs of a cluster share the keys, and the first of
// them puts together what they found. Grid: [kScoreCtas, rows / 64, num_kv_heads].
constexpr int kScoreCtas = 8;
constexpr int kScoreThreads = 128;

struct ScoreLaunch {
  SampledKeys keys;
  QuerySampleRows samples;
  int group;
};

template <int kHeadDim>
class ScoreCta {
 public:
  using Tile = RowTile<kHeadDim>;
  static constexpr int kTileBytes = kSampleTileRows * Tile::kRowBytes;
  static constexpr int kSteps = kHeadDim / 16;

  __device__ ScoreCta(const ScoreLaunch& launch, char* memory)
      : launch_(launch),
        parts_(reinterpret_cast<float2*>(memory)),
        tiles_(ptx::SharedAddress(memory)),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        num_rows_(launch.samples.num_samples * launch.group),
        first_row_(blockIdx.y * kSampleTileRows) {}

  __device__ void Run() {
    LoadRows();
    // Rows are in order of position: the tile's last one sees most.
    const int last_row = min(first_row_ + kSampleTileRows, num_rows_) - 1;
    const int num_tokens = min(LastToken(last_row) + 1, launch_.keys.num_tokens);
    const int num_tiles = (num_tokens + kSampleTileRows - 1) / kSampleTileRows;
    const int begin = num_tiles * static_cast<int>(blockIdx.x) / kScoreCtas;
    const int end = num_tiles * static_cast<int>(blockIdx.x + 1) / kScoreCtas;
    CopyKeys(begin, end);
    for (int tile = begin; tile < end; ++tile) {
      CopyKeys(tile + 1, end);
      ptx::WaitCopies<1>();
      __syncthreads();
      Add(tile * kSampleTileRows, Stage(tile));
      __syncthreads();
    }
    ShareParts();
    const cg::cluster_group cluster = cg::this_cluster();
    cluster.sync();
    if (blockIdx.x == 0 && threadIdx.x < kSampleTileRows) Merge(cluster, threadIdx.x);
    cluster.sync();  // what others read stays until they have
  }

 private:
  __device__ __forceinline__ int LastToken(int row) const {
    return launch_.samples.positions[row / launch_.group] - launch_.keys.first_token;
  }
  __device__ __forceinline__ uint32_t Stage(int tile) const {
    return tiles_ + tile % 2 * kTileBytes;
  }
  __device__ __forceinline__ SampleTile<kHeadDim>& OfCta() const {
    return static_cast<SampleTile<kHeadDim>*>(
        launch_.samples.tiles)[int64_t{blockIdx.z} * launch_.samples.num_tiles + blockIdx.y];
  }

  __device__ __forceinline__ void LoadRows() {
    const SampleTile<kHeadDim>& of = OfCta();
    for (int i = threadIdx.x; i < kSampleTileRows * Tile::kPieces; i += kScoreThreads) {
      const int in_tile = i / Tile::kPieces, piece = i % Tile::kPieces;
      ptx::CopyAsync16(tiles_ + in_tile * Tile::kRowBytes + piece * 16,
                       of.q + piece / 8 * kSampleTileRows * ptx::kPanelRowBytes +
                           ptx::PanelOffset(in_tile, piece % 8),
                       16);
    }
    ptx::CommitCopies();
    ptx::WaitCopies<0>();
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      rows_[step] = ptx::LoadMatrices(Tile::RowsFirst(tiles_, lane_, warp_ * 16, 16 * step));
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int in_tile = warp_ * 16 + 8 * h + lane_ / 4;
      last_[h] = of.positions[in_tile] - launch_.keys.first_token;
      scale_[h] = of.terms[in_tile].scale;
    }
    __syncthreads();
  }

  // A tile from `end` on is an empty group of copies.
  __device__ __forceinline__ void CopyKeys(int tile, int end) const {
    const SampledKeys& keys = launch_.keys;
    for (int i = threadIdx.x; tile < end && i < kSampleTileRows * Tile::kPieces;
         i += kScoreThreads) {
      const int in_tile = i / Tile::kPieces, piece = i % Tile::kPieces;
      const int token = min(tile * kSampleTileRows + in_tile, keys.num_tokens - 1);
      ptx::CopyAsync16(
          Stage(tile) + in_tile * Tile::kRowBytes + piece * 16,
          keys.k + blockIdx.z * keys.head_stride + int64_t{token} * kHeadDim + piece * 8, 16);
    }
    ptx::CommitCopies();
  }

  __device__ __forceinline__ void Add(int first, uint32_t tile) {
#pragma unroll 1
    for (int in_tile = 0; in_tile < kSampleTileRows; in_tile += 16) {
      float products[2][4] = {};
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const uint4 b = ptx::LoadMatrices(Tile::ColumnsFirst(tile, lane_, in_tile, 16 * step));
        const uint4& a = rows_[step];
        ptx::Mma(products[0], a.x, a.y, a.z, a.w, b.x, b.y);
        ptx::Mma(products[1], a.x, a.y, a.z, a.w, b.z, b.w);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float scores[4];
        float largest = largest_[h];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int token = first + in_tile + 8 * (i / 2) + lane_ % 4 * 2 + i % 2;
          scores[i] = token <= last_[h] ? products[i / 2][2 * h + i % 2] * scale_[h] : -INFINITY;
          largest = fmaxf(largest, scores[i]);
        }
        if (largest == -INFINITY) continue;  // nothing that counts yet
        sums_[h] *= ptx::Exp2(largest_[h] - largest);
        largest_[h] = largest;
#pragma unroll
        for (int i = 0; i < 4; ++i) sums_[h] += ptx::Exp2(scores[i] - largest);
      }
    }
  }

  // Largest score, and the sum relative to it, of this CTA's keys.
  __device__ __forceinline__ void ShareParts() const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float largest = largest_[h];
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
      float sum = Relative(make_float2(largest_[h], sums_[h]), largest);
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if (lane_ % 4 == 0) parts_[warp_ * 16 + 8 * h + lane_ / 4] = make_float2(largest, sum);
    }
  }
  static __device__ __forceinline__ float Relative(const float2& part, float largest) {
    return part.x == -INFINITY ? 0 : part.y * ptx::Exp2(part.x - largest);
  }
  __device__ __forceinline__ void Merge(const cg::cluster_group& cluster, int in_tile) const {
    if (first_row_ + in_tile >= num_rows_) return;
    float2 parts[kScoreCtas];
    float largest = -INFINITY, sum = 0;
#pragma unroll
    for (int i = 0; i < kScoreCtas; ++i) {
      parts[i] = *cluster.map_shared_rank(parts_ + in_tile, i);
      largest = fmaxf(largest, parts[i].x);
    }
#pragma unroll
    for (int i = 0; i < kScoreCtas; ++i) sum += Relative(parts[i], largest);
    OfCta().terms[in_tile].lse = largest + log2f(sum);
  }

  const ScoreLaunch& launch_;
  float2* const parts_;  // [row], where the tiles were
  const uint32_t tiles_;
  const int lane_, warp_, num_rows_, first_row_;
  uint4 rows_[kSteps];
  // Of rows lane / 4 and 8 further; largest score, and the sum relative to it, of this lane's keys.
  int last_[2];
  float scale_[2];
  float largest_[2] = {-INFINITY, -INFINITY}, sums_[2] = {};
};

template <int kHeadDim>
__global__ void __launch_bounds__(kScoreThreads)
    ScoreKernel(const __grid_constant__ ScoreLaunch launch) {
  using Cta = ScoreCta<kHeadDim>;
  __shared__ __align__(16) char tiles[2 * Cta::kTileBytes];
  Cta(launch, tiles).Run();
}

template <int kHeadDim>
cudaError_t LaunchImportance(const ImportanceLaunch& launch, const dim3& grid,
                             cudaStream_t stream) {
  constexpr int kSharedBytes = ImportanceCta<kHeadDim>::kSharedBytes;
  const auto kernel = ImportanceKernel<kHeadDim>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  kernel<<<grid, kImportanceThreads, kSharedBytes, stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace

cudaError_t SumScores(const SampledKeys& keys, const QuerySampleRows& samples, int num_kv_heads,
                      int group, int head_dim, cudaStream_t stream) {
  const int num_rows = samples.num_samples * group;
  if (num_rows == 0) return cudaSuccess;
  cudaLaunchAttribute cluster = {.id = cudaLaunchAttributeClusterDimension};
  cluster.val.clusterDim = {kScoreCtas, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kScoreCtas, (num_rows - 1) / kSampleTileRows + 1, num_kv_heads);
  config.blockDim = dim3(kScoreThreads);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  const auto kernel = head_dim == 64 ? ScoreKernel<64> : ScoreKernel<128>;
  return cudaLaunchKernelEx(&config, kernel, ScoreLaunch{keys, samples, group});
}

cudaError_t SumImportance(const SampledKeys& keys, const QuerySampleRows& samples, int num_kv_heads,
                          int group, int head_dim, int num_sms, float* importance,
                          cudaStream_t stream) {
  if (keys.num_tokens == 0) return cudaSuccess;
  constexpr int kCtaTokens = kWarpgroups * kBlockKeys;
  const int num_ctas =
      std::min((keys.num_tokens - 1) / kCtaTokens + 1, std::max(1, num_sms / num_kv_heads));
  const ImportanceLaunch launch = {keys, samples, group, importance};
  return head_dim == 64 ? LaunchImportance<64>(launch, dim3(num_ctas, num_kv_heads), stream)
                        : LaunchImportance<128>(launch, dim3(num_ctas, num_kv_heads), stream);
}

}  // namespace pkv
