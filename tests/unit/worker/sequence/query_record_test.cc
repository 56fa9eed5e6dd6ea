#include "worker/sequence/query_record.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "pkv/block/kv_shape.h"
#include "tests/support/error_bound.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

constexpr int kKvHeads = 2, kGroup = 3, kQoHeads = kKvHeads * kGroup, kDim = 16;
constexpr int kStride = QueryRecord::kSampleStride;

// Queries of tokens [0, num_tokens) of one layer, and the lse that goes with each.
struct Queries {
  Queries(uint64_t seed, int num_tokens) {
    TestRandom random(seed);
    q.resize(size_t(num_tokens) * kQoHeads * kDim);
    for (float& x : q) x = static_cast<float>(random.Normal());
    lse.resize(size_t(num_tokens) * kQoHeads);
    for (float& x : lse) x = static_cast<float>(4 + random.Uniform());
  }
  // Takes tokens [begin, end) into the record, as one pass, at positions `shift` later.
  void Add(int layer, int begin, int end, QueryRecord& record, int64_t shift = 0) const {
    record.Add({layer, end - begin, begin + shift, q.data() + size_t(begin) * kQoHeads * kDim,
                nullptr, nullptr},
               std::span(lse).subspan(size_t(begin) * kQoHeads, size_t(end - begin) * kQoHeads));
  }
  const float* row(int token, int head) const {
    return q.data() + (size_t(token) * kQoHeads + head) * kDim;
  }
  std::vector<float> q, lse;
};

QueryRecord MakeRecord(int num_layers = 1) {
  return QueryRecord(num_layers, kKvHeads, kQoHeads, kDim);
}

// Means of products over tokens [0, num_tokens), weighted; token 0 stands at position `shift`.
void ExpectMoments(const QueryRecord& record, const Queries& queries, int num_tokens,
                   int64_t shift) {
  const auto weight = [&](int token) {
    const int stride = token < MomentSample::kAll ? 1 : token < 2 * MomentSample::kAll ? 2 : 4;
    return (token + 1) % stride == 0 ? stride : 0;
  };
  int num_vectors = 0, total = 0;
  for (int token = 0; token < num_tokens; ++token) {
    num_vectors += weight(token) > 0 ? kGroup : 0;
    total += weight(token) * kGroup;
  }
  ASSERT_EQ(record.num_vectors(1), num_vectors);
  const std::vector<float> moments = record.Moments(1);
  ASSERT_EQ(moments.size(), size_t{kKvHeads} * kDim * kDim);
  for (int head = 0; head < kKvHeads; ++head) {
    for (int i = 0; i < kDim; ++i) {
      for (int j = 0; j < kDim; ++j) {
        double sum = 0, magnitude = 0;
        for (int token = 0; token < num_tokens; ++token) {
          for (int g = 0; g < kGroup; ++g) {
            const float* q = queries.row(token, head * kGroup + g);
            sum += double{q[i]} * q[j] * weight(token);
            magnitude += std::abs(double{q[i]} * q[j]) * weight(token);
          }
        }
        ASSERT_NEAR(moments[(size_t(head) * kDim + i) * kDim + j], sum / total,
                    SumBound(num_vectors + 3, magnitude / total));
      }
    }
  }
}

TEST(QueryRecordTest, AveragesProductsOverAllPassesAndTheHeadsOfAGroup) {
  // Few, wherever they stand; and so many that every second counts, and every fourth.
  for (const auto& [num_tokens, shift] : {std::pair(37, 0), {37, 5000}, {2100, 0}, {2100, 3}}) {
    const Queries queries(1, num_tokens);
    QueryRecord record = MakeRecord(2);
    queries.Add(1, 0, 20, record, shift);
    queries.Add(1, 20, 21, record, shift);
    queries.Add(1, 21, num_tokens, record, shift);
    EXPECT_EQ(record.num_vectors(0), 0);
    ExpectMoments(record, queries, num_tokens, shift);
  }
}

