#ifndef PKV_KERNELS_CODEC_CODE_PACK_SIMD_H_
#define PKV_KERNELS_CODEC_CODE_PACK_SIMD_H_

// Moving residuals and codes about, for every instruction set (Highway).

#include <cstdint>

#include "kernels/codec/byte_order.h"

namespace pkv {

// columns[j][i] = rows[i][j]: rows [num_rows][head_dim], columns [head_dim][128]. Rows and columns
// are touched up to the next multiple of 4.
void TransposeRows(const float* rows, int num_rows, int head_dim, float* columns);

// Writes the words of `num_tiles` row tiles from one code a byte, codes[column][128], where row i
// of the tiles is byte i. Codes are below 2^bits.
void PackCodes(const ByteOrder& order, const uint8_t* codes, int num_tiles, uint32_t* words);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_CODE_PACK_SIMD_H_
