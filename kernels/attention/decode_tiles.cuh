#ifndef PKV_KERNELS_ATTENTION_DECODE_TILES_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_TILES_CUH_

// A warp's products of codes in shared memory and vectors in registers (kernels/README.md,
// "Attend"; PERFORMANCE.md says why each is shaped so).
//
// Rows of a code matrix are the rows of mma's A, as unsigned bytes; query heads are the columns of
// B, 16-bit integers in two signed bytes: 256 high + low.

#include <cmath>

#include "kernels/attention/decode_config.cuh"
#include "kernels/device/ptx.cuh"

namespace pkv {

inline constexpr float kMasked = -INFINITY;  // a score that gives no weight
inline constexpr float kLowest = -1e30f;     // a reference below all scores

// A fragment is half of an mma's A and B: 16 columns, of two steps (16 columns each), those of one
// half (8 columns) of both. Which, follows from where codes stand in a word (fragment_order.h): a
// byte of it holds all codes that it takes a mask each to bring into their place in a byte.
template <int kBits>
struct Fragment {
  static constexpr int kPlanes = kBits == 2 ? 4 : 2;  // codes of a byte; fragments of a word
  static constexpr int Word(int f) { return f / kPlanes; }
  static constexpr int Plane(int f) { return f % kPlanes; }
  static constexpr int Half(int f) { return f % 2; }
  static constexpr int First(int f) {
    return kBits == 2 ? 4 * Word(f) + Plane(f) / 2 : 2 * Word(f);
  }
  static constexpr int Second(int f) { return First(f) + (kBits == 2 ? 2 : 1); }
};

// Bytes 0 and 2 of each: what a fragment takes of the two steps.
__device__ __forceinline__ uint32_t EvenBytes(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, 0x6240);
}
__device__ __forceinline__ uint32_t OddBytes(uint32_t first, uint32_t second) {
  return __byte_perm(first, second, 0x7351);
}

// The words of one row tile of a code matrix of kColumns columns that belong to this lane. Codes
// enter times kFactor; those of 2 bits in half 1 times 4 kFactor, which saves two shifts a word.
// kByFours: those of 4 bits too, to meet vectors that were made for codes of 2 bits. Shifts go to
// the left: a multiplication, which other units than those that mask can do.
template <int kBits, int kColumns, bool kByFours = kBits == 2>
struct TileWords {
  static constexpr int kWords = kColumns * kBits / 64;
  static constexpr int kFactor = kBits == 4 && kByFours ? 4 : 16;
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

  // Codes of fragments 2 kPair and 2 kPair + 1 times b.
  template <int kPair>
  __device__ __forceinline__ void Multiply(int (&d)[4], uint32_t b0, uint32_t b1) const {
    constexpr int kAt = 2 * Fragment<kBits>::Word(2 * kPair);
    constexpr int kPlane = Fragment<kBits>::Plane(2 * kPair);
    ptx::MmaBytes(d, Codes<kPlane>(w[kAt]), Codes<kPlane>(w[kAt + 1]), Codes<kPlane + 1>(w[kAt]),
                  Codes<kPlane + 1>(w[kAt + 1]), b0, b1);
  }

 private:
  template <int kPlane>
  __device__ __forceinline__ static uint32_t Codes(uint32_t word) {
    if constexpr (kBits == 2) {
      return (kPlane < 2 ? word << 4 : word) & (kPlane % 2 == 0 ? 0x30303030u : 0xc0c0c0c0u);
    } else if constexpr (kPlane == 0) {
      return kByFours ? (word << 2) & 0x3c3c3c3cu : (word << 4) & 0xf0f0f0f0u;
    } else {
      return word & 0xf0f0f0f0u;
    }
  }
};

// acc[t] += codes of tile t times b, for kCount tiles at once, so that products do not wait for one
// another. b: a fragment a register.
template <int kPair = 0, typename Words, int kCount, int kFragments>
__device__ __forceinline__ void MultiplyPairs(const Words (&words)[kCount],
                                              const uint32_t (&b)[kFragments],
                                              int (&acc)[kCount][4]) {
  if constexpr (2 * kPair < kFragments) {
#pragma unroll
    for (int t = 0; t < kCount; ++t) {
      words[t].template Multiply<kPair>(acc[t], b[2 * kPair], b[2 * kPair + 1]);
    }
    MultiplyPairs<kPair + 1>(words, b, acc);
  }
}

// Sums of bytes of one tile: [set][an mma's sums].
template <int kCount, int kSets>
struct ByteSums {
  int s[kSets][kCount][4];

  __device__ __forceinline__ void Clear() {
#pragma unroll
    for (int i = 0; i < kSets * kCount * 4; ++i) s[0][0][i] = 0;
  }
  // Row g + 8 half of tile t, head h of the lane's.
  __device__ __forceinline__ float Value(int t, int half, int h) const {
    const int high = s[0][t][2 * half + h];
    const int low = kSets == 2 ? s[kSets - 1][t][2 * half + h] : s[0][t][2 * half + 1];
    return static_cast<float>(high * 256 + low);
  }
};

