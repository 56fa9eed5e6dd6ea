#include "kernels/codec/byte_order.h"

#include <gtest/gtest.h>

#include <vector>

#include "proto/block/fragment_order.h"

namespace pkv {
namespace {

struct Matrix {
  int columns, bits;
};

class ByteOrderTest : public testing::TestWithParam<Matrix> {
 protected:
  const int columns_ = GetParam().columns, bits_ = GetParam().bits;
  const ByteOrder& order_ = ByteOrder::Of(columns_, bits_);
};

// The whole of what readers and writers take from it, against the document's formula.
TEST_P(ByteOrderTest, PlacesAreThoseOfTheFormatForEveryRow) {
  int place = 0;
  for (int c = 0; c < order_.num_classes; ++c) {
    for (int plane = 0; plane < order_.num_planes(); ++plane) {
      for (int word = 0; word < order_.words_per_row(); ++word) {
        for (int byte = 0; byte < 4; ++byte, ++place) {
          for (int row = 0; row < 64; ++row) {
            const CodePosition at = LocateCode(row, order_.column[place], columns_, bits_);
            const int unit = (row / 16 * order_.num_classes + c) * 8 + row % 8;
            ASSERT_EQ(at.word_index, unit * order_.unit_bytes / 4 + 2 * word + row / 8 % 2);
            ASSERT_EQ(at.shift, 8 * byte + bits_ * plane);
          }
        }
      }
    }
  }
  EXPECT_EQ(place, columns_);
}

TEST_P(ByteOrderTest, EveryColumnHasOnePlace) {
  std::vector<int> places(columns_);
  for (int i = 0; i < columns_; ++i) {
    ++places[order_.column[i]];
    EXPECT_EQ(order_.stored_column[i], ColumnPosition(order_.column[i], columns_));
    EXPECT_EQ(order_.stored_row[i], RowPosition(order_.column[i], columns_));
  }
  EXPECT_EQ(places, std::vector<int>(columns_, 1));
}

TEST_P(ByteOrderTest, PermuteTakesEveryValueToItsPlace) {
  std::vector<float> values(columns_), placed(columns_);
  for (int i = 0; i < columns_; ++i) values[i] = static_cast<float>(i);
  order_.Permute(values.data(), placed.data());
  for (int i = 0; i < columns_; ++i) EXPECT_EQ(placed[i], order_.column[i]);
}

INSTANTIATE_TEST_SUITE_P(Shapes, ByteOrderTest,
                         testing::Values(Matrix{128, 2}, Matrix{64, 2}, Matrix{128, 4},
                                         Matrix{64, 4}));

}  // namespace
}  // namespace pkv
