#include "kernels/codec/code_pack_simd.h"

#include <gtest/gtest.h>

#include <vector>

#include "proto/block/fragment_order.h"
#include "tests/support/simd_targets.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

struct Matrix {
  int rows, columns, bits;
};

class CodePackSimdTest : public testing::TestWithParam<Matrix> {};

TEST_P(CodePackSimdTest, WordsAreThoseOfTheFormat) {
  const int rows = GetParam().rows, columns = GetParam().columns, bits = GetParam().bits;
  TestRandom random(5);
  std::vector<uint8_t> codes(columns * kBlockTokens);
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random.Below(1 << bits));
  const int num_words = rows * columns * bits / 32;
  std::vector<uint32_t> want(num_words);
  for (int row = 0; row < rows; ++row) {
    for (int c = 0; c < columns; ++c) {
      const CodePosition at = LocateCode(row, c, columns, bits);
      want[at.word_index] |= uint32_t{codes[c * kBlockTokens + row]} << at.shift;
    }
  }
  ForEachSimdTarget([&] {
    std::vector<uint32_t> words(num_words + 1, 0xabababab);
    PackCodes(ByteOrder::Of(columns, bits), codes.data(), rows / 16, words.data());
    EXPECT_EQ(words.back(), 0xabababab);
    words.pop_back();
    ASSERT_EQ(words, want);
  });
}

INSTANTIATE_TEST_SUITE_P(Shapes, CodePackSimdTest,
                         testing::Values(Matrix{128, 128, 2}, Matrix{112, 128, 2},
                                         Matrix{112, 64, 2}, Matrix{64, 128, 2},
                                         Matrix{128, 128, 4}, Matrix{128, 64, 4},
                                         Matrix{64, 128, 4}, Matrix{16, 64, 4},
                                         Matrix{16, 128, 4}));

TEST(TransposeRowsTest, EveryValueComesToItsColumn) {
  for (const int head_dim : {64, 128}) {
    for (const int num_rows : {1, 4, 64, 67, 124, 128}) {
      std::vector<float> rows(kBlockTokens * head_dim);
      for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<float>(i);
      ForEachSimdTarget([&] {
        std::vector<float> columns(rows.size(), -1.0f);
        TransposeRows(rows.data(), num_rows, head_dim, columns.data());
        for (int i = 0; i < num_rows; ++i) {
          for (int j = 0; j < head_dim; ++j) {
            ASSERT_EQ(columns[j * kBlockTokens + i], rows[i * head_dim + j]);
          }
        }
      });
    }
  }
}

}  // namespace
}  // namespace pkv
