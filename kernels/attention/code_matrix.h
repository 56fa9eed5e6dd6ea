#ifndef PKV_KERNELS_ATTENTION_CODE_MATRIX_H_
#define PKV_KERNELS_ATTENTION_CODE_MATRIX_H_

// Code matrix times vectors, straight from the packed words (kernels/README.md, "Attend").
//
// K is the matrix X[token][channel] and V is X[channel][token], so that scores and outputs are the
// same product. Sixteen consecutive words hold the codes of two or four rows; the codes at one
// shift of all sixteen make a "plane". A vector is laid out once in plane order, and a plane of
// codes is multiplied with it lane by lane. Nothing is unpacked to memory.

#include <array>
#include <cstdint>

#include "pkv/block/kv_shape.h"

namespace pkv {

// Where the columns of a code matrix stand in plane order: [class][plane][lane]. A class is a set
// of columns that one run of sixteen words covers.
struct PlaneOrder {
  // 128 columns: every column twice at least, because a run of words holds two rows at least.
  static constexpr int kMaxSize = 256;

  // Made once per process. REQUIRES: num_columns is 64 or 128, bits is 2 or 4.
  static const PlaneOrder& Of(int num_columns, int bits);
  PlaneOrder(int num_columns, int bits);

  int bits;
  int num_classes;
  int rows_per_run;                      // 2 or 4
  int size;                              // num_classes * (32 / bits) * 16
  std::array<uint8_t, kMaxSize> column;  // the column at each place

  // out[i] = values[column[i]].
  void Permute(const float* values, float* out) const;
};

// For each of `count` vectors i: out[i * out_stride + row] = sum over columns of
// code(row, column) * factors[i * order.size + place], for the rows of tiles [first_tile,
// last_tile) of 16 rows. Factors are in plane order; sums run in a fixed order.
void MultiplyCodes(const PlaneOrder& order, const uint32_t* words, int first_tile, int last_tile,
                   const float* factors, int count, float* out, int out_stride);

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_CODE_MATRIX_H_
