#include "pkv/kernels/rotation.h"

#include <cmath>

#include "kernels/codec/codec_math.h"
#include "kernels/codec/float16_rows.h"
#include "kernels/device/cpu_clones.h"

namespace pkv {
namespace {

constexpr int kMaxHeadDim = 128;

// Butterflies over distances 1, 2, 4, ..: every sum has one order.
PKV_CPU_CLONES void RotateRow(float* row, int head_dim, float norm) {
  for (int half = 1; half < head_dim; half *= 2) {
    for (int begin = 0; begin < head_dim; begin += 2 * half) {
      for (int i = begin; i < begin + half; ++i) {
        const float a = row[i], b = row[i + half];
        row[i] = a + b;
        row[i + half] = a - b;
      }
    }
  }
  for (int i = 0; i < head_dim; ++i) row[i] = row[i] * norm;
}

}  // namespace

void RotateRows(float* rows, int64_t num_rows, int head_dim) {
  const float norm = 1.0f / std::sqrt(static_cast<float>(head_dim));
  for (int64_t r = 0; r < num_rows; ++r) RotateRow(rows + r * head_dim, head_dim, norm);
}

void RotateFloat16Rows(const uint16_t* in, int64_t num_rows, int head_dim, uint16_t* out) {
  float row[kMaxHeadDim];
  for (int64_t r = 0; r < num_rows; ++r) {
    ConvertToFloat(in + r * head_dim, head_dim, row);
    RotateRows(row, 1, head_dim);
    for (int i = 0; i < head_dim; ++i) out[r * head_dim + i] = ToFiniteFloat16(row[i]);
  }
}

}  // namespace pkv
