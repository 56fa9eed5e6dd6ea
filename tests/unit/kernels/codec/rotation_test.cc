#include "pkv/kernels/rotation.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <vector>

#include "proto/base/float16.h"
#include "tests/support/error_bound.h"
#include "tests/support/rotation_reference.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

std::vector<float> RandomRow(TestRandom& random, int dim, double width = 1) {
  std::vector<float> row(dim);
  for (float& x : row) x = static_cast<float>(width * random.Normal());
  return row;
}

// Row times H / sqrt(dim), H[i][j] = (-1)^popcount(i & j), as BLOCK_FORMAT.md has it.
std::vector<double> ByTheFormat(const std::vector<float>& row) {
  std::vector<double> out(row.size());
  for (size_t j = 0; j < row.size(); ++j) {
    for (size_t i = 0; i < row.size(); ++i) {
      out[j] += std::popcount(i & j) % 2 == 0 ? row[i] : -double{row[i]};
    }
    out[j] /= std::sqrt(static_cast<double>(row.size()));
  }
  return out;
}

double NormOf(const std::vector<float>& row) {
  return Norm(std::vector<double>(row.begin(), row.end()));
}

class RotationTest : public testing::TestWithParam<int> {
 protected:
  static constexpr uint64_t kSeed = 31;
  RotationTest() { RecordProperty("seed", static_cast<int>(kSeed)); }
  const int dim_ = GetParam();
  TestRandom random_{kSeed};
};

TEST_P(RotationTest, MultipliesByTheMatrixOfTheFormat) {
  for (int trial = 0; trial < 20; ++trial) {
    const std::vector<float> row = RandomRow(random_, dim_, std::exp2(trial - 10));
    std::vector<float> rotated = row;
    RotateRows(rotated.data(), 1, dim_);
    const std::vector<double> want = ByTheFormat(row);
    std::vector<double> reference(row.begin(), row.end());
    RotateReference(reference);
    for (int j = 0; j < dim_; ++j) {
      ASSERT_LE(std::abs(rotated[j] - want[j]), RotationBound(dim_, NormOf(row)));
      ASSERT_LE(std::abs(reference[j] - want[j]), SumBound(dim_, NormOf(row)) * kFloatUnit);
    }
  }
}

TEST_P(RotationTest, IsItsOwnInverse) {
  const std::vector<float> row = RandomRow(random_, dim_);
  std::vector<float> twice = row;
  RotateRows(twice.data(), 1, dim_);
  RotateRows(twice.data(), 1, dim_);
  for (int j = 0; j < dim_; ++j) {
    ASSERT_LE(std::abs(twice[j] - row[j]), 2 * RotationBound(dim_, NormOf(row)));
  }
}

TEST_P(RotationTest, KeepsProducts) {
  std::vector<float> a = RandomRow(random_, dim_), b = RandomRow(random_, dim_);
  const auto product = [&] {
    double sum = 0;
    for (int j = 0; j < dim_; ++j) sum += double{a[j]} * b[j];
    return sum;
  };
  const double before = product(), norms = NormOf(a) * NormOf(b);
  RotateRows(a.data(), 1, dim_);
  RotateRows(b.data(), 1, dim_);
  EXPECT_LE(std::abs(product() - before), 3 * RotationBound(dim_, norms));
}

TEST_P(RotationTest, SpreadsOneChannelOverAll) {
  std::vector<float> row(dim_);
  row[3] = 8;
  RotateRows(row.data(), 1, dim_);
  const float norm = 1.0f / std::sqrt(static_cast<float>(dim_));
  for (int j = 0; j < dim_; ++j) {
    EXPECT_EQ(row[j], (std::popcount(unsigned(j) & 3u) % 2 == 0 ? 8 : -8) * norm) << j;
  }
}

TEST_P(RotationTest, RotatesRowsApart) {
  constexpr int kRows = 5;
  std::vector<float> all;
  for (int r = 0; r < kRows; ++r) {
    const std::vector<float> row = RandomRow(random_, dim_);
    all.insert(all.end(), row.begin(), row.end());
  }
  std::vector<float> alone(all.begin() + 3 * dim_, all.begin() + 4 * dim_);
  RotateRows(alone.data(), 1, dim_);
  RotateRows(all.data(), kRows, dim_);
  EXPECT_TRUE(std::equal(alone.begin(), alone.end(), all.begin() + 3 * dim_));
}

TEST_P(RotationTest, RoundsFloat16RowsOnceAndSaturates) {
  std::vector<uint16_t> in(2 * dim_), out(in.size());
  for (uint16_t& x : in) x = FloatToFloat16(static_cast<float>(random_.Normal()));
  for (int j = 0; j < dim_; ++j) in[dim_ + j] = FloatToFloat16(1e4f);  // channel 0: 1e4 sqrt(dim)
  std::vector<float> rows(in.size());
  for (size_t i = 0; i < in.size(); ++i) rows[i] = Float16ToFloat(in[i]);
  RotateRows(rows.data(), 2, dim_);
  RotateFloat16Rows(in.data(), 2, dim_, out.data());
  for (int j = 0; j < dim_; ++j) ASSERT_EQ(out[j], FloatToFloat16(rows[j])) << j;
  EXPECT_EQ(out[dim_], FloatToFloat16(kFloat16Max));
  for (int j = 1; j < dim_; ++j) EXPECT_EQ(out[dim_ + j], 0);
  RotateFloat16Rows(in.data(), 2, dim_, in.data());
  EXPECT_EQ(in, out) << "in place";
}

INSTANTIATE_TEST_SUITE_P(HeadDims, RotationTest, testing::Values(64, 128));

TEST(RotationValuesTest, KnowsSmallRows) {
  // 1, 2, 0, ..: sums and differences of the two, by parity, over 8.
  std::vector<float> row(64);
  row[0] = 1;
  row[1] = 2;
  RotateRows(row.data(), 1, 64);
  for (int j = 0; j < 64; ++j) EXPECT_EQ(row[j], j % 2 == 0 ? 0.375f : -0.125f) << j;
  RotateRows(row.data(), 0, 64);  // no rows: nothing
  EXPECT_EQ(row[0], 0.375f);
}

}  // namespace
}  // namespace pkv
