// Holds the vectorized searches to plain loops, bit by bit.
#include "kernels/pattern/nearest_pattern.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

constexpr uint64_t kSeed = 42;

std::vector<float> RandomRows(TestRandom& random, int count, int head_dim) {
  std::vector<float> rows(static_cast<size_t>(count) * head_dim);
  // fp16 values, as the callers have.
  for (float& v : rows) v = Float16ToFloat(FloatToFloat16(static_cast<float>(random.Normal())));
  return rows;
}

float PlainHalfNorm(const float* c, int d) {
  volatile float norm = 0;
  for (int j = 0; j < d; ++j) {
    const volatile float square = c[j] * c[j];
    norm = norm + square;
  }
  return norm * 0.5f;
}

float PlainDot(const float* a, const float* b, int d) {
  volatile float sum = 0;
  for (int j = 0; j < d; ++j) {
    const volatile float product = a[j] * b[j];
    sum = sum + product;
  }
  return sum;
}

class NearestPatternTest : public testing::TestWithParam<std::tuple<int, int, int>> {
 protected:
  const int num_ = std::get<0>(GetParam()), head_dim_ = std::get<1>(GetParam());
  const int num_rows_ = std::get<2>(GetParam());
  TestRandom random_{kSeed};
  const std::vector<float> patterns_ = RandomRows(random_, num_, head_dim_);
  const std::vector<float> rows_ = RandomRows(random_, num_rows_, head_dim_);
  const PatternMatrix matrix_{std::span<const float>(patterns_), head_dim_};
};

TEST_P(NearestPatternTest, L2EqualsAPlainLoop) {
  std::vector<uint8_t> ids(num_rows_, 99);
  NearestL2(matrix_, rows_.data(), num_rows_, ids.data());
  for (int r = 0; r < num_rows_; ++r) {
    float best = std::numeric_limits<float>::infinity();
    int want = 0;
    for (int m = 0; m < num_; ++m) {
      const float* c = patterns_.data() + static_cast<size_t>(m) * head_dim_;
      const volatile float score =
          PlainHalfNorm(c, head_dim_) - PlainDot(c, rows_.data() + r * head_dim_, head_dim_);
      if (score < best) {
        best = score;
        want = m;
      }
    }
    ASSERT_EQ(ids[r], want) << "seed " << kSeed << " row " << r;
  }
}

TEST_P(NearestPatternTest, MinMaxEqualsAPlainLoop) {
  std::vector<uint8_t> ids(num_rows_, 99);
  std::vector<float> ranges(num_rows_);
  NearestMinMax(matrix_, rows_.data(), num_rows_, ids.data(), ranges.data());
  for (int r = 0; r < num_rows_; ++r) {
    float best = std::numeric_limits<float>::infinity();
    int want = 0;
    for (int m = 0; m < num_; ++m) {
      float high = -std::numeric_limits<float>::infinity(), low = -high;
      for (int j = 0; j < head_dim_; ++j) {
        const float residual = rows_[r * head_dim_ + j] - patterns_[m * head_dim_ + j];
        high = std::max(high, residual);
        low = std::min(low, residual);
      }
      if (high - low < best) {
        best = high - low;
        want = m;
      }
    }
    ASSERT_EQ(ids[r], want) << "seed " << kSeed << " row " << r;
    ASSERT_EQ(std::bit_cast<uint32_t>(ranges[r]), std::bit_cast<uint32_t>(best));
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, NearestPatternTest,
                         testing::Combine(testing::Values(1, 15, 16, 17, 32, 255),
                                          testing::Values(64, 128), testing::Values(1, 3, 4, 41)));

TEST(PatternMatrixTest, TiesGoToTheLowestId) {
  const std::vector<float> patterns(static_cast<size_t>(20) * 64, 0.5f);
  const PatternMatrix matrix(std::span<const float>(patterns), 64);
  const std::vector<float> row(64, 0.25f);
  uint8_t id = 9;
  float range;
  NearestL2(matrix, row.data(), 1, &id);
  EXPECT_EQ(id, 0);
  id = 9;
  NearestMinMax(matrix, row.data(), 1, &id, &range);
  EXPECT_EQ(id, 0);
}

TEST(PatternMatrixTest, AVectorFindsItself) {
  TestRandom random(kSeed);
  const std::vector<float> patterns = RandomRows(random, 50, 128);
  const PatternMatrix matrix(std::span<const float>(patterns), 128);
  std::vector<uint8_t> ids(50);
  NearestL2(matrix, patterns.data(), 50, ids.data());
  for (int i = 0; i < 50; ++i) EXPECT_EQ(ids[i], i);
}

// A constant added to all channels changes no range. Eighths are exact.
TEST(PatternMatrixTest, MinMaxDistanceIgnoresAConstantShift) {
  TestRandom random(kSeed);
  std::vector<float> patterns(32 * 64), rows(16 * 64);
  for (auto* values : {&patterns, &rows}) {
    for (float& v : *values) v = static_cast<float>(random.Below(64) - 32) / 8.0f;
  }
  const PatternMatrix matrix(std::span<const float>(patterns), 64);
  std::vector<uint8_t> ids(16), shifted_ids(16);
  std::vector<float> ranges(16), shifted_ranges(16);
  NearestMinMax(matrix, rows.data(), 16, ids.data(), ranges.data());
  for (float& v : rows) v += 5.5f;
  NearestMinMax(matrix, rows.data(), 16, shifted_ids.data(), shifted_ranges.data());
  EXPECT_EQ(ids, shifted_ids);
  EXPECT_EQ(ranges, shifted_ranges);
}

}  // namespace
}  // namespace pkv