template <int kBits, int kColumns, bool kByFours, int kCount, int kSets>
__device__ __forceinline__ void MultiplyTiles(uint32_t matrix, int first_tile, int lane,
                                              const uint32_t (&b)[kSets][kColumns / 16],
                                              ByteSums<kCount, kSets>& sums) {
  constexpr int kTileBytes = 2 * kBits * kColumns;
  TileWords<kBits, kColumns, kByFours> words[kCount];
#pragma unroll
  for (int t = 0; t < kCount; ++t) words[t].Load(matrix + (first_tile + t) * kTileBytes, lane);
  sums.Clear();
#pragma unroll
  for (int set = 0; set < kSets; ++set) MultiplyPairs(words, b[set], sums.s[set]);
}

// B operands of fp16 stand in an order of their own: of steps 2 i and 2 i + 1 first both halves 0,
// then both halves 1. So zero points, four words of a list in column order, are an A operand as
// they were loaded: x and z in rows g, y and w in rows g + 8.
__device__ __forceinline__ constexpr int OperandPlace(int step, int half) {
  return step / 2 * 4 + half * 2 + step % 2;
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
__device__ __forceinline__ float SumOverRows(float x) {
  return ReduceLanes(x, 4, 16, [](float a, float b) { return a + b; });
}

// From fp16 vectors to 16-bit integers: n = rne(x / unit), in half 1 of a step rne(x / (4 unit))
// for codes of 2 bits (TileWords), as 256 high + low. The unit is the power of two of which the
// largest |x| is at most 32512, and more than half of that; it is no less than 2^-15.
//
// 1536 + n is n in the low byte of an fp16 number, for -128 <= n < 128. The low part can be 128 and
// is cut to 127: an error of one unit.

// `largest`: fp16 bits of the largest |x|, finite. unit = 2^(result - 29).
__device__ __forceinline__ int UnitExponent(uint32_t largest) {
  return max(static_cast<int>((largest + 16) >> 10), 14);
}
__device__ __forceinline__ float UnitOf(int exponent) {
  return __int_as_float((exponent + 98) << 23);
}

// fp16x2 each.
struct SplitConstants {
  uint32_t to_high;  // 1 / (256 unit)
  uint32_t back;     // -256 unit
  uint32_t most;     // 127 unit
  uint32_t to_low;   // 1 / unit

  SplitConstants() = default;
  // `shifts`: what the unit's exponents differ by, as exponents of fp16 stand in its bits.
  __device__ __forceinline__ SplitConstants(int exponent, uint32_t shifts) {
    const uint32_t up = static_cast<uint32_t>(exponent) * 0x04000400u + shifts;
    to_high = 0x90009000u - up;
    back = up + 0x68006800u;
    most = up - 0x1c101c10u;
    to_low = 0xb000b000u - up;
  }
  // Has LowBytes() return the high bytes.
  __device__ __forceinline__ void TakeHighOnly() {
    back = 0;
    most = kLargestHalves;
    to_low = to_high;
  }

  static constexpr uint32_t kLargestHalves = 0x7bff7bffu;
};

inline constexpr uint32_t kByteOffset = 0x66006600u;       // fp16x2 of 1536
inline constexpr uint32_t kMinusByteOffset = 0xe600e600u;  // of -1536

// fp16x2 whose low bytes are the high halves of n.
__device__ __forceinline__ uint32_t HighBytes(uint32_t x, const SplitConstants& c) {
  return ptx::FmaHalf2(x, c.to_high, kByteOffset);
}
// What is left of x, and its low bytes. With other constants the high bytes again.
__device__ __forceinline__ uint32_t RestOf(uint32_t x, uint32_t high, const SplitConstants& c) {
  return ptx::FmaHalf2(ptx::AddHalf2(high, kMinusByteOffset), c.back, x);
}
__device__ __forceinline__ uint32_t LowBytes(uint32_t rest, const SplitConstants& c) {
  return ptx::FmaHalf2(ptx::MinHalf2(rest, c.most), c.to_low, kByteOffset);
}
// What rounding took from x, in units.
__device__ __forceinline__ uint32_t LostUnits(uint32_t rest, uint32_t low,
                                              const SplitConstants& c) {
  return ptx::FmaHalf2(rest, c.to_low, ptx::FmaHalf2(low, 0xbc00bc00u, kByteOffset));
}

// Of the fp16x2 words' halves, none of which is negative: fp16 bits.
__device__ __forceinline__ uint32_t LargerHalf(uint32_t x) {
  return ptx::MaxHalf2(x, x >> 16) & 0xffffu;
}
__device__ __forceinline__ bool IsInfinite(uint32_t half) { return half >= 0x7c00u; }

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_TILES_CUH_
