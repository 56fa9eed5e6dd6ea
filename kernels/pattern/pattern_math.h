#ifndef PKV_KERNELS_PATTERN_PATTERN_MATH_H_
#define PKV_KERNELS_PATTERN_PATTERN_MATH_H_

#include "kernels/codec/codec_math.h"

namespace pkv {

// PatternKV's V gate: subtract the pattern when that shrinks the range of the vector enough
// (kernels/README.md). `threshold` is GateThreshold() in fp32. A constant vector keeps its raw
// form: it quantizes without error.
PKV_HOST_DEVICE inline bool ZTestAccepts(float flat_range, float raw_range, float threshold) {
  return raw_range > 0.0f && flat_range <= threshold * raw_range;
}

// The Chebyshev centre of one channel: the point with the smallest largest distance.
PKV_HOST_DEVICE inline Float16Bits ChebyshevCentre(float min, float max) {
  return ToFiniteFloat16((min + max) * 0.5f);
}

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_PATTERN_MATH_H_
