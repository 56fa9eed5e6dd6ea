// Second moments of queries, and the attention that tokens receive from a sample of them, on tensor
// cores (fp32 sums). Every sum has one order: equal inputs give equal bits.

#include "kernels/codec/query_statistics_kernels.h"
#include "kernels/device/ptx.cuh"
#include "kernels/device/wgmma.cuh"
#include "pkv/block/kv_shape.h"

#include <cooperative_groups.h>

namespace pkv {
namespace {

namespace cg = cooperative_groups;

constexpr int kRowPadding = 16;  // bytes: rows 8 apart then start in different banks
constexpr float kLog2E = 1.442695040888963f;

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

// What a query is kept for, one cluster a kv head: the sums of q q^T over the rows that count, of
// which each CTA has its share, and the sampled rows as fp16. Warpgroup w has the sums of channels
// 64 w .. 64 w + 63 with all channels. Tiles of 64 rows are copied four ahead; a tile is both
// operands. When all CTAs have their sums in shared memory, each adds up an eighth of them, in the
// order of the CTAs. A row is read once: 2 head_dim bytes for 2 head_dim^2 operations.
// Grid: [kClusterCtas, num_kv_heads].
constexpr int kClusterCtas = 8;
constexpr int kMomentTileRows = 64;
constexpr int kMomentTilesAhead = 4;
constexpr int kMomentStages = kMomentTilesAhead + 2;  // two tiles may be in products
static_assert(MomentSample::kAll / 2 % kMomentTileRows == 0, "a tile has one weight");

struct MomentLaunch {
  KeptQueries kept;
  QuerySampleRows samples;
  float score_scale;
  float* sums;
};

template <int kHeadDim, bool kIsBfloat16>
class MomentCta {
 public:
  static constexpr int kThreads = 2 * kHeadDim;  // a warpgroup for 64 channels
  static constexpr int kPanelBytes = kMomentTileRows * ptx::kPanelRowBytes;
  static constexpr int kTileBytes = kHeadDim / ptx::kPanelColumns * kPanelBytes;
  static constexpr int kSumColumns = kHeadDim + 8;  // rows 8 apart then lie in different banks
  static constexpr int kAlignment = 1024;
  static constexpr int kSharedBytes = kMomentStages * kTileBytes + kAlignment;
  static_assert(kHeadDim * kSumColumns * 4 <= kMomentStages * kTileBytes);

  __device__ MomentCta(const MomentLaunch& launch, char* memory)
      : launch_(launch),
        tiles_((ptx::SharedAddress(memory) + kAlignment - 1) & ~(kAlignment - 1)),
        shared_sums_(reinterpret_cast<float*>(memory + (tiles_ - ptx::SharedAddress(memory)))),
        cluster_(cg::this_cluster()),
        rank_(static_cast<int>(cluster_.block_rank())),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        num_rows_(launch.kept.num_queries * launch.kept.group) {}

  __device__ void Run() {
    const int num_tiles = (num_rows_ + kMomentTileRows - 1) / kMomentTileRows;
    const int begin = num_tiles * rank_ / kClusterCtas;
    const int end = num_tiles * (rank_ + 1) / kClusterCtas;
    for (int i = 0; i < kMomentTilesAhead; ++i) Copy(begin + i, end);
    TakeSamples();
    for (int tile = begin; tile < end;) {
      const int doubling = Doubling(tile), same_weight = min(end, EndOf(doubling));
      for (; tile < same_weight; ++tile) AddTile(tile, end);
      ptx::WaitProducts<0>();
      ptx::Pin(sums_);
      // In units of the next tile's weight, or in the end of 1.
      const int next = tile < end ? Doubling(tile) : 0;
      Scale(__uint_as_float((127 + doubling - next) << 23));
    }
    __syncthreads();  // nobody reads tiles any more
    ShareSums();
    cluster_.sync();
    AddUp();
    cluster_.sync();  // what others read stays until they have
  }

