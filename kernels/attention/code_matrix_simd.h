#ifndef PKV_KERNELS_ATTENTION_CODE_MATRIX_SIMD_H_
#define PKV_KERNELS_ATTENTION_CODE_MATRIX_SIMD_H_

// Code matrix times vectors in integers, straight from the packed words (kernels/README.md,
// "Attend"): what code_matrix.h does in fp32.
//
// Every 32-bit word of a code matrix belongs to one row, so that (word >> bits j) & 0x03030303, or
// & 0x0f0f0f0f, holds four codes of that row in its bytes: an operand of the instructions that add
// up products of bytes. The other one is the vector, rounded to 16 bits and cut in two bytes. Sums
// of integers have no order: results have the same bits on every machine and for every vector
// width. Built once per instruction set with Highway, chosen when first called.

#include <cstdint>

#include "kernels/codec/byte_order.h"

namespace pkv {

// A few vectors, times the scale of each column, as integers: n = 256 high + low with |n| <=
// kLargest stands for n * step. The bytes are in byte order, every word twice in a row.
struct CodeFactors {
  static constexpr int kMaxVectors = 4;
  static constexpr float kLargest = 127 * 256 + 127;
  // Vectors that are nowhere larger count as zero: their quotients would overflow.
  static constexpr float kNegligible = 0x1p-110f;

  alignas(64) int8_t high[kMaxVectors][2 * kBlockTokens];
  alignas(64) int8_t low[kMaxVectors][2 * kBlockTokens];
  float step[kMaxVectors];
};

// Vectors and scales are in byte order. Rounds vectors[i * stride + place] * scales[place], i <
// count <= kMaxVectors, to multiples of the largest magnitude over kLargest: what rounding to the
// nearest, ties to even, takes from an element is half of that step.
void MakeCodeFactors(const ByteOrder& order, const float* vectors, int stride, int count,
                     const float* scales, CodeFactors* out);

// For each of `count` vectors i: out[i * out_stride + row] += sum over columns of code(row, column)
// * factor(i, column) + offsets[i], for the rows of tiles [first_tile, last_tile) of 16 rows. The
// sum is exact; its product with the step and both sums round.
void MultiplyCodes(const ByteOrder& order, const uint32_t* words, int first_tile, int last_tile,
                   const CodeFactors& factors, int count, const float* offsets, float* out,
                   int out_stride);

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_CODE_MATRIX_SIMD_H_
