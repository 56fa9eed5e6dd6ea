#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/codec/float16_rows.h"
#include "kernels/codec/group_quantizer.h"
#include "kernels/pattern/nearest_pattern.h"
#include "kernels/pattern/pattern_math.h"
#include "pkv/kernels/pattern_miner.h"
#include "proto/base/thread_pool.h"
#include "tests/support/block_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::Each;

constexpr KvShape kShape = {1, 2, 128};

// Computed by hand from the closed form, five digits.
TEST(GateThresholdTest, IsTheTableOfTheDerivation) {
  const struct {
    double alpha;
    int head_dim;
    double threshold;
  } kTable[] = {
      {0.10, 64, .90285},  {0.10, 80, .91279},  {0.10, 96, .92017},  {0.10, 128, .93058},
      {0.10, 192, .94303}, {0.10, 256, .95050}, {0.05, 64, .87642},  {0.05, 80, .88901},
      {0.05, 96, .89836},  {0.05, 128, .91155}, {0.05, 192, .92734}, {0.05, 256, .93683},
      {0.01, 64, .82751},  {0.01, 80, .84506},  {0.01, 96, .85807},  {0.01, 128, .87641},
      {0.01, 192, .89835}, {0.01, 256, .91155},
  };
  for (const auto& row : kTable) {
    EXPECT_EQ(std::round(GateThreshold(row.head_dim, row.alpha) * 1e5),
              std::round(row.threshold * 1e5))
        << "head_dim " << row.head_dim << " alpha " << row.alpha;
  }
}

// The closed form decides as the inequality of the paper does.
TEST(GateThresholdTest, DecidesAsTheZTestOnADenseGrid) {
  constexpr double kZ = 1.6448536269514722;  // upper 5 % point of the standard normal
  for (const int head_dim : {64, 80, 96, 128, 192, 256}) {
    const double threshold = GateThreshold(head_dim, 0.05);
    for (int i = 1; i <= 100000; ++i) {
      const double rho = i * 1.2e-5;
      const double gain = 1 - rho * rho;
      const bool accepts =
          gain >= 2 * kZ / std::sqrt(5.0 * head_dim) * std::sqrt(1 + rho * rho * rho * rho);
      ASSERT_EQ(accepts, rho <= threshold) << "head_dim " << head_dim << " rho " << rho;
    }
  }
}

TEST(GateThresholdTest, FallsAsTheTestGetsStricter) {
  EXPECT_GT(GateThreshold(128, 0.1), GateThreshold(128, 0.05));
  EXPECT_GT(GateThreshold(128, 0.05), GateThreshold(128, 1e-6));
  EXPECT_EQ(GateThreshold(1, 1e-6), 0.0);
}

TEST(PatternMathTest, AConstantVectorKeepsItsRawForm) {
  EXPECT_FALSE(ZTestAccepts(0.0f, 0.0f, 0.9f));
  EXPECT_TRUE(ZTestAccepts(0.9f, 1.0f, 0.9f));
  EXPECT_FALSE(ZTestAccepts(0.91f, 1.0f, 0.9f));
}

class AssignPatternsTest : public testing::Test {
 protected:
  AssignPatternsTest() { RecordProperty("seed", 13); }

  PatternAssignment Assign(const CodecParams& params, Phase phase, int first_token = 0,
                           ThreadPool* pool = nullptr) const {
    return *AssignPatterns(block_, first_token, params, codebook_, phase, {.pool = pool});
  }

  const TestTensor prompt_ = RandomTensor(13, 2, 4 * kBlockTokens, 128);
  const KvTensorView block_ = prompt_.view().Tokens(kBlockTokens, kBlockTokens);
  CodecParams params_ = PresetFor("pkv2", kShape);
  Codebook codebook_ = *MinePatterns(prompt_.view(), params_, {});
};

