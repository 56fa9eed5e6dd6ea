#ifndef PKV_KERNELS_QUERY_SAMPLE_H_
#define PKV_KERNELS_QUERY_SAMPLE_H_

#include <algorithm>
#include <bit>
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

// Which queries count in the sums of second moments, by index: 0 is the first query that there is.
// The first kAll all do. Behind them, the queries [S, 2 S), S a multiple of kAll by a power of two,
// count at every (2 S / kAll)-th index, and a query that counts weighs so much: each doubling of
// the prompt adds kAll / 2 of them. A mean over thousands of vectors changes little when the others
// are left out (kernels/FIDELITY.md); its cost does.
struct MomentSample {
  static constexpr int64_t kAll = 1024;

  // Queries that count, side by side: the i-th has the index first + i * stride.
  struct Run {
    int64_t first = 0, count = 0;
    int64_t stride = 1;  // and what each weighs
    int64_t end = 0;     // what comes next begins here
  };
  // Those of [begin, end) up to where the stride grows. REQUIRES: 0 <= begin <= end.
  static constexpr Run FirstRun(int64_t begin, int64_t end) {
    if (begin < kAll) {
      const int64_t run_end = std::min(end, kAll);
      return {begin, run_end - begin, 1, run_end};
    }
    const int64_t widens = Doubling(begin), stride = 2 * widens / kAll;
    const int64_t run_end = std::min(end, 2 * widens);
    return {begin / stride * stride + stride - 1, run_end / stride - begin / stride, stride,
            run_end};
  }

  // Of the first `num_queries`: how many count, and what they weigh together.
  static constexpr int64_t Count(int64_t num_queries) {
    if (num_queries <= kAll) return num_queries;
    const int64_t from = Doubling(num_queries),
                  num_doublings = std::countr_zero(static_cast<uint64_t>(from / kAll));
    return kAll + num_doublings * (kAll / 2) + (num_queries - from) / (2 * from / kAll);
  }
  static constexpr int64_t Weight(int64_t num_queries) {
    if (num_queries <= kAll) return num_queries;
    const int64_t stride = 2 * Doubling(num_queries) / kAll;
    return num_queries / stride * stride;
  }

 private:
  // The last power of two of at most `index`.
  static constexpr int64_t Doubling(int64_t index) {
    return static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(index)));
  }
};

// The sample once the queries at [first, end) were taken, one after another.
std::vector<int64_t> SampledPositions(int64_t first, int64_t end);

}  // namespace pkv

#endif  // PKV_KERNELS_QUERY_SAMPLE_H_
