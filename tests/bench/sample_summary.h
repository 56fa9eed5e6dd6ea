#ifndef PKV_TESTS_BENCH_SAMPLE_SUMMARY_H_
#define PKV_TESTS_BENCH_SAMPLE_SUMMARY_H_

#include <algorithm>
#include <vector>

namespace pkv {

// Repeated measurements of one thing, in the unit of the samples.
struct SampleSummary {
  int count = 0;
  double min = 0, median = 0, max = 0;

  // How far apart the slowest and the least time are, as a share of the median.
  double spread() const { return median > 0 ? (max - min) / median : 0; }
};

// Of no samples: all 0.
inline SampleSummary Summarize(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  const size_t n = samples.size();
  const double median = (samples[(n - 1) / 2] + samples[n / 2]) / 2;
  return {static_cast<int>(n), samples.front(), median, samples.back()};
}

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SAMPLE_SUMMARY_H_
