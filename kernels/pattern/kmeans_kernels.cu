// K-means that stays on chip: a cluster of six CTAs keeps the sample of one (kv head, K or V) in
// its shared memory for all iterations, 384 rows a CTA.
//
// An iteration: every warp scores 16 tokens against 32 patterns at a time on tensor cores; tokens
// that change their cluster are listed; their rows, gathered, times +1 and -1 at the clusters that
// they join and leave, are added to the CTA's sums, again on tensor cores; the CTAs meet; each
// moves its share of the centroids, from the sums of all, and writes them, as fp16, to the others;
// the CTAs meet again. When half of a CTA's tokens change, its sums are taken anew: first of all in
// the first iteration. Later few change, and sums cost little. Lists stand in the order of tokens,
// and sums of CTAs are added in their order, so every run gives equal bits.
//
// Problems never wait for each other, although the heads of a tensor stop together: each keeps the
// patterns of every iteration, and a second kernel takes those of the iteration that the rule
// names.

#include "kernels/pattern/kmeans_kernels.h"

#include <algorithm>
#include <limits>

#include <cooperative_groups.h>

#include "kernels/pattern/kmeans_cluster.cuh"
#include "kernels/pattern/kmeans_refill.cuh"
#include "kernels/pattern/kmeans_select.cuh"
#include "kernels/pattern/mined_sample.h"
#include "kernels/pattern/nearest_mma.cuh"

namespace pkv {
namespace {

// One CTA's part of one problem. kIsWide: up to 255 patterns, with the sums of all CTAs in global
// memory; otherwise up to 64, each CTA with its own.
template <int kHeadDim, int kCapacity>
class Miner {
 public:
  using Shared = MineShared<kHeadDim, kCapacity>;

  __device__ Miner(const MineTask& task, Shared& shared)
      : task_(task),
        shared_(shared),
        place_(task.args, static_cast<int>(cooperative_groups::this_cluster().block_rank())),
        num_chunks_((place_.num_patterns + kChunkPatterns - 1) / kChunkPatterns),
        share_((place_.num_patterns + kClusterCtas - 1) / kClusterCtas) {
#pragma unroll
    for (int& id : tiles_.ids) id = kNoCluster;
  }

  __device__ int num_patterns() const { return place_.num_patterns; }

  __device__ void Start() {
    if (place_.thread < kMoves) shared_.moves[place_.thread] = 0;
    for (int i = place_.thread; i < place_.num_own * kPieces; i += kMineThreads) {
      CopyAsync(shared_.tokens + SwizzledPiece(i / kPieces, i % kPieces, kPieces),
                Row(place_.first + i / kPieces) + i % kPieces * 8);
    }
    PlaceCentroids();
    for (int id = place_.thread; id < place_.num_patterns; id += kMineThreads) Counts()[id] = 0;
    WaitForCopies();
    SyncCluster(place_.warp);  // all CTAs are there
  }

  // Returns whether a centroid moved.
  __device__ bool Iterate(int iteration) {
    Assign();
    SyncCluster(place_.warp);  // the sums of all CTAs are complete
    float sums[kOwnPatterns][kOwn];
    const int count = LoadTotals(sums);
    if (place_.thread < place_.num_patterns) {
      shared_.total_counts[place_.thread] = static_cast<uint16_t>(count);
    }
    const int num_empty = __syncthreads_count(place_.thread < place_.num_patterns && count == 0);
    if (num_empty > 0) FindFarthest(task_, shared_, place_, tiles_, num_empty);
    MoveOwnCentroids(sums);
    SyncCluster(
        place_.warp);  // the centroids of all CTAs are written, and nobody reads sums any more
    // Behind the barrier, which would wait for these stores.
    WriteHistory(iteration);
    const float move = WarpMax(fmaxf(shared_.moves[place_.lane], shared_.moves[place_.lane + 32]));
    if (place_.rank == 0 && place_.thread == 0) moves()[iteration] = move;
    return move > 0;
  }

  __device__ void Finish(int num_iterations) {
    if (place_.rank > 0) return;
    for (int i = num_iterations + place_.thread; i < task_.args.iterations; i += kMineThreads) {
      moves()[i] = 0;
    }
    if (place_.thread == 0) task_.iterations[place_.problem] = num_iterations;
  }

 private:
  static constexpr int kPieces = kHeadDim / 8;
  static constexpr int kGroups = kHeadDim / 32;
  static constexpr int kOwn = kOwnChannels<kHeadDim>;
  // A warp moves this many centroids of its CTA's share.
  static constexpr int kOwnPatterns = QuotientUp(QuotientUp(kCapacity, kClusterCtas), kMineWarps);