TEST_F(AssignPatternsTest, EmptyCodebookLeavesEverythingRaw) {
  const auto assignment = *AssignPatterns(block_, 0, params_, {}, Phase::kPrefill, {});
  EXPECT_EQ(assignment.k.size(), 2u * kBlockTokens);
  EXPECT_THAT(assignment.k, Each(kRawPatternId));
  EXPECT_THAT(assignment.v, Each(kRawPatternId));
}

TEST_F(AssignPatternsTest, SinksStayRaw) {
  params_.gate_v = Gate::kNone;
  const auto assignment = Assign(params_, Phase::kPrefill, 16);
  for (int head = 0; head < 2; ++head) {
    for (int t = 0; t < kBlockTokens; ++t) {
      EXPECT_EQ(assignment.k[head * kBlockTokens + t] == kRawPatternId, t < 16);
      EXPECT_EQ(assignment.v[head * kBlockTokens + t] == kRawPatternId, t < 16);
    }
  }
}

TEST_F(AssignPatternsTest, UsesTheMetricOfThePhase) {
  params_.gate_v = Gate::kNone;
  const auto prefill = Assign(params_, Phase::kPrefill), decode = Assign(params_, Phase::kDecode);
  std::vector<float> rows(kBlockTokens * 128);
  std::vector<uint8_t> l2(kBlockTokens), minmax(kBlockTokens);
  std::vector<float> ranges(kBlockTokens);
  for (int head = 0; head < 2; ++head) {
    ConvertToFloat(block_.k_row(head, 0), kBlockTokens * 128, rows.data());
    const PatternMatrix matrix(codebook_.k(head), 128);
    NearestL2(matrix, rows.data(), kBlockTokens, l2.data());
    NearestMinMax(matrix, rows.data(), kBlockTokens, minmax.data(), ranges.data());
    const auto at = static_cast<ptrdiff_t>(head) * kBlockTokens;
    EXPECT_TRUE(std::equal(l2.begin(), l2.end(), prefill.k.begin() + at));
    EXPECT_TRUE(std::equal(minmax.begin(), minmax.end(), decode.k.begin() + at));
  }
  EXPECT_NE(prefill.k, decode.k);
}

TEST_F(AssignPatternsTest, DoesNotDependOnTheThreadPool) {
  ThreadPool pool(3);
  const CodecParams params = PresetFor("default", kShape);
  const auto alone = Assign(params, Phase::kDecode, 16);
  const auto shared = Assign(params, Phase::kDecode, 16, &pool);
  EXPECT_EQ(alone.k, shared.k);
  EXPECT_EQ(alone.v, shared.v);
}

// Decoded squared error of V with its ids, or with the one token's id replaced by raw.
double ErrorOfToken(const KvTensorView& kv, const CodecParams& params, const Codebook& codebook,
                    int head, int token, int id) {
  const int d = kv.head_dim;
  std::vector<float> row(d);
  ConvertToFloat(kv.v_row(head, token), d, row.data());
  if (id != kRawPatternId) {
    for (int j = 0; j < d; ++j) row[j] -= Float16ToFloat(codebook.v(head)[id * d + j]);
  }
  return ChooseGroups(row.data(), d, params.encoding.v_group_channels, params.encoding.bits_v,
                      params.clip_v, true, nullptr);
}

TEST_F(AssignPatternsTest, ExactGateKeepsThePatternExactlyWhenItLowersTheError) {
  CodecParams gated = PresetFor("default", kShape), ungated = gated;
  gated.gate_v = Gate::kExactMse;
  ungated.gate_v = Gate::kNone;
  const auto with = Assign(gated, Phase::kPrefill), all = Assign(ungated, Phase::kPrefill);
  int accepted = 0;
  for (int head = 0; head < 2; ++head) {
    for (int t = 0; t < kBlockTokens; ++t) {
      const int at = head * kBlockTokens + t;
      const bool lower = ErrorOfToken(block_, gated, codebook_, head, t, all.v[at]) <
                         ErrorOfToken(block_, gated, codebook_, head, t, kRawPatternId);
      ASSERT_EQ(with.v[at], lower ? all.v[at] : kRawPatternId) << "head " << head << " token " << t;
      accepted += lower ? 1 : 0;
    }
  }
  EXPECT_GT(accepted, 0);
}

