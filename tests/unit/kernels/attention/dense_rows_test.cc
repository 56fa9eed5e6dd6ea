// Holds the vectorized loops to plain ones that sum in the stated order, bit by bit.
#include "kernels/attention/dense_rows.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

#include "kernels/attention/softmax_math.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

constexpr uint64_t kSeed = 31;

std::vector<float> Values(TestRandom& random, int count) {
  std::vector<float> values(count);
  for (float& v : values) v = static_cast<float>(random.Normal());
  return values;
}

float FoldLanes(float (&sums)[16]) {
  for (int i = 0; i < 8; ++i) sums[i] += sums[i + 8];
  for (int i = 0; i < 4; ++i) sums[i] += sums[i + 4];
  return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

float PlainDot(const float* a, const float* b, int count) {
  float sums[16] = {};
  for (int i = 0; i < count; ++i) {
    const volatile float product = a[i] * b[i];
    sums[i % 16] = sums[i % 16] + product;
  }
  return FoldLanes(sums);
}

class DenseRowsTest : public testing::TestWithParam<int> {};

TEST_P(DenseRowsTest, DotSumsInTheStatedOrder) {
  const int d = GetParam();
  TestRandom random(kSeed);
  const auto rows = Values(random, 9 * d), q = Values(random, d);
  std::vector<float> scores(9);
  DotRows(rows.data(), 9, d, q.data(), scores.data());
  for (int t = 0; t < 9; ++t) {
    const float want = PlainDot(rows.data() + t * d, q.data(), d);
    ASSERT_EQ(std::bit_cast<uint32_t>(scores[t]), std::bit_cast<uint32_t>(want))
        << "seed " << kSeed;
    ASSERT_EQ(Dot(rows.data() + t * d, q.data(), d), want);
  }
}

TEST_P(DenseRowsTest, WeightedRowsAddInTokenOrder) {
  const int d = GetParam();
  TestRandom random(kSeed);
  const auto rows = Values(random, 9 * d), weights = Values(random, 9);
  std::vector<float> out = Values(random, d), want = out;
  AddWeightedRows(rows.data(), weights.data(), 9, d, out.data());
  for (int j = 0; j < d; ++j) {
    for (int t = 0; t < 9; ++t) {
      const volatile float product = weights[t] * rows[t * d + j];
      want[j] = want[j] + product;
    }
    ASSERT_EQ(std::bit_cast<uint32_t>(out[j]), std::bit_cast<uint32_t>(want[j]));
  }
}

INSTANTIATE_TEST_SUITE_P(HeadDims, DenseRowsTest, testing::Values(64, 128));

TEST(DenseRowsTest, ExpSumGivesWeightsAndTheirSum) {
  TestRandom random(kSeed);
  std::vector<float> scores = Values(random, 128);
  scores[5] = -std::numeric_limits<float>::infinity();
  const float max = *std::max_element(scores.begin(), scores.end());
  const std::vector<float> before = scores;
  const float sum = ExpSum(max, 128, scores.data());
  float sums[16] = {};
  for (int i = 0; i < 128; ++i) {
    ASSERT_EQ(scores[i], ExpNonPositive(before[i] - max)) << i;
    sums[i % 16] += scores[i];
  }
  EXPECT_EQ(scores[5], 0.0f);
  EXPECT_EQ(sum, FoldLanes(sums));
}

TEST(DenseRowsTest, LargestIsAtAnyPlace) {
  for (int place = 0; place < 48; ++place) {
    std::vector<float> values(48, -std::numeric_limits<float>::infinity());
    EXPECT_EQ(Largest(values.data(), 48), values[0]);
    values[place] = -3.0f;
    EXPECT_EQ(Largest(values.data(), 48), -3.0f) << place;
    EXPECT_EQ(Largest(values.data(), 16), values[place < 16 ? place : 0]) << place;
  }
}

TEST(DenseRowsTest, MultiplyAndScaleWorkElementByElement) {
  TestRandom random(kSeed);
  const auto a = Values(random, 37), b = Values(random, 37);
  std::vector<float> product(37), scaled = a;
  Multiply(a.data(), b.data(), 37, product.data());
  ScaleBy(0.3f, 37, scaled.data());
  for (int i = 0; i < 37; ++i) {
    EXPECT_EQ(product[i], a[i] * b[i]);
    EXPECT_EQ(scaled[i], a[i] * 0.3f);
  }
}

}  // namespace
}  // namespace pkv
