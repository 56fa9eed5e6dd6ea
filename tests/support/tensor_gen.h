#ifndef PKV_TESTS_SUPPORT_TENSOR_GEN_H_
#define PKV_TESTS_SUPPORT_TENSOR_GEN_H_

// Seeded K and V that look like a model's: outlier channels in K, clusters in both.

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "pkv/kernels/kv_tensor.h"
#include "proto/base/float16.h"

namespace pkv {

// Numbers in (0, 1) and from a standard normal distribution, equal with every standard library.
class TestRandom {
 public:
  explicit TestRandom(uint64_t seed) : engine_(seed) {}

  uint64_t Bits() { return engine_(); }
  int Below(int limit) { return static_cast<int>(engine_() % static_cast<uint64_t>(limit)); }
  double Uniform() { return (static_cast<double>(engine_() >> 11) + 0.5) * 0x1.0p-53; }
  double Normal() {
    constexpr double kTwoPi = 6.283185307179586;
    const double radius = std::sqrt(-2.0 * std::log(Uniform()));
    return radius * std::cos(kTwoPi * Uniform());
  }

 private:
  std::mt19937_64 engine_;
};

// Owns K and V of one layer, [kv_head][token][head_dim] each.
struct TestTensor {
  int num_kv_heads, num_tokens, head_dim;
  std::vector<uint16_t> k, v;

  TestTensor(int kv_heads, int tokens, int dim)
      : num_kv_heads(kv_heads),
        num_tokens(tokens),
        head_dim(dim),
        k(static_cast<size_t>(kv_heads) * tokens * dim),
        v(k.size()) {}

  MutableKvTensorView view() {
    return {k.data(), v.data(), num_kv_heads, num_tokens, head_dim, int64_t{num_tokens} * head_dim};
  }
  KvTensorView view() const {
    return {k.data(), v.data(), num_kv_heads, num_tokens, head_dim, int64_t{num_tokens} * head_dim};
  }
};

// Rows of one head: a few cluster centres plus noise, little or much; every 16th channel is
// `outlier` times wider.
inline void FillHead(TestRandom& random, int num_tokens, int head_dim, double outlier,
                     uint16_t* rows) {
  constexpr int kClusters = 8;
  std::vector<double> centres(static_cast<size_t>(kClusters) * head_dim);
  for (double& c : centres) c = random.Normal();
  for (int t = 0; t < num_tokens; ++t) {
    const int cluster = random.Below(kClusters);
    const double noise = random.Below(3) == 0 ? 1.5 : 0.4;  // a gate rejects some and accepts some
    for (int j = 0; j < head_dim; ++j) {
      const double width = j % 16 == 3 ? outlier : 1.0;
      const double value = centres[static_cast<size_t>(cluster) * head_dim + j] * width +
                           noise * width * random.Normal();
      rows[static_cast<size_t>(t) * head_dim + j] = FloatToFloat16(static_cast<float>(value));
    }
  }
}

inline TestTensor RandomTensor(uint64_t seed, int num_kv_heads, int num_tokens, int head_dim) {
  TestRandom random(seed);
  TestTensor tensor(num_kv_heads, num_tokens, head_dim);
  const size_t stride = static_cast<size_t>(num_tokens) * head_dim;
  for (int head = 0; head < num_kv_heads; ++head) {
    FillHead(random, num_tokens, head_dim, 8.0, tensor.k.data() + head * stride);
    FillHead(random, num_tokens, head_dim, 1.0, tensor.v.data() + head * stride);
  }
  return tensor;
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_TENSOR_GEN_H_