  __device__ const uint16_t* Row(int index) const {
    return place_.rows + int64_t{MinedToken(index, place_.num_tokens)} * kHeadDim;
  }
  __device__ float* moves() const { return task_.moves + place_.problem * task_.args.iterations; }

  // Of this CTA's tokens.
  __device__ float* Sums(int rank) const {
    if constexpr (!kIsWide<kCapacity>) return shared_.sums;
    return task_.sums +
           (int64_t{place_.problem} * kClusterCtas + rank) * kMaxBankPatterns * kHeadDim;
  }
  __device__ int* Counts(int rank) const {
    if constexpr (!kIsWide<kCapacity>) return shared_.counts;
    return task_.counts + (place_.problem * kClusterCtas + rank) * kMaxBankPatterns;
  }
  __device__ float* Sums() const { return Sums(place_.rank); }
  __device__ int* Counts() const { return Counts(place_.rank); }
  __device__ uint32_t* List() const {
    if constexpr (!kIsWide<kCapacity>) return shared_.list;
    return task_.lists + (place_.problem * kClusterCtas + place_.rank) * kCtaTokens;
  }

  // Tokens at equal strides; zeros past the last pattern, where a bias keeps everything away.
  __device__ void PlaceCentroids() {
    for (int id = place_.warp; id < num_chunks_ * kChunkPatterns; id += kMineWarps) {
      const bool exists = id < place_.num_patterns;
      float values[kOwn] = {};
      if (exists) ToFloats(LoadRow<kHeadDim>(StartRow(id), place_.lane), values);
      const LaneWords<kHeadDim> words = RoundToHalves(values);
      const uint4 piece = Piece(words);
      if (place_.lane < kPieces) *PieceOf(id) = piece;
      const float bias = Bias(words);
      if (place_.lane == 0) {
        shared_.biases[id] = exists ? bias : -std::numeric_limits<float>::infinity();
      }
    }
#pragma unroll
    for (int i = 0; i < kOwnPatterns; ++i) {
      if (!IsOwn(i)) continue;
      ToFloats(LoadRow<kHeadDim>(StartRow(OwnPattern(i)), place_.lane), centroids_[i]);
    }
  }
  __device__ const uint16_t* StartRow(int id) const {
    return Row(id * place_.num_sampled / place_.num_patterns);
  }

  // The piece with number lane % kPieces of the pattern that the lanes of the warp hold.
  __device__ uint4 Piece(LaneWords<kHeadDim> words) const {
    const int from = place_.lane % kPieces * (32 / kPieces);
    if constexpr (kHeadDim == 128) {
      return {__shfl_sync(~0u, words.x, from), __shfl_sync(~0u, words.y, from),
              __shfl_sync(~0u, words.x, from + 1), __shfl_sync(~0u, words.y, from + 1)};
    } else {
      return {__shfl_sync(~0u, words, from), __shfl_sync(~0u, words, from + 1),
              __shfl_sync(~0u, words, from + 2), __shfl_sync(~0u, words, from + 3)};
    }
  }
  // Where it belongs.
  __device__ uint4* PieceOf(int id) const {
    return shared_.centroids + CentroidPiece<kHeadDim>(id, place_.lane % kPieces);
  }

  // Of the pattern that the lanes of the warp hold.
  __device__ static float Bias(LaneWords<kHeadDim> words) {
    float values[kOwn], sum = 0;
    ToFloats(words, values);
#pragma unroll
    for (const float value : values) sum = fmaf(value, value, sum);
    return -0.5f * WarpSum(sum);
  }

