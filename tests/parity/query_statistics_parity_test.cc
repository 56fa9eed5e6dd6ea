// Moments, importance and key feedback of a prompt's queries on the device, against fp64 sums over
// the same numbers and against key feedback on the CPU.
#include "pkv/kernels/query_statistics.h"

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <numeric>

#include "pkv/block/kv_shape.h"
#include "pkv/kernels/key_feedback.h"
#include "pkv/kernels/query_sample.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/prefill_case.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr QueryType kHalf = QueryType::kFloat16, kBfloat = QueryType::kBfloat16;

struct StatisticsSpec {
  int num_qo_heads, num_kv_heads, head_dim;
  QueryType query_type;
  int num_queries, first_token = 0;
};

std::ostream& operator<<(std::ostream& os, const StatisticsSpec& s) {
  return os << s.num_qo_heads << " heads over " << s.num_kv_heads << " of " << s.head_dim << ", "
            << s.num_queries << " queries at " << s.first_token;
}

// Queries and keys of the prompt's own tokens, and an lse for each query.
class Prompt {
 public:
  explicit Prompt(const StatisticsSpec& spec)
      : spec_(spec),
        of_({{spec.num_qo_heads, spec.num_kv_heads, spec.head_dim, spec.query_type},
             spec.num_queries,
             0}),
        lse_(size_t(spec.num_queries) * spec.num_qo_heads) {
    TestRandom random(7);
    for (float& x : lse_) x = static_cast<float>(4 + random.Uniform());
  }

  QueryStatisticsShape shape() const {
    return {spec_.num_qo_heads, spec_.num_kv_heads, spec_.head_dim, spec_.query_type};
  }
  const StatisticsSpec& spec() const { return spec_; }
  int group() const { return spec_.num_qo_heads / spec_.num_kv_heads; }
  int64_t end() const { return int64_t{spec_.first_token} + spec_.num_queries; }
  PrefillCase& numbers() { return of_; }
  const PrefillCase& numbers() const { return of_; }
  double q(int query, int head, int channel) const { return of_.q_at(query, head, channel); }
  double k(int head, int token, int channel) const {
    return Float16ToFloat(of_.kv().view().k_row(head, token)[channel]);
  }
  double lse(int query, int head) const { return lse_[size_t(query) * spec_.num_qo_heads + head]; }

  void set_lse(int query, int head, double lse) {
    lse_[size_t(query) * spec_.num_qo_heads + head] = static_cast<float>(lse);
  }

  // What a query weighs in the moments.
  int weight(int query) const {
    int64_t from = MomentSample::kAll, stride = 2;
    if (query < from) return 1;
    for (; query >= 2 * from; from *= 2) stride *= 2;
    return (query + 1) % stride == 0 ? static_cast<int>(stride) : 0;
  }
  // K of tokens [0, end), of which the last are the prompt's own.
  TestTensor AllKeys() const {
    TestTensor all(spec_.num_kv_heads, static_cast<int>(end()), spec_.head_dim);
    TestRandom random(8);
    for (int head = 0; head < spec_.num_kv_heads; ++head) {
      uint16_t* rows = all.view().k + head * all.view().head_stride;
      FillHead(random, spec_.first_token, spec_.head_dim, 2.0, rows);
      for (int t = 0; t < spec_.num_queries; ++t) {
        std::copy_n(of_.kv().view().k_row(head, t), spec_.head_dim,
                    rows + int64_t{spec_.first_token + t} * spec_.head_dim);
      }
    }
    return all;
  }

  // All queries, in chunks of odd sizes up to `most`.
  void AddTo(QueryStatistics& statistics, const ComputeContext& ctx, bool with_lse = true,
             int most = 1013) const {
    DeviceBuffer q = OnDevice(of_.q(), ctx.stream), lse = OnDevice(lse_, ctx.stream);
    PKV_CHECK(statistics.Start(spec_.first_token, end(), ctx).ok());
    for (int begin = 0; begin < spec_.num_queries;) {
      const int count = std::min(1 + begin % most, spec_.num_queries - begin);
      const absl::Status status = statistics.Add(
          {.first_token = spec_.first_token + begin,
           .num_queries = count,
           .q = q.As<uint16_t>() + begin * of_.q_stride(),
           .q_stride = of_.q_stride(),
           .lse = with_lse ? lse.As<float>() + size_t(begin) * spec_.num_qo_heads : nullptr},
          ctx);
      PKV_CHECK(status.ok(), status.ToString());
      begin += count;
    }
    PKV_CHECK(statistics.Sum(ctx).ok());
  }

