#ifndef PKV_KERNELS_ATTENTION_DECODE_TILES_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_TILES_CUH_

// A warp's products: codes or rows in shared memory times vectors in registers (kernels/README.md,
// "Attend"; PERFORMANCE.md says why each is shaped so).
//
// Rows of a code matrix, or tokens, are the rows of mma's A; query heads are the columns of B.

#include <cmath>

#include "kernels/attention/decode_config.cuh"
#include "kernels/device/ptx.cuh"

namespace pkv {

inline constexpr uint32_t kOnes = 0x3c003c00u;  // fp16x2 of 1.0
inline constexpr float kMasked = -INFINITY;     // a score that gives no weight
inline constexpr float kLowest = -1e30f;        // a reference below all scores

// The words of one row tile of a code matrix of kColumns columns that belong to this lane.
template <int kBits, int kColumns>
struct TileWords {
  static constexpr int kWords = kColumns * kBits / 64;
  uint32_t w[kWords];

  __device__ __forceinline__ void Load(uint32_t tile, int lane) {
    if constexpr (kWords == 2) {
      const uint2 v = ptx::LoadShared64(tile + lane * 8);
      w[0] = v.x, w[1] = v.y;
    } else {
#pragma unroll
      for (int i = 0; i < kWords / 4; ++i) {
        const uint4 v = ptx::LoadShared128(tile + i * 512 + lane * 16);
        w[4 * i] = v.x, w[4 * i + 1] = v.y, w[4 * i + 2] = v.z, w[4 * i + 3] = v.w;
      }
    }
  }

  // The codes of half kHalf of steps kStep (even) and kStep + 1, as A: fp16 subnormals.
  template <int kStep, int kHalf>
  __device__ __forceinline__ void Multiply(float (&d)[4], uint32_t b0, uint32_t b1) const {
    constexpr int kStepsPerWord = kBits == 2 ? 4 : 2;
    constexpr int kAt = 2 * (kStep / kStepsPerWord), kPair = 2 * (kStep % kStepsPerWord) + kHalf;
    ptx::Mma(d, Codes<kPair>(w[kAt]), Codes<kPair>(w[kAt + 1]), Codes<kPair + 2>(w[kAt]),
             Codes<kPair + 2>(w[kAt + 1]), b0, b1);
  }

 private:
  template <int kPair>
  __device__ __forceinline__ static uint32_t Codes(uint32_t word) {
    if constexpr (kBits == 4) {
      return (kPair < 2 ? word : word >> 8) & (0x000f000fu << (kPair % 2 * 4));
    } else {
      constexpr int kShift = kPair < 5 ? 0 : 6;
      return (word >> kShift) & (0x00030003u << (2 * kPair - kShift));
    }
  }
};

// B operands stand in an order of their own: of steps 2 i and 2 i + 1 first both halves 0, then
// both halves 1. So the products of a pair of steps take adjacent registers, and scales and zero
// points, four words of a list in column order, are an A operand as they were loaded: x and z in
// rows g, y and w in rows g + 8.
__device__ __forceinline__ constexpr int OperandPlace(int step, int half) {
  return step / 2 * 4 + half * 2 + step % 2;
}

// acc[t] += codes of tile t times b, for kCount tiles at once, so that products do not wait for one
// another.
template <int kBits, int kColumns, int kCount, int kProduct = 0>
__device__ __forceinline__ void MultiplySteps(const TileWords<kBits, kColumns> (&words)[kCount],
                                              const uint32_t* b, float (*acc)[4]) {
  if constexpr (kProduct < kColumns / 16) {
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      words[t].template Multiply<kProduct / 2 * 2, kProduct % 2>(acc[t], b[2 * kProduct],
                                                                 b[2 * kProduct + 1]);
    }
    MultiplySteps<kBits, kColumns, kCount, kProduct + 1>(words, b, acc);
  }
}

template <int kBits, int kColumns, int kCount>
__device__ __forceinline__ void MultiplyTiles(uint32_t matrix, int first_tile, int lane,
                                              const uint32_t* b, float (*acc)[4]) {
  constexpr int kTileBytes = 2 * kBits * kColumns;
  TileWords<kBits, kColumns> words[kCount];
#pragma unroll
  for (int t = 0; t < kCount; ++t) words[t].Load(matrix + (first_tile + t) * kTileBytes, lane);
  MultiplySteps<kBits, kColumns, kCount>(words, b, acc);
}

// Four words of a list in column order: lane q's part, the words of steps 2 i and 2 i + 1.
__device__ __forceinline__ uint4 LoadColumns(uint32_t list, int num_columns, int q, int i) {
  return ptx::LoadShared128(list + q * (num_columns / 2) + 16 * i);
}

// Of all lanes that differ in `mask`.
template <typename T, typename Op>
__device__ __forceinline__ T ReduceLanes(T x, int mask_low, int mask_high, const Op& op) {
#pragma unroll
  for (int mask = mask_low; mask <= mask_high; mask *= 2) {
    x = op(x, __shfl_xor_sync(0xffffffffu, x, mask));
  }
  return x;
}
__device__ __forceinline__ float MaxOverRows(float x) {  // of the lanes of one q
  return ReduceLanes(x, 4, 16, [](float a, float b) { return fmaxf(a, b); });
}

// A bound on the exponent of scales of fp16x2 words, 2^result > each of them; 0 when all are < 2,
// which costs a bit test. `mask_low` .. `mask_high`: lanes that hold different scales.
template <int kCount>
__device__ __forceinline__ int ScaleExponent(const uint32_t* words, int mask_low, int mask_high) {
  uint32_t any = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) any |= words[i];
  if (!__any_sync(0xffffffffu, (any & 0x40004000u) != 0)) return 1;
  uint32_t largest = 0;
#pragma unroll
  for (int i = 0; i < kCount; ++i) largest = ptx::MaxHalf2(largest, words[i]);
  const uint32_t both = max(largest & 0xffffu, largest >> 16);
  const uint32_t all =
      ReduceLanes(both, mask_low, mask_high, [](uint32_t a, uint32_t b) { return max(a, b); });
  return max(1, static_cast<int>(all >> 10) - 14);
}

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_TILES_CUH_