  __device__ void Assign() {
    NearestSoFar best[kTilesPerWarp][4];
    // Spelled out: nvcc 13.0 gives the members' initial values to the first row alone.
#pragma unroll
    for (auto& of_tile : best) {
#pragma unroll
      for (NearestSoFar& of_token : of_tile) of_token = NearestSoFar{};
    }
    for (int chunk = 0; chunk < num_chunks_; ++chunk) ScoreChunk(chunk, best);
    TileIds before = tiles_;
    int num_changes = 0;
    // Of tiles without tokens, too: without branches the merges of all tiles run side by side.
#pragma unroll
    for (int tile = 0; tile < kTilesPerWarp; ++tile) {
      NearestPattern nearest[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) nearest[i] = NearestPattern::Of(best[tile][i]);
      const int id = MergeTokens(nearest);
      if (HasToken(tile)) tiles_.ids[tile] = id;
      num_changes += __popc(__ballot_sync(~0u, tiles_.ids[tile] != before.ids[tile]));
    }
    if (place_.lane == 0) shared_.warp_changes[place_.warp] = num_changes;
    __syncthreads();
    int total = 0, earlier = 0;
#pragma unroll
    for (int warp = 0; warp < kMineWarps; ++warp) {
      earlier += warp < place_.warp ? shared_.warp_changes[warp] : 0;
      total += shared_.warp_changes[warp];
    }
    const bool from_zero = 2 * total >= place_.num_own;
    const int num_listed = from_zero ? place_.num_own : 2 * total;
    ListTokens(before, from_zero, 2 * earlier);
    const int num_padded = (num_listed + kListStep - 1) / kListStep * kListStep;
    if (place_.thread < num_padded - num_listed) {
      List()[num_listed + place_.thread] = ListEntry(0, kNoCluster, false);
    }
    __syncthreads();
    if (from_zero || num_listed > 0) AddListed(num_padded, from_zero);
  }

  // Lanes below 16 have a token of each tile.
  __device__ int OwnRow(int tile) const { return place_.TileRow(tile) + OwnToken<2>(place_.lane); }
  __device__ bool HasToken(int tile) const {
    return place_.lane < 16 && OwnRow(tile) < place_.num_own;
  }

  // All tokens, or those that change, twice, from list entry `first` on; and counts.
  __device__ void ListTokens(const TileIds& before, bool all, int first) {
    uint32_t* list = List();
#pragma unroll
    for (int tile = 0; tile < kTilesPerWarp; ++tile) {
      const int id = tiles_.ids[tile], old_id = before.ids[tile], row = OwnRow(tile);
      const uint32_t changes = __ballot_sync(~0u, id != old_id);
      if (all && HasToken(tile)) list[row] = ListEntry(row, id, false);
      if (id != old_id) {
        atomicAdd(Counts() + id, 1);
        if (old_id != kNoCluster) atomicAdd(Counts() + old_id, -1);
        const int at = first + 2 * __popc(changes & ((1u << place_.lane) - 1));
        if (!all) {
          list[at] = ListEntry(row, id, false);
          list[at + 1] = ListEntry(row, old_id, true);
        }
      }
      first += 2 * __popc(changes);
    }
  }