 private:
  StatisticsSpec spec_;
  PrefillCase of_;
  std::vector<float> lse_;
};

class QueryStatisticsTest : public CudaTest {
 protected:
  ComputeContext ctx() const { return {.device = Device::kCuda, .stream = stream()}; }

  std::unique_ptr<QueryStatistics> Make(const Prompt& prompt) const {
    auto made = QueryStatistics::Make(prompt.shape(), ctx());
    PKV_CHECK(made.ok(), made.status().ToString());
    return *std::move(made);
  }
  template <typename T>
  std::vector<T> FromDevice(const T* from, size_t count) const {
    std::vector<T> values(count);
    const auto error = cudaMemcpyAsync(values.data(), from, count * sizeof(T),
                                       cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream()));
    PKV_CHECK(error == cudaSuccess &&
              cudaStreamSynchronize(static_cast<cudaStream_t>(stream())) == cudaSuccess);
    return values;
  }
  std::vector<float> Sums(const Prompt& prompt, const QueryStatistics& statistics) const {
    const StatisticsSpec& spec = prompt.spec();
    return FromDevice(statistics.moment_sums(),
                      size_t(spec.num_kv_heads) * spec.head_dim * spec.head_dim);
  }
  // Of the tokens [begin, begin + count) of the prompt's own.
  std::vector<float> Importance(const Prompt& prompt, QueryStatistics& statistics, int begin,
                                int count) const {
    CudaTensor kv(prompt.numbers().kv(), stream());
    const KvTensorView tokens = KvTensorView(kv.view()).Tokens(begin, count);
    std::vector<float> importance(size_t(count) * prompt.spec().num_kv_heads, std::nanf(""));
    DeviceBuffer out = OnDevice(importance, stream());
    const absl::Status status = statistics.Importance(
        tokens, int64_t{prompt.spec().first_token} + begin, out.As<float>(), ctx());
    PKV_CHECK(status.ok(), status.ToString());
    return FromDevice(out.As<float>(), importance.size());
  }
};

class QueryStatisticsParityTest : public QueryStatisticsTest,
                                  public testing::WithParamInterface<StatisticsSpec> {};

TEST_P(QueryStatisticsParityTest, SumsProductsOverAllChunksAndTheHeadsOfAGroup) {
  const Prompt prompt(GetParam());
  const auto statistics = Make(prompt);
  prompt.AddTo(*statistics, ctx());
  const int d = prompt.spec().head_dim;
  int num_vectors = 0, weight = 0;
  for (int i = 0; i < prompt.spec().num_queries; ++i) {
    num_vectors += prompt.weight(i) > 0 ? prompt.group() : 0;
    weight += prompt.weight(i) * prompt.group();
  }
  ASSERT_EQ(statistics->num_vectors(), num_vectors);
  ASSERT_EQ(statistics->moment_weight(), weight);
  const std::vector<float> sums = Sums(prompt, *statistics);
  for (int head = 0; head < prompt.spec().num_kv_heads; ++head) {
    std::vector<double> wanted(size_t(d) * d), magnitude(size_t(d) * d), row(d);
    for (int vector = 0; vector < prompt.spec().num_queries * prompt.group(); ++vector) {
      const int weight = prompt.weight(vector / prompt.group());
      const int of_head = head * prompt.group() + vector % prompt.group();
      for (int j = 0; j < d; ++j) row[j] = prompt.q(vector / prompt.group(), of_head, j);
      for (int i = 0; i < d; ++i) {
        for (int j = 0; j < d; ++j) {
          wanted[size_t(i) * d + j] += weight * row[i] * row[j];
          magnitude[size_t(i) * d + j] += weight * std::abs(row[i] * row[j]);
        }
      }
    }
    constexpr int kNumSums = 8;  // of eight parts
    for (size_t i = 0; i < wanted.size(); ++i) {
      ASSERT_NEAR(sums[head * wanted.size() + i], wanted[i],
                  MomentBound(num_vectors, kNumSums, magnitude[i]))
          << "head " << head << " element " << i;
    }
  }
}

