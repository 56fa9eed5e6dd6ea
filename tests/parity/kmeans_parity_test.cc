// K-means on the device against the CPU: the same rules in other arithmetic. Equal patterns where
// sums and comparisons are exact; elsewhere equal quality, and equal bits from run to run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernels/pattern/mined_sample.h"
#include "pkv/kernels/pattern_miner.h"
#include "tests/support/block_fixture.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/cuda_tensor.h"
#include "tests/support/error_bound.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr uint64_t kSeed = 2026;

CodecParams MiningParams(int head_dim, int num_patterns, int iterations = 30) {
  CodecParams params = PresetFor("pkv2", {1, 1, head_dim});
  params.num_patterns_k = params.num_patterns_v = num_patterns;
  params.kmeans_iterations = iterations;
  return params;
}

std::vector<float> Floats(std::span<const uint16_t> bits) {
  std::vector<float> values(bits.size());
  std::transform(bits.begin(), bits.end(), values.begin(), Float16ToFloat);
  return values;
}

// The mined sample of one head.
std::vector<float> MinedRows(const TestTensor& tensor, bool is_k, int head) {
  std::vector<float> rows;
  const KvTensorView kv = tensor.view();
  for (int i = 0; i < NumMinedTokens(kv.num_tokens); ++i) {
    const int token = MinedToken(i, kv.num_tokens);
    const uint16_t* row = is_k ? kv.k_row(head, token) : kv.v_row(head, token);
    const std::vector<float> values = Floats({row, static_cast<size_t>(kv.head_dim)});
    rows.insert(rows.end(), values.begin(), values.end());
  }
  return rows;
}

double Inertia(const std::vector<float>& rows, const std::vector<float>& patterns, int head_dim) {
  double sum = 0;
  for (size_t r = 0; r < rows.size(); r += head_dim) {
    double best = std::numeric_limits<double>::infinity();
    for (size_t c = 0; c < patterns.size(); c += head_dim) {
      double distance = 0;
      for (int j = 0; j < head_dim; ++j) {
        const double gap = double{rows[r + j]} - patterns[c + j];
        distance += gap * gap;
      }
      best = std::min(best, distance);
    }
    sum += best;
  }
  return sum;
}

class MineOnDevice : public CudaTest {
 protected:
  MineOnDevice() { RecordProperty("seed", static_cast<int>(kSeed)); }

  absl::StatusOr<Codebook> Mine(const TestTensor& tensor, const CodecParams& params) const {
    CudaTensor device(tensor, stream());
    return MinePatterns(device.view(), params, {.device = Device::kCuda, .stream = stream()});
  }
  static Codebook MineOnCpu(const TestTensor& tensor, const CodecParams& params) {
    return *MinePatterns(tensor.view(), params, {});
  }
  static void ExpectEqual(const Codebook& got, const Codebook& want) {
    ASSERT_EQ(got.num_k(), want.num_k());
    ASSERT_EQ(got.num_v(), want.num_v());
    for (int head = 0; head < want.num_kv_heads(); ++head) {
      EXPECT_TRUE(std::ranges::equal(got.k(head), want.k(head))) << "K of head " << head;
      EXPECT_TRUE(std::ranges::equal(got.v(head), want.v(head))) << "V of head " << head;
    }
  }
  void ExpectEqualOnBoth(const TestTensor& tensor, const CodecParams& params) const {
    const auto got = Mine(tensor, params);
    ASSERT_THAT(got, IsOk());
    ExpectEqual(*got, MineOnCpu(tensor, params));
  }
};

struct Case {
  int head_dim, num_patterns, num_tokens;
};

std::ostream& operator<<(std::ostream& os, const Case& c) {
  return os << c.num_patterns << " patterns of " << c.num_tokens << " tokens, head_dim "
            << c.head_dim;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const int head_dim : {64, 128}) {
    for (const int num_patterns : {1, 2, 31, 32, 33, 64, 65, 255}) {
      for (const int num_tokens : {1, num_patterns - 1, num_patterns + 1, 127, 128, 3072, 32768}) {
        if (num_tokens > 0) cases.push_back({head_dim, num_patterns, num_tokens});
      }
    }
  }
  return cases;
}

class KMeansParityTest : public MineOnDevice, public testing::WithParamInterface<Case> {};

