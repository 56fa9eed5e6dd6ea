#include "proto/block/fragment_order.h"

#include <gtest/gtest.h>

#include <array>
#include <vector>

#include "tests/support/sample_object.h"

// Goal: the order of codes is a bijection, and what a warp loads by it is the A operand of
// mma.m16n8k16 without any exchange between lanes. Method: pack random codes with LocateCode, load
// them as a kernel does, word by word, hand the registers to an emulation of the instruction
// written from the PTX ISA's fragment tables, and compare exact integer sums with the plain matrix
// product.

namespace pkv {
namespace {

constexpr int kLanes = 32;
constexpr int kQueries = 8;  // columns of the instruction's B and C

struct Geometry {
  int num_rows;
  int num_columns;
  int bits;
};

// K is [token][channel], V is [channel][token].
std::vector<Geometry> AllGeometries() {
  std::vector<Geometry> all;
  for (const int bits : {2, 4}) {
    all.push_back({128, 64, bits});   // K, head_dim 64
    all.push_back({64, 128, bits});   // V, head_dim 64
    all.push_back({128, 128, bits});  // K and V, head_dim 128
  }
  return all;
}

using Matrix = std::vector<std::vector<int64_t>>;

Matrix RandomMatrix(SampleRandom& random, int num_rows, int num_columns, uint32_t limit) {
  Matrix matrix(num_rows, std::vector<int64_t>(num_columns));
  for (auto& row : matrix) {
    for (int64_t& value : row) value = random.Below(limit);
  }
  return matrix;
}

std::vector<uint32_t> Pack(const Matrix& codes, const Geometry& geometry) {
  std::vector<uint32_t> words(geometry.num_rows * geometry.num_columns * geometry.bits / 32);
  for (int row = 0; row < geometry.num_rows; ++row) {
    for (int column = 0; column < geometry.num_columns; ++column) {
      const CodePosition at = LocateCode(row, column, geometry.num_columns, geometry.bits);
      words[at.word_index] |= static_cast<uint32_t>(codes[row][column]) << at.shift;
    }
  }
  return words;
}

// One lane's part of the instruction's operands: 8 values of A, 4 of B, 4 of C.
struct LaneFragments {
  std::array<int64_t, 8> a{};
  std::array<int64_t, 4> b{};
  std::array<int64_t, 4> c{};
};
using Warp = std::array<LaneFragments, kLanes>;

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": groupID = lane / 4,
// threadID_in_group = lane % 4.
int RowOfA(int lane, int i) { return lane / 4 + (i < 2 || (i >= 4 && i < 6) ? 0 : 8); }
int ColumnOfA(int lane, int i) { return lane % 4 * 2 + (i & 1) + (i < 4 ? 0 : 8); }
int RowOfB(int lane, int i) { return lane % 4 * 2 + (i & 1) + (i < 2 ? 0 : 8); }
int ColumnOfB(int lane, int) { return lane / 4; }
int RowOfC(int lane, int i) { return lane / 4 + (i < 2 ? 0 : 8); }
int ColumnOfC(int lane, int i) { return lane % 4 * 2 + (i & 1); }

// C += A B.
void Mma(Warp& warp) {
  std::array<std::array<int64_t, 16>, 16> a{};
  std::array<std::array<int64_t, kQueries>, 16> b{};
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 8; ++i) a[RowOfA(lane, i)][ColumnOfA(lane, i)] = warp[lane].a[i];
    for (int i = 0; i < 4; ++i) b[RowOfB(lane, i)][ColumnOfB(lane, i)] = warp[lane].b[i];
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < 16; ++k) {
        warp[lane].c[i] += a[RowOfC(lane, i)][k] * b[k][ColumnOfC(lane, i)];
      }
    }
  }
}

// The words of one lane for one row tile: whole chunks, each a contiguous load of the warp.
std::vector<uint32_t> LoadLane(const std::vector<uint32_t>& words, int words_per_lane, int tile,
                               int lane) {
  const int chunk_words = std::min(words_per_lane, 4);
  const uint32_t* const tile_words = words.data() + tile * kLanes * words_per_lane;
  std::vector<uint32_t> loaded;
  for (int chunk = 0; chunk < words_per_lane / chunk_words; ++chunk) {
    const uint32_t* const from = tile_words + (chunk * kLanes + lane) * chunk_words;
    loaded.insert(loaded.end(), from, from + chunk_words);
  }
  return loaded;
}

// Registers a0..a3 of k-step `k_step`, each the pair of codes that one AND of a word leaves.
std::array<int64_t, 8> UnpackA(const std::vector<uint32_t>& lane_words, int k_step, int bits) {
  const int k_steps_per_word = bits == 2 ? 4 : 2;
  std::array<int64_t, 8> a;
  for (int i = 0; i < 8; ++i) {
    const int row_half = i / 2 % 2, column_half = i / 4, element = i & 1;
    const uint32_t word = lane_words[2 * (k_step / k_steps_per_word) + row_half];
    const int pair = 2 * (k_step % k_steps_per_word) + column_half;
    a[i] = word >> (16 * element + bits * pair) & ((1u << bits) - 1);
  }
  return a;
}

