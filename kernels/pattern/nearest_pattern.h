#ifndef PKV_KERNELS_PATTERN_NEAREST_PATTERN_H_
#define PKV_KERNELS_PATTERN_NEAREST_PATTERN_H_

#include <cstdint>
#include <span>
#include <vector>

#include "proto/base/float16.h"

namespace pkv {

// Patterns of one (kv head, K or V), transposed so that a loop over channels works on sixteen
// patterns at once. Thread-compatible.
class PatternMatrix {
 public:
  // `patterns` is [num][head_dim].
  PatternMatrix(std::span<const float> patterns, int head_dim);
  PatternMatrix(std::span<const Float16Bits> patterns, int head_dim);

  int num() const { return num_; }
  int head_dim() const { return head_dim_; }
  int stride() const { return stride_; }  // num rounded up to kLanes
  // [head_dim][stride]; columns past num are zero.
  const float* columns() const { return columns_.data(); }
  // [stride] |pattern|^2 / 2, summed in channel order.
  const float* half_norms() const { return half_norms_.data(); }

 private:
  int num_, head_dim_, stride_;
  std::vector<float> columns_, half_norms_;
};

// For each of `num_rows` rows [head_dim], the pattern with the smallest squared L2 distance, ties
// to the lowest id. Compares |c|^2 / 2 - x . c, the dot product summed in channel order in fp32.
// REQUIRES: patterns.num() in 1..255.
void NearestL2(const PatternMatrix& patterns, const float* rows, int num_rows, uint8_t* ids);

// The same by the range of the residual, max_j (x_j - c_j) - min_j (x_j - c_j); also writes that
// range. REQUIRES: patterns.num() in 1..255.
void NearestMinMax(const PatternMatrix& patterns, const float* rows, int num_rows, uint8_t* ids,
                   float* ranges);

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_NEAREST_PATTERN_H_
