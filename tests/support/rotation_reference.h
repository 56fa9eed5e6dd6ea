#ifndef PKV_TESTS_SUPPORT_ROTATION_REFERENCE_H_
#define PKV_TESTS_SUPPORT_ROTATION_REFERENCE_H_

#include <cmath>
#include <span>

namespace pkv {

// Multiplies a row by H / sqrt(n), H the Sylvester-Hadamard matrix, in fp64. n: a power of two.
inline void RotateReference(std::span<double> row) {
  for (size_t half = 1; half < row.size(); half *= 2) {
    for (size_t i = 0; i < row.size(); ++i) {
      if ((i & half) != 0) continue;
      const double a = row[i], b = row[i + half];
      row[i] = a + b;
      row[i + half] = a - b;
    }
  }
  for (double& x : row) x /= std::sqrt(static_cast<double>(row.size()));
}

inline double Norm(std::span<const double> row) {
  double sum = 0;
  for (const double x : row) sum += x * x;
  return std::sqrt(sum);
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_ROTATION_REFERENCE_H_