 private:
  // Rows of tiles weigh 2^this.
  __device__ __forceinline__ int Doubling(int tile) const {
    constexpr int kAll = MomentSample::kAll;
    const int query = tile * kMomentTileRows / launch_.kept.group;
    return query < kAll ? 0 : (query - kAll) / (kAll / 2) + 1;
  }
  __device__ __forceinline__ int EndOf(int doubling) const {
    constexpr int kAll = MomentSample::kAll;
    return (kAll + doubling * (kAll / 2)) * launch_.kept.group / kMomentTileRows;
  }
  __device__ __forceinline__ uint32_t Stage(int tile) const {
    return tiles_ + tile % kMomentStages * kTileBytes;
  }

  // Rows behind the last are zeros. A tile from `end` on is an empty group of copies.
  __device__ __forceinline__ void Copy(int tile, int end) const {
    if (tile < end) CopyTile(tile);
    ptx::CommitCopies();
  }
  __device__ __forceinline__ void CopyTile(int tile) const {
    const KeptQueries& kept = launch_.kept;
    constexpr int kPieces = kHeadDim / 8;  // of 16 bytes
#pragma unroll
    for (int i = threadIdx.x; i < kMomentTileRows * kPieces; i += kThreads) {
      const int in_tile = i / kPieces, piece = i % kPieces;
      const int row = min(tile * kMomentTileRows + in_tile, num_rows_ - 1);
      const int64_t query = row / kept.group;
      const uint16_t* from =
          kept.rows +
          ((query * kept.num_kv_heads + blockIdx.y) * kept.group + row % kept.group) * kHeadDim +
          piece * 8;
      ptx::CopyAsync16(Stage(tile) + piece / 8 * kPanelBytes + ptx::PanelOffset(in_tile, piece % 8),
                       from, tile * kMomentTileRows + in_tile < num_rows_ ? 16 : 0);
    }
  }

  __device__ __forceinline__ void AddTile(int tile, int end) {
    ptx::WaitCopies<kMomentTilesAhead - 1>();
    ptx::FenceSharedForCopies();
    __syncthreads();
    // Into the stage of the tile before the last: its products are done in every warpgroup that
    // has passed the barrier.
    Copy(tile + kMomentTilesAhead, end);
    ptx::Pin(sums_);
    ptx::FenceProducts();
#pragma unroll
    for (int row = 0; row < kMomentTileRows; row += 16) {
      const uint32_t rows = Stage(tile) + row * ptx::kPanelRowBytes;
      ptx::AddProductOfColumns<kIsBfloat16>(
          sums_, ptx::PanelOperand(rows + warp_ / 4 * kPanelBytes, kPanelBytes),
          ptx::PanelOperand(rows, kPanelBytes));
    }
    ptx::CommitProducts();
    ptx::WaitProducts<1>();
  }

  __device__ __forceinline__ void Scale(float factor) {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; ++i) sums_[i] *= factor;
  }

  __device__ __forceinline__ void ShareSums() const {
#pragma unroll
    for (int i = 0; i < kHeadDim / 2; i += 2) {
      const int row = warp_ * 16 + lane_ / 4 + i / 2 % 2 * 8;
      const int column = i / 4 * 8 + lane_ % 4 * 2;
      *reinterpret_cast<float2*>(shared_sums_ + row * kSumColumns + column) =
          make_float2(sums_[i], sums_[i + 1]);
    }
  }

  __device__ __forceinline__ void AddUp() {
    constexpr int kRows = kHeadDim / kClusterCtas;
    float* to = launch_.sums + int64_t{blockIdx.y} * kHeadDim * kHeadDim;
#pragma unroll
    for (int at = 4 * threadIdx.x; at < kRows * kHeadDim; at += 4 * kThreads) {
      const int row = rank_ * kRows + at / kHeadDim, column = at % kHeadDim;
      float4 sum = {};
#pragma unroll
      for (int peer = 0; peer < kClusterCtas; ++peer) {
        const float4 part = *reinterpret_cast<const float4*>(
            cluster_.map_shared_rank(shared_sums_ + row * kSumColumns + column, peer));
        sum = {sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w};
      }
      *reinterpret_cast<float4*>(to + row * kHeadDim + column) = sum;
    }
  }

