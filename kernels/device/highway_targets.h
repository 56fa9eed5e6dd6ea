#ifndef PKV_KERNELS_DEVICE_HIGHWAY_TARGETS_H_
#define PKV_KERNELS_DEVICE_HIGHWAY_TARGETS_H_

// Which instruction sets Highway builds our loops for. Include it before hwy/foreach_target.h.
//
// Left out: SSSE3, which no machine has without SSE4 that runs this, and vectors whose size is not
// known when compiling, which the loops rely on.

#define HWY_WANT_AVX3_DL  // AVX-512 with VNNI and what came with it
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#endif  // PKV_KERNELS_DEVICE_HIGHWAY_TARGETS_H_
