#ifndef PKV_KERNELS_CODEC_KEY_TILE_CUH_
#define PKV_KERNELS_CODEC_KEY_TILE_CUH_

// K of one head of one block in shared memory while a CTA of four warps encodes it: [step]
// [position], 16 bits a value. K as it came until its channel is coded, from then on the counted
// error in the upper twelve bits and the code in the lower four.

#include <cuda_fp16.h>

#include "kernels/codec/key_feedback_math.h"
#include "kernels/codec/key_fit.cuh"
#include "kernels/codec/layer_encode.h"
#include "kernels/device/ptx.cuh"
#include "pkv/kernels/key_feedback.h"

namespace pkv::key_search {

constexpr int kWarps = 4, kThreads = 32 * kWarps;
constexpr int kCodeBits = 4;  // below a counted error
static_assert(2 * kWarps == kFeedbackRun);
static_assert(kMaxCountedError < 1 << (15 - kCodeBits));

__device__ inline int Warp() { return static_cast<int>(threadIdx.x) / 32; }
__device__ inline int WarpLane() { return static_cast<int>(threadIdx.x) % 32; }
// The half warp: of a run's channels the one that it codes.
__device__ inline int ChannelOfRun() { return static_cast<int>(threadIdx.x) / kLanes; }

// Element i of the group (slot first_slot + i) stands in lane i % 16, as its slot i / 16.
__device__ constexpr int PositionOf(int element) {
  return kSlots * (element % kLanes) + element / kLanes;
}

// The pieces of 16 bytes of a row change places so that the rows that ldmatrix takes together, and
// those of one lane's words, start in different banks.
__device__ inline int PieceAt(int step, int piece) {
  return piece ^ ((step >> 1 & 6) | (step & 1));
}

template <int kHeadDim>
struct CtaShared {
  static constexpr int kSumStride = kBlockTokens + 4;  // words
  uint4 tile[kHeadDim][kLanes];                        // a lane's piece at PieceAt()
  alignas(16) int sums[kFeedbackRun][kSumStride];      // of a run: by channel and position
  uint8_t order[kHeadDim];
  alignas(8) uint8_t step_of[kHeadDim];
  uint16_t largest[kWarps];

  __device__ uint4& Piece(int step, int piece) { return tile[step][PieceAt(step, piece)]; }
};

// The head's K into the tile, zeros where sinks are. Returns the largest magnitude of the thread's
// residuals, rounded to fp16. A thread takes two elements that stand side by side, half of the
// channels; a warp's words lie in 32 banks.
template <int kHeadDim>
class TileLoader {
 public:
  __device__ TileLoader(const SlotRows& source, int first_slot, CtaShared<kHeadDim>& shared)
      : shared_(shared),
        piece_(Warp() % 2 * 8 + WarpLane() / 4),
        word_(WarpLane() % 4),
        first_channel_(Warp() / 2 * (kHeadDim / 2)) {
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int slot = first_slot + piece_ + kLanes * (2 * word_ + n);
      if (slot >= kBlockTokens) continue;
      rows_[n] = source.Row(slot) + first_channel_;
      const int id = source.Id(slot);
      if (id != kRawPatternId) patterns_[n] = source.patterns + id * kHeadDim + first_channel_;
    }
  }

