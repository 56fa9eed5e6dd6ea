#ifndef PKV_KERNELS_ROTATION_H_
#define PKV_KERNELS_ROTATION_H_

#include <cstdint>

namespace pkv {

// Multiplies each row by H / sqrt(head_dim), H the Sylvester-Hadamard matrix, H[i][j] =
// (-1)^popcount(i & j): an orthogonal matrix that is its own inverse. It spreads a vector's energy
// over its channels, so that a few loud ones no longer set the scale of a group (QuaRot,
// arXiv:2404.00456). Products q . k and sums of v commute with it.
//
// Equal bits on every machine.

// rows: [num_rows][head_dim] fp32, in place. REQUIRES: head_dim is 64 or 128.
void RotateRows(float* rows, int64_t num_rows, int head_dim);

// fp16 bits to fp16 bits, rounded to nearest even, saturated at 65504. `in` may be `out`.
void RotateFloat16Rows(const uint16_t* in, int64_t num_rows, int head_dim, uint16_t* out);

}  // namespace pkv

#endif  // PKV_KERNELS_ROTATION_H_