TEST_F(AssignPatternsTest, ZTestGateKeepsThePatternExactlyWhenTheRangeShrinksEnough) {
  CodecParams ungated = params_;
  ungated.gate_v = Gate::kNone;
  const auto with = Assign(params_, Phase::kDecode), all = Assign(ungated, Phase::kDecode);
  const auto threshold = static_cast<float>(GateThreshold(128, 0.05));
  int accepted = 0, rejected = 0;
  for (int head = 0; head < 2; ++head) {
    for (int t = 0; t < kBlockTokens; ++t) {
      const int at = head * kBlockTokens + t;
      std::vector<float> row(128), flat(128);
      ConvertToFloat(block_.v_row(head, t), 128, row.data());
      for (int j = 0; j < 128; ++j) {
        flat[j] = row[j] - Float16ToFloat(codebook_.v(head)[all.v[at] * 128 + j]);
      }
      const Range raw = RangeOf(row.data(), 128), residual = RangeOf(flat.data(), 128);
      const bool accepts = ZTestAccepts(residual.max - residual.min, raw.max - raw.min, threshold);
      ASSERT_EQ(with.v[at], accepts ? all.v[at] : kRawPatternId);
      (accepts ? accepted : rejected) += 1;
    }
  }
  EXPECT_GT(accepted, 0);
  EXPECT_GT(rejected, 0);
}

TEST(AppendCentresTest, AppendsTheMidRangeOfEveryChannel) {
  TestTensor tensor(1, kBlockTokens, 128);
  for (int t = 0; t < kBlockTokens; ++t) {
    for (int j = 0; j < 128; ++j) {
      tensor.k[t * 128 + j] = FloatToFloat16(static_cast<float>(t + j));
      tensor.v[t * 128 + j] = FloatToFloat16(static_cast<float>(-t));
    }
  }
  const CodecParams params = PresetFor("pkv2", {1, 1, 128});
  Codebook codebook(1, 128);
  EXPECT_THAT(AppendCentres(tensor.view(), 100, params, codebook, {}),
              IsOkAndHolds(kFlagAppendsK | kFlagAppendsV));
  EXPECT_EQ(Float16ToFloat(codebook.k(0)[7]), (100 + 127) / 2.0f + 7);
  EXPECT_EQ(Float16ToFloat(codebook.v(0)[7]), -(100 + 127) / 2.0f);
}

TEST(AppendCentresTest, AppendsOnlyWhatTheParamsSay) {
  const TestTensor tensor = RandomTensor(1, 1, kBlockTokens, 128);
  const CodecParams params = PresetFor("default", {1, 1, 128});
  Codebook codebook(1, 128);
  EXPECT_THAT(AppendCentres(tensor.view(), 0, params, codebook, {}), IsOkAndHolds(kFlagAppendsV));
  EXPECT_EQ(codebook.num_k(), 0);
  EXPECT_EQ(codebook.num_v(), 1);
}

TEST(AppendCentresTest, StopsAt255Patterns) {
  const TestTensor tensor = RandomTensor(1, 1, kBlockTokens, 64);
  const CodecParams params = PresetFor("pkv2", {1, 1, 64});
  Codebook codebook(1, 64);
  codebook.AppendK(0, std::vector<uint16_t>(254 * 64));
  codebook.AppendV(0, std::vector<uint16_t>(255 * 64));
  EXPECT_THAT(AppendCentres(tensor.view(), 0, params, codebook, {}), IsOkAndHolds(kFlagAppendsK));
  EXPECT_THAT(AppendCentres(tensor.view(), 0, params, codebook, {}), IsOkAndHolds(0));
  EXPECT_EQ(codebook.num_k(), 255);
}

}  // namespace
}  // namespace pkv