TEST(QueryRecordTest, HasZeroMomentsAndNoPreferenceWithoutQueries) {
  const QueryRecord record = MakeRecord();
  for (const float x : record.Moments(0)) EXPECT_EQ(x, 0);
  const TestTensor block = RandomTensor(2, kKvHeads, kBlockTokens, kDim);
  const std::vector<float> importance = record.Importance(0, block.view(), 0);
  ASSERT_EQ(importance.size(), size_t{kKvHeads} * kBlockTokens);
  for (const float x : importance) EXPECT_EQ(x, 0);
}

// Softmax weights in fp64, of sampled positions that are 128 or more after the token. A weight errs
// by the score's error and that of the exponential; it never exceeds 1.
void ExpectImportance(const QueryRecord& record, const Queries& queries, int num_tokens,
                      int64_t shift, const TestTensor& block, int64_t first_token) {
  const std::vector<float> importance = record.Importance(0, block.view(), first_token);
  for (int head = 0; head < kKvHeads; ++head) {
    for (int t = 0; t < kBlockTokens; ++t) {
      double sum = 0, bound = 0;
      for (int token = 0; token < num_tokens; ++token) {
        const int64_t position = token + shift;
        if ((position + 1) % kStride != 0 || position - (first_token + t) < kBlockTokens) continue;
        for (int g = 0; g < kGroup; ++g) {
          const int qo_head = head * kGroup + g;
          double score = 0, magnitude = 0;
          for (int j = 0; j < kDim; ++j) {
            const double product = double{queries.row(token, qo_head)[j]} *
                                   Float16ToFloat(block.view().k_row(head, t)[j]) /
                                   std::sqrt(double{kDim});
            score += product;
            magnitude += std::abs(product);
          }
          const double lse = queries.lse[size_t(token) * kQoHeads + qo_head];
          const double weight = std::exp(std::min(score - lse, 0.0));
          sum += weight;
          bound += weight * (std::expm1(SumBound(kDim + 4, magnitude + lse)) + kExpBound);
        }
      }
      ASSERT_NEAR(importance[size_t(head) * kBlockTokens + t], sum,
                  bound + SumBound(num_tokens * kGroup, sum) + std::exp(-87.0) * num_tokens)
          << "head " << head << " token " << t;
    }
  }
}

TEST(QueryRecordTest, SumsTheAttentionOfSampledQueriesThatCame128OrMoreLater) {
  constexpr int kTokens = 200;
  const Queries queries(3, kTokens);
  const TestTensor block = RandomTensor(4, kKvHeads, kBlockTokens, kDim);
  // The block at 128: positions from 256 on see its first tokens, from 383 on all of them.
  for (const int64_t shift : {0, 100, 200, 300, 1000}) {
    QueryRecord record = MakeRecord();
    queries.Add(0, 0, 77, record, shift);
    for (int token = 77; token < 80; ++token) queries.Add(0, token, token + 1, record, shift);
    queries.Add(0, 80, kTokens, record, shift);
    ExpectImportance(record, queries, kTokens, shift, block, kBlockTokens);
  }
}

TEST(QueryRecordTest, QueriesWithin128TokensDoNotCount) {
  const Queries queries(5, 300);
  QueryRecord record = MakeRecord();
  queries.Add(0, 0, 256 + 7, record);  // the last sample is at 255: 128 after token 127
  const TestTensor block = RandomTensor(6, kKvHeads, kBlockTokens, kDim);
  const std::vector<float> importance = record.Importance(0, block.view(), kBlockTokens);
  for (const float x : importance) ASSERT_EQ(x, 0);
  queries.Add(0, 256 + 7, 256 + 8, record);  // 263: 128 after tokens 128 .. 135
  const std::vector<float> later = record.Importance(0, block.view(), kBlockTokens);
  for (int head = 0; head < kKvHeads; ++head) {
    for (int t = 0; t < kBlockTokens; ++t) {
      ASSERT_EQ(later[size_t(head) * kBlockTokens + t] > 0, t < 8) << t;
    }
  }
}

