#ifndef PKV_KERNELS_DEVICE_HIGHWAY_TARGETS_H_
#define PKV_KERNELS_DEVICE_HIGHWAY_TARGETS_H_

// Which instruction sets Highway builds our loops for. Include it before hwy/foreach_target.h.
//
// Left out: SSSE3, which no machine has without SSE4 that runs this, and vectors whose size is not
// known when compiling, which the loops rely on.

#define HWY_WANT_AVX3_DL  // AVX-512 with VNNI and what came with it
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV)

#include "hwy/targets.h"

#if HWY_ARCH_X86
#include <cpuid.h>
#endif

namespace pkv {

// Highway 1.0.3 lets compilers use AVX-VNNI in AVX3_DL, but picks it without asking for that, which
// Ice Lake and Zen 4 do not have: Clang's vpdpwssd is an illegal instruction there. They take AVX3.
inline bool DisableTargetsThatLack() {
#if HWY_ARCH_X86
  constexpr unsigned kAvxVnni = 1u << 4;  // of leaf 7, subleaf 1, EAX
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool has_leaf = __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0;
  if (!has_leaf || (eax & kAvxVnni) == 0) hwy::DisableTargets(HWY_AVX3_DL);
#endif
  return true;
}
inline const bool kTargetsAreChecked = DisableTargetsThatLack();

}  // namespace pkv

#endif  // PKV_KERNELS_DEVICE_HIGHWAY_TARGETS_H_
