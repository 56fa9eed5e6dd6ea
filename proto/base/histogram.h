#ifndef PKV_PROTO_BASE_HISTOGRAM_H_
#define PKV_PROTO_BASE_HISTOGRAM_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace pkv {

// `count` upper bounds, each `factor` times the one before.
std::vector<double> ExponentialBounds(double first, double factor, int count);
// 100 us .. 6.5 s in 17 steps of two: what a server does for one call, a step.
std::vector<double> LatencyBounds();
// 1 ms .. 524 s in 20 steps of two: what a request waits for, prompts included.
std::vector<double> LongBounds();

// How often values fell between bounds. In place of prometheus::Histogram, whose Observe() takes a
// mutex (prometheus-cpp 1.0.1): here it is two atomic additions on memory that few other threads
// touch, since a thread adds to the one of kNumShards copies that is its own. Read() adds up.
//
// Thread-safe.
class Histogram {
 public:
  // Threads of which one observed its first value so many threads after the other share a copy.
  static constexpr size_t kNumShards = 16;

  // REQUIRES: `bounds` are finite and ascend. Values up to and including a bound are counted in its
  // bucket, those above the last in one more.
  explicit Histogram(std::vector<double> bounds);
  Histogram(const Histogram&) = delete;
  Histogram& operator=(const Histogram&) = delete;

  // `value` is not NaN.
  void Observe(double value);

  struct Counts {
    std::vector<uint64_t> buckets;  // one for each bound, and one above the last
    double sum = 0;
  };
  // A value that is being observed meanwhile may be missing from its bucket or the sum alone.
  Counts Read() const;
  const std::vector<double>& bounds() const { return bounds_; }

 private:
  static constexpr size_t kLineBytes = 64;
  // One cache line, so that shards share none.
  struct alignas(kLineBytes) Line {
    std::array<std::atomic<uint64_t>, kLineBytes / sizeof(uint64_t)> slots{};
  };

  // Slot 0 holds the sum, as the bits of a double; slot 1 + i the count of bucket i.
  std::atomic<uint64_t>& Slot(size_t shard, size_t slot);
  uint64_t Load(size_t shard, size_t slot) const;

  const std::vector<double> bounds_;
  const size_t lines_per_shard_;
  std::vector<Line> lines_;
};

}  // namespace pkv

#endif  // PKV_PROTO_BASE_HISTOGRAM_H_
