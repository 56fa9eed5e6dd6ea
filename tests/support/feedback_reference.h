#ifndef PKV_TESTS_SUPPORT_FEEDBACK_REFERENCE_H_
#define PKV_TESTS_SUPPORT_FEEDBACK_REFERENCE_H_

// Second moments of queries, and error feedback by elimination in fp64.

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "pkv/kernels/key_feedback.h"
#include "tests/support/tensor_gen.h"

namespace pkv {

// [kv_head][dim][dim]: mean of q q^T over `num_vectors` vectors, each a few shared directions plus
// `noise`: far from diagonal when that is small.
inline std::vector<float> RandomMoments(uint64_t seed, int num_heads, int dim, int num_vectors,
                                        double noise = 0.3) {
  constexpr int kDirections = 4;
  TestRandom random(seed);
  std::vector<float> moments;
  for (int head = 0; head < num_heads; ++head) {
    std::vector<double> directions(size_t(kDirections) * dim), h(size_t(dim) * dim), q(dim);
    for (double& x : directions) x = random.Normal();
    for (int n = 0; n < num_vectors; ++n) {
      for (double& x : q) x = noise * random.Normal();
      for (int k = 0; k < kDirections; ++k) {
        const double along = random.Normal();
        for (int j = 0; j < dim; ++j) q[j] += along * directions[size_t(k) * dim + j];
      }
      for (int i = 0; i < dim; ++i) {
        for (int j = 0; j < dim; ++j) h[size_t(i) * dim + j] += q[i] * q[j] / num_vectors;
      }
    }
    moments.insert(moments.end(), h.begin(), h.end());
  }
  return moments;
}

inline std::shared_ptr<const KeyFeedback> FeedbackFrom(const std::vector<float>& moments, int dim,
                                                       double damping = 0.01) {
  return std::make_shared<const KeyFeedback>(MakeKeyFeedback(moments, dim, damping));
}

// H of one head plus `damping` times the mean of its diagonal on the diagonal, in step order.
inline std::vector<double> DampedReference(std::span<const float> moment, int dim, double damping,
                                           std::span<const uint8_t> order) {
  double mean = 0;
  for (int i = 0; i < dim; ++i) mean += double{moment[size_t(i) * dim + i]} / dim;
  std::vector<double> h(moment.size());
  for (int i = 0; i < dim; ++i) {
    for (int j = 0; j < dim; ++j) {
      h[size_t(i) * dim + j] = moment[size_t(order[i]) * dim + order[j]];
    }
    h[size_t(i) * dim + i] += damping * mean;
  }
  return h;
}

// H's Schur complements: of the steps up to the end of run R when all later steps have made up for
// theirs as well as they can, the rows of R, in the rows of R of the result.
inline std::vector<double> RunComplements(std::vector<double> h, int dim) {
  std::vector<double> rows(h.size());
  for (int i = dim - 1; i >= 0; --i) {
    const int run = i / kFeedbackRun * kFeedbackRun, end = std::min(run + kFeedbackRun, dim);
    if (i == end - 1) {
      for (int row = run; row < end; ++row) {
        std::copy_n(h.begin() + size_t(row) * dim, end, rows.begin() + size_t(row) * dim);
      }
    }
    for (int a = 0; a < i; ++a) {
      const double factor = h[size_t(a) * dim + i] / h[size_t(i) * dim + i];
      for (int b = 0; b < i; ++b) h[size_t(a) * dim + b] -= factor * h[size_t(i) * dim + b];
    }
  }
  return rows;
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_FEEDBACK_REFERENCE_H_
