#ifndef PKV_TESTS_SUPPORT_FEEDBACK_REFERENCE_H_
#define PKV_TESTS_SUPPORT_FEEDBACK_REFERENCE_H_

// Second moments of queries, and error feedback by elimination in fp64.

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

// What is left of step i when all later steps have made up for it as well as they can: the last row
// of H's Schur complement on steps [0, i], row i of the result. Its diagonal is v[i]^2; divided by
// that, it holds the weights.
inline std::vector<double> ConditionalRows(std::vector<double> h, int dim) {
  std::vector<double> rows(h.size());
  for (int i = dim - 1; i >= 0; --i) {
    for (int j = 0; j <= i; ++j) rows[size_t(i) * dim + j] = h[size_t(i) * dim + j];
    for (int a = 0; a < i; ++a) {
      const double factor = h[size_t(a) * dim + i] / h[size_t(i) * dim + i];
      for (int b = 0; b < i; ++b) h[size_t(a) * dim + b] -= factor * h[size_t(i) * dim + b];
    }
  }
  return rows;
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_FEEDBACK_REFERENCE_H_
