#ifndef PKV_KERNELS_CODEC_BYTE_ORDER_H_
#define PKV_KERNELS_CODEC_BYTE_ORDER_H_

#include <array>
#include <cstdint>

#include "pkv/block/kv_shape.h"

namespace pkv {

// Where the columns of a code matrix stand in the bytes of its words, the same for any row (the
// words of rows and columns: fragment_order.h).
//
// Every word belongs to one row. The words of rows g and g + 8 of a tile stand in turns in a unit
// of unit_bytes, one unit per class; units g = 0..7 of class 0 follow each other, then those of
// class 1. A plane is the codes of all bytes at one shift.
struct ByteOrder {
  // Made once per process. REQUIRES: num_columns is 64 or 128, bits is 2 or 4.
  static const ByteOrder& Of(int num_columns, int bits);
  ByteOrder(int num_columns, int bits);

  int num_columns;
  int bits;
  int num_classes;
  int unit_bytes;
  // At each place [class][plane][word of a row][byte]: the column, and where a parameter of it
  // stands in column order and in row order.
  std::array<uint8_t, kBlockTokens> column, stored_column, stored_row;

  int num_planes() const { return 8 / bits; }
  int words_per_row() const { return unit_bytes / 8; }  // in one class
  // out[i] = values[column[i]].
  void Permute(const float* values, float* out) const;
};

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_BYTE_ORDER_H_