  __device__ Float16Bits Load() {
    // As many rows as hide their latency are asked for at once.
    constexpr int kAtOnce = 4, kPieceChannels = 8;
    __half2 largest = __half2half2(__ushort_as_half(0));
#pragma unroll 1
    for (int first = 0; first < kHeadDim / 2; first += kAtOnce * kPieceChannels) {
      uint4 rows[kAtOnce][2] = {};
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          if (rows_[n] == nullptr) continue;
          const uint16_t* from = rows_[n] + first + i * kPieceChannels;
          rows[i][n] = *reinterpret_cast<const uint4*>(from);
        }
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int channel = first + i * kPieceChannels;
        Put(first_channel_ + channel, rows[i][0], rows[i][1]);
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          uint4 pattern = {};
          if (patterns_[n] != nullptr) {
            pattern = __ldg(reinterpret_cast<const uint4*>(patterns_[n] + channel));
          }
          largest = Largest(largest, rows[i][n].x, pattern.x);
          largest = Largest(largest, rows[i][n].y, pattern.y);
          largest = Largest(largest, rows[i][n].z, pattern.z);
          largest = Largest(largest, rows[i][n].w, pattern.w);
        }
      }
    }
    const __half limit = __ushort_as_half(0x7bff);
    return __half_as_ushort(__hmin(__hmax(__low2half(largest), __high2half(largest)), limit));
  }

 private:
  __device__ static __half2 Largest(__half2 largest, uint32_t x, uint32_t pattern) {
    const __half2 residual =
        __hsub2(reinterpret_cast<const __half2&>(x), reinterpret_cast<const __half2&>(pattern));
    return __hmax2(largest, __habs2(residual));
  }
  // Eight channels of both elements.
  __device__ void Put(int channel, const uint4& first, const uint4& second) {
    const uint2 steps = *reinterpret_cast<const uint2*>(&shared_.step_of[channel]);
    PutPair(steps.x, first.x, second.x);
    PutPair(steps.x >> 16, first.y, second.y);
    PutPair(steps.y, first.z, second.z);
    PutPair(steps.y >> 16, first.w, second.w);
  }
  __device__ void PutPair(uint32_t steps, uint32_t first, uint32_t second) {
    PutWord(steps & 0xff, __byte_perm(first, second, 0x5410));
    PutWord(steps >> 8 & 0xff, __byte_perm(first, second, 0x7632));
  }
  __device__ void PutWord(uint32_t step, uint32_t both) {
    reinterpret_cast<uint32_t*>(&shared_.Piece(static_cast<int>(step), piece_))[word_] = both;
  }

  CtaShared<kHeadDim>& shared_;
  const int piece_, word_, first_channel_;
  const uint16_t* rows_[2] = {};
  const uint16_t* patterns_[2] = {};
};

// What the counted errors of the runs before weigh in a run's channels, for the CTA's positions.
template <int kHeadDim>
class FeedbackSums {
 public:
  static constexpr int kChunk = 16;  // steps of a product

  // weights: [step][earlier step] from `weights_at` on; unread unless Ask() is called.
  __device__ FeedbackSums(const int8_t* weights, int64_t weights_at, CtaShared<kHeadDim>& shared)
      : weights_(weights),
        weights_at_(weights_at + WarpLane() / 4 * kHeadDim + WarpLane() % 4 * 4),
        shared_(shared) {
    // The lane's row of the matrices that it addresses: of sixteen steps those whose errors the
    // lanes of column q hold together, 4 q to 4 q + 3.
    const int row = WarpLane() % 8, matrix = WarpLane() / 8;
    const int step = row / 2 * 4 + row % 2 + matrix / 2 * 2;
    const int piece = Warp() * 4 + matrix % 2;
    for (int m = 0; m < 2; ++m) {
      addresses_[m] = ptx::SharedAddress(&shared.Piece(step, piece + 2 * m));
    }
  }

  // What the lane needs of a run's weights. Asked for before the run before is coded, they are
  // there when Put() wants them.
  struct Weights {
    uint32_t words[kHeadDim / kChunk];
  };
  __device__ Weights Ask(int run) const {
    Weights weights;
    const int8_t* from = weights_ + weights_at_ + run * kFeedbackRun * kHeadDim;
#pragma unroll
    for (int chunk = 0; chunk < kHeadDim / kChunk; ++chunk) {
      if (chunk >= NumChunks(run)) break;
      weights.words[chunk] = __ldg(reinterpret_cast<const uint32_t*>(from + chunk * kChunk));
    }
    return weights;
  }

  // Puts 2^kCodeBits times the sums of `run`, above 0, into shared.sums: 32 positions a warp.
  // weights: Ask(run).
  __device__ void Put(int run, const Weights& weights) {
    int low[2][4] = {}, high[2][4] = {};
#pragma unroll
    for (int chunk = 0; chunk < kHeadDim / kChunk; ++chunk) {
      if (chunk >= NumChunks(run)) break;
      const uint32_t w = weights.words[chunk];
      const uint32_t of_low[2] = {__byte_perm(w, 0, 0x4140), __byte_perm(w, 0, 0x4342)};
      const uint32_t of_high[2] = {of_low[0] << 8, of_low[1] << 8};
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        uint4 errors = ptx::LoadMatricesTransposed(addresses_[m] + chunk * kChunkBytes);
        constexpr uint32_t kErrors = 0xfff0fff0u;
        errors.x &= kErrors;
        errors.y &= kErrors;
        errors.z &= kErrors;
        errors.w &= kErrors;
        ptx::MmaBytes(low[m], errors.x, errors.y, errors.z, errors.w, of_low[0], of_low[1]);
        ptx::MmaSignedBytes(high[m], errors.x, errors.y, errors.z, errors.w, of_high[0],
                            of_high[1]);
      }
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int position = Warp() * 32 + m * 16 + WarpLane() / 4 + i / 2 * 8;
        const int channel = WarpLane() % 4 * 2 + i % 2;
        shared_.sums[channel][position] = high[m][i] * 256 + low[m][i];
      }
    }
  }

 private:
  // Pieces of a step and of one kChunk steps on lie alike (PieceAt()).
  static constexpr int kChunkBytes = kChunk * sizeof(CtaShared<kHeadDim>::tile[0]);
  // Behind the runs before weights are 0.
  __device__ static int NumChunks(int run) { return (run + 1) / 2; }
  const int8_t* weights_;
  int64_t weights_at_;  // of the lane
  CtaShared<kHeadDim>& shared_;
  uint32_t addresses_[2];  // of the lane's row in the first chunk, for both products of a chunk
};