  // Adds the listed rows to the sums of this CTA. A warp owns kSumTiles tiles of 8 channels.
  static constexpr int kSumTiles = kHeadDim / 8 / kMineWarps;
  __device__ void AddListed(int num_listed, bool from_zero) {
    const int row = place_.lane / 4, column = place_.lane % 4;
    auto* pairs = reinterpret_cast<float2*>(Sums());
    for (int chunk = 0; chunk < num_chunks_; ++chunk) {
      float sums[kChunkTiles][kSumTiles][4] = {};
      const auto pair = [&](int m, int n, int half) -> float2& {
        const int pattern = chunk * kChunkPatterns + m * kMmaPatterns + half * 8 + row;
        return pairs[SumPair<kHeadDim>(pattern, (place_.warp * kSumTiles + n) * 4 + column)];
      };
#pragma unroll
      for (int i = 0; i < kChunkTiles * kSumTiles * 2 && !from_zero; ++i) {
        const float2 sum = pair(i / 2 / kSumTiles, i / 2 % kSumTiles, i % 2);
        sums[i / 2 / kSumTiles][i / 2 % kSumTiles][i % 2 * 2] = sum.x;
        sums[i / 2 / kSumTiles][i / 2 % kSumTiles][i % 2 * 2 + 1] = sum.y;
      }
      __half2 numbers[kChunkTiles][2];
#pragma unroll
      for (int m = 0; m < kChunkTiles; ++m) {
        const int pattern = (chunk * kChunkTiles + m) * kMmaPatterns + row;
        numbers[m][0] = __half2half2(ListNumber(pattern));
        numbers[m][1] = __half2half2(ListNumber(pattern + 8));
      }
      // Rows one step ahead: from an entry to its row's channels is a chain of two loads.
      uint32_t channels[2 * kSumTiles], next[2 * kSumTiles];
      if (num_listed > 0) LoadListedRows(0, next);  // else the list is not written
      for (int first = 0; first < num_listed; first += kListStep) {
#pragma unroll
        for (int i = 0; i < 2 * kSumTiles; ++i) channels[i] = next[i];
        LoadListedRows(min(first + kListStep, num_listed - kListStep), next);
        const auto listed = ListedNumbers::Of(List() + first, place_.lane);
#pragma unroll
        for (int m = 0; m < kChunkTiles; ++m) {
          const uint4 signs = listed.Signs(numbers[m]);
#pragma unroll
          for (int n = 0; n < kSumTiles; ++n) {
            MultiplyAdd(sums[m][n], signs, channels[2 * n], channels[2 * n + 1]);
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kChunkTiles * kSumTiles * 2; ++i) {
        const float* of_half = &sums[i / 2 / kSumTiles][i / 2 % kSumTiles][i % 2 * 2];
        pair(i / 2 / kSumTiles, i / 2 % kSumTiles, i % 2) = {of_half[0], of_half[1]};
      }
    }
  }

  // The second factor: 16 listed rows, 8 or 16 channels of this warp.
  __device__ void LoadListedRows(int first, uint32_t (&channels)[2 * kSumTiles]) const {
    const int row = ListedRow(List()[first + place_.lane % kListStep]);
    const int piece = place_.warp * kSumTiles + (kSumTiles == 2 ? place_.lane / 16 : 0);
    const auto address = static_cast<uint32_t>(
        __cvta_generic_to_shared(shared_.tokens + SwizzledPiece(row, piece, kPieces)));
    if constexpr (kSumTiles == 2) {
      const uint4 words = ptx::LoadMatricesTransposed(address);
      channels[0] = words.x, channels[1] = words.y, channels[2] = words.z, channels[3] = words.w;
    } else {
      asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                   : "=r"(channels[0]), "=r"(channels[1])
                   : "r"(address));
    }
  }

  __device__ void ScoreChunk(int chunk, NearestSoFar (&best)[kTilesPerWarp][4]) const {
    const int row = place_.lane / 4;
    uint4 patterns[kChunkTiles][kGroups][2];  // g, g + 8
    float biases[kChunkTiles][2];
#pragma unroll
    for (int n = 0; n < kChunkTiles; ++n) {
      const int tile = chunk * kChunkTiles + n;
      biases[n][0] = shared_.biases[tile * kMmaPatterns + row];
      biases[n][1] = shared_.biases[tile * kMmaPatterns + row + 8];
#pragma unroll
      for (int i = 0; i < 2 * kGroups; ++i) {
        patterns[n][i / 2][i % 2] = shared_.centroids[(tile * kGroups * 2 + i) * 32 + place_.lane];
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTilesPerWarp; ++tile) {
      if (place_.TileRow(tile) >= place_.num_own) continue;
      // Tiles one after another: their loads would take all registers.
      asm volatile("" ::: "memory");
      float scores[2][kChunkTiles][4];
      ScoreTile(patterns, biases, place_.TileRow(tile), scores);
#pragma unroll
      for (int n = 0; n < kChunkTiles; ++n) {
        const int number = 2 * (chunk * kChunkTiles + n);
#pragma unroll
        for (int token = 0; token < 4; ++token) {
          best[tile][token].Take(scores[token / 2][n][token % 2], number);
          best[tile][token].Take(scores[token / 2][n][2 + token % 2], number + 1);
        }
      }
    }
  }

  __device__ void ScoreTile(const uint4 (&patterns)[kChunkTiles][kGroups][2],
                            const float (&biases)[kChunkTiles][2], int first,
                            float (&scores)[2][kChunkTiles][4]) const {
#pragma unroll
    for (int n = 0; n < kChunkTiles; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        scores[half][n][0] = scores[half][n][1] = biases[n][0];
        scores[half][n][2] = scores[half][n][3] = biases[n][1];
      }
    }
    const int row = first + place_.lane / 4;
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      const int piece = group * 4 + place_.lane % 4;
      const uint4 x[2] = {shared_.tokens[SwizzledPiece(row, piece, kPieces)],
                          shared_.tokens[SwizzledPiece(row + kMmaTokens, piece, kPieces)]};
#pragma unroll
      for (int step = 0; step < 2; ++step) {
#pragma unroll
        for (int n = 0; n < kChunkTiles; ++n) {
          const uint4 &low = patterns[n][group][0], &high = patterns[n][group][1];
          const uint4 first_factor =
              step == 0 ? uint4{low.x, high.x, low.y, high.y} : uint4{low.z, high.z, low.w, high.w};
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            MultiplyAdd(scores[half][n], first_factor, step == 0 ? x[half].x : x[half].z,
                        step == 0 ? x[half].y : x[half].w);
          }
        }
      }
    }
  }

