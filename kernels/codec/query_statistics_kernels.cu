// Second moments of queries on tensor cores (fp32 sums), and the sample of them as later products
// take it. Every sum has one order: equal inputs give equal bits.

#include "kernels/codec/query_statistics_kernels.h"
#include "kernels/device/ptx.cuh"
#include "kernels/device/wgmma.cuh"

#include <cooperative_groups.h>

namespace pkv {
namespace {

namespace cg = cooperative_groups;

constexpr float kLog2E = 1.442695040888963f;

// What a query is kept for, one cluster a kv head: the sums of q q^T over the rows that count, of
// which each CTA has its share, and the sampled rows as fp16. Warpgroup w has the sums of channels
// 64 w .. 64 w + 63 with all channels. Tiles of 64 rows are copied ten ahead; a tile is both
// operands. When all CTAs have their sums in shared memory, each adds up an eighth of them, in the
// order of the CTAs. A row is read once: 2 head_dim bytes for 2 head_dim^2 operations.
// Grid: [kClusterCtas, num_kv_heads].
constexpr int kClusterCtas = 8;
constexpr int kMomentTileRows = 64;
constexpr int kMomentTilesAhead = 10;
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
        rank_(blockIdx.x),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        num_rows_(launch.kept.num_queries * launch.kept.group) {}

