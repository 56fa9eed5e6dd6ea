#include "worker/engine/gemm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "proto/base/thread_pool.h"
#include "tests/support/error_bound.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

struct Case {
  int m, n, k;
  bool transpose_b;
  float alpha, beta;
};

std::vector<float> Random(TestRandom& random, size_t size) {
  std::vector<float> values(size);
  for (float& value : values) value = static_cast<float>(random.Normal());
  return values;
}

// Strides wider than the rows, so that a stride taken for a width shows.
class GemmTest : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const Case& c = GetParam();
    a_ = Random(random_, static_cast<size_t>(c.m) * (c.k + 3));
    b_ = Random(random_, static_cast<size_t>(c.transpose_b ? c.n : c.k) * b_stride());
    c_ = Random(random_, static_cast<size_t>(c.m) * (c.n + 5));
  }
  int b_stride() const { return (GetParam().transpose_b ? GetParam().k : GetParam().n) + 2; }

  absl::Status Run(std::vector<float>& out, ThreadPool* pool) const {
    const Case& c = GetParam();
    return Gemm({.m = c.m,
                 .n = c.n,
                 .k = c.k,
                 .a = a_.data(),
                 .b = b_.data(),
                 .c = out.data(),
                 .a_stride = c.k + 3,
                 .b_stride = b_stride(),
                 .c_stride = c.n + 5,
                 .transpose_b = c.transpose_b,
                 .alpha = c.alpha,
                 .beta = c.beta},
                pool);
  }

  TestRandom random_{17};
  std::vector<float> a_, b_, c_;
};

TEST_P(GemmTest, AgreesWithADefinitionInFp64) {
  const Case& c = GetParam();
  std::vector<float> out = c_;
  ASSERT_THAT(Run(out, nullptr), IsOk());
  for (int i = 0; i < c.m; ++i) {
    for (int j = 0; j < c.n + 5; ++j) {
      const size_t at = static_cast<size_t>(i) * (c.n + 5) + j;
      if (j >= c.n) {
        ASSERT_EQ(out[at], c_[at]) << "written behind row " << i;
        continue;
      }
      double sum = 0, magnitude = 0;
      for (int l = 0; l < c.k; ++l) {
        const double product = double{a_[i * (c.k + 3) + l]} *
                               b_[c.transpose_b ? j * b_stride() + l : l * b_stride() + j];
        sum += product;
        magnitude += std::abs(product);
      }
      const double expected = c.alpha * sum + c.beta * c_[at];
      // Two terms more: the product with alpha and the sum with beta * c.
      const double bound =
          SumBound(c.k + 2, std::abs(c.alpha) * magnitude + std::abs(c.beta * c_[at]));
      ASSERT_NEAR(out[at], expected, bound) << i << ", " << j;
    }
  }
}

TEST_P(GemmTest, GivesEqualBitsWithAnyPool) {
  std::vector<float> alone = c_, shared = c_;
  ThreadPool pool(3);
  ASSERT_THAT(Run(alone, nullptr), IsOk());
  ASSERT_THAT(Run(shared, &pool), IsOk());
  EXPECT_EQ(alone, shared);
}

INSTANTIATE_TEST_SUITE_P(Shapes, GemmTest,
                         ::testing::Values(Case{1, 1, 1, true, 1, 0}, Case{1, 384, 768, true, 1, 0},
                                           Case{1, 8192, 384, true, 1, 0},
                                           Case{5, 70, 33, false, 0.5, 1},
                                           Case{4, 128, 64, true, 0.125, 0},
                                           Case{257, 65, 40, true, 1, 1},
                                           Case{600, 30, 20, false, 1, 0}));

TEST(GemmArgsTest, EmptyProductsTouchNothing) {
  EXPECT_THAT(Gemm({.m = 0, .n = 4, .k = 4}, nullptr), IsOk());
  EXPECT_THAT(Gemm({.m = 4, .n = 0, .k = 4}, nullptr), IsOk());
}

}  // namespace
}  // namespace pkv
