#include "kernels/attention/pattern_terms.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "proto/base/float16.h"
#include "proto/block/fragment_order.h"
#include "tests/support/error_bound.h"
#include "tests/support/simd_targets.h"
#include "tests/support/tensor_gen.h"

namespace pkv {
namespace {

constexpr int kDim = 64, kPatterns = 37, kHead = 1;

// The parameter is the number of query rows: whole blocks of four, and what is left over.
class PatternTermsTest : public testing::TestWithParam<int> {
 protected:
  PatternTermsTest() {
    for (int i = 0; i < kPatterns; ++i) {
      for (int head = 0; head < 2; ++head) {
        std::vector<uint16_t> k(kDim), v(kDim);
        for (int j = 0; j < kDim; ++j) {
          k[j] = FloatToFloat16(static_cast<float>(random_.Normal()));
          v[j] = FloatToFloat16(static_cast<float>(random_.Normal()));
        }
        bank_.AppendK(head, k);
        bank_.AppendV(head, v);
      }
    }
    for (float& q : q_) q = static_cast<float>(random_.Normal());
    for (float& w : weights_) w = static_cast<float>(random_.Below(1000)) / 1000.0f;
    for (int t = 0; t < kBlockTokens; ++t) {
      const int id = static_cast<int>(random_.Below(kPatterns + 10));
      ids_[t] = id < kPatterns ? id : kRawPatternId;
    }
  }

  const int num_rows_ = GetParam();
  TestRandom random_{23};
  Codebook bank_{2, kDim};
  std::vector<float> q_ = std::vector<float>(num_rows_ * kDim);
  std::vector<float> weights_ = std::vector<float>(num_rows_ * kBlockTokens);
  int ids_[kBlockTokens];
};

TEST_P(PatternTermsTest, ScoresAreThoseOfTheTokensPatterns) {
  uint8_t stored[kBlockTokens];
  for (int t = 0; t < kBlockTokens; ++t) stored[RowPosition(t, kBlockTokens)] = ids_[t];
  ForEachSimdTarget([&] {
    PatternTerms terms(num_rows_, kDim);
    terms.UseBank(&bank_, kHead, q_.data());
    std::vector<float> scores(weights_.size(), std::nanf(""));
    terms.WriteScores(stored, scores.data());
    for (int row = 0; row < num_rows_; ++row) {
      for (int t = 0; t < kBlockTokens; ++t) {
        const float score = scores[row * kBlockTokens + t];
        if (ids_[t] == kRawPatternId) {
          ASSERT_EQ(score, 0.0f);
          continue;
        }
        double exact = 0, magnitude = 0;
        for (int j = 0; j < kDim; ++j) {
          const double term =
              double{q_[row * kDim + j]} * Float16ToFloat(bank_.k(kHead)[ids_[t] * kDim + j]);
          exact += term;
          magnitude += std::abs(term);
        }
        ASSERT_LE(std::abs(score - exact), SumBound(kDim, magnitude)) << row << " " << t;
      }
    }
  });
}

TEST_P(PatternTermsTest, FlushAddsEveryPatternTimesTheWeightOfItsTokens) {
  uint8_t stored[kBlockTokens];
  for (int t = 0; t < kBlockTokens; ++t) stored[ColumnPosition(t, kBlockTokens)] = ids_[t];
  std::vector<float> first;
  ForEachSimdTarget([&] {
    PatternTerms terms(num_rows_, kDim);
    terms.UseBank(&bank_, kHead, q_.data());
    std::vector<float> out(q_.size(), 0.25f);
    terms.AddWeights(stored, weights_.data());
    terms.Rescale(num_rows_ - 1, 0.5f);
    terms.AddWeights(stored, weights_.data());
    terms.Flush(out.data());
    if (first.empty()) first = out;
    ASSERT_EQ(out, first);
    terms.Flush(out.data());  // nothing waits any longer
    ASSERT_EQ(out, first);
  });
  for (int row = 0; row < num_rows_; ++row) {
    const double times = row == num_rows_ - 1 ? 1.5 : 2.0;
    for (int j = 0; j < kDim; ++j) {
      double exact = 0.25, magnitude = 0.25;
      for (int t = 0; t < kBlockTokens; ++t) {
        if (ids_[t] == kRawPatternId) continue;
        const double term = times * weights_[row * kBlockTokens + t] *
                            Float16ToFloat(bank_.v(kHead)[ids_[t] * kDim + j]);
        exact += term;
        magnitude += std::abs(term);
      }
      ASSERT_LE(std::abs(first[row * kDim + j] - exact),
                SumBound(2 * kBlockTokens + kPatterns, magnitude));
    }
  }
}

TEST_P(PatternTermsTest, WithoutABankNothingIsAdded) {
  PatternTerms terms(num_rows_, kDim);
  terms.UseBank(&bank_, kHead, q_.data());
  terms.UseBank(nullptr, kHead, q_.data());
  terms.Rescale(0, 0.5f);
  std::vector<float> out(q_.size(), 0.25f);
  terms.Flush(out.data());
  EXPECT_EQ(out, std::vector<float>(q_.size(), 0.25f));
}

INSTANTIATE_TEST_SUITE_P(Rows, PatternTermsTest, testing::Values(1, 3, 4, 8, 9));

}  // namespace
}  // namespace pkv
