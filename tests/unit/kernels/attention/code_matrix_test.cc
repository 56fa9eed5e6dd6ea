#include "kernels/attention/code_matrix.h"

#include <gtest/gtest.h>

#include <vector>

#include "proto/block/fragment_order.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

struct Matrix {
  int rows, columns, bits;
};

class CodeMatrixTest : public testing::TestWithParam<Matrix> {
 protected:
  CodeMatrixTest() {
    for (int row = 0; row < rows_; ++row) {
      for (int c = 0; c < columns_; ++c) {
        const auto code = static_cast<uint32_t>(random_.Below(1 << bits_));
        codes_.push_back(code);
        const CodePosition at = LocateCode(row, c, columns_, bits_);
        words_[at.word_index] |= code << at.shift;
      }
    }
  }

  const int rows_ = GetParam().rows, columns_ = GetParam().columns, bits_ = GetParam().bits;
  TestRandom random_{17};
  std::vector<uint32_t> codes_;
  std::vector<uint32_t> words_ = std::vector<uint32_t>(rows_ * columns_ * bits_ / 32);
  const PlaneOrder& order_ = PlaneOrder::Of(columns_, bits_);
};

// Small integers make every sum exact: one code at a wrong place changes it.
TEST_P(CodeMatrixTest, ProductWithIntegersIsExact) {
  for (const int count : {1, 2, 3, 4, 5, 8, 9}) {
    std::vector<float> vectors(count * columns_), factors(count * order_.size);
    for (float& v : vectors) v = static_cast<float>(random_.Below(255) - 127);
    for (int i = 0; i < count; ++i) {
      order_.Permute(vectors.data() + i * columns_, factors.data() + i * order_.size);
    }
    std::vector<float> out(count * kBlockTokens, -1.0f);
    MultiplyCodes(order_, words_.data(), 0, rows_ / 16, factors.data(), count, out.data(),
                  kBlockTokens);
    for (int i = 0; i < count; ++i) {
      for (int row = 0; row < rows_; ++row) {
        float want = 0;
        for (int c = 0; c < columns_; ++c) {
          want += static_cast<float>(codes_[row * columns_ + c]) * vectors[i * columns_ + c];
        }
        ASSERT_EQ(out[i * kBlockTokens + row], want) << "vector " << i << " row " << row;
      }
    }
  }
}

TEST_P(CodeMatrixTest, WritesTheRowsOfItsTilesOnly) {
  const std::vector<float> factors(order_.size, 1.0f);
  std::vector<float> out(kBlockTokens, -1.0f);
  MultiplyCodes(order_, words_.data(), 1, 3, factors.data(), 1, out.data(), kBlockTokens);
  for (int row = 0; row < kBlockTokens; ++row) {
    float want = 0;
    for (int c = 0; c < columns_ && row < rows_; ++c) {
      want += static_cast<float>(codes_[row * columns_ + c]);
    }
    EXPECT_EQ(out[row], row >= 16 && row < 48 ? want : -1.0f) << row;
  }
}

TEST_P(CodeMatrixTest, EveryColumnHasAPlaceForEveryRowOfARun) {
  std::vector<int> places(columns_);
  for (int i = 0; i < order_.size; ++i) ++places[order_.column[i]];
  EXPECT_EQ(places, std::vector<int>(columns_, order_.rows_per_run));
}

INSTANTIATE_TEST_SUITE_P(Shapes, CodeMatrixTest,
                         testing::Values(Matrix{128, 128, 2}, Matrix{128, 64, 2},
                                         Matrix{64, 128, 2}, Matrix{128, 128, 4},
                                         Matrix{128, 64, 4}, Matrix{64, 128, 4}));

}  // namespace
}  // namespace pkv
