#include "kernels/attention/softmax_state.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/attention/dense_rows.h"
#include "kernels/attention/softmax_math.h"

namespace pkv {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

}  // namespace

SoftmaxState::SoftmaxState(int num_queries, int head_dim)
    : head_dim_(head_dim),
      max_(num_queries, kMinusInfinity),
      sum_(num_queries, 0.0f),
      acc_(static_cast<size_t>(num_queries) * head_dim, 0.0f) {}

float SoftmaxState::Update(int i, int count, float* scores) {
  const float max = std::max(max_[i], Largest(scores, count));
  if (max == kMinusInfinity) {
    std::fill_n(scores, count, 0.0f);
    return 1.0f;
  }
  const float rescale = max_[i] == max ? 1.0f : ExpNonPositive(max_[i] - max);
  const float added = ExpSum(max, count, scores);
  sum_[i] = sum_[i] * rescale + added;
  max_[i] = max;
  if (rescale != 1.0f) ScaleBy(rescale, head_dim_, acc(i));
  return rescale;
}

void SoftmaxState::Merge(SoftmaxState& other) {
  for (size_t i = 0; i < max_.size(); ++i) {
    const float max = std::max(max_[i], other.max_[i]);
    if (max == kMinusInfinity) continue;
    const float mine = ExpNonPositive(max_[i] - max), theirs = ExpNonPositive(other.max_[i] - max);
    float* a = acc(static_cast<int>(i));
    const float* b = other.acc(static_cast<int>(i));
    for (int j = 0; j < head_dim_; ++j) a[j] = a[j] * mine + b[j] * theirs;
    sum_[i] = sum_[i] * mine + other.sum_[i] * theirs;
    max_[i] = max;
  }
}

float SoftmaxState::Finish(int i, float* out) const {
  const float* a = acc_.data() + static_cast<size_t>(i) * head_dim_;
  if (sum_[i] == 0.0f) {
    std::fill_n(out, head_dim_, 0.0f);
    return kMinusInfinity;
  }
  for (int j = 0; j < head_dim_; ++j) out[j] = a[j] / sum_[i];
  return max_[i] + std::log(sum_[i]);
}

}  // namespace pkv
