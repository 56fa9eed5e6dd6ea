#include "worker/engine/layer_math.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "proto/base/thread_pool.h"

namespace pkv {
namespace {

// Below this many elements a task costs less than handing it to another thread.
constexpr int64_t kElementsPerTask = 1 << 15;

// body(begin, end) over [0, count) in ranges of at least kElementsPerTask elements.
template <typename Body>
void ForRanges(ThreadPool* pool, int64_t count, int64_t elements_per_item, const Body& body) {
  const int64_t items = std::max<int64_t>(1, kElementsPerTask / elements_per_item);
  const int64_t num_tasks = (count + items - 1) / items;
  ParallelFor(num_tasks > 1 ? pool : nullptr, static_cast<int>(num_tasks),
              [&](int task) { body(task * items, std::min<int64_t>(count, (task + 1) * items)); });
}

// Partial sums in lanes: the compiler may not reorder one fp32 sum by itself.
float SumOfSquares(const float* x, int dim) {
  constexpr int kLanes = 16;
  float lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= dim; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane] * x[i + lane];
  }
  float sum = 0;
  for (; i < dim; ++i) sum += x[i] * x[i];
  for (const float lane : lanes) sum += lane;
  return sum;
}

// Wavelengths longer than the original context / low_freq_factor are stretched by the factor, those
// shorter than / high_freq_factor are kept, between them the two are blended linearly in frequency.
double Llama3Frequency(const ModelConfig& config, double frequency) {
  const double turns =  // within the original context
      config.rope_original_max_position * frequency / (2 * std::numbers::pi);
  const double low = config.rope_low_freq_factor, high = config.rope_high_freq_factor;
  const double keep = std::clamp((turns - low) / (high - low), 0.0, 1.0);
  return keep * frequency + (1 - keep) * frequency / config.rope_factor;
}

}  // namespace

void RmsNorm(const float* x, const float* weight, double eps, int num_rows, int dim, float* out,
             ThreadPool* pool) {
  ForRanges(pool, num_rows, dim, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* in = x + row * dim;
      float* to = out + row * dim;
      const double mean_square = static_cast<double>(SumOfSquares(in, dim)) / dim;
      const float scale = static_cast<float>(1 / std::sqrt(mean_square + eps));
      for (int i = 0; i < dim; ++i) to[i] = in[i] * scale * weight[i];
    }
  });
}

void SwiGlu(float* gate, const float* up, int64_t size, ThreadPool* pool) {
  ForRanges(pool, size, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      // sigmoid(x) = 1 / (1 + e^-|x|), or e^-|x| / (1 + e^-|x|) for negative x: never e^ of a
      // positive number.
      const float e = ExpNonPositive(-std::abs(gate[i]));
      const float sigmoid = (gate[i] >= 0 ? 1.0f : e) / (1.0f + e);
      gate[i] = gate[i] * sigmoid * up[i];
    }
  });
}

void AddBias(const float* bias, int num_rows, int dim, float* rows) {
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int i = 0; i < dim; ++i) rows[row * dim + i] += bias[i];
  }
}

Rotary::Rotary(const ModelConfig& config)
    : head_dim_(config.head_dim), frequencies_(config.head_dim / 2) {
  for (int i = 0; i < head_dim_ / 2; ++i) {
    const double frequency = std::pow(config.rope_theta, -2.0 * i / head_dim_);
    frequencies_[i] = config.rope_factor > 0 ? Llama3Frequency(config, frequency) : frequency;
  }
}

void Rotary::SetPositions(int64_t first, int num_positions, ThreadPool* pool) {
  const int half = head_dim_ / 2;
  num_positions_ = num_positions;
  cos_.resize(static_cast<size_t>(num_positions) * half);
  sin_.resize(static_cast<size_t>(num_positions) * half);
  // A sine costs some sixteen times an element of the other loops.
  ForRanges(pool, num_positions, 16 * half, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      for (int i = 0; i < half; ++i) {
        const double angle = static_cast<double>(first + position) * frequencies_[i];
        cos_[position * half + i] = static_cast<float>(std::cos(angle));
        sin_[position * half + i] = static_cast<float>(std::sin(angle));
      }
    }
  });
}

void Rotary::Apply(int num_heads, float* rows, ThreadPool* pool) const {
  const int half = head_dim_ / 2;
  ForRanges(pool, num_positions_, num_heads * head_dim_, [&](int64_t begin, int64_t end) {
    for (int64_t position = begin; position < end; ++position) {
      const float* cosine = cos_.data() + position * half;
      const float* sine = sin_.data() + position * half;
      for (int head = 0; head < num_heads; ++head) {
        float* lower = rows + (position * num_heads + head) * head_dim_;
        float* upper = lower + half;
        for (int i = 0; i < half; ++i) {
          const float a = lower[i], b = upper[i];
          lower[i] = a * cosine[i] - b * sine[i];
          upper[i] = b * cosine[i] + a * sine[i];
        }
      }
    }
  });
}

}  // namespace pkv