TEST(FragmentOrderTest, EveryBitOfThePayloadBelongsToOneCode) {
  for (const Geometry& geometry : AllGeometries()) {
    const int num_words = geometry.num_rows * geometry.num_columns * geometry.bits / 32;
    std::vector<uint32_t> taken(num_words, 0);
    for (int row = 0; row < geometry.num_rows; ++row) {
      for (int column = 0; column < geometry.num_columns; ++column) {
        const CodePosition at = LocateCode(row, column, geometry.num_columns, geometry.bits);
        ASSERT_GE(at.word_index, 0);
        ASSERT_LT(at.word_index, num_words);
        ASSERT_GE(at.shift, 0);
        ASSERT_LE(at.shift, 32 - geometry.bits);
        const uint32_t mask = ((1u << geometry.bits) - 1) << at.shift;
        ASSERT_EQ(taken[at.word_index] & mask, 0u) << row << " " << column;
        taken[at.word_index] |= mask;
      }
    }
    EXPECT_EQ(taken, std::vector<uint32_t>(num_words, ~0u));
  }
}

TEST(FragmentOrderTest, LoadedWordsAreTheAOperand) {
  constexpr uint64_t kSeed = 3;
  SCOPED_TRACE(kSeed);
  SampleRandom random(kSeed);
  for (const Geometry& geometry : AllGeometries()) {
    SCOPED_TRACE(testing::Message() << geometry.num_rows << " x " << geometry.num_columns << ", "
                                    << geometry.bits << " bits");
    const Matrix codes =
        RandomMatrix(random, geometry.num_rows, geometry.num_columns, 1u << geometry.bits);
    const Matrix queries = RandomMatrix(random, geometry.num_columns, kQueries, 100);
    const std::vector<uint32_t> words = Pack(codes, geometry);
    const int words_per_lane = static_cast<int>(words.size()) / (geometry.num_rows / 16) / kLanes;
    for (int tile = 0; tile < geometry.num_rows / 16; ++tile) {
      Warp warp{};
      for (int k_step = 0; k_step < geometry.num_columns / 16; ++k_step) {
        for (int lane = 0; lane < kLanes; ++lane) {
          warp[lane].a =
              UnpackA(LoadLane(words, words_per_lane, tile, lane), k_step, geometry.bits);
          for (int i = 0; i < 4; ++i) {
            warp[lane].b[i] = queries[16 * k_step + RowOfB(lane, i)][ColumnOfB(lane, i)];
          }
        }
        Mma(warp);
      }
      for (int lane = 0; lane < kLanes; ++lane) {
        for (int i = 0; i < 4; ++i) {
          const int row = 16 * tile + RowOfC(lane, i), query = ColumnOfC(lane, i);
          int64_t expected = 0;
          for (int k = 0; k < geometry.num_columns; ++k)
            expected += codes[row][k] * queries[k][query];
          ASSERT_EQ(warp[lane].c[i], expected) << row << " " << query;
        }
      }
    }
  }
}

// After at most one shift of the word, the codes of a pair stand below bit 10 of their halves: as
// fp16 subnormals they are the codes times a power of two, exactly.
TEST(FragmentOrderTest, OneShiftBringsEveryCodeIntoTheMantissa) {
  for (const int bits : {2, 4}) {
    for (int column = 0; column < 128; ++column) {
      const int in_half = LocateCode(0, column, 128, bits).shift % 16;
      const int second_window = bits == 2 ? 6 : 8;
      const bool is_in_first = in_half + bits <= 10;
      const bool is_in_second = in_half >= second_window && in_half - second_window + bits <= 10;
      ASSERT_TRUE(is_in_first || is_in_second) << bits << " " << column;
    }
  }
}

// Lane q of a quad needs its columns, and only those, in the order in which the k-steps come.
TEST(FragmentOrderTest, ColumnParametersOfALaneAreContiguousInTheOrderOfUse) {
  for (const int num_columns : {64, 128}) {
    std::vector<int> column_at(num_columns, -1);
    for (int column = 0; column < num_columns; ++column) {
      column_at.at(ColumnPosition(column, num_columns)) = column;
    }
    int position = 0;
    for (int q = 0; q < 4; ++q) {
      for (int k_step = 0; k_step < num_columns / 16; ++k_step) {
        for (const int i : {0, 1, 4, 5}) {  // the elements of A in row g
          ASSERT_EQ(column_at[position++], 16 * k_step + ColumnOfA(q, i));
        }
      }
    }
  }
}

TEST(FragmentOrderTest, RowParametersOfALaneAreContiguousInTheOrderOfUse) {
  for (const int num_rows : {64, 128}) {
    std::vector<int> row_at(num_rows, -1);
    for (int row = 0; row < num_rows; ++row) row_at.at(RowPosition(row, num_rows)) = row;
    int position = 0;
    for (int g = 0; g < 8; ++g) {
      for (int tile = 0; tile < num_rows / 16; ++tile) {
        for (const int i : {0, 2}) {  // elements of C in either row half
          ASSERT_EQ(row_at[position++], 16 * tile + RowOfC(4 * g, i));
        }
      }
    }
  }
}

}  // namespace
}  // namespace pkv
