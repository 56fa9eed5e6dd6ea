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

// All of the first, and from each doubling on half as many again, at even distances.
std::vector<int64_t> MomentWeights(int64_t num_queries) {
  std::vector<int64_t> weights(num_queries);
  for (int64_t i = 0, from = MomentSample::kAll, stride = 1; i < num_queries; ++i) {
    if (i == from) stride *= 2;
    if (i == 2 * from) stride *= 2, from *= 2;
    weights[i] = (i + 1) % stride == 0 ? stride : 0;
  }
  return weights;
}

TEST(MomentSampleTest, CountsTheFirstAndFewerOfEachDoubling) {
  constexpr int64_t kAll = MomentSample::kAll;
  const std::vector<int64_t> wanted = MomentWeights(9 * kAll);
  for (const int64_t chunk : {int64_t{1}, int64_t{7}, kAll - 1, 4 * kAll, 9 * kAll}) {
    std::vector<int64_t> got(wanted.size());
    const int64_t all = static_cast<int64_t>(wanted.size());
    for (int64_t begin = 0; begin < all; begin += chunk) {
      const int64_t end = std::min(begin + chunk, all);
      for (MomentSample::Run run = {.end = begin}; run.end < end;) {
        run = MomentSample::FirstRun(run.end, end);
        for (int64_t i = 0; i < run.count; ++i) {
          const int64_t index = run.first + i * run.stride;
          ASSERT_TRUE(index >= begin && index < end) << begin << ".." << end;
          got[index] += run.stride;
        }
      }
    }
    ASSERT_EQ(got, wanted) << "in chunks of " << chunk;
  }
}

TEST(MomentSampleTest, KnowsHowManyCountAndWhatTheyWeigh) {
  const std::vector<int64_t> weights = MomentWeights(9 * MomentSample::kAll);
  int64_t count = 0, weight = 0;
  for (size_t i = 0; i <= weights.size(); ++i) {
    ASSERT_EQ(MomentSample::Count(i), count) << i;
    ASSERT_EQ(MomentSample::Weight(i), weight) << i;
    if (i == weights.size()) break;
    count += weights[i] > 0;
    weight += weights[i];
  }
  EXPECT_EQ(MomentSample::Count(32768), 3584);
}

}  // namespace
}  // namespace pkv