  // One warp a sample and query head.
  __device__ __forceinline__ void TakeSamples() const {
    const int num_rows = launch_.samples.num_samples * launch_.kept.group;
    constexpr int kWarps = kThreads / 32;
    for (int row = rank_ * kWarps + warp_; row < num_rows; row += kClusterCtas * kWarps) {
      TakeSample(row);
    }
  }
  __device__ __forceinline__ void TakeSample(int row) const {
    const KeptQueries& kept = launch_.kept;
    const int64_t vector =
        (int64_t{row / kept.group} * kept.num_kv_heads + blockIdx.y) * kept.group +
        row % kept.group;
    const uint32_t* from =
        reinterpret_cast<const uint32_t*>(kept.sample_rows + vector * kHeadDim) + lane_;
    constexpr int kPairs = kHeadDim / 64;  // of a lane
    uint32_t pairs[kPairs];
#pragma unroll
    for (int i = 0; i < kPairs; ++i) pairs[i] = from[32 * i];
    float scale = launch_.score_scale;
    if constexpr (kIsBfloat16) {
      uint32_t largest = 0;
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        largest = max(largest, max(pairs[i] & 0x7fff, pairs[i] >> 16 & 0x7fff));
      }
      largest = __reduce_max_sync(~0u, largest);
      // As LoadQueries() of prefill_attention_kernels.cu.
      const uint32_t exponent = min(127 + 127 + 14 - (largest >> 7), 127u + 100);
      const float factor = __uint_as_float(exponent << 23);
      scale *= __uint_as_float((254 - exponent) << 23);
#pragma unroll
      for (int i = 0; i < kPairs; ++i) {
        pairs[i] = ptx::PackHalf2(__uint_as_float(pairs[i] << 16) * factor,
                                  __uint_as_float(pairs[i] & 0xffff0000) * factor);
      }
    }
    const int64_t at = int64_t{blockIdx.y} * launch_.samples.capacity + row;
    uint32_t* to = reinterpret_cast<uint32_t*>(launch_.samples.q + at * kHeadDim) + lane_;
#pragma unroll
    for (int i = 0; i < kPairs; ++i) to[32 * i] = pairs[i];
    if (lane_ == 0) {
      const float lse = kept.sample_lse != nullptr ? kept.sample_lse[vector] * kLog2E : 0;
      launch_.samples.terms[at] = {scale, lse};
    }
  }

  const MomentLaunch& launch_;
  const uint32_t tiles_;
  float* const shared_sums_;  // [head_dim][kSumColumns], where the tiles were
  const cg::cluster_group cluster_;
  const int rank_, lane_, warp_, num_rows_;
  float sums_[kHeadDim / 2] = {};
};

template <int kHeadDim, bool kIsBfloat16>
__global__ void __launch_bounds__(2 * kHeadDim)
    QueryMomentKernel(const __grid_constant__ MomentLaunch launch) {
  extern __shared__ char memory[];
  MomentCta<kHeadDim, kIsBfloat16>(launch, memory).Run();
}

