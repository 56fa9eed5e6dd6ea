#include "pkv/kernels/key_feedback.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "tests/support/error_bound.h"
#include "tests/support/feedback_reference.h"
#include "tests/support/rotation_reference.h"

namespace pkv {
namespace {

constexpr double kDamping = 0.01;

// Solves A x = b by elimination with the largest pivot. a: [n][n].
std::vector<double> Solve(std::vector<double> a, std::vector<double> b) {
  const size_t n = b.size();
  for (size_t c = 0; c < n; ++c) {
    size_t pivot = c;
    for (size_t r = c + 1; r < n; ++r) {
      if (std::abs(a[r * n + c]) > std::abs(a[pivot * n + c])) pivot = r;
    }
    for (size_t j = 0; j < n; ++j) std::swap(a[c * n + j], a[pivot * n + j]);
    std::swap(b[c], b[pivot]);
    for (size_t r = 0; r < n; ++r) {
      if (r == c) continue;
      const double factor = a[r * n + c] / a[c * n + c];
      for (size_t j = c; j < n; ++j) a[r * n + j] -= factor * a[c * n + j];
      b[r] -= factor * b[c];
    }
  }
  for (size_t c = 0; c < n; ++c) b[c] /= a[c * n + c];
  return b;
}

// The errors that run `run` should make, given those of the runs before, when all later ones make
// up for them as well as they can: the first of the x that minimise e^T H e over e[run..].
std::vector<double> BestErrors(const std::vector<double>& h, int dim, int run,
                               const std::vector<double>& e) {
  const int n = dim - run;
  std::vector<double> a(size_t(n) * n), b(n);
  for (int r = 0; r < n; ++r) {
    const double* row = h.data() + size_t(run + r) * dim;
    std::copy_n(row + run, n, a.begin() + size_t(r) * n);
    for (int j = 0; j < run; ++j) b[r] -= row[j] * e[j];
  }
  return Solve(a, b);
}

TEST(KeyFeedbackTest, AimsAtTheErrorsThatLaterRunsCanBestMakeUpFor) {
  for (const int dim : {12, 64, 128}) {  // 12: a last run of four
    const std::vector<float> moments = RandomMoments(1, 2, dim, 500);
    const KeyFeedback feedback = MakeKeyFeedback(moments, dim, kDamping);
    ASSERT_EQ(feedback.head_dim, dim);
    TestRandom random(2);
    for (int head = 0; head < 2; ++head) {
      const size_t size = size_t(dim) * dim;
      const std::vector<double> h = DampedReference(std::span(moments).subspan(head * size, size),
                                                    dim, kDamping, feedback.order_of(head));
      std::vector<double> e(dim), best;
      for (double& x : e) x = random.Normal();
      for (int i = 0; i < dim; ++i) {
        const int run = i / kFeedbackRun * kFeedbackRun;
        if (i == run) best = BestErrors(h, dim, run, e);
        const auto weights = feedback.weights_of(head).subspan(size_t(i) * dim, dim);
        const double scale = feedback.scales_of(head)[i];
        double sum = 0, half_steps = 0;
        int largest = 0;
        for (int j = 0; j < dim; ++j) {
          if (j >= run) {
            ASSERT_EQ(weights[j], 0) << "step " << i << " looks ahead to " << j;
            continue;
          }
          sum += scale * weights[j] * e[j];
          half_steps += scale / 2 * std::abs(e[j]);
          largest = std::max(largest, std::abs(weights[j]));
        }
        EXPECT_EQ(largest, i < kFeedbackRun ? 0 : 127) << "all of a byte's range is used";
        ASSERT_NEAR(-sum, best[i - run], half_steps * (1 + 1e-6)) << i;
      }
    }
  }
}

TEST(KeyFeedbackTest, TakesTheLoudestChannelFirst) {
  constexpr int kDim = 8;
  std::vector<float> moments(kDim * kDim);
  const float loudness[kDim] = {1, 5, 2, 5, 0, 7, 1, 3};
  for (int i = 0; i < kDim; ++i) moments[i * kDim + i] = loudness[i];
  const KeyFeedback feedback = MakeKeyFeedback(moments, kDim, kDamping);
  EXPECT_EQ(feedback.order, (std::vector<uint8_t>{5, 1, 3, 7, 2, 0, 6, 4}));
  for (const int8_t weight : feedback.weights) EXPECT_EQ(weight, 0) << "H is diagonal";
}

TEST(KeyFeedbackTest, GivesNoFeedbackWithoutAUsableMoment) {
  constexpr int kDim = 64, kSize = kDim * kDim;
  std::vector<float> moments = RandomMoments(4, 5, kDim, 200);
  std::fill_n(moments.begin(), kSize, 0.0f);
  moments[kSize + 77] = std::nanf("");
  moments[2 * kSize + 5] = INFINITY;
  for (int i = 0; i < kSize; ++i) moments[3 * kSize + i] *= -1;  // the moment of nothing
  const KeyFeedback feedback = MakeKeyFeedback(moments, kDim, kDamping);
  std::vector<uint8_t> natural(kDim);
  std::iota(natural.begin(), natural.end(), uint8_t{0});
  for (int head = 0; head < 4; ++head) {
    EXPECT_TRUE(std::ranges::equal(feedback.order_of(head), natural)) << head;
    for (const int8_t weight : feedback.weights_of(head)) ASSERT_EQ(weight, 0) << head;
    for (const float scale : feedback.scales_of(head)) ASSERT_EQ(scale, 0) << head;
  }
  EXPECT_TRUE(std::ranges::any_of(feedback.weights_of(4), [](int8_t w) { return w != 0; }))
      << "other heads do not suffer";
}

TEST(KeyFeedbackTest, DropsWeightsThatAreNothing) {
  constexpr int kDim = 64;
  for (const float off_diagonal : {0x1.64p-142f, 1e-20f}) {  // the first has no 127th part
    std::vector<float> moments(kDim * kDim);
    for (int i = 0; i < kDim; ++i) moments[i * kDim + i] = 1;
    moments[40] = moments[40 * kDim] = off_diagonal;
    const KeyFeedback feedback = MakeKeyFeedback(moments, kDim, kDamping);
    for (const int8_t weight : feedback.weights) ASSERT_EQ(weight, 0);
    for (const float scale : feedback.scales) ASSERT_EQ(scale, 0);
  }
}

TEST(KeyFeedbackTest, DampingBoundsTheWeights) {
  // With V V^T the factor of Hd, weights are V_R^-T times a part of V: of its row j, no longer than
  // the root of Hd[j][j], and V_R V_R^T is no less than the damping's share.
  constexpr int kDim = 128;
  std::vector<float> rank_one(kDim * kDim);
  for (int i = 0; i < kDim * kDim; ++i) {
    rank_one[i] = static_cast<float>(1e30 * std::sin(1.0 + i / kDim) * std::sin(1.0 + i % kDim));
  }
  for (const double damping : {0.001, 0.01, 1.0}) {
    const KeyFeedback feedback = MakeKeyFeedback(rank_one, kDim, damping);
    const double bound = std::sqrt((kDim + damping) / damping) * (1 + kFloatUnit);
    for (const float scale : feedback.scales) ASSERT_LE(127 * scale, bound);
    EXPECT_TRUE(std::ranges::any_of(feedback.weights, [](int8_t w) { return w != 0; }));
  }
}

TEST(KeyFeedbackTest, DoesNotDependOnTheMomentsScale) {
  const std::vector<float> moments = RandomMoments(5, 1, 64, 300);
  std::vector<float> larger = moments;
  for (float& x : larger) x *= 1024;
  const KeyFeedback a = MakeKeyFeedback(moments, 64, kDamping);
  const KeyFeedback b = MakeKeyFeedback(larger, 64, kDamping);
  EXPECT_EQ(a.order, b.order);
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_EQ(a.scales, b.scales);
}

TEST(RotateMomentsTest, IsRotationFromBothSides) {
  for (const int dim : {64, 128}) {
    const std::vector<float> moments = RandomMoments(6, 2, dim, 100);
    std::vector<float> rotated = moments;
    RotateMoments(rotated, dim);
    const size_t size = size_t(dim) * dim;
    for (int head = 0; head < 2; ++head) {
      std::vector<double> want(moments.begin() + head * size, moments.begin() + (head + 1) * size);
      const double norm = Norm(want);
      for (int pass = 0; pass < 2; ++pass) {
        for (int i = 0; i < dim; ++i)
          RotateReference(std::span(want).subspan(size_t(i) * dim, dim));
        for (int i = 0; i < dim; ++i) {
          for (int j = 0; j < i; ++j) std::swap(want[i * dim + j], want[j * dim + i]);
        }
      }
      // Two rotations of a matrix, whose rows' norms are at most its own.
      for (size_t i = 0; i < size; ++i) {
        ASSERT_NEAR(rotated[head * size + i], want[i], 2 * RotationBound(dim, norm)) << i;
      }
    }
  }
}

TEST(RotateMomentsTest, IsTheMomentOfRotatedVectors) {
  constexpr int kDim = 64;
  TestRandom random(7);
  std::vector<double> q(kDim);
  for (double& x : q) x = random.Normal();
  std::vector<float> moment(kDim * kDim);
  for (int i = 0; i < kDim * kDim; ++i) moment[i] = static_cast<float>(q[i / kDim] * q[i % kDim]);
  RotateMoments(moment, kDim);
  RotateReference(q);
  const double norm = Norm(q) * Norm(q);
  for (int i = 0; i < kDim * kDim; ++i) {
    ASSERT_NEAR(moment[i], q[i / kDim] * q[i % kDim], 3 * RotationBound(kDim, norm));
  }
}

}  // namespace
}  // namespace pkv