  // The sums of all CTAs of the patterns that this warp moves, and the count of pattern `thread`.
  __device__ int LoadTotals(float (&sums)[kOwnPatterns][kOwn]) const {
    using Vector = std::conditional_t<kOwn == 4, float4, float2>;
    constexpr int kShift = kOwn == 4 ? 1 : 2;  // of SumPair(), in vectors
    const int last = place_.num_patterns - 1;
    int count = 0;
#pragma unroll
    for (int rank = 0; rank < kClusterCtas; ++rank) {
      count += Load(Counts(rank) + min(place_.thread, last), rank);
    }
#pragma unroll
    for (int i = 0; i < kOwnPatterns; ++i) {
#pragma unroll
      for (int j = 0; j < kOwn; ++j) sums[i][j] = 0;
      if (!IsOwn(i)) continue;
      const int pattern = OwnPattern(i);
      const int at = pattern * 32 + (place_.lane ^ (pattern & 3) << kShift);
#pragma unroll
      for (int rank = 0; rank < kClusterCtas; ++rank) {
        const Vector part = Load(reinterpret_cast<const Vector*>(Sums(rank)) + at, rank);
#pragma unroll
        for (int j = 0; j < kOwn; ++j) sums[i][j] += reinterpret_cast<const float*>(&part)[j];
      }
    }
    return count;
  }
  // `at` of the CTA of `rank`.
  template <typename T>
  __device__ static T Load(const T* at, int rank) {
    if constexpr (kIsWide<kCapacity>) {
      return __ldcg(at);
    } else {
      return LoadPeer(at, rank);
    }
  }

  __device__ bool IsOwn(int i) const {
    return i * kMineWarps + place_.warp < share_ && OwnPattern(i) < place_.num_patterns;
  }
  __device__ int OwnPattern(int i) const {
    return place_.rank * share_ + i * kMineWarps + place_.warp;
  }

  // Writes them, rounded to fp16, to all CTAs.
  __device__ void MoveOwnCentroids(const float (&sums)[kOwnPatterns][kOwn]) {
    float move = 0;
#pragma unroll
    for (int i = 0; i < kOwnPatterns; ++i) {
      if (!IsOwn(i)) continue;
      const int pattern = OwnPattern(i), count = shared_.total_counts[pattern];
      float values[kOwn];
      if (count > 0) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
          values[j] = __fdiv_rn(sums[i][j], static_cast<float>(count));
        }
      } else {
        ToFloats(LoadRow<kHeadDim>(Row(RefillToken(pattern)), place_.lane), values);
      }
#pragma unroll
      for (int j = 0; j < kOwn; ++j) {
        move = fmaxf(move, fabsf(values[j] - centroids_[i][j]));
        centroids_[i][j] = values[j];
      }
      const LaneWords<kHeadDim> words = RoundToHalves(values);
      // Several CTAs at a time.
      const uint4 piece = Piece(words);
#pragma unroll
      for (int first = 0; first < kClusterCtas; first += 32 / kPieces) {
        const int rank = first + place_.lane / kPieces;
        if (rank < kClusterCtas) StorePeer(PieceOf(pattern), rank, piece);
      }
      const float bias = Bias(words);
      if (place_.lane < kClusterCtas) StorePeer(&shared_.biases[pattern], place_.lane, bias);
    }
    move = WarpMax(move);
    if (place_.lane < kClusterCtas) {
      StorePeer(&shared_.moves[place_.rank * kMineWarps + place_.warp], place_.lane, move);
    }
  }

  __device__ void WriteHistory(int iteration) const {
    const int64_t first =
        (int64_t{place_.problem} * task_.args.iterations + iteration) * task_.max_patterns;
#pragma unroll
    for (int i = 0; i < kOwnPatterns; ++i) {
      if (!IsOwn(i)) continue;
      auto* row = task_.history + (first + OwnPattern(i)) * kHeadDim;
      reinterpret_cast<LaneWords<kHeadDim>*>(row)[place_.lane] = RoundToHalves(centroids_[i]);
    }
  }

  // The n-th empty cluster takes the n-th of them.
  __device__ int RefillToken(int pattern) const {
    int num_before = 0;
    for (int m = place_.lane; m < pattern; m += 32) {
      num_before += shared_.total_counts[m] == 0 ? 1 : 0;
    }
    return shared_.refill_tokens[__reduce_add_sync(~0u, num_before)];
  }

  const MineTask& task_;
  Shared& shared_;
  const MinePlace place_;
  const int num_chunks_;
  const int share_;  // patterns that a CTA moves, from rank * share_ on
  TileIds tiles_;
  float centroids_[kOwnPatterns][kOwn] = {};  // fp32, of the patterns that this warp moves
};