// Importance of 128 tokens of a kv head: warp w of 4 has 32 of them, whose keys stay in registers;
// tiles of 64 sampled rows are copied one ahead. Grid: [tokens / 128, num_kv_heads].
constexpr int kImportanceThreads = 128;
constexpr int kImportanceTokens = 128;
constexpr int kSampleTileRows = 64;

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
  static constexpr int kTileBytes = kSampleTileRows * Tile::kRowBytes;
  static constexpr int kSteps = kHeadDim / 16;
  struct Row {
    float scale, lse;
    int last_token;  // that counts, of keys
  };
  struct Memory {
    alignas(16) char tiles[2 * kTileBytes];  // first of keys, then of rows
    Row rows[2][kSampleTileRows];
  };

  __device__ ImportanceCta(const ImportanceLaunch& launch, Memory& memory)
      : launch_(launch),
        memory_(memory),
        tiles_(ptx::SharedAddress(memory.tiles)),
        first_token_(blockIdx.x * kImportanceTokens),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        num_rows_(launch.samples.num_samples * launch.group) {}

  __device__ void Run() {
    LoadKeys();
    int row = FirstRow(), stage = 0;
    if (row < num_rows_) CopyRows(row, 0);
    for (; row < num_rows_; row += kSampleTileRows, stage ^= 1) {
      if (row + kSampleTileRows < num_rows_) {
        CopyRows(row + kSampleTileRows, stage ^ 1);
        ptx::WaitCopies<1>();
      } else {
        ptx::WaitCopies<0>();
      }
      __syncthreads();
      Add(stage);
      __syncthreads();
    }
    Store();
  }

 private:
  // Of keys: the last token that counts for a row. Negative: none.
  __device__ __forceinline__ int LastToken(int row) const {
    return launch_.samples.positions[row / launch_.group] - kBlockTokens - launch_.keys.first_token;
  }
  // The first tile of rows for which any of these tokens counts: rows are in order of position.
  __device__ __forceinline__ int FirstRow() const {
    int row = 0;
    while (row < num_rows_ && LastToken(min(row + kSampleTileRows, num_rows_) - 1) < first_token_) {
      row += kSampleTileRows;
    }
    return row;
  }

  __device__ __forceinline__ void LoadKeys() {
    const SampledKeys& keys = launch_.keys;
    for (int i = threadIdx.x; i < kImportanceTokens * Tile::kPieces; i += kImportanceThreads) {
      const int in_tile = i / Tile::kPieces, piece = i % Tile::kPieces;
      const int token = min(first_token_ + in_tile, keys.num_tokens - 1);
      ptx::CopyAsync16(
          tiles_ + in_tile * Tile::kRowBytes + piece * 16,
          keys.k + blockIdx.y * keys.head_stride + int64_t{token} * kHeadDim + piece * 8, 16);
    }
    ptx::CommitCopies();
    ptx::WaitCopies<0>();
    __syncthreads();
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        keys_[m][step] =
            ptx::LoadMatrices(Tile::RowsFirst(tiles_, lane_, warp_ * 32 + 16 * m, 16 * step));
      }
    }
    __syncthreads();
  }

  __device__ __forceinline__ void CopyRows(int first, int stage) {
    const int64_t of_head = int64_t{blockIdx.y} * launch_.samples.capacity;
    for (int i = threadIdx.x; i < kSampleTileRows * Tile::kPieces; i += kImportanceThreads) {
      const int in_tile = i / Tile::kPieces, piece = i % Tile::kPieces;
      const int row = min(first + in_tile, num_rows_ - 1);
      ptx::CopyAsync16(tiles_ + stage * kTileBytes + in_tile * Tile::kRowBytes + piece * 16,
                       launch_.samples.q + (of_head + row) * kHeadDim + piece * 8, 16);
    }
    ptx::CommitCopies();
    if (threadIdx.x < kSampleTileRows) {
      const int row = first + threadIdx.x;
      Row terms = {0, 0, -1};
      if (row < num_rows_) {
        const SampleTerms& from = launch_.samples.terms[of_head + row];
        terms = {from.scale, from.lse, LastToken(row)};
      }
      memory_.rows[stage][threadIdx.x] = terms;
    }
  }

  __device__ __forceinline__ void Add(int stage) {
    const uint32_t tile = tiles_ + stage * kTileBytes;
#pragma unroll 1
    for (int row = 0; row < kSampleTileRows; row += 16) {
      float products[2][2][4] = {};  // [16 tokens][8 rows]
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        const uint4 b = ptx::LoadMatrices(Tile::ColumnsFirst(tile, lane_, row, 16 * step));
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          const uint4& a = keys_[m][step];
          ptx::Mma(products[m][0], a.x, a.y, a.z, a.w, b.x, b.y);
          ptx::Mma(products[m][1], a.x, a.y, a.z, a.w, b.z, b.w);
        }
      }
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const Row of = memory_.rows[stage][row + 8 * n + lane_ % 4 * 2 + i];
#pragma unroll
          for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
              const int token = first_token_ + warp_ * 32 + 16 * m + 8 * h + lane_ / 4;
              // fminf() makes 0 of what is not a number: sums stay finite, as on the CPU.
              const float exponent = fminf(fmaf(products[m][n][2 * h + i], of.scale, -of.lse), 0);
              sums_[m][h] += token <= of.last_token ? ptx::Exp2(exponent) : 0.0f;
            }
          }
        }
      }
    }
  }

  __device__ __forceinline__ void Store() {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float sum = sums_[m][h];
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const int token = first_token_ + warp_ * 32 + 16 * m + 8 * h + lane_ / 4;
        if (lane_ % 4 == 0 && token < launch_.keys.num_tokens) {
          launch_.importance[int64_t{blockIdx.y} * launch_.keys.num_tokens + token] = sum;
        }
      }
    }
  }

  const ImportanceLaunch& launch_;
  Memory& memory_;
  const uint32_t tiles_;
  const int first_token_, lane_, warp_, num_rows_;
  uint4 keys_[2][kSteps];
  float sums_[2][2] = {};
};

