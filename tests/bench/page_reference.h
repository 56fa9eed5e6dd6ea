#ifndef PKV_TESTS_BENCH_PAGE_REFERENCE_H_
#define PKV_TESTS_BENCH_PAGE_REFERENCE_H_

#include <limits>
#include <span>
#include <vector>

#include "proto/base/thread_pool.h"
#include "tests/bench/sample_kv.h"

namespace pkv {

// Softmax-weighted sum in fp64 of what was added so far.
struct WeightedSum {
  double max = -std::numeric_limits<double>::infinity();
  double sum = 0;           // of exp(score - max)
  std::vector<double> out;  // [head_dim], weighted alike

  void Merge(const WeightedSum& other);
};

// Attention in fp64 over the dequantized blocks of a sample: for the query heads of one kv head.
//
// A request repeats the sample's few blocks many times over, so each block is attended to once and
// requests merge what they hold. Thread-compatible.
class PageReference {
 public:
  // q: [heads][head_dim]; `sample` outlives this.
  PageReference(const EncodedSample& sample, int kv_head, std::span<const double> q, int heads,
                double sm_scale, ThreadPool* pool);

  // [heads][head_dim]: over first[first_block] unless it is negative, the blocks rest[i], and fp16
  // window rows [token][head_dim]. All 0 when that is no token.
  std::vector<double> Attend(int first_block, std::span<const int> rest,
                             std::span<const uint16_t> window_k,
                             std::span<const uint16_t> window_v) const;

 private:
  using HeadSums = std::vector<WeightedSum>;  // [heads]

  HeadSums AttendBlock(const EncodedBlock& block) const;
  void Add(std::span<const double> q, const double* k, const double* v, WeightedSum& to) const;

  int kv_head_, heads_, head_dim_;
  double sm_scale_;
  bool rotated_;
  std::vector<double> q_, stored_q_;  // [heads][head_dim]; stored_q_ rotated as the blocks are
  std::vector<HeadSums> first_, rest_;
};

// Frobenius norm of the difference over that of `expected`. NaN when a value is.
double RelativeError(std::span<const double> actual, std::span<const double> expected);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_PAGE_REFERENCE_H_