TEST_P(QueryStatisticsParityTest, SumsTheAttentionOfSampledQueriesThatCame128OrMoreLater) {
  const Prompt prompt(GetParam());
  const StatisticsSpec& spec = prompt.spec();
  const auto statistics = Make(prompt);
  prompt.AddTo(*statistics, ctx());
  const int skipped = spec.num_queries > 100 ? 3 : 0, count = spec.num_queries - skipped;
  const std::vector<float> importance = Importance(prompt, *statistics, skipped, count);
  const std::vector<int64_t> positions = SampledPositions(spec.first_token, prompt.end());
  const double sm_scale = 1 / std::sqrt(static_cast<double>(spec.head_dim));
  for (int head = 0; head < spec.num_kv_heads; ++head) {
    for (int t = 0; t < count; t += 1 + t % 5) {
      const int token = skipped + t;
      double sum = 0, bound = 0;
      int terms = 0;
      for (const int64_t position : positions) {
        const int query = static_cast<int>(position - spec.first_token);
        if (query - token < kBlockTokens) continue;
        for (int g = 0; g < prompt.group(); ++g, ++terms) {
          const int of_head = head * prompt.group() + g;
          double score = 0, magnitude = 0, size = 0, largest = 0;
          for (int j = 0; j < spec.head_dim; ++j) {
            const double q = prompt.q(query, of_head, j), k = prompt.k(head, token, j);
            score += q * k * sm_scale;
            magnitude += std::abs(q * k) * sm_scale;
            size += std::abs(k) * sm_scale;
            largest = std::max(largest, std::abs(q));
          }
          const double error = PrefillArithmetic::Score(spec.head_dim, magnitude) +
                               PrefillArithmetic::kBfloat16Query * largest * size;
          const double lse = prompt.lse(query, of_head);
          const double weight = std::exp(std::min(score - lse, 0.0));
          sum += weight;
          bound += SampledWeightBound(weight, score, lse, error);
        }
      }
      ASSERT_NEAR(importance[size_t(head) * count + t], sum, bound + SumBound(terms, sum + bound))
          << "head " << head << " token " << token;
    }
  }
}

// Writes the lse of sampled queries over `keys` in fp64 into `prompt`. Returns by how much that of
// ScoreSamples() may differ.
double TakeExactLse(const TestTensor& keys, Prompt& prompt) {
  const StatisticsSpec& spec = prompt.spec();
  const double sm_scale = 1 / std::sqrt(static_cast<double>(spec.head_dim));
  const int num_tiles = keys.num_tokens / 16 + 1;
  double bound = 0;
  for (const int64_t position : SampledPositions(spec.first_token, prompt.end())) {
    const int query = static_cast<int>(position - spec.first_token);
    for (int head = 0; head < spec.num_qo_heads; ++head) {
      double sum = 0, error = 0, largest_score = 0, largest = 0;
      for (int j = 0; j < spec.head_dim; ++j) {
        largest = std::max(largest, std::abs(prompt.q(query, head, j)));
      }
      for (int token = 0; token <= position; ++token) {
        const uint16_t* k = keys.view().k_row(head / prompt.group(), token);
        double score = 0, magnitude = 0, size = 0;
        for (int j = 0; j < spec.head_dim; ++j) {
          const double product = prompt.q(query, head, j) * Float16ToFloat(k[j]) * sm_scale;
          score += product;
          magnitude += std::abs(product);
          size += std::abs(Float16ToFloat(k[j])) * sm_scale;
        }
        sum += std::exp(score);
        largest_score = std::max(largest_score, std::abs(score));
        error = std::max(error, PrefillArithmetic::Score(spec.head_dim, magnitude) +
                                    PrefillArithmetic::kBfloat16Query * largest * size);
      }
      prompt.set_lse(query, head, std::log(sum));
      bound = std::max(bound, PrefillArithmetic::Weight(error, largest_score, num_tiles) +
                                  4 * kFloatUnit * std::abs(std::log(sum)));
    }
  }
  return bound;
}