// The lse of 64 sampled rows of a kv head: warp w of 4 has 16 of them, which stay in registers;
// tiles of 64 keys are copied one ahead. Grid: [rows / 64, num_kv_heads].
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

  __device__ ScoreCta(const ScoreLaunch& launch, uint32_t tiles)
      : launch_(launch),
        tiles_(tiles),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        num_rows_(launch.samples.num_samples * launch.group),
        first_row_(blockIdx.x * kSampleTileRows) {}

  __device__ void Run() {
    LoadRows();
    // Rows are in order of position: the tile's last one sees most.
    const int last_row = min(first_row_ + kSampleTileRows, num_rows_) - 1;
    const int num_tokens = min(LastToken(last_row) + 1, launch_.keys.num_tokens);
    CopyKeys(0, 0);
    for (int token = 0, stage = 0; token < num_tokens; token += kSampleTileRows, stage ^= 1) {
      if (token + kSampleTileRows < num_tokens) {
        CopyKeys(token + kSampleTileRows, stage ^ 1);
        ptx::WaitCopies<1>();
      } else {
        ptx::WaitCopies<0>();
      }
      __syncthreads();
      Add(token, tiles_ + stage * kTileBytes);
      __syncthreads();
    }
    Store();
  }

 private:
  // Rows of samples behind the last are copies of it.
  __device__ __forceinline__ int Row(int in_tile) const {
    return min(first_row_ + in_tile, num_rows_ - 1);
  }
  __device__ __forceinline__ int LastToken(int row) const {
    return launch_.samples.positions[row / launch_.group] - launch_.keys.first_token;
  }
  __device__ __forceinline__ SampleTerms* Terms(int row) const {
    return launch_.samples.terms + int64_t{blockIdx.y} * launch_.samples.capacity + row;
  }

  __device__ __forceinline__ void LoadRows() {
    const uint16_t* q =
        launch_.samples.q + int64_t{blockIdx.y} * launch_.samples.capacity * kHeadDim;
    for (int i = threadIdx.x; i < kSampleTileRows * Tile::kPieces; i += kImportanceThreads) {
      const int in_tile = i / Tile::kPieces, piece = i % Tile::kPieces;
      ptx::CopyAsync16(tiles_ + in_tile * Tile::kRowBytes + piece * 16,
                       q + int64_t{Row(in_tile)} * kHeadDim + piece * 8, 16);
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
      const int row = Row(warp_ * 16 + 8 * h + lane_ / 4);
      last_[h] = LastToken(row);
      scale_[h] = Terms(row)->scale;
    }
    __syncthreads();
  }

  __device__ __forceinline__ void CopyKeys(int first, int stage) {
    const SampledKeys& keys = launch_.keys;
    for (int i = threadIdx.x; i < kSampleTileRows * Tile::kPieces; i += kImportanceThreads) {
      const int in_tile = i / Tile::kPieces, piece = i % Tile::kPieces;
      const int token = min(first + in_tile, keys.num_tokens - 1);
      ptx::CopyAsync16(
          tiles_ + stage * kTileBytes + in_tile * Tile::kRowBytes + piece * 16,
          keys.k + blockIdx.y * keys.head_stride + int64_t{token} * kHeadDim + piece * 8, 16);
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

  __device__ __forceinline__ void Store() {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float largest = largest_[h];
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
      float sum = largest_[h] == -INFINITY ? 0 : sums_[h] * ptx::Exp2(largest_[h] - largest);
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const int row = first_row_ + warp_ * 16 + 8 * h + lane_ / 4;
      if (lane_ % 4 == 0 && row < num_rows_) Terms(row)->lse = largest + log2f(sum);
    }
  }

  const ScoreLaunch& launch_;
  const uint32_t tiles_;
  const int lane_, warp_, num_rows_, first_row_;
  uint4 rows_[kSteps];
  // Of rows lane / 4 and 8 further; largest score, and the sum relative to it, of this lane's keys.
  int last_[2];
  float scale_[2];
  float largest_[2] = {-INFINITY, -INFINITY}, sums_[2] = {};
};

