#include "kernels/attention/dense_rows.h"

#include <algorithm>
#include <cstdint>

#include "kernels/attention/softmax_math.h"
#include "kernels/device/cpu_clones.h"

namespace pkv {
namespace {

inline __attribute__((always_inline)) float Fold(const FloatLanes& sums) {
  const float* s = reinterpret_cast<const float*>(&sums);
  float t[8], u[4];
  for (int i = 0; i < 8; ++i) t[i] = s[i] + s[i + 8];
  for (int i = 0; i < 4; ++i) u[i] = t[i] + t[i + 4];
  return (u[0] + u[2]) + (u[1] + u[3]);
}

inline __attribute__((always_inline)) float DotBody(const float* a, const float* b, int count) {
  FloatLanes sums = {};
  for (int i = 0; i < count; i += kLanes) {
    sums = sums + *reinterpret_cast<const UnalignedFloatLanes*>(a + i) *
                      *reinterpret_cast<const UnalignedFloatLanes*>(b + i);
  }
  return Fold(sums);
}

}  // namespace

PKV_CPU_CLONES float Dot(const float* a, const float* b, int count) { return DotBody(a, b, count); }

PKV_CPU_CLONES void DotRows(const float* rows, int num_rows, int head_dim, const float* q,
                            float* scores) {
  for (int t = 0; t < num_rows; ++t) {
    scores[t] = DotBody(rows + static_cast<int64_t>(t) * head_dim, q, head_dim);
  }
}

PKV_CPU_CLONES void AddWeightedRows(const float* rows, const float* weights, int num_rows,
                                    int head_dim, float* out) {
  for (int j = 0; j < head_dim; j += kLanes) {
    FloatLanes sum = *reinterpret_cast<const UnalignedFloatLanes*>(out + j);
    for (int t = 0; t < num_rows; ++t) {
      sum = sum + weights[t] * *reinterpret_cast<const UnalignedFloatLanes*>(
                                   rows + static_cast<int64_t>(t) * head_dim + j);
    }
    *reinterpret_cast<UnalignedFloatLanes*>(out + j) = sum;
  }
}

PKV_CPU_CLONES void Multiply(const float* a, const float* b, int count, float* out) {
  for (int i = 0; i < count; ++i) out[i] = a[i] * b[i];
}

PKV_CPU_CLONES void ScaleBy(float factor, int count, float* values) {
  for (int i = 0; i < count; ++i) values[i] = values[i] * factor;
}

PKV_CPU_CLONES float Largest(const float* values, int count) {
  FloatLanes largest = *reinterpret_cast<const UnalignedFloatLanes*>(values);
  for (int i = kLanes; i < count; i += kLanes) {
    const FloatLanes v = *reinterpret_cast<const UnalignedFloatLanes*>(values + i);
    largest = v > largest ? v : largest;
  }
  const float* lanes = reinterpret_cast<const float*>(&largest);
  return *std::max_element(lanes, lanes + kLanes);
}

PKV_CPU_CLONES float ExpSum(float max, int count, float* scores) {
  for (int i = 0; i < count; ++i) scores[i] = ExpNonPositive(scores[i] - max);
  FloatLanes sums = {};
  for (int i = 0; i < count; i += kLanes) {
    sums = sums + *reinterpret_cast<const UnalignedFloatLanes*>(scores + i);
  }
  return Fold(sums);
}

}  // namespace pkv