  __device__ void Run() {
    const int num_tiles = (num_rows_ + kMomentTileRows - 1) / kMomentTileRows;
    const int begin = num_tiles * rank_ / kClusterCtas;
    const int end = num_tiles * (rank_ + 1) / kClusterCtas;
    StartCopies(begin);
    for (int i = 0; i < kMomentTilesAhead; ++i) Copy(begin + i < end);
    TakeSamples();
    for (int tile = begin; tile < end;) {
      const int doubling = Doubling(tile), same_weight = min(end, EndOf(doubling));
      for (; tile < same_weight; ++tile) AddTile(tile + kMomentTilesAhead < end);
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
  // A thread copies 16 bytes of every kCopyRows-th row. Divisions are done once: which query and
  // head a row is follows from the one before.
  static constexpr int kPieces = kHeadDim / 8, kCopyRows = kThreads / kPieces;
  __device__ __forceinline__ void StartCopies(int tile) {
    const int row = tile * kMomentTileRows + threadIdx.x / kPieces, group = launch_.kept.group;
    copied_row_ = row;
    copied_head_ = row % group;
    copied_from_ = launch_.kept.rows + row / group * QuerySize() +
                   (blockIdx.y * group + row % group) * kHeadDim + threadIdx.x % kPieces * 8;
  }
  __device__ __forceinline__ int64_t QuerySize() const {
    return int64_t{launch_.kept.num_kv_heads} * launch_.kept.group * kHeadDim;
  }
  // The next tile, or an empty group of copies. Rows behind the last are zeros.
  __device__ __forceinline__ void Copy(bool is_tile) {
    if (is_tile) {
      const int group = launch_.kept.group, piece = threadIdx.x % kPieces;
      const int64_t step = kCopyRows / group * QuerySize() + kCopyRows % group * kHeadDim;
#pragma unroll
      for (int i = 0; i < kMomentTileRows / kCopyRows; ++i) {
        const int in_tile = threadIdx.x / kPieces + i * kCopyRows;
        const bool is_row = copied_row_ < num_rows_;
        ptx::CopyAsync16(tiles_ + copied_stage_ * kTileBytes + piece / 8 * kPanelBytes +
                             ptx::PanelOffset(in_tile, piece % 8),
                         is_row ? copied_from_ : launch_.kept.rows, is_row ? 16 : 0);
        copied_row_ += kCopyRows;
        copied_from_ += step;
        copied_head_ += kCopyRows % group;
        if (copied_head_ >= group) {
          copied_head_ -= group;
          copied_from_ += QuerySize() - group * kHeadDim;
        }
      }
      copied_stage_ = Next(copied_stage_);
    }
    ptx::CommitCopies();
  }
  static __device__ __forceinline__ int Next(int stage) {
    return stage + 1 < kMomentStages ? stage + 1 : 0;
  }

  // The next tile. `copies`: there is one that far ahead.
  __device__ __forceinline__ void AddTile(bool copies) {
    ptx::WaitCopies<kMomentTilesAhead - 1>();
    ptx::FenceSharedForCopies();
    __syncthreads();
    // Into the stage of the tile before the last: its products are done in every warpgroup that
    // has passed the barrier.
    Copy(copies);
    ptx::Pin(sums_);
    ptx::FenceProducts();
#pragma unroll
    for (int row = 0; row < kMomentTileRows; row += 16) {
      const uint32_t rows = tiles_ + stage_ * kTileBytes + row * ptx::kPanelRowBytes;
      ptx::AddProductOfColumns<kIsBfloat16>(
          sums_, ptx::PanelOperand(rows + warp_ / 4 * kPanelBytes, kPanelBytes),
          ptx::PanelOperand(rows, kPanelBytes));
    }
    ptx::CommitProducts();
    ptx::WaitProducts<1>();
    stage_ = Next(stage_);
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

  // One warp a sample and query head. What fills the last tile is the last row, of weight 0.
  __device__ __forceinline__ void TakeSamples() const {
    const int num_rows = launch_.samples.num_samples * launch_.kept.group;
    const int num_tiles = (num_rows + kSampleTileRows - 1) / kSampleTileRows;
    constexpr int kWarps = kThreads / 32;
#pragma unroll 4
    for (int row = rank_ * kWarps + warp_; row < num_tiles * kSampleTileRows;
         row += kClusterCtas * kWarps) {
      TakeSample(row, num_rows);
    }
  }
  // Two channels each of 64 in a row; kPanels such parts have all.
  static constexpr int kPanels = kHeadDim / ptx::kPanelColumns;
  struct Pairs {
    uint32_t of_panel[kPanels];
  };
  __device__ __forceinline__ void TakeSample(int row, int num_rows) const {
    const KeptQueries& kept = launch_.kept;
    const int from_row = min(row, num_rows - 1), sample = from_row / kept.group;
    const int64_t vector =
        (int64_t{sample} * kept.num_kv_heads + blockIdx.y) * kept.group + from_row % kept.group;
    const auto* from = reinterpret_cast<const uint32_t*>(kept.sample_rows + vector * kHeadDim);
    Pairs pairs;
#pragma unroll
    for (int i = 0; i < kPanels; ++i) pairs.of_panel[i] = __ldg(from + 32 * i + lane_);
    const float lse = kept.sample_lse != nullptr ? __ldg(kept.sample_lse + vector) * kLog2E : 0;
    float scale = launch_.score_scale;
    if constexpr (kIsBfloat16) scale *= ScaleToHalf2(pairs);

    SampleTile<kHeadDim>& tile = static_cast<SampleTile<kHeadDim>*>(
        launch_.samples
            .tiles)[int64_t{blockIdx.y} * launch_.samples.num_tiles + row / kSampleTileRows];
    const int in_tile = row % kSampleTileRows;
#pragma unroll
    for (int panel = 0; panel < kPanels; ++panel) {
      char* to = tile.q + panel * kSampleTileRows * ptx::kPanelRowBytes +
                 ptx::PanelOffset(in_tile, lane_ / 4) + lane_ % 4 * 4;
      *reinterpret_cast<uint32_t*>(to) = pairs.of_panel[panel];
    }
    if (lane_ != 0) return;
    tile.terms[in_tile] = row < num_rows ? SampleTerms{scale, lse} : SampleTerms{0, INFINITY};
    tile.positions[in_tile] = launch_.samples.positions[sample];
  }
  // As LoadQueries() of prefill_attention_kernels.cu; returns what takes the power of two back.
  static __device__ __forceinline__ float ScaleToHalf2(Pairs& pairs) {
    uint32_t largest = 0;
#pragma unroll
    for (const uint32_t pair : pairs.of_panel) {
      largest = max(largest, max(pair & 0x7fff, pair >> 16 & 0x7fff));
    }
    largest = __reduce_max_sync(~0u, largest);
    const uint32_t exponent = min(127 + 127 + 14 - (largest >> 7), 127u + 100);
    const float factor = __uint_as_float(exponent << 23);
#pragma unroll
    for (uint32_t& pair : pairs.of_panel) {
      pair = ptx::PackHalf2(__uint_as_float(pair << 16) * factor,
                            __uint_as_float(pair & 0xffff0000) * factor);
    }
    return __uint_as_float((254 - exponent) << 23);
  }

  const MomentLaunch& launch_;
  const uint32_t tiles_;
  float* const shared_sums_;  // [head_dim][kSumColumns], where the tiles were
  const cg::cluster_group cluster_;
  const int rank_, lane_, warp_, num_rows_;
  // What this thread copies next, and where to; the stage of the next products.
  int copied_row_ = 0, copied_head_ = 0, copied_stage_ = 0, stage_ = 0;
  const uint16_t* copied_from_ = nullptr;
  float sums_[kHeadDim / 2] = {};
};

template <int kHeadDim, bool kIsBfloat16>
__global__ void __launch_bounds__(2 * kHeadDim)
    QueryMomentKernel(const __grid_constant__ MomentLaunch launch) {
  extern __shared__ char memory[];
  MomentCta<kHeadDim, kIsBfloat16>(launch, memory).Run();
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

}  // namespace pkv