template <int kHeadDim>
__global__ void __launch_bounds__(kImportanceThreads)
    ScoreKernel(const __grid_constant__ ScoreLaunch launch) {
  using Cta = ScoreCta<kHeadDim>;
  __shared__ __align__(16) char tiles[2 * Cta::kTileBytes];
  Cta(launch, ptx::SharedAddress(tiles)).Run();
}

template <int kHeadDim>
__global__ void __launch_bounds__(kImportanceThreads)
    ImportanceKernel(const __grid_constant__ ImportanceLaunch launch) {
  __shared__ typename ImportanceCta<kHeadDim>::Memory memory;
  ImportanceCta<kHeadDim>(launch, memory).Run();
}

template <int kHeadDim, bool kIsBfloat16>
cudaError_t LaunchMoments(const MomentLaunch& launch, cudaStream_t stream) {
  using Cta = MomentCta<kHeadDim, kIsBfloat16>;
  const auto kernel = QueryMomentKernel<kHeadDim, kIsBfloat16>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Cta::kSharedBytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster = {.id = cudaLaunchAttributeClusterDimension};
  cluster.val.clusterDim = {kClusterCtas, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(kClusterCtas, launch.kept.num_kv_heads);
  config.blockDim = dim3(Cta::kThreads);
  config.dynamicSmemBytes = Cta::kSharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, launch);
}

}  // namespace

cudaError_t SumQueries(const KeptQueries& kept, float score_scale, const QuerySampleRows& samples,
                       float* sums, cudaStream_t stream) {
  const MomentLaunch launch = {kept, samples, score_scale, sums};
  if (kept.head_dim == 64) {
    return kept.is_bfloat16 ? LaunchMoments<64, true>(launch, stream)
                            : LaunchMoments<64, false>(launch, stream);
  }
  return kept.is_bfloat16 ? LaunchMoments<128, true>(launch, stream)
                          : LaunchMoments<128, false>(launch, stream);
}

cudaError_t SumScores(const SampledKeys& keys, const QuerySampleRows& samples, int num_kv_heads,
                      int group, int head_dim, cudaStream_t stream) {
  const int num_rows = samples.num_samples * group;
  if (num_rows == 0) return cudaSuccess;
  const dim3 grid((num_rows - 1) / kSampleTileRows + 1, num_kv_heads);
  const auto kernel = head_dim == 64 ? ScoreKernel<64> : ScoreKernel<128>;
  kernel<<<grid, kImportanceThreads, 0, stream>>>({keys, samples, group});
  return cudaGetLastError();
}

cudaError_t SumImportance(const SampledKeys& keys, const QuerySampleRows& samples, int num_kv_heads,
                          int group, int head_dim, float* importance, cudaStream_t stream) {
  if (keys.num_tokens == 0) return cudaSuccess;
  const dim3 grid((keys.num_tokens - 1) / kImportanceTokens + 1, num_kv_heads);
  const auto kernel = head_dim == 64 ? ImportanceKernel<64> : ImportanceKernel<128>;
  kernel<<<grid, kImportanceThreads, 0, stream>>>({keys, samples, group, importance});
  return cudaGetLastError();
}

}  // namespace pkv
