// Integer products of codes on every instruction set: exact where the vector is one of integers,
// within the bound where it is rounded, and of equal bits everywhere.
#include "kernels/attention/code_matrix_simd.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <vector>

#include "proto/block/fragment_order.h"
#include "tests/support/error_bound.h"
#include "tests/support/simd_targets.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

struct Matrix {
  int rows, columns, bits;
};

class CodeMatrixSimdTest : public testing::TestWithParam<Matrix> {
 protected:
  CodeMatrixSimdTest() {
    for (int row = 0; row < rows_; ++row) {
      for (int c = 0; c < columns_; ++c) {
        const auto code = static_cast<uint32_t>(random_.Below(1 << bits_));
        SetCode(row, c, code);
      }
    }
  }
  void SetCode(int row, int c, uint32_t code) {
    const CodePosition at = LocateCode(row, c, columns_, bits_);
    words_[at.word_index] &= ~(((1u << bits_) - 1) << at.shift);
    words_[at.word_index] |= code << at.shift;
    codes_[row * columns_ + c] = code;
  }
  std::vector<float> Normals(int count) {
    std::vector<float> values(count);
    for (float& v : values) v = static_cast<float>(random_.Normal());
    return values;
  }
  // [count][columns] in byte order.
  std::vector<float> Place(const std::vector<float>& vectors) const {
    std::vector<float> placed(vectors.size());
    for (size_t at = 0; at < vectors.size(); at += columns_) {
      order_.Permute(vectors.data() + at, placed.data() + at);
    }
    return placed;
  }
  std::vector<float> Multiply(const std::vector<float>& placed, const std::vector<float>& scales,
                              const std::vector<float>& offsets) {
    const int count = static_cast<int>(offsets.size());
    MakeCodeFactors(order_, placed.data(), columns_, count, scales.data(), factors_.get());
    std::vector<float> out(count * kBlockTokens, 2.0f);
    MultiplyCodes(order_, words_.data(), 0, rows_ / 16, *factors_, count, offsets.data(),
                  out.data(), kBlockTokens);
    return out;
  }

  const int rows_ = GetParam().rows, columns_ = GetParam().columns, bits_ = GetParam().bits;
  TestRandom random_{17};
  std::vector<uint32_t> codes_ = std::vector<uint32_t>(rows_ * columns_);
  std::vector<uint32_t> words_ = std::vector<uint32_t>(rows_ * columns_ * bits_ / 32);
  const ByteOrder& order_ = ByteOrder::Of(columns_, bits_);
  const std::unique_ptr<CodeFactors> factors_ = std::make_unique<CodeFactors>();
};

// A largest element of kLargest makes the step 1: integers stand for themselves.
TEST_P(CodeMatrixSimdTest, ProductWithIntegersIsExact) {
  ForEachSimdTarget([&] {
    for (const int count : {1, 2, 3, 4}) {
      std::vector<float> vectors(count * columns_), offsets(count);
      for (float& v : vectors) v = static_cast<float>(random_.Below(65279) - 32639);
      for (int i = 0; i < count; ++i) {
        vectors[i * columns_ + i] = CodeFactors::kLargest;
        offsets[i] = static_cast<float>(i + 5);
      }
      const auto out = Multiply(Place(vectors), std::vector<float>(columns_, 1.0f), offsets);
      for (int i = 0; i < count; ++i) {
        for (int row = 0; row < rows_; ++row) {
          int64_t sum = 0;
          for (int c = 0; c < columns_; ++c) {
            sum += static_cast<int64_t>(codes_[row * columns_ + c]) *
                   static_cast<int64_t>(vectors[i * columns_ + c]);
          }
          const float want = 2.0f + (static_cast<float>(sum) + offsets[i]);
          ASSERT_EQ(out[i * kBlockTokens + row], want) << "vector " << i << " row " << row;
        }
      }
    }
  });
}

