// Second moments of queries, and the attention that tokens receive from a sample of them, on tensor
// cores (mma.m16n8k16, fp32 sums). Every sum has one order: equal inputs give equal bits.

#include "kernels/codec/query_statistics_kernels.h"
#include "kernels/device/ptx.cuh"
#include "pkv/block/kv_shape.h"

namespace pkv {
namespace {

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

// One CTA: all of a kv head's head_dim x head_dim sums over its part of the rows. Warp w of 8 has a
// quarter of the sums' rows and half of their columns. Tiles of 32 queries are copied four ahead.
constexpr int kMomentThreads = 256;
constexpr int kMomentStages = 5;

template <int kHeadDim, bool kIsBfloat16>
class MomentCta {
 public:
  using Tile = RowTile<kHeadDim>;
  static constexpr int kTileBytes = kMomentTileRows * Tile::kRowBytes;
  static constexpr int kWarpRows = kHeadDim / 4, kWarpColumns = kHeadDim / 2;

  __device__ MomentCta(const MomentRows& rows, uint32_t memory)
      : rows_(rows),
        memory_(memory),
        lane_(threadIdx.x % 32),
        first_row_(threadIdx.x / 64 * kWarpRows),
        first_column_(threadIdx.x / 32 % 2 * kWarpColumns) {}

  __device__ void Run(int begin, int end, float* out) {
    const int num_tiles = (end - begin + kMomentTileRows - 1) / kMomentTileRows;
    for (int tile = 0; tile < kMomentStages - 1; ++tile) Copy(begin, end, tile, num_tiles);
    for (int tile = 0; tile < num_tiles; ++tile) {
      ptx::WaitCopies<kMomentStages - 2>();
      __syncthreads();
      // Into the stage that every warp is done with, as it has passed the barrier.
      Copy(begin, end, tile + kMomentStages - 1, num_tiles);
      Add(memory_ + tile % kMomentStages * kTileBytes);
    }
    Store(out);
  }

 private:
  // Rows from `end` on are zeros. A tile past the last is an empty group of copies.
  __device__ __forceinline__ void Copy(int begin, int end, int tile, int num_tiles) const {
    if (tile < num_tiles) CopyTile(begin + tile * kMomentTileRows, end, tile % kMomentStages);
    ptx::CommitCopies();
  }
  __device__ __forceinline__ void CopyTile(int first, int end, int stage) const {
#pragma unroll
    for (int i = threadIdx.x; i < kMomentTileRows * Tile::kPieces; i += kMomentThreads) {
      const int in_tile = i / Tile::kPieces, piece = i % Tile::kPieces;
      const int row = min(first + in_tile, end - 1), group = rows_.queries.group;
      const int head = blockIdx.y * group + row % group;
      const int64_t query = rows_.first + row / group * rows_.stride;
      const uint16_t* from =
          rows_.queries.q + query * rows_.queries.q_stride + int64_t{head} * kHeadDim + piece * 8;
      ptx::CopyAsync16(memory_ + stage * kTileBytes + in_tile * Tile::kRowBytes + piece * 16, from,
                       first + in_tile < end ? 16 : 0);
    }
  }

  __device__ __forceinline__ void Add(uint32_t tile) {
#pragma unroll
    for (int row = 0; row < kMomentTileRows; row += 16) {
      // Channels are rows of a and columns of b: both are transposed as they are loaded.
      uint4 a[kWarpRows / 16];
#pragma unroll
      for (int m = 0; m < kWarpRows / 16; ++m) {
        a[m] =
            ptx::LoadMatricesTransposed(Tile::ColumnsFirst(tile, lane_, row, first_row_ + 16 * m));
      }
#pragma unroll
      for (int n = 0; n < kWarpColumns / 16; ++n) {
        const uint4 b =
            ptx::LoadMatricesTransposed(Tile::RowsFirst(tile, lane_, row, first_column_ + 16 * n));
#pragma unroll
        for (int m = 0; m < kWarpRows / 16; ++m) {
          Multiply(sums_[m][2 * n], a[m], b.x, b.y);
          Multiply(sums_[m][2 * n + 1], a[m], b.z, b.w);
        }
      }
    }
  }

  static __device__ __forceinline__ void Multiply(float (&d)[4], const uint4& a, uint32_t b0,
                                                  uint32_t b1) {
    if constexpr (kIsBfloat16) {
      ptx::MmaBfloat16(d, a.x, a.y, a.z, a.w, b0, b1);
    } else {
      ptx::Mma(d, a.x, a.y, a.z, a.w, b0, b1);
    }
  }

  __device__ __forceinline__ void Store(float* out) const {
#pragma unroll
    for (int m = 0; m < kWarpRows / 16; ++m) {
#pragma unroll
      for (int n = 0; n < kWarpColumns / 8; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const int row = first_row_ + 16 * m + lane_ / 4 + 8 * h;
          const int column = first_column_ + 8 * n + lane_ % 4 * 2;
          *reinterpret_cast<float2*>(out + row * kHeadDim + column) =
              make_float2(sums_[m][n][2 * h], sums_[m][n][2 * h + 1]);
        }
      }
    }
  }

