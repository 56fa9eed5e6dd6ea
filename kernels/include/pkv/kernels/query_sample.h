#ifndef PKV_KERNELS_QUERY_SAMPLE_H_
#define PKV_KERNELS_QUERY_SAMPLE_H_

#include <algorithm>
#include <cstdint>
#include <vector>

namespace pkv {

// Which queries of a sequence are sampled for how much attention tokens receive
// (kernels/README.md, "Arrange"). Positions only: who keeps queries thins them out alike.
//
// Thread-compatible.
class QuerySample {
 public:
  // Positions p with p mod kStride = kStride - 1 are sampled. At kMaxSamples the older half of the
  // samples is thinned out to a wider stride, until a quarter of the room is free.
  static constexpr int kStride = 8;
  static constexpr int kMaxSamples = 128;

  static bool IsSampled(int64_t position) { return (position + 1) % kStride == 0; }

  // Takes a sampled position behind all others. True: the sample was full, and is thinned out to
  // the elements of kept().
  // REQUIRES: IsSampled(position)
  bool Add(int64_t position);

  const std::vector<int64_t>& positions() const { return positions_; }  // ascending
  // What the last thinning left of the sample as it was, the position just added included:
  // ascending indexes.
  const std::vector<int>& kept() const { return kept_; }

 private:
  std::vector<int64_t> positions_;
  std::vector<int> kept_;
  int64_t old_stride_ = 2 * kStride;  // to which older samples are thinned out
};

// Which queries count in the sums of second moments: the first kAll of those that there are, and
// behind them, kStride times as much, those at the positions that QuerySample may take. A mean over
// thousands of vectors changes little when most are left out (kernels/FIDELITY.md), and its cost
// does.
struct MomentSample {
  static constexpr int64_t kAll = 2048, kStride = QuerySample::kStride;

  // Of the positions [begin, end), all among the first kAll or none: those that count. The i-th is
  // at first + i * stride.
  struct Run {
    int64_t first = 0, count = 0;
    int stride = 1;  // and what each weighs
  };
  struct Runs {
    Run all, rest;
    int64_t count() const { return all.count + rest.count; }
    int64_t weight() const { return all.count + kStride * rest.count; }
  };
  // start: position of the first query that there is; at most `begin`.
  static Runs Of(int64_t start, int64_t begin, int64_t end) {
    const int64_t all_end = start + kAll, from = std::max(begin, all_end);
    const int64_t count = std::max<int64_t>(0, end / kStride - from / kStride);
    return {{begin, std::max<int64_t>(0, std::min(end, all_end) - begin)},
            {from / kStride * kStride + kStride - 1, count, static_cast<int>(kStride)}};
  }
};

// The sample once the queries at [first, end) were taken, one after another.
std::vector<int64_t> SampledPositions(int64_t first, int64_t end);

}  // namespace pkv

#endif  // PKV_KERNELS_QUERY_SAMPLE_H_