// The codes of kOfBits bits of all channels, as they stand in a page: words of 32 / kOfBits
// channels, of eight words in a row at a time. Sums are no longer needed.
template <int kHeadDim, int kOfBits>
class CodeWriter {
 public:
  __device__ CodeWriter(int first_element, CtaShared<kHeadDim>& shared)
      : first_element_(first_element), shared_(shared) {}

  // Rows [first_row, first_row + num_rows) of the page's matrix, whose row r is element r -
  // first_row of those from first_element on; rows before are 0.
  __device__ void Write(uint32_t* out, int first_row, int num_rows) {
#pragma unroll 1
    for (int round = 0; round < kRounds; ++round) {
      __syncthreads();
      if (ChannelOfRun() < kRowWords) Collect(round * kAtOnce + ChannelOfRun());
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < num_rows * kRowWords; i += kThreads) {
        const int tile = i / (32 * kLaneWords), rest = i % (32 * kLaneWords);
        const int word = rest / (32 * kChunkWords) * kChunkWords + rest % kChunkWords;
        if (word / 2 * 4 / kAtOnce != round) continue;
        const int of_lane = rest / kChunkWords % 32;
        const int row = 16 * tile + 8 * (word % 2) + of_lane / 4;
        const int element = first_element_ + row - first_row;
        const int of_row = word / 2 * 4 % kAtOnce + of_lane % 4;
        out[i] = row < first_row ? 0u : Staged(of_row, PositionOf(element));
      }
    }
  }

 private:
  static constexpr int kRowWords = kHeadDim * kOfBits / 32, kAtOnce = kFeedbackRun;
  static constexpr int kRounds = (kRowWords + kAtOnce - 1) / kAtOnce;
  static constexpr int kLaneWords = kRowWords / 2, kChunkWords = kLaneWords < 4 ? kLaneWords : 4;
  static constexpr int kPairs = 16 / kOfBits;  // of channels in a word

  __device__ uint32_t& Staged(int word, int position) {
    return reinterpret_cast<uint32_t&>(shared_.sums[word][position]);
  }

  // Word `word` of the rows of this lane's eight positions.
  __device__ void Collect(int word) {
    // Two slots a register: the word's lower half and its upper one.
    uint32_t halves[2][kSlots / 2] = {};
#pragma unroll
    for (int pair = 0; pair < kPairs; ++pair) {
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const int channel = word / 4 * (128 / kOfBits) + 8 * pair + 2 * (word % 4) + odd;
        const uint4 piece = shared_.Piece(shared_.step_of[channel], Lane());
        const uint32_t of_pair[kSlots / 2] = {piece.x, piece.y, piece.z, piece.w};
        constexpr uint32_t kMask = ((1u << kOfBits) - 1) * 0x10001u;
#pragma unroll
        for (int i = 0; i < kSlots / 2; ++i) {
          halves[odd][i] += (of_pair[i] & kMask) << kOfBits * pair;
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kSlots / 2; ++i) {
      Staged(word % kAtOnce, kSlots * Lane() + 2 * i) =
          __byte_perm(halves[0][i], halves[1][i], 0x5410);
      Staged(word % kAtOnce, kSlots * Lane() + 2 * i + 1) =
          __byte_perm(halves[0][i], halves[1][i], 0x7632);
    }
  }

  const int first_element_;
  CtaShared<kHeadDim>& shared_;
};

}  // namespace pkv::key_search

#endif  // PKV_KERNELS_CODEC_KEY_TILE_CUH_
