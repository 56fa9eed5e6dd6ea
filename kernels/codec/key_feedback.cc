#include "pkv/kernels/key_feedback.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <utility>

#include "kernels/codec/key_feedback_math.h"
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

constexpr int kRun = kFeedbackRun;
using RunMatrix = std::array<double, size_t{kRun} * kRun>;

// In place, by elimination; the first `size` rows and columns. False when it is not positive
// definite.
bool Invert(RunMatrix& m, int size) {
  for (int k = 0; k < size; ++k) {
    double* row_k = m.data() + k * kRun;
    if (!(row_k[k] > 0)) return false;
    const double inverse = 1 / row_k[k];
    row_k[k] = 1;
    for (int j = 0; j < size; ++j) row_k[j] *= inverse;
    for (int i = 0; i < size; ++i) {
      if (i == k) continue;
      double* row_i = m.data() + i * kRun;
      const double factor = row_i[k];
      row_i[k] = 0;
      for (int j = 0; j < size; ++j) row_i[j] -= factor * row_k[j];
    }
  }
  return true;
}

// What a run's errors should be, given those of the runs before it and that later runs make up for
// all of them as well as they can: with S the Schur complement of the later runs in `h`, which is
// symmetric, -S[R][R]^-1 S[R][earlier] e. Leaves these weights in the lower half of `h`, [step]
// [earlier step]. False when h is not positive definite.
bool FindWeights(std::vector<double>& h, int n) {
  std::vector<double> weights(size_t{kRun} * n);
  for (int run = (n - 1) / kRun * kRun; run >= 0; run -= kRun) {
    const int size = std::min(kRun, n - run);
    const auto row = [&](int i) { return h.data() + size_t(run + i) * n; };
    RunMatrix inverse = {};
    for (int i = 0; i < size; ++i) {
      for (int j = 0; j < size; ++j)
        inverse[i * kRun + j] = row(std::max(i, j))[run + std::min(i, j)];
    }
    if (!Invert(inverse, size)) return false;
    std::fill(weights.begin(), weights.end(), 0.0);
    for (int i = 0; i < size; ++i) {
      for (int m = 0; m < size; ++m) {
        for (int j = 0; j < run; ++j)
          weights[size_t(i) * n + j] += inverse[i * kRun + m] * row(m)[j];
      }
    }
    for (int a = 0; a < run; ++a) {
      for (int i = 0; i < size; ++i) {
        for (int b = 0; b <= a; ++b) h[size_t(a) * n + b] -= row(i)[a] * weights[size_t(i) * n + b];
      }
    }
    for (int i = 0; i < size; ++i) std::copy_n(weights.data() + size_t(i) * n, run, row(i));
  }
  return true;
}

// Rounds a step's weights to multiples of what is returned, which makes the largest
// kMaxFeedbackWeight. Weights that are nothing beside an error become 0.
float QuantizeWeights(std::span<const double> weights, int8_t* quantized) {
  double largest = 0;
  for (const double weight : weights) largest = std::max(largest, std::abs(weight));
  const auto scale = static_cast<float>(largest / kMaxFeedbackWeight);
  if (!(scale >= kLeastFeedbackScale)) return 0;
  for (size_t j = 0; j < weights.size(); ++j) {
    quantized[j] = static_cast<int8_t>(std::nearbyint(weights[j] / scale));
  }
  return scale;
}

}  // namespace

KeyFeedback MakeKeyFeedback(std::span<const float> moments, int head_dim, double damping) {
  const size_t size = size_t(head_dim) * head_dim, num_heads = moments.size() / size;
  KeyFeedback feedback;
  feedback.head_dim = head_dim;
  feedback.order.resize(num_heads * head_dim);
  feedback.weights.resize(moments.size());
  feedback.scales.resize(num_heads * head_dim);
  for (size_t head = 0; head < num_heads; ++head) {
    const auto order = std::span(feedback.order).subspan(head * head_dim, head_dim);
    std::vector<double> h =
        DampedMoment(moments.subspan(head * size, size), head_dim, damping, order);
    if (h.empty() || !FindWeights(h, head_dim)) {
      std::iota(order.begin(), order.end(), uint8_t{0});
      continue;
    }
    for (int i = 0; i < head_dim; ++i) {
      const size_t at = size_t(i) * head_dim;
      feedback.scales[head * head_dim + i] = QuantizeWeights(
          std::span(h).subspan(at, i / kRun * kRun), feedback.weights.data() + head * size + at);
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
