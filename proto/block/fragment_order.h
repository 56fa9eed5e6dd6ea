#ifndef PKV_PROTO_BLOCK_FRAGMENT_ORDER_H_
#define PKV_PROTO_BLOCK_FRAGMENT_ORDER_H_

// Where the code of (row, column) and the parameters of a row or a column stand in a payload.
//
// The order is that of the A operand of mma.m16n8k16: row tiles of 16, lane = 4 g + q, g = 0..7, q
// = 0..3. K is the matrix X[token][channel], V is X[channel][token], so both are read by one loop
// (BLOCK_FORMAT.md, "Fragment order").

#include <cstdint>

#include "proto/base/host_device.h"

namespace pkv {

// Where one code stands: bits [shift, shift + bits) of the little-endian 32-bit word at word_index.
struct CodePosition {
  int word_index;
  int shift;
};

// Position in a column-ordered list (K scales and zero points by channel, V zero points and pattern
// ids by token): q-major, then k-step, column half, element. `num_columns` is a multiple of 16.
PKV_HOST_DEVICE constexpr int ColumnPosition(int column, int num_columns) {
  const int k_step = column / 16, half = column / 8 % 2, q = column % 8 / 2, element = column % 2;
  return q * (num_columns / 4) + k_step * 4 + half * 2 + element;
}

// Position in a row-ordered list (V scales and K pattern ids by token): g-major, then row tile, row
// half. `num_rows` is a multiple of 16.
PKV_HOST_DEVICE constexpr int RowPosition(int row, int num_rows) {
  const int tile = row / 16, half = row / 8 % 2, g = row % 8;
  return g * (num_rows / 8) + tile * 2 + half;
}

// Position of the code at (row, column) of a matrix with `num_columns` columns at `bits` (2 or 4)
// bits a code.
//
// Word w of a lane holds row g + 8 (w & 1) and the k-steps of group w >> 1; in it, pair p = 2
// (k-step in group) + column half, low element at bit bits * p, high element at bit 16 + bits * p.
// A lane's words come in chunks of up to four, so that a warp reads 512 contiguous bytes an
// instruction.
PKV_HOST_DEVICE constexpr CodePosition LocateCode(int row, int column, int num_columns, int bits) {
  const int k_steps_per_word = bits == 2 ? 4 : 2;
  const int words_per_lane = 2 * (num_columns / 16) / k_steps_per_word;
  const int chunk_words = words_per_lane < 4 ? words_per_lane : 4;
  const int tile = row / 16, row_half = row / 8 % 2, g = row % 8;
  const int k_step = column / 16, column_half = column / 8 % 2, q = column % 8 / 2,
            element = column % 2;
  const int word = 2 * (k_step / k_steps_per_word) + row_half;
  const int pair = 2 * (k_step % k_steps_per_word) + column_half;
  const int lane = 4 * g + q;
  return {tile * 32 * words_per_lane + (word / chunk_words) * 32 * chunk_words +
              lane * chunk_words + word % chunk_words,
          bits * pair + 16 * element};
}

}  // namespace pkv

#endif  // PKV_PROTO_BLOCK_FRAGMENT_ORDER_H_
