#ifndef PKV_TESTS_BENCH_SERVE_RANDOM_STREAM_H_
#define PKV_TESTS_BENCH_SERVE_RANDOM_STREAM_H_

#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <numbers>

namespace pkv {

// SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014)
// and the draws that a load needs. Our own, because the distributions of <random> give other
// numbers with another standard library, and a benchmark's seed must mean the same load everywhere.
// Thread-compatible.
class RandomStream {
 public:
  explicit RandomStream(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    state_ += 0x9e3779b97f4a7c15;  // 2^64 / golden ratio, odd
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // [0, 1), 53 bits.
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }
  // [0, bound): the high half of a product, whose bias is below bound / 2^64.
  uint64_t Below(uint64_t bound) {
    return static_cast<uint64_t>((static_cast<unsigned __int128>(Next()) * bound) >> 64);
  }
  // Time to the next event of a Poisson process of one event a unit.
  double Exponential() { return -std::log1p(-Uniform()); }
  // Standard normal, by Box and Muller; the second of the pair is not kept.
  double Normal() {
    const double radius = std::sqrt(2 * Exponential());
    return radius * std::cos(2 * std::numbers::pi * Uniform());
  }

 private:
  uint64_t state_;
};

// The seed of a stream of its own for `path`, say {kind, request}: streams of other paths are
// unrelated to it.
inline uint64_t ChildSeed(uint64_t seed, std::initializer_list<uint64_t> path) {
  for (const uint64_t step : path) seed = RandomStream(seed ^ RandomStream(step).Next()).Next();
  return seed;
}

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SERVE_RANDOM_STREAM_H_
