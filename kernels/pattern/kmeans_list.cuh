#ifndef PKV_KERNELS_PATTERN_KMEANS_LIST_CUH_
#define PKV_KERNELS_PATTERN_KMEANS_LIST_CUH_

// The list of rows that a CTA adds to its sums, or takes off: from it the first factor of products
// on tensor cores, with a row for each pattern and a column for each listed row.

#include <cstdint>

#include <cuda_fp16.h>

namespace pkv {

inline constexpr int kListStep = 16;  // listed rows that one product adds

// The row to add to the sums of pattern `id`, or to take off, and id + 1 as fp16, negative to take
// off: one instruction compares two of them. Id 255 is no pattern's.
__device__ inline __half ListNumber(int id) { return __short2half_rn(static_cast<short>(id + 1)); }
__device__ inline uint32_t ListEntry(int row, int id, bool take_off) {
  const uint32_t number = __half_as_ushort(ListNumber(id));
  return (take_off ? 1u << 31 : 0u) | number << 16 | static_cast<uint32_t>(row);
}
__device__ inline int ListedRow(uint32_t entry) { return static_cast<int>(entry & 0xffffu); }

// The numbers of the four entries, of kListStep, for which a lane makes the first factor.
struct ListedNumbers {
  uint32_t low, high;

  __device__ static ListedNumbers Of(const uint32_t* step, int lane) {
    const auto* entries = reinterpret_cast<const uint2*>(step);
    const uint2 low = entries[lane % 4], high = entries[4 + lane % 4];
    return {__byte_perm(low.x, low.y, 0x7632), __byte_perm(high.x, high.y, 0x7632)};
  }
  // Of two patterns, by their numbers twice: 1 or -1 where an entry is the pattern's, else 0 or -0.
  __device__ uint4 Signs(const __half2 (&patterns)[2]) const {
    return {Pair(low, patterns[0]), Pair(low, patterns[1]), Pair(high, patterns[0]),
            Pair(high, patterns[1])};
  }

 private:
  __device__ static uint32_t Pair(uint32_t listed, __half2 pattern) {
    const __half2 is_listed = __heq2(__habs2(reinterpret_cast<const __half2&>(listed)), pattern);
    return reinterpret_cast<const uint32_t&>(is_listed) | (listed & 0x80008000u);
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_KMEANS_LIST_CUH_
