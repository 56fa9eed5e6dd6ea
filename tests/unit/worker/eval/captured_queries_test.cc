#include "worker/eval/captured_queries.h"

#include <gtest/gtest.h>

#include <cmath>

#include "proto/base/float16.h"
#include "tests/support/error_bound.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

constexpr int kQoHeads = 4, kHeadDim = 8;

std::vector<float> RandomRows(uint64_t seed, int num_tokens) {
  TestRandom random(seed);
  std::vector<float> q(size_t(num_tokens) * kQoHeads * kHeadDim);
  for (float& x : q) x = Float16ToFloat(FloatToFloat16(static_cast<float>(random.Normal())));
  return q;
}

TEST(CapturedQueriesTest, KeepsTheTokensOfEveryPassInOrder) {
  CapturedQueries queries(2, kQoHeads, kHeadDim);
  const std::vector<float> q = RandomRows(1, 5);
  queries.Append(1, 3, q.data());
  queries.Append(1, 2, q.data() + 3 * kQoHeads * kHeadDim);
  EXPECT_EQ(queries.num_tokens(0), 0);
  ASSERT_EQ(queries.num_tokens(1), 5);
  for (int token = 0; token < 5; ++token) {
    const auto row = q.begin() + token * kQoHeads * kHeadDim;
    EXPECT_EQ(queries.Token(1, token), std::vector<float>(row, row + kQoHeads * kHeadDim));
  }
}

TEST(CapturedQueriesTest, SaturatesBeyondFp16) {
  CapturedQueries queries(1, 1, 2);
  const float q[] = {1e6f, -1e6f};
  queries.Append(0, 1, q);
  EXPECT_EQ(queries.Token(0, 0), (std::vector<float>{kFloat16Max, -kFloat16Max}));
}

TEST(CapturedQueriesTest, AveragesProductsOverTheHeadsThatReadAKvHead) {
  constexpr int kTokens = 6;
  CapturedQueries queries(1, kQoHeads, kHeadDim);
  const std::vector<float> q = RandomRows(2, kTokens);
  queries.Append(0, kTokens, q.data());
  for (int kv_head = 0; kv_head < 2; ++kv_head) {
    const std::vector<float> moment = queries.SecondMoment(0, kv_head, 2);
    for (int i = 0; i < kHeadDim; ++i) {
      for (int j = 0; j < kHeadDim; ++j) {
        double sum = 0, magnitude = 0;
        for (int token = 0; token < kTokens; ++token) {
          for (int head = 2 * kv_head; head < 2 * kv_head + 2; ++head) {
            const float* row = q.data() + (token * kQoHeads + head) * kHeadDim;
            sum += double{row[i]} * row[j];
            magnitude += std::abs(double{row[i]} * row[j]);
          }
        }
        EXPECT_NEAR(moment[i * kHeadDim + j], sum / (2 * kTokens),
                    SumBound(2 * kTokens + 1, magnitude / (2 * kTokens)));
      }
    }
  }
}

TEST(CapturedQueriesTest, HasNoMomentWithoutTokens) {
  const CapturedQueries queries(1, kQoHeads, kHeadDim);
  EXPECT_EQ(queries.SecondMoment(0, 1, 2), std::vector<float>(kHeadDim * kHeadDim));
}

TEST(CapturedQueriesDeathTest, TakesOnlyHeadsThatDivide) {
  const CapturedQueries queries(1, kQoHeads, kHeadDim);
  EXPECT_DEATH(queries.SecondMoment(0, 0, 3), "4 3");
}

}  // namespace
}  // namespace pkv
