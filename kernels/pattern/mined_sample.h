#ifndef PKV_KERNELS_PATTERN_MINED_SAMPLE_H_
#define PKV_KERNELS_PATTERN_MINED_SAMPLE_H_

#include <cstdint>

#include "proto/base/host_device.h"

namespace pkv {

// K-means looks at this many tokens of a prompt at most, at equal strides (kernels/README.md,
// "Mine"). What twice as many cost a prefill is not worth what they find (FIDELITY.md).
inline constexpr int kMaxMinedTokens = 2304;

// Tokens mined of a prompt of `num_tokens`.
PKV_HOST_DEVICE constexpr int NumMinedTokens(int num_tokens) {
  return num_tokens < kMaxMinedTokens ? num_tokens : kMaxMinedTokens;
}

// The token that stands at `index` of the sample. REQUIRES: 0 <= index < NumMinedTokens().
PKV_HOST_DEVICE constexpr int MinedToken(int index, int num_tokens) {
  // Dividing by a constant: kernels do it for every row that they load.
  return num_tokens <= kMaxMinedTokens
             ? index
             : static_cast<int>(int64_t{index} * num_tokens / kMaxMinedTokens);
}

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_MINED_SAMPLE_H_
