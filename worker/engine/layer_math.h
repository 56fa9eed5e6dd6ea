#ifndef PKV_WORKER_ENGINE_LAYER_MATH_H_
#define PKV_WORKER_ENGINE_LAYER_MATH_H_

// What a Llama layer computes between its matrix products. All fp32, row-major; loops are written
// so that the compiler vectorises them.

#include <bit>
#include <cstdint>
#include <vector>

#include "worker/engine/model_config.h"

namespace pkv {

class ThreadPool;

// e^x for x <= 0, with no branch in the way of vectorisation; 0 below -87.
//
// Relative error at most 4 units of 2^-24: x = n ln 2 + r with |r| <= 0.3466 is exact to 0.35 units
// (n times the upper part of ln 2 is exact, the subtraction too by Sterbenz); the Taylor polynomial
// of degree 7 leaves r^8 / 8! e^|r| < 0.2 units; Horner's last product and sum round by at most
// 1.6 + 1 units of the result; the scaling by 2^n is exact.
inline float ExpNonPositive(float x) {
  constexpr float kLog2E = 0x1.715476p+0f;
  constexpr float kLn2Upper = 0x1.62e4p-1f;  // 15 bits: its product with n, 8 bits, is exact
  constexpr float kLn2Lower = 0x1.7f7d1cp-20f;
  constexpr float kRoundingShift = 0x1.8p+23f;  // leaves the nearest integer in the low bits
  constexpr float kSmallest = -87.0f;           // 2^n stays normal above it
  const float clamped = x > kSmallest ? x : kSmallest;
  const float shifted = clamped * kLog2E + kRoundingShift;
  const float n = shifted - kRoundingShift;
  const float r = (clamped - n * kLn2Upper) - n * kLn2Lower;
  float p = 1.0f / 5040;
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const int32_t exponent = std::bit_cast<int32_t>(shifted) - std::bit_cast<int32_t>(kRoundingShift);
  const float scaled = std::bit_cast<float>(std::bit_cast<int32_t>(p) + (exponent << 23));
  return x > kSmallest ? scaled : 0.0f;
}

// out = x / sqrt(mean(x^2) + eps) * weight, for each of `num_rows` rows [dim]. `out` may be `x`.
void RmsNorm(const float* x, const float* weight, double eps, int num_rows, int dim, float* out,
             ThreadPool* pool);

// gate = silu(gate) * up, silu(x) = x / (1 + e^-x).
void SwiGlu(float* gate, const float* up, int64_t size, ThreadPool* pool);

// rows[i] += bias for each of `num_rows` rows [dim].
void AddBias(const float* bias, int num_rows, int dim, float* rows);

// Rotary position embedding in the half-split convention of Hugging Face: channel c is paired with
// c + head_dim / 2 and turned by the angle position * theta^(-2 c / head_dim), whose frequency is
// rescaled as Llama 3.1 does when the config says so.
class Rotary {
 public:
  explicit Rotary(const ModelConfig& config);

  // Frequencies in radians per position, [head_dim / 2].
  const std::vector<double>& frequencies() const { return frequencies_; }

  // Prepares positions [first, first + num_positions). Angles are exact to fp64.
  void SetPositions(int64_t first, int num_positions, ThreadPool* pool);
  // Turns rows [num_positions, num_heads, head_dim] in place.
  void Apply(int num_heads, float* rows, ThreadPool* pool) const;

 private:
  int head_dim_;
  int num_positions_ = 0;
  std::vector<double> frequencies_;
  std::vector<float> cos_, sin_;  // [position][head_dim / 2]
};

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_LAYER_MATH_H_
