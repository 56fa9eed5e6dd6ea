#ifndef PKV_KERNELS_PATTERN_MINED_SAMPLE_H_
#define PKV_KERNELS_PATTERN_MINED_SAMPLE_H_

#include <cstdint>

#include "proto/base/host_device.h"

namespace pkv {

// K-means looks at this many tokens of a prompt at most, at equal strides (kernels/README.md,
// "Mine"). What six SMs hold in shared memory: 768 rows of 256 bytes, head_dim 128, are 192 of 227
// KiB, and leave room for the sums of 32 patterns, 16 KiB, and their centroids, 8 KiB. Six, since
// of an H200's 132 SMs no more than fifteen clusters of seven or eight can be had, but seventeen of
// six: K and V of eight heads are sixteen, in one wave.
inline constexpr int kMaxMinedTokens = 4608;

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