// No sum overflows where all codes and all bytes of the factors are largest.
TEST_P(CodeMatrixSimdTest, LargestCodesTimesLargestFactorsAreExact) {
  for (int row = 0; row < rows_; ++row) {
    for (int c = 0; c < columns_; ++c) SetCode(row, c, (1u << bits_) - 1);
  }
  // 127 * 256 + 127, and 127 * 256 - 128 = 126 * 256 + 128, whose low byte is -128.
  for (const float value : {32639.0f, -32639.0f, 32384.0f, -32384.0f}) {
    std::vector<float> vector(columns_, value);
    vector[3] = CodeFactors::kLargest;
    ForEachSimdTarget([&] {
      const auto out = Multiply(Place(vector), std::vector<float>(columns_, 1.0f), {0.0f});
      const int64_t sum = (columns_ - 1) * static_cast<int64_t>(value) + 32639;
      const float want = 2.0f + static_cast<float>(sum * ((1 << bits_) - 1));
      for (int row = 0; row < rows_; ++row) ASSERT_EQ(out[row], want) << row;
    });
  }
}

TEST_P(CodeMatrixSimdTest, RoundedVectorsAreWithinTheBoundAndOfEqualBitsEverywhere) {
  const std::vector<float> vectors = Normals(4 * columns_), offsets = Normals(4);
  std::vector<float> scales = Normals(columns_), placed_scales(columns_), first;
  order_.Permute(scales.data(), placed_scales.data());
  ForEachSimdTarget([&] {
    const auto out = Multiply(Place(vectors), placed_scales, offsets);
    if (first.empty()) first = out;
    ASSERT_EQ(out, first);
  });
  double worst = 0;
  for (int i = 0; i < 4; ++i) {
    for (int row = 0; row < rows_; ++row) {
      double exact = 2.0 + offsets[i], largest = 0, sum_of_codes = 0, magnitude = 2.0;
      for (int c = 0; c < columns_; ++c) {
        const double factor = double{vectors[i * columns_ + c]} * scales[c];
        exact += codes_[row * columns_ + c] * factor;
        magnitude += std::abs(codes_[row * columns_ + c] * factor);
        largest = std::max(largest, std::abs(factor));
        sum_of_codes += codes_[row * columns_ + c];
      }
      const double error = std::abs(first[i * kBlockTokens + row] - exact);
      ASSERT_LE(error, IntegerProductBound(largest, sum_of_codes) + SumBound(4, magnitude));
      worst = std::max(worst, error);
    }
  }
  EXPECT_GT(worst, 0);
}

TEST_P(CodeMatrixSimdTest, WritesTheRowsOfItsTilesOnly) {
  const std::vector<float> ones(columns_, 1.0f);
  MakeCodeFactors(order_, ones.data(), columns_, 1, ones.data(), factors_.get());
  ForEachSimdTarget([&] {
    std::vector<float> out(kBlockTokens, -1.0f);
    const float offset = 0;
    MultiplyCodes(order_, words_.data(), 1, 3, *factors_, 1, &offset, out.data(), kBlockTokens);
    for (int row = 0; row < kBlockTokens; ++row) {
      double want = 0;
      for (int c = 0; c < columns_ && row < rows_; ++c) want += codes_[row * columns_ + c];
      const bool inside = row >= 16 && row < 48;
      ASSERT_LE(std::abs(out[row] - (inside ? want - 1 : -1)),
                inside ? IntegerProductBound(1, want) + SumBound(4, want + 1) : 0.0)
          << row;
    }
  });
}

// Quotients by what is smaller still would overflow.
TEST_P(CodeMatrixSimdTest, NegligibleVectorsCountAsZero) {
  const std::vector<float> scales(columns_, 1.0f);
  ForEachSimdTarget([&] {
    for (const float value : {0.0f, 0x1p-111f, 0x1p-140f}) {
      const auto out = Multiply(std::vector<float>(columns_, value), scales, {0.5f});
      for (int row = 0; row < rows_; ++row) ASSERT_EQ(out[row], 2.5f);
    }
    const auto out = Multiply(std::vector<float>(columns_, 0x1p-109f), scales, {0.0f});
    EXPECT_TRUE(std::isfinite(out[0]));
  });
}

INSTANTIATE_TEST_SUITE_P(Shapes, CodeMatrixSimdTest,
                         testing::Values(Matrix{128, 128, 2}, Matrix{128, 64, 2},
                                         Matrix{64, 128, 2}, Matrix{128, 128, 4},
                                         Matrix{128, 64, 4}, Matrix{64, 128, 4}));

}  // namespace
}  // namespace pkv
