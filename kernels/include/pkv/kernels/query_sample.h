#ifndef PKV_KERNELS_QUERY_SAMPLE_H_
#define PKV_KERNELS_QUERY_SAMPLE_H_

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
  static constexpr int kMaxSamples = 512;

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

// The sample once the queries at [first, end) were taken, one after another.
std::vector<int64_t> SampledPositions(int64_t first, int64_t end);

}  // namespace pkv

#endif  // PKV_KERNELS_QUERY_SAMPLE_H_
