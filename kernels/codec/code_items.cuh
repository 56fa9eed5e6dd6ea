#ifndef PKV_KERNELS_CODEC_CODE_ITEMS_CUH_
#define PKV_KERNELS_CODEC_CODE_ITEMS_CUH_

// From codes as a thread has them, eight neighbouring columns of a row (an item), to the words of
// fragment order, which hold every eighth pair of columns.

#include <cstdint>

namespace pkv {

// Codes of 8 slots p, a half word each with 8 codes (q, element), into the words of q: slots p.
__device__ inline void TransposeItems2(uint32_t (&r)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t t = ((r[i] >> 14) ^ r[i]) & 0x0000ccccu;
    r[i] ^= t ^ (t << 14);
  }
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t t = ((r[i] >> 4) ^ r[i + 1]) & 0x0f0f0f0fu;
    r[i + 1] ^= t;
    r[i] ^= t << 4;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t low = __byte_perm(r[i], r[i + 2], 0x6240);
    r[i + 2] = __byte_perm(r[i], r[i + 2], 0x7351);
    r[i] = low;
  }
}

// The same for 4 bits: a word each of 4 slots p.
__device__ inline void TransposeItems4(uint32_t (&r)[4]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t low = __byte_perm(r[i], r[i + 2], 0x5410);
    r[i + 2] = __byte_perm(r[i], r[i + 2], 0x7632);
    r[i] = low;
  }
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t low = __byte_perm(r[i], r[i + 1], 0x6240);
    r[i + 1] = __byte_perm(r[i], r[i + 1], 0x7351);
    r[i] = low;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t t = ((r[i] >> 4) ^ r[i]) & 0x00f000f0u;
    r[i] ^= t ^ (t << 4);
    r[i] = __byte_perm(r[i], r[i], 0x3120);
  }
}

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_CODE_ITEMS_CUH_