TEST_P(QueryStatisticsParityTest, FindsTheLseOfSampledQueriesItself) {
  Prompt prompt(GetParam());
  const TestTensor keys = prompt.AllKeys();
  const double lse_bound = TakeExactLse(keys, prompt);
  const auto given = Make(prompt), found = Make(prompt);
  prompt.AddTo(*given, ctx());
  prompt.AddTo(*found, ctx(), /*with_lse=*/false);
  CudaTensor kv(keys, stream());
  EXPECT_THAT(given->ScoreSamples(kv.view(), ctx()),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  ASSERT_THAT(found->ScoreSamples(kv.view(), ctx()), IsOk());
  const int count = prompt.spec().num_queries;
  const std::vector<float> wanted = Importance(prompt, *given, 0, count);
  const std::vector<float> got = Importance(prompt, *found, 0, count);
  for (size_t i = 0; i < wanted.size(); ++i) {
    ASSERT_NEAR(got[i], wanted[i], std::expm1(lse_bound) * wanted[i] + 0x1.0p-120) << i;
  }
}

TEST_F(QueryStatisticsTest, HasNoImportanceWithoutLse) {
  const Prompt prompt({2, 1, 64, kHalf, 40});
  const auto statistics = Make(prompt);
  prompt.AddTo(*statistics, ctx(), /*with_lse=*/false);
  CudaTensor kv(prompt.AllKeys(), stream());
  DeviceBuffer out = OnDevice(std::vector<float>(40), stream());
  EXPECT_THAT(statistics->Importance(kv.view(), 0, out.As<float>(), ctx()),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(statistics->ScoreSamples(KvTensorView(kv.view()).Tokens(0, 39), ctx()),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_P(QueryStatisticsParityTest, MakesTheFeedbackOfTheCpu) {
  const Prompt prompt(GetParam());
  const auto statistics = Make(prompt);
  prompt.AddTo(*statistics, ctx());
  const StatisticsSpec& spec = prompt.spec();
  const int64_t num_vectors = statistics->num_vectors();
  std::vector<float> moments = Sums(prompt, *statistics);
  for (float& x : moments) x *= 1.0f / static_cast<float>(statistics->moment_weight());
  const double damping = 0.01 + static_cast<double>(spec.head_dim) / num_vectors;
  int num_differing = 0, num_weights = 0;
  for (const bool is_rotated : {false, true}) {
    if (is_rotated) RotateMoments(moments, spec.head_dim);
    const KeyFeedback wanted = MakeKeyFeedback(moments, spec.head_dim, damping);
    const auto got = statistics->Feedback(is_rotated, damping, ctx());
    ASSERT_THAT(got, IsOk());
    EXPECT_EQ(FromDevice(got->order, wanted.order.size()), wanted.order);
    const std::vector<int8_t> weights = FromDevice(got->weights, wanted.weights.size());
    const std::vector<float> scales = FromDevice(got->scales, wanted.scales.size());
    const double bound = FeedbackWeightBound(spec.head_dim, damping);
    for (size_t i = 0; i < weights.size(); ++i) {
      const double scale = wanted.scales[i / spec.head_dim];
      ASSERT_NEAR(127 * scales[i / spec.head_dim], 127 * scale,
                  bound + 2 * kFloatUnit * 127 * scale)
          << i;
      // Bytes may differ where a weight lies in the middle between them, so seldom.
      ASSERT_LE(std::abs(weights[i] - wanted.weights[i]), 1) << i;
      num_differing += weights[i] != wanted.weights[i] ? 1 : 0;
      num_weights += 1;
    }
  }
  EXPECT_LE(num_differing, num_weights / 1000);
}

TEST_P(QueryStatisticsParityTest, GivesTheSameBitsTwiceHoweverThePromptIsCut) {
  const Prompt prompt(GetParam());
  const auto first = Make(prompt), second = Make(prompt);
  prompt.AddTo(*first, ctx());
  // What a layer before left behind does not matter.
  prompt.AddTo(*second, ctx());
  prompt.AddTo(*second, ctx(), /*with_lse=*/true, /*most=*/97);
  EXPECT_EQ(Sums(prompt, *first), Sums(prompt, *second));
  const int count = prompt.spec().num_queries;
  EXPECT_EQ(Importance(prompt, *first, 0, count), Importance(prompt, *second, 0, count));
}

INSTANTIATE_TEST_SUITE_P(All, QueryStatisticsParityTest,
                         testing::Values(StatisticsSpec{1, 1, 64, kHalf, 5},
                                         StatisticsSpec{8, 2, 128, kHalf, 300},
                                         StatisticsSpec{7, 1, 128, kBfloat, 331, 777},
                                         StatisticsSpec{8, 1, 64, kBfloat, 500},
                                         StatisticsSpec{4, 4, 64, kHalf, 257, 100},
                                         // Sampled rows of more than one pass.
                                         StatisticsSpec{16, 1, 64, kBfloat, 1000},
                                         // More samples than are kept.
                                         StatisticsSpec{2, 1, 64, kHalf, 5000},
                                         StatisticsSpec{1, 1, 128, kBfloat, 4400, 130}));

TEST_F(QueryStatisticsTest, GivesNoFeedbackOfQueriesThatSayNothing) {
  for (const uint16_t value : {uint16_t{0}, PrefillCase::kNan}) {
    Prompt prompt({4, 2, 64, kHalf, 40});
    prompt.numbers().q().assign(prompt.numbers().q().size(), value);
    const auto statistics = Make(prompt);
    prompt.AddTo(*statistics, ctx());
    const auto got = statistics->Feedback(true, 0.01, ctx());
    ASSERT_THAT(got, IsOk());
    std::vector<uint8_t> natural(64);
    std::iota(natural.begin(), natural.end(), uint8_t{0});
    natural.insert(natural.end(), natural.begin(), natural.begin() + 64);
    EXPECT_EQ(FromDevice(got->order, natural.size()), natural);
    EXPECT_EQ(FromDevice(got->weights, 2 * 64 * 64), std::vector<int8_t>(2 * 64 * 64));
    EXPECT_EQ(FromDevice(got->scales, 2 * 64), std::vector<float>(2 * 64));
  }
}

// A sum of infinite squares in one kv head of two.
TEST_F(QueryStatisticsTest, GivesFeedbackToTheHeadsThatCanHaveIt) {
  Prompt prompt({4, 2, 64, kBfloat, 600});
  auto& q = prompt.numbers().q();
  for (size_t i = 0; i < q.size(); ++i) {
    if (i % prompt.numbers().q_stride() < 2 * 64) q[i] = 0x7f00;  // 2^127
  }
  const auto statistics = Make(prompt);
  prompt.AddTo(*statistics, ctx());
  const auto got = statistics->Feedback(true, 0.01, ctx());
  ASSERT_THAT(got, IsOk());
  const std::vector<int8_t> weights = FromDevice(got->weights, 2 * 64 * 64);
  const std::vector<float> scales = FromDevice(got->scales, 2 * 64);
  EXPECT_EQ(std::ranges::count(std::span(weights).first(64 * 64), 0), 64 * 64);
  EXPECT_EQ(std::ranges::count(std::span(scales).first(64), 0), 64);
  EXPECT_EQ(std::ranges::count(std::span(scales).subspan(64), 0), 8) << "the first run's";
}

TEST_F(QueryStatisticsTest, ImportanceStaysFiniteWhateverTheQueriesAre) {
  Prompt prompt({2, 1, 64, kHalf, 400});
  prompt.numbers().q().assign(prompt.numbers().q().size(), PrefillCase::kNan);
  const auto statistics = Make(prompt);
  prompt.AddTo(*statistics, ctx());
  for (const float x : Importance(prompt, *statistics, 0, 400)) ASSERT_TRUE(std::isfinite(x));
}

TEST_F(QueryStatisticsTest, WithoutVectorsThereIsNoFeedback) {
  const Prompt prompt({2, 1, 64, kHalf, 8});
  const auto statistics = Make(prompt);
  ASSERT_THAT(statistics->Start(5, 5, ctx()), IsOk());
  ASSERT_THAT(statistics->Sum(ctx()), IsOk());
  const auto got = statistics->Feedback(false, 0.01, ctx());
  ASSERT_THAT(got, IsOk());
  EXPECT_EQ(got->order, nullptr);
}

TEST_F(QueryStatisticsTest, TakesChunksInOrderOnly) {
  const Prompt prompt({2, 1, 64, kHalf, 8});
  const auto statistics = Make(prompt);
  ASSERT_THAT(statistics->Start(4, 12, ctx()), IsOk());
  EXPECT_THAT(statistics->Add({.first_token = 5, .num_queries = 1}, ctx()),
              StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(statistics->Add({.first_token = 4, .num_queries = 0}, ctx()), IsOk());
}

TEST_F(QueryStatisticsTest, AnswersWhenAllQueriesAreSummedUp) {
  const Prompt prompt({2, 1, 64, kHalf, 8});
  const auto statistics = Make(prompt);
  ASSERT_THAT(statistics->Start(0, 8, ctx()), IsOk());
  EXPECT_THAT(statistics->Sum(ctx()), StatusIs(absl::StatusCode::kFailedPrecondition));
  EXPECT_THAT(statistics->Feedback(false, 0.01, ctx()),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  prompt.AddTo(*statistics, ctx());
  EXPECT_THAT(statistics->Feedback(false, 0.01, ctx()), IsOk());
}

}  // namespace
}  // namespace pkv