TEST_P(KMeansParityTest, FindsPatternsAsGoodAsTheCpu) {
  const Case& c = GetParam();
  const TestTensor tensor = RandomTensor(kSeed, 2, c.num_tokens, c.head_dim);
  const CodecParams params = MiningParams(c.head_dim, c.num_patterns);
  const auto got = Mine(tensor, params);
  ASSERT_THAT(got, IsOk());
  const Codebook want = MineOnCpu(tensor, params);
  ASSERT_EQ(got->num_k(), std::min(c.num_patterns, c.num_tokens));
  ASSERT_EQ(got->num_v(), want.num_v());
  double device = 0, cpu = 0, start = 0;
  for (int head = 0; head < 2; ++head) {
    for (const bool is_k : {true, false}) {
      const std::vector<float> rows = MinedRows(tensor, is_k, head);
      const int num_rows = NumMinedTokens(c.num_tokens);
      std::vector<float> starts;
      for (int64_t m = 0; m < got->num_k(); ++m) {
        const auto row = rows.begin() + m * num_rows / got->num_k() * c.head_dim;
        starts.insert(starts.end(), row, row + c.head_dim);
      }
      start += Inertia(rows, starts, c.head_dim);
      device += Inertia(rows, Floats(is_k ? got->k(head) : got->v(head)), c.head_dim);
      cpu += Inertia(rows, Floats(is_k ? want.k(head) : want.v(head)), c.head_dim);
    }
  }
  EXPECT_LE(device, start);
  // A few dozen tokens a pattern: of fewer, one that takes the other way weighs too much.
  if (c.num_tokens >= 3072 || c.num_tokens <= c.num_patterns) {
    EXPECT_LE(std::abs(device - cpu), kInertiaDifference * cpu);
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, KMeansParityTest, testing::ValuesIn(Cases()));

class KMeansCudaTest : public MineOnDevice {};

// Groups of lattice points around far apart centres, one start in each: assignments are beyond
// doubt, and sums are of small integers.
TestTensor LatticeTensor(int num_groups, int num_tokens, int head_dim) {
  TestRandom random(kSeed);
  TestTensor tensor(2, num_tokens, head_dim);
  for (auto* rows : {&tensor.k, &tensor.v}) {
    std::vector<int> centres(static_cast<size_t>(num_groups) * head_dim);
    for (int& c : centres) c = 64 * (random.Below(15) - 7);
    for (size_t i = 0; i < rows->size(); ++i) {
      const size_t token = i / head_dim % num_tokens;
      const size_t group = ((token + 1) * num_groups - 1) / num_tokens;  // m from floor(m T / M) on
      const int value = centres[group * head_dim + i % head_dim] + random.Below(9) - 4;
      (*rows)[i] = FloatToFloat16(static_cast<float>(value));
    }
  }
  return tensor;
}

TEST_F(KMeansCudaTest, EqualsTheCpuOnALattice) {
  for (const int head_dim : {64, 128}) {
    for (const int num_patterns : {1, 7, 32, 33, 64, 65, 200, 255}) {
      SCOPED_TRACE(testing::Message() << num_patterns << " patterns, head_dim " << head_dim);
      ExpectEqualOnBoth(LatticeTensor(num_patterns, 2040, head_dim),
                        MiningParams(head_dim, num_patterns));
    }
  }
}

TEST_F(KMeansCudaTest, MinesTheSampleOfALongPromptAsTheCpu) {
  ExpectEqualOnBoth(LatticeTensor(32, 20001, 128), MiningParams(128, 32));
}

TEST_F(KMeansCudaTest, ConstantRowsStayThere) {
  TestTensor tensor(2, 300, 128);
  std::ranges::fill(tensor.k, uint16_t{0x3555});
  std::ranges::fill(tensor.v, uint16_t{0xfbff});
  for (const int num_patterns : {1, 32, 255}) {
    ExpectEqualOnBoth(tensor, MiningParams(128, num_patterns));
  }
}

// Most clusters start empty, and restart at the farthest tokens.
TEST_F(KMeansCudaTest, FewDistinctRowsRefillEmptyClustersAsTheCpu) {
  for (const int head_dim : {64, 128}) {
    for (const int num_patterns : {8, 40, 100}) {
      SCOPED_TRACE(testing::Message() << num_patterns << " patterns, head_dim " << head_dim);
      TestRandom random(kSeed);
      TestTensor tensor(2, 1500, head_dim);
      for (auto* rows : {&tensor.k, &tensor.v}) {
        std::vector<uint16_t> distinct(static_cast<size_t>(5) * head_dim);
        for (uint16_t& v : distinct) v = FloatToFloat16(static_cast<float>(random.Below(64) - 32));
        for (size_t i = 0; i < rows->size(); ++i) {
          (*rows)[i] = distinct[i / head_dim % 5 * head_dim + i % head_dim];
        }
      }
      ExpectEqualOnBoth(tensor, MiningParams(head_dim, num_patterns));
    }
  }
}

TEST_F(KMeansCudaTest, TakesTheEndsOfFloat16) {
  const uint16_t ends[] = {0x7bff, 0xfbff, 0x0000, 0x8000, 0x0001, 0x8001, 0x0400, 0x3c00};
  TestRandom random(kSeed);
  TestTensor tensor(2, 2000, 128);
  for (auto* rows : {&tensor.k, &tensor.v}) {
    for (uint16_t& value : *rows) value = ends[random.Below(8)];
  }
  const CodecParams params = MiningParams(128, 32);
  const auto got = Mine(tensor, params);
  ASSERT_THAT(got, IsOk());
  const Codebook want = MineOnCpu(tensor, params);
  for (int head = 0; head < 2; ++head) {
    const std::vector<float> rows = MinedRows(tensor, true, head);
    const double device = Inertia(rows, Floats(got->k(head)), 128);
    const double cpu = Inertia(rows, Floats(want.k(head)), 128);
    EXPECT_LE(std::abs(device - cpu), kInertiaDifference * cpu);
  }
}

TEST_F(KMeansCudaTest, GivesEqualBitsOnEveryRun) {
  const TestTensor tensor = RandomTensor(kSeed, 8, 6000, 128);
  for (const int num_patterns : {32, 100}) {
    const CodecParams params = MiningParams(128, num_patterns, 8);
    CudaTensor device(tensor, stream());
    const ComputeContext cuda = {.device = Device::kCuda, .stream = stream()};
    const auto first = MinePatterns(device.view(), params, cuda);
    ASSERT_THAT(first, IsOk());
    for (int run = 0; run < 100; ++run) {
      const auto again = MinePatterns(device.view(), params, cuda);
      ASSERT_THAT(again, IsOk());
      ExpectEqual(*again, *first);
      ASSERT_FALSE(HasFailure()) << "run " << run;
    }
  }
}

// Small integers, so that sums are exact, in clusters that take a while to find.
TEST_F(KMeansCudaTest, InertiaNeverGrows) {
  constexpr int kTokens = 3000, kLargest = 24;
  for (const int head_dim : {64, 128}) {
    TestRandom random(kSeed);
    TestTensor tensor(1, kTokens, head_dim);
    for (size_t i = 0; i < tensor.k.size(); ++i) {
      const auto token = static_cast<int>(i / head_dim), channel = static_cast<int>(i % head_dim);
      const int centre = (token * 7 + token / 11 * channel) % 24 - 12;
      const int value = std::clamp(centre + random.Below(25) - 12, -kLargest, kLargest);
      tensor.k[i] = FloatToFloat16(static_cast<float>(value));
    }
    tensor.v = tensor.k;
    const std::vector<float> rows = MinedRows(tensor, true, 0);
    // No score is larger than head_dim products and half a norm.
    const double magnitude = 1.5 * head_dim * kLargest * kLargest;
    double before = std::numeric_limits<double>::infinity(), first = 0;
    for (int iterations = 1; iterations <= 12; ++iterations) {
      const auto codebook = Mine(tensor, MiningParams(head_dim, 32, iterations));
      ASSERT_THAT(codebook, IsOk());
      const double after = Inertia(rows, Floats(codebook->k(0)), head_dim);
      ASSERT_LE(after, before + InertiaGrowthBound(kTokens, head_dim, kLargest, magnitude))
          << "iteration " << iterations;
      before = after;
      if (iterations == 1) first = after;
    }
    EXPECT_LT(before, first);
  }
}

// Patterns after each iteration come from runs of that length; the heads' moves follow from them.
TEST_F(KMeansCudaTest, StopsByOneTestOverAllHeadsFromTheSecondIterationOn) {
  constexpr int kIterations = 14, kHeads = 3, kDim = 64;
  const TestTensor tensor = RandomTensor(kSeed, kHeads, 400, kDim);
  std::vector<Codebook> after;
  std::vector<std::vector<double>> moves;  // [iteration][head]
  for (int i = 1; i <= kIterations; ++i) {
    CodecParams params = MiningParams(kDim, 8, i);
    params.kmeans_tolerance = 0;
    const auto codebook = Mine(tensor, params);
    ASSERT_THAT(codebook, IsOk());
    after.push_back(*codebook);
    moves.emplace_back(kHeads);
    for (int head = 0; i > 1 && head < kHeads; ++head) {
      const auto now = Floats(after[i - 1].k(head)), then = Floats(after[i - 2].k(head));
      for (size_t j = 0; j < now.size(); ++j) {
        moves[i - 1][head] = std::max(moves[i - 1][head], std::abs(double{now[j]} - then[j]));
      }
    }
  }
  // An iteration that moved all heads less than those before moved some head, by a clear distance.
  int stop = 0;
  double tolerance = 0, least = std::numeric_limits<double>::infinity();
  for (int i = 1; i < kIterations; ++i) {
    const double move = std::ranges::max(moves[i]);
    if (i > 2 && move < least / 2) {
      stop = i;
      tolerance = (move + least) / 2;
      break;
    }
    least = std::min(least, move);
  }
  ASSERT_GT(stop, 0) << "seed " << kSeed << " stops nowhere";
  bool one_head_is_early = false;
  for (int i = 1; i < stop; ++i) one_head_is_early |= std::ranges::min(moves[i]) <= tolerance;
  EXPECT_TRUE(one_head_is_early) << "seed " << kSeed << " cannot tell one test from three";
  CodecParams params = MiningParams(kDim, 8, kIterations);
  params.kmeans_tolerance = tolerance;
  const auto codebook = Mine(tensor, params);
  ASSERT_THAT(codebook, IsOk());
  for (int head = 0; head < kHeads; ++head) {
    EXPECT_TRUE(std::ranges::equal(codebook->k(head), after[stop].k(head))) << "head " << head;
  }
  params.kmeans_tolerance = std::numeric_limits<double>::infinity();
  const auto second = Mine(tensor, params);
  ASSERT_THAT(second, IsOk());
  ExpectEqual(*second, after[1]);
}

TEST_F(KMeansCudaTest, MinesDifferentNumbersOfKAndV) {
  const TestTensor tensor = LatticeTensor(20, 2000, 64);
  CodecParams params = MiningParams(64, 20);
  for (const auto& [num_k, num_v] : {std::pair{0, 20}, {20, 0}, {10, 20}}) {
    params.num_patterns_k = num_k;
    params.num_patterns_v = num_v;
    const auto codebook = Mine(tensor, params);
    ASSERT_THAT(codebook, IsOk());
    EXPECT_EQ(codebook->num_k(), num_k);
    EXPECT_EQ(codebook->num_v(), num_v);
    const Codebook want = MineOnCpu(tensor, params);
    // With as many patterns as groups, nothing is in doubt.
    EXPECT_TRUE(num_k != 20 || std::ranges::equal(codebook->k(1), want.k(1)));
    EXPECT_TRUE(num_v != 20 || std::ranges::equal(codebook->v(1), want.v(1)));
  }
}

TEST_F(KMeansCudaTest, NoTokensGiveAnEmptyCodebook) {
  const auto codebook = Mine(TestTensor(2, 0, 64), MiningParams(64, 32));
  ASSERT_THAT(codebook, IsOk());
  EXPECT_EQ(codebook->num_k(), 0);
}

TEST_F(KMeansCudaTest, NamesThePlaceOfANaN) {
  TestTensor tensor = RandomTensor(kSeed, 3, 40, 64);
  tensor.v[(2 * 40 + 11) * 64 + 5] = 0x7e00;
  EXPECT_THAT(Mine(tensor, MiningParams(64, 8)),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("V is nan at kv head 2, token 11, channel 5")));
}

}  // namespace
}  // namespace pkv
