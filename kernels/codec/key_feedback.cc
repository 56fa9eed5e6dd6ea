#include "pkv/kernels/key_feedback.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "pkv/kernels/rotation.h"

namespace pkv {
namespace {

// The damped H of one kv head in step order, [head_dim][head_dim]; empty when it is of no use.
std::vector<double> DampedMoment(std::span<const float> moment, int head_dim, double damping,
                                 std::span<uint8_t> order) {
  std::iota(order.begin(), order.end(), uint8_t{0});
  double trace = 0;
  for (int i = 0; i < head_dim; ++i) trace += moment[size_t(i) * head_dim + i];
  const bool is_finite =
      std::all_of(moment.begin(), moment.end(), [](float x) { return std::isfinite(x); });
  if (!is_finite || !(trace > 0)) return {};
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return moment[size_t(a) * head_dim + a] > moment[size_t(b) * head_dim + b];
  });
  std::vector<double> damped(moment.size());
  for (int i = 0; i < head_dim; ++i) {
    for (int j = 0; j < head_dim; ++j) {
      damped[size_t(i) * head_dim + j] = moment[size_t(order[i]) * head_dim + order[j]];
    }
    damped[size_t(i) * head_dim + i] += damping * trace / head_dim;
  }
  return damped;
}

// Factors H = V V^T with V upper triangular, in place (its lower half keeps what it held). False
// when H is not positive definite.
bool FactorFromTheEnd(std::vector<double>& h, int n) {
  for (int k = n - 1; k >= 0; --k) {
    double* row_k = h.data() + size_t(k) * n;
    for (int j = k; j >= 0; --j) {
      double* row_j = h.data() + size_t(j) * n;
      double sum = row_j[k];
      for (int m = k + 1; m < n; ++m) sum -= row_j[m] * row_k[m];
      if (j == k) {
        if (!(sum > 0)) return false;
        row_k[k] = std::sqrt(sum);
      } else {
        row_j[k] = sum / row_k[k];
      }
    }
  }
  return true;
}

}  // namespace

KeyFeedback MakeKeyFeedback(std::span<const float> moments, int head_dim, double damping) {
  const size_t size = size_t(head_dim) * head_dim, num_heads = moments.size() / size;
  KeyFeedback feedback;
  feedback.head_dim = head_dim;
  feedback.order.resize(num_heads * head_dim);
  feedback.weights.resize(moments.size());
  for (size_t head = 0; head < num_heads; ++head) {
    const auto order = std::span(feedback.order).subspan(head * head_dim, head_dim);
    std::vector<double> v =
        DampedMoment(moments.subspan(head * size, size), head_dim, damping, order);
    if (v.empty() || !FactorFromTheEnd(v, head_dim)) {
      std::iota(order.begin(), order.end(), uint8_t{0});
      continue;
    }
    float* weights = feedback.weights.data() + head * size;
    for (int i = 0; i < head_dim; ++i) {
      for (int j = 0; j < i; ++j) {
        weights[size_t(i) * head_dim + j] =
            static_cast<float>(v[size_t(j) * head_dim + i] / v[size_t(i) * head_dim + i]);
      }
    }
  }
  return feedback;
}

void RotateMoments(std::span<float> moments, int head_dim) {
  const size_t size = size_t(head_dim) * head_dim;
  for (size_t at = 0; at < moments.size(); at += size) {
    float* h = moments.data() + at;
    // Rows, then, H being symmetric, columns as rows of the transpose.
    for (int pass = 0; pass < 2; ++pass) {
      RotateRows(h, head_dim, head_dim);
      for (int i = 0; i < head_dim; ++i) {
        for (int j = 0; j < i; ++j) std::swap(h[i * head_dim + j], h[j * head_dim + i]);
      }
    }
  }
}

}  // namespace pkv