  const MomentRows& rows_;
  const uint32_t memory_;
  const int lane_, first_row_, first_column_;
  float sums_[kWarpRows / 16][kWarpColumns / 8][4] = {};
};

// Grid: [num_parts, num_kv_heads].
template <int kHeadDim, bool kIsBfloat16>
__global__ void __launch_bounds__(kMomentThreads)
    QueryMomentKernel(const __grid_constant__ MomentRows rows, float* partials) {
  using Cta = MomentCta<kHeadDim, kIsBfloat16>;
  __shared__ __align__(16) char memory[kMomentStages * Cta::kTileBytes];
  const int num_rows = rows.count * rows.queries.group;
  const int num_tiles = (num_rows + kMomentTileRows - 1) / kMomentTileRows;
  const int parts = gridDim.x, part = blockIdx.x;
  const int begin = static_cast<int>(int64_t{num_tiles} * part / parts) * kMomentTileRows;
  const int end = static_cast<int>(int64_t{num_tiles} * (part + 1) / parts) * kMomentTileRows;
  Cta(rows, ptx::SharedAddress(memory))
      .Run(begin, min(end, num_rows),
           partials + (int64_t{blockIdx.y} * parts + part) * kHeadDim * kHeadDim);
}

// One thread an element. Grid: [size / threads, num_kv_heads].
__global__ void AddPartialsKernel(const float* partials, int num_parts, int size, float weight,
                                  float* sums) {
  const int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= size) return;
  const float* of_head = partials + int64_t{blockIdx.y} * num_parts * size + at;
  float sum = 0;
#pragma unroll 8
  for (int part = 0; part < num_parts; ++part) sum += of_head[int64_t{part} * size];
  sums[int64_t{blockIdx.y} * size + at] += weight * sum;
}

// What TakeSamplesKernel() is given.
struct SampleLaunch {
  QueryRows rows;
  QuerySampleRows samples;
  const float* lse;  // null: not known yet
  int first_token, begin, end;
  float score_scale;
};

// One warp a sample and query head.
__global__ void TakeSamplesKernel(const __grid_constant__ SampleLaunch launch) {
  const QueryRows& rows = launch.rows;
  const int num_qo_heads = rows.num_kv_heads * rows.group;
  const int warp = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  const int sample = launch.begin + warp / num_qo_heads, head = warp % num_qo_heads;
  if (sample >= launch.end) return;
  const int query = launch.samples.positions[sample] - launch.first_token;
  const uint16_t* from = rows.q + query * rows.q_stride + int64_t{head} * rows.head_dim;
  const int64_t row = int64_t{head / rows.group} * launch.samples.capacity + sample * rows.group +
                      head % rows.group;
  uint16_t* to = launch.samples.q + row * rows.head_dim;
  float scale = launch.score_scale;
  uint32_t exponent = 127;
  if (rows.is_bfloat16) {
    uint32_t largest = 0;
    for (int i = lane; i < rows.head_dim; i += 32) largest = max(largest, from[i] & 0x7fffu);
    largest = __reduce_max_sync(~0u, largest);
    // As LoadQueries() of prefill_attention_kernels.cu.
    exponent = min(127 + 127 + 14 - (largest >> 7), 127u + 100);
    scale *= __uint_as_float((254 - exponent) << 23);
  }
  const float factor = __uint_as_float(exponent << 23);
  for (int i = lane; i < rows.head_dim; i += 32) {
    uint16_t value = from[i];
    if (rows.is_bfloat16) {
      value = static_cast<uint16_t>(
          ptx::PackHalf2(__uint_as_float(uint32_t{value} << 16) * factor, 0.0f));
    }
    to[i] = value;
  }
  if (lane == 0) {
    const float lse =
        launch.lse != nullptr ? launch.lse[int64_t{query} * num_qo_heads + head] * kLog2E : 0;
    launch.samples.terms[row] = {scale, lse};
  }
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

}  // namespace

cudaError_t AddMoments(const MomentRows& rows, int num_parts, float* partials, float* sums,
                       cudaStream_t stream) {
  const QueryRows& of = rows.queries;
  const dim3 grid(num_parts, of.num_kv_heads);
  if (of.head_dim == 64) {
    const auto kernel = of.is_bfloat16 ? QueryMomentKernel<64, true> : QueryMomentKernel<64, false>;
    kernel<<<grid, kMomentThreads, 0, stream>>>(rows, partials);
  } else {
    const auto kernel =
        of.is_bfloat16 ? QueryMomentKernel<128, true> : QueryMomentKernel<128, false>;
    kernel<<<grid, kMomentThreads, 0, stream>>>(rows, partials);
  }
  const int size = of.head_dim * of.head_dim;
  AddPartialsKernel<<<dim3(size / kMomentThreads, of.num_kv_heads), kMomentThreads, 0, stream>>>(
      partials, num_parts, size, static_cast<float>(rows.stride), sums);
  return cudaGetLastError();
}

cudaError_t TakeSamples(const QueryRows& rows, const float* lse, int first_token, float score_scale,
                        int begin, int end, const QuerySampleRows& samples, cudaStream_t stream) {
  constexpr int kThreads = 256;
  const int num_threads = (end - begin) * rows.num_kv_heads * rows.group * 32;
  if (num_threads == 0) return cudaSuccess;
  TakeSamplesKernel<<<(num_threads - 1) / kThreads + 1, kThreads, 0, stream>>>(
      {rows, samples, lse, first_token, begin, end, score_scale});
  return cudaGetLastError();
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
