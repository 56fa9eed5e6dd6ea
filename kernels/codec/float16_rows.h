#ifndef PKV_KERNELS_CODEC_FLOAT16_ROWS_H_
#define PKV_KERNELS_CODEC_FLOAT16_ROWS_H_

#include "proto/base/float16.h"

namespace pkv {

// Exact: out[i] = fp16 in[i] as float. By an instruction where there is one (Highway).
void ConvertToFloat(const Float16Bits* in, int count, float* out);

// out[i] = a[i] - b[i], of fp16 numbers in fp32.
void Subtract(const Float16Bits* a, const Float16Bits* b, int count, float* out);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_FLOAT16_ROWS_H_
