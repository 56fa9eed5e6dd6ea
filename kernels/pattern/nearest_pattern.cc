#include "kernels/pattern/nearest_pattern.h"

#include <algorithm>
#include <limits>

#include "kernels/device/cpu_clones.h"

namespace pkv {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Rows worked on together: enough independent sums to hide the latency of an addition.
constexpr int kRowTile = 4;

std::vector<float> ToFloat(std::span<const Float16Bits> patterns) {
  std::vector<float> values(patterns.size());
  std::transform(patterns.begin(), patterns.end(), values.begin(), Float16ToFloat);
  return values;
}

// Keeps the smallest of the first `count` scores; an earlier pattern wins a tie.
inline __attribute__((always_inline)) void KeepSmallest(const float* scores, int first_id,
                                                        int count, float& best, int& best_id) {
  for (int i = 0; i < count; ++i) {
    if (scores[i] < best) {
      best = scores[i];
      best_id = first_id + i;
    }
  }
}

}  // namespace

PatternMatrix::PatternMatrix(std::span<const float> patterns, int head_dim)
    : num_(static_cast<int>(patterns.size()) / head_dim),
      head_dim_(head_dim),
      stride_((num_ + kLanes - 1) / kLanes * kLanes),
      columns_(static_cast<size_t>(stride_) * head_dim),
      half_norms_(stride_) {
  for (int id = 0; id < num_; ++id) {
    const float* pattern = patterns.data() + static_cast<size_t>(id) * head_dim;
    float norm = 0;
    for (int j = 0; j < head_dim; ++j) {
      columns_[static_cast<size_t>(j) * stride_ + id] = pattern[j];
      norm = norm + pattern[j] * pattern[j];
    }
    half_norms_[id] = norm * 0.5f;
  }
}

PatternMatrix::PatternMatrix(std::span<const Float16Bits> patterns, int head_dim)
    : PatternMatrix(std::span<const float>(ToFloat(patterns)), head_dim) {}

PKV_CPU_CLONES void NearestL2(const PatternMatrix& patterns, const float* rows, int num_rows,
                              uint8_t* ids) {
  const int head_dim = patterns.head_dim(), stride = patterns.stride(), num = patterns.num();
  for (int first = 0; first < num_rows; first += kRowTile) {
    const float* row[kRowTile];
    float best[kRowTile];
    int best_id[kRowTile];
    for (int r = 0; r < kRowTile; ++r) {
      row[r] = rows + static_cast<size_t>(std::min(first + r, num_rows - 1)) * head_dim;
      best[r] = kInfinity;
      best_id[r] = 0;
    }
    for (int id = 0; id < num; id += kLanes) {
      FloatLanes dot0 = {}, dot1 = {}, dot2 = {}, dot3 = {};
      const float* column = patterns.columns() + id;
      for (int j = 0; j < head_dim; ++j, column += stride) {
        const FloatLanes c = *reinterpret_cast<const UnalignedFloatLanes*>(column);
        dot0 = dot0 + c * row[0][j];
        dot1 = dot1 + c * row[1][j];
        dot2 = dot2 + c * row[2][j];
        dot3 = dot3 + c * row[3][j];
      }
      const FloatLanes half_norm =
          *reinterpret_cast<const UnalignedFloatLanes*>(patterns.half_norms() + id);
      const FloatLanes scores[kRowTile] = {half_norm - dot0, half_norm - dot1, half_norm - dot2,
                                           half_norm - dot3};
      for (int r = 0; r < kRowTile; ++r) {
        KeepSmallest(reinterpret_cast<const float*>(&scores[r]), id, std::min(kLanes, num - id),
                     best[r], best_id[r]);
      }
    }
    for (int r = 0; r < std::min(kRowTile, num_rows - first); ++r) {
      ids[first + r] = static_cast<uint8_t>(best_id[r]);
    }
  }
}

PKV_CPU_CLONES void NearestMinMax(const PatternMatrix& patterns, const float* rows, int num_rows,
                                  uint8_t* ids, float* ranges) {
  const int head_dim = patterns.head_dim(), stride = patterns.stride(), num = patterns.num();
  for (int r = 0; r < num_rows; ++r) {
    const float* row = rows + static_cast<size_t>(r) * head_dim;
    float best = kInfinity;
    int best_id = 0;
    for (int id = 0; id < num; id += kLanes) {
      FloatLanes high, low;
      const float* column = patterns.columns() + id;
      for (int lane = 0; lane < kLanes; ++lane) high[lane] = low[lane] = row[0] - column[lane];
      for (int j = 1; j < head_dim; ++j) {
        column += stride;
        const FloatLanes residual = row[j] - *reinterpret_cast<const UnalignedFloatLanes*>(column);
        high = residual > high ? residual : high;
        low = residual < low ? residual : low;
      }
      const FloatLanes range = high - low;
      KeepSmallest(reinterpret_cast<const float*>(&range), id, std::min(kLanes, num - id), best,
                   best_id);
    }
    ids[r] = static_cast<uint8_t>(best_id);
    ranges[r] = best;
  }
}

}  // namespace pkv