// Queries that read no number leave finite importance: encoders sort by it.
TEST(QueryRecordTest, ImportanceStaysFiniteWhateverTheQueriesAre) {
  const TestTensor block = RandomTensor(7, kKvHeads, kBlockTokens, kDim);
  for (const float value : {INFINITY, -INFINITY, std::nanf(""), 3e38f}) {
    for (const float lse : {INFINITY, -INFINITY, std::nanf(""), 0.0f}) {
      Queries queries(8, 1);
      queries.q.assign(queries.q.size(), value);
      queries.lse.assign(queries.lse.size(), lse);
      QueryRecord record = MakeRecord();
      queries.Add(0, 0, 1, record, 1023);
      for (const float x : record.Importance(0, block.view(), 0)) ASSERT_TRUE(std::isfinite(x));
    }
  }
}

// Positions of the samples that stand in a record after `num_tokens` tokens. All scores and lse are
// 0, so that a sample adds 1 to the importance of every token 128 or more before it.
std::vector<int64_t> SampledPositions(int num_tokens) {
  constexpr int kSmallDim = 4;
  const std::vector<float> q(kSmallDim), lse(1);
  QueryRecord record(1, 1, 1, kSmallDim);
  for (int64_t position = kStride - 1; position < num_tokens; position += kStride) {
    record.Add({0, 1, position, q.data(), nullptr, nullptr}, lse);
  }
  const TestTensor block(1, kBlockTokens, kSmallDim);
  std::vector<int64_t> positions;
  const int num_blocks = num_tokens / kBlockTokens + 1;
  float later = 0;  // samples from position first + 256 on
  for (int64_t first = int64_t{num_blocks} * kBlockTokens; first >= -kBlockTokens;
       first -= kBlockTokens) {
    const std::vector<float> counts = record.Importance(0, block.view(), first);
    for (int t = kBlockTokens - 1; t >= 0; --t) {
      if (counts[t] > later) positions.push_back(first + kBlockTokens + t);
      later = counts[t];
    }
  }
  return {positions.rbegin(), positions.rend()};
}

TEST(QueryRecordTest, ThinsOutTheOlderHalfAndKeepsTheNewest) {
  constexpr int kFull = QueryRecord::kMaxSamples * kStride;
  EXPECT_EQ(SampledPositions(kFull - kStride).size(), size_t{QueryRecord::kMaxSamples - 1});
  EXPECT_EQ(SampledPositions(kFull).size(), size_t{QueryRecord::kMaxSamples} / 4 * 3);
  for (const int num_tokens : {kFull, kFull + 104, 2 * kFull, 5 * kFull, 64 * kFull}) {
    const std::vector<int64_t> positions = SampledPositions(num_tokens);
    ASSERT_LT(positions.size(), size_t{QueryRecord::kMaxSamples});
    ASSERT_GE(positions.size(), size_t{QueryRecord::kMaxSamples} / 2);
    const size_t newest = QueryRecord::kMaxSamples / 2;
    for (size_t i = 0; i < newest; ++i) {
      ASSERT_EQ(positions[positions.size() - 1 - i],
                num_tokens - 1 - static_cast<int64_t>(i) * kStride);
    }
  }
}

// What is thinned out stays spread over the time line: however long that is, some sample stands in
// each tenth of it.
TEST(QueryRecordTest, RemembersTheWholeTimeLine) {
  for (const int num_tokens : {5000, 20000, 200000}) {
    const std::vector<int64_t> positions = SampledPositions(num_tokens);
    std::vector<int> in_tenth(10);
    for (const int64_t position : positions) ++in_tenth[position * 10 / num_tokens];
    for (int tenth = 0; tenth < 10; ++tenth) {
      EXPECT_GT(in_tenth[tenth], 0) << num_tokens << " tokens, tenth " << tenth;
    }
  }
}

}  // namespace
}  // namespace pkv
