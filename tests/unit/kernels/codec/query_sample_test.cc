#include "pkv/kernels/query_sample.h"

#include <gtest/gtest.h>

namespace pkv {
namespace {

constexpr int64_t kStride = QuerySample::kStride;
constexpr int kMost = QuerySample::kMaxSamples;

TEST(QuerySampleTest, SamplesEveryEighthPosition) {
  EXPECT_EQ(SampledPositions(0, 7), std::vector<int64_t>());
  EXPECT_EQ(SampledPositions(0, 24), (std::vector<int64_t>{7, 15, 23}));
  EXPECT_EQ(SampledPositions(7, 16), (std::vector<int64_t>{7, 15}));
  EXPECT_EQ(SampledPositions(8, 16), (std::vector<int64_t>{15}));
}

TEST(QuerySampleTest, KeepsTheNewestHalfWhenItIsFull) {
  const std::vector<int64_t> full = SampledPositions(0, kMost * kStride - 1);
  ASSERT_EQ(full.size(), size_t{kMost - 1});
  const std::vector<int64_t> thinned = SampledPositions(0, kMost * kStride);
  ASSERT_EQ(thinned.size(), size_t{kMost / 4 * 3});
  for (int i = 0; i < kMost / 2; ++i) {
    EXPECT_EQ(thinned[thinned.size() - 1 - i], kMost * kStride - 1 - i * kStride);
  }
}

// kept() tells who holds more than positions what to drop.
TEST(QuerySampleTest, NamesWhatItKeptByIndex) {
  QuerySample sample;
  std::vector<int64_t> mirror;
  int thinned = 0;
  for (int64_t p = kStride - 1; p < 40000; p += kStride) {
    mirror.push_back(p);
    if (sample.Add(p)) {
      ++thinned;
      std::vector<int64_t> kept;
      for (const int i : sample.kept()) kept.push_back(mirror[i]);
      mirror = kept;
    }
    ASSERT_EQ(sample.positions(), mirror);
    ASSERT_LT(mirror.size(), size_t{kMost});
  }
  EXPECT_GT(thinned, 3);
  EXPECT_EQ(SampledPositions(0, 40000), mirror);
}

TEST(MomentSampleTest, CountsTheFirstAndEveryEighthOfTheRest) {
  for (const int64_t start : {0, 3, 5000}) {
    const int64_t all_end = start + MomentSample::kAll, last = all_end + 50;
    for (int64_t begin = all_end - 20; begin < last; ++begin) {
      for (int64_t end = begin; end < last; ++end) {
        std::vector<int64_t> wanted, got;
        int64_t weight = 0;
        for (int64_t p = begin; p < end; ++p) {
          if (p >= all_end && !QuerySample::IsSampled(p)) continue;
          wanted.push_back(p);
          weight += p < all_end ? 1 : QuerySample::kStride;
        }
        const auto runs = MomentSample::Of(start, begin, end);
        for (const MomentSample::Run& run : {runs.all, runs.rest}) {
          for (int64_t i = 0; i < run.count; ++i) got.push_back(run.first + i * run.stride);
        }
        ASSERT_EQ(got, wanted) << start << ": " << begin << ".." << end;
        ASSERT_EQ(runs.count(), static_cast<int64_t>(wanted.size()));
        ASSERT_EQ(runs.weight(), weight);
      }
    }
  }
}

}  // namespace
}  // namespace pkv
