#ifndef PKV_TESTS_SUPPORT_SIMD_TARGETS_H_
#define PKV_TESTS_SUPPORT_SIMD_TARGETS_H_

// Runs what Highway dispatches on every instruction set that this machine has.

#include <gtest/gtest.h>

#include <cstdint>

#include "hwy/targets.h"

namespace pkv {

// Calls body() once per instruction set, the plainest included, and then goes back to the best.
template <class Body>
void ForEachSimdTarget(const Body& body) {
  for (int64_t left = hwy::SupportedTargets(); left != 0; left &= left - 1) {
    const int64_t target = left & -left;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::GetChosenTarget().Update(target);
    body();
  }
  hwy::GetChosenTarget().DeInit();
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_SIMD_TARGETS_H_