template <int kHeadDim, int kCapacity>
__global__ void __launch_bounds__(kMineThreads, 1)
    MineKernel(const __grid_constant__ MineTask task) {
  extern __shared__ uint4 dynamic[];
  Miner<kHeadDim, kCapacity> miner(task,
                                   *reinterpret_cast<MineShared<kHeadDim, kCapacity>*>(dynamic));
  if (miner.num_patterns() == 0) return;
  miner.Start();
  int iteration = 0;
  while (iteration < task.args.iterations && miner.Iterate(iteration)) ++iteration;
  miner.Finish(min(iteration + 1, task.args.iterations));
}

int64_t RoundUp(int64_t bytes) { return (bytes + 15) / 16 * 16; }

int CapacityFor(const MineTask& task) {
  return task.max_patterns <= 32 ? 32 : task.max_patterns <= 64 ? 64 : kMaxBankPatterns;
}

// The parts of a workspace, and its size.
int64_t PlaceWorkspace(const KMeansKernelArgs& args, MineTask& task) {
  const int64_t problems = 2 * int64_t{args.num_kv_heads};
  task.args = args;
  task.max_patterns = std::max(args.num_patterns_k, args.num_patterns_v);
  const bool is_wide = CapacityFor(task) == kMaxBankPatterns;
  const int64_t lists = problems * task.max_patterns;
  int64_t at = 0;
  const auto place = [&](auto*& part, int64_t count) {
    part = reinterpret_cast<std::remove_reference_t<decltype(part)>>(args.workspace + at);
    at += RoundUp(count * static_cast<int64_t>(sizeof(*part)));
  };
  place(task.history, lists * args.iterations * args.head_dim);
  place(task.moves, problems * args.iterations);
  place(task.iterations, problems);
  place(task.farthest, problems * kClusterCtas * kMaxBankPatterns);
  const int64_t wide_ctas = is_wide ? problems * kClusterCtas : 0;
  place(task.sums, wide_ctas * kMaxBankPatterns * args.head_dim);
  place(task.counts, wide_ctas * kMaxBankPatterns);
  place(task.lists, wide_ctas * kCtaTokens);
  return at;
}

template <int kHeadDim, int kCapacity>
cudaError_t LaunchMine(const MineTask& task, cudaStream_t stream) {
  constexpr int kSharedBytes = static_cast<int>(sizeof(MineShared<kHeadDim, kCapacity>));
  const cudaError_t error = cudaFuncSetAttribute(
      MineKernel<kHeadDim, kCapacity>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute cluster = {.id = cudaLaunchAttributeClusterDimension};
  cluster.val.clusterDim = {kClusterCtas, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(2 * task.args.num_kv_heads * kClusterCtas);
  config.blockDim = dim3(kMineThreads);
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, MineKernel<kHeadDim, kCapacity>, task);
}

template <int kHeadDim>
cudaError_t LaunchHeadDim(const MineTask& task, cudaStream_t stream) {
  switch (CapacityFor(task)) {
    case 32:
      return LaunchMine<kHeadDim, 32>(task, stream);
    case 64:
      return LaunchMine<kHeadDim, 64>(task, stream);
    default:
      return LaunchMine<kHeadDim, kMaxBankPatterns>(task, stream);
  }
}

}  // namespace

int64_t KMeansWorkspaceBytes(const KMeansKernelArgs& args) {
  MineTask task;
  return PlaceWorkspace(args, task);
}

cudaError_t LaunchMinePatterns(const KMeansKernelArgs& args, cudaStream_t stream) {
  MineTask task;
  PlaceWorkspace(args, task);
  task.rotation_norm = RotationNorm(args.head_dim);
  if (args.num_tokens == 0 || task.max_patterns == 0) return cudaSuccess;
  const cudaError_t error =
      args.head_dim == 128 ? LaunchHeadDim<128>(task, stream) : LaunchHeadDim<64>(task, stream);
  if (error != cudaSuccess) return error;
  const auto select = args.head_dim == 128 ? SelectKernel<128> : SelectKernel<64>;
  select<<<2 * args.num_kv_heads, kMineThreads, 0, stream>>>(task);
  return cudaGetLastError();
}

}  // namespace pkv
