#ifndef PKV_KERNELS_PATTERN_NEAREST_MMA_CUH_
#define PKV_KERNELS_PATTERN_NEAREST_MMA_CUH_

// Nearest patterns by matrix products on tensor cores: argmin |x - c|^2 = argmax x.c - |c|^2 / 2.
//
// mma.sync m16n8k16 multiplies 16 patterns by 8 tokens over 16 channels. Which channel stands at
// which k does not matter as long as patterns and tokens agree, so a lane reads 8 channels in a
// row, 16 bytes, and feeds them to two products: of every 32 channels, lane 4 g + q holds channels
// 8 q .. 8 q + 7 of token g and of patterns g and g + 8. Tokens are the second factor because its
// two registers then lie as they were read; the first factor's four, of two patterns, do not.

#include <cstdint>
#include <limits>

#include "kernels/device/ptx.cuh"

namespace pkv {

inline constexpr int kMmaPatterns = 16;  // rows of a product
inline constexpr int kMmaTokens = 8;     // its columns

// Patterns in shared memory: for each tile of 16 and each step of 16 channels, the first factor of
// a product, 16 bytes a lane. Where the word with channels 2 `word` and 2 `word` + 1 of a pattern
// stands, in words.
template <int kHeadDim>
__device__ inline int PatternWord(int pattern, int word) {
  const int tile = pattern / kMmaPatterns, is_high = pattern / 8 % 2, row = pattern % 8;
  const int step = word / 16 * 2 + word % 4 / 2, lane = row * 4 + word / 4 % 4;
  return ((tile * (kHeadDim / 16) + step) * 32 + lane) * 4 + word % 2 * 2 + is_high;
}

// sums += first * second: mma.sync m16n8k16. For scores, of patterns and tokens over 16 channels:
// tokens 2 q and 2 q + 1 of pattern g, then of g + 8.
__device__ inline void MultiplyAdd(float (&sums)[4], const uint4& first, uint32_t second_low,
                                   uint32_t second_high) {
  ptx::Mma(sums, first.x, first.y, first.z, first.w, second_low, second_high);
}

// The best pattern of one token so far. A lane sees patterns g and g + 8 of every 16, numbered here
// without a gap: number n is pattern 8 n + g.
struct NearestSoFar {
  float score = -std::numeric_limits<float>::infinity();
  int number = 0;

  // REQUIRES: numbers rise: the lowest pattern wins a tie.
  __device__ void Take(float candidate, int candidate_number) {
    if (candidate > score) {
      score = candidate;
      number = candidate_number;
    }
  }
};

// Candidate patterns of one token, merged over lanes. Fields are chosen one by one: a choice
// between structs goes through memory.
struct NearestPattern {
  float score;
  int id;

  __device__ static NearestPattern Of(const NearestSoFar& best) {
    return {best.score, best.number * 8 + static_cast<int>(threadIdx.x) % 32 / 4};
  }
  __device__ static NearestPattern Choose(bool first, NearestPattern a, NearestPattern b) {
    return {first ? a.score : b.score, first ? a.id : b.id};
  }
  // With what the lane at `distance` sends; this lane sends `sent`.
  __device__ NearestPattern MergedWithLane(NearestPattern sent, int distance) const {
    const float other = __shfl_xor_sync(~0u, sent.score, distance);
    const int other_id = __shfl_xor_sync(~0u, sent.id, distance);
    // No || and no &&: they would branch.
    const bool is_better = (other > score) | ((other == score) & (other_id < id));
    return {is_better ? other : score, is_better ? other_id : id};
  }
};

// The id of the nearest pattern of one token for each lane, of kNum / 2 tiles of 8 tokens: tokens
// 2 q and 2 q + 1 of tile 0, then of the next. Lanes of equal q keep half of their tokens and give
// the other half away, until each has one: OwnToken().
template <int kNum, int kDistance = 4>
__device__ inline int MergeTokens(const NearestPattern (&tokens)[kNum]) {
  if constexpr (kNum > 1) {
    const bool is_upper = (threadIdx.x & kDistance) != 0;
    NearestPattern kept[kNum / 2];
#pragma unroll
    for (int i = 0; i < kNum / 2; ++i) {
      const NearestPattern low = tokens[i], high = tokens[i + kNum / 2];
      kept[i] = NearestPattern::Choose(is_upper, high, low)
                    .MergedWithLane(NearestPattern::Choose(is_upper, low, high), kDistance);
    }
    return MergeTokens<kNum / 2, 2 * kDistance>(kept);
  } else if constexpr (kDistance <= 16) {
    const NearestPattern merged[1] = {tokens[0].MergedWithLane(tokens[0], kDistance)};
    return MergeTokens<1, 2 * kDistance>(merged);
  } else {
    return tokens[0].id;
  }
}

// Which token MergeTokens() gives a lane, of two tiles (then lanes 16 and up repeat the others), or
// of four.
template <int kTiles>
__device__ inline int OwnToken(int lane) {
  static_assert(kTiles == 2 || kTiles == 4);
  const int low = lane >> 2 & 1, middle = lane >> 3 & 1, high = lane >> 4 & 1;
  if constexpr (kTiles == 2) return 8 * low + 2 * (lane % 4) + middle;
  return 16 * low + 8 * middle + 2 * (lane % 4) + high;
}
// The lane below 16 whose own token, of two tiles, is `token`.
__device__ inline int LaneOfToken(int token) {
  return (token & 7) >> 1 | (token >> 3) << 2 | (token & 1) << 3;
}

// Tokens in shared memory, rows of 16-byte pieces. Pieces are permuted within 128 bytes so that all
// banks are met by lanes that read a piece of each of eight rows, and by eight lanes that read four
// pieces of each of two rows.
__device__ inline int SwizzledPiece(int row, int piece, int pieces_per_row) {
  return row * pieces_per_row + (piece ^ ((row & 1) << 2 | (row >> 1 & 3)));
}

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_NEAREST_MMA_CUH_
