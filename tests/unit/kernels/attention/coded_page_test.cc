// Scores and values of one coded page against sums over its decoded residuals.
#include "kernels/attention/coded_page.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "tests/support/block_fixture.h"
#include "tests/support/coded_head.h"
#include "tests/support/error_bound.h"
#include "tests/support/simd_targets.h"

namespace pkv {
namespace {

constexpr int kRows = 6;

struct Case {
  int head_dim, bits_k, bits_v, group;
};

class CodedPageTest : public testing::TestWithParam<Case> {
 protected:
  CodedPageTest() {
    SetBits(GetParam().bits_k, GetParam().bits_v, params_);
    params_.encoding.k_group_tokens = GetParam().group;
    params_.encoding.v_group_channels = std::min(GetParam().group, d_);
    params_.encoding.has_patterns = false;
    params_.num_patterns_k = params_.num_patterns_v = 0;
    params_.gate_v = Gate::kNone;
    params_.append_v = false;
    block_ = EncodeBlock(shape_, params_, tokens_.view(), Codebook(), Phase::kPrefill, 1);
    TestRandom random(4);
    for (float& q : q_) q = static_cast<float>(random.Normal());
    for (float& w : weights_) w = static_cast<float>(random.Below(1000)) / 1000.0f;
  }
  PayloadLayout layout() const { return PayloadLayout::Of(block_.header); }
  HeadFrame<const std::byte> frame() const {
    return {block_.header, layout(), std::as_const(block_.frame).span().data(), 0};
  }
  CodedHead Coded() const {
    return {block_.header, std::as_const(block_.frame).span(), nullptr, 0};
  }

  const int d_ = GetParam().head_dim;
  const KvShape shape_ = {1, 1, d_};
  CodecParams params_ = PresetFor("default", shape_);
  const TestTensor tokens_ = RandomTensor(3, 1, kBlockTokens, d_);
  EncodedBlock block_;
  std::vector<float> q_ = std::vector<float>(kRows * d_);
  std::vector<float> weights_ = std::vector<float>(kRows * kBlockTokens);
};

TEST_P(CodedPageTest, ScoresAreProductsWithDecodedResiduals) {
  std::vector<float> first;
  ForEachSimdTarget([&] {
    CodedPage page(q_.data(), kRows, d_);
    std::vector<float> scores(kRows * kBlockTokens, 0.5f);
    page.AddScores(frame(), layout(), scores.data());
    if (first.empty()) first = scores;
    ASSERT_EQ(scores, first);
  });
  const CodedHead coded = Coded();
  for (int row = 0; row < kRows; ++row) {
    for (int t = 0; t < kBlockTokens; ++t) {
      double exact = 0.5, magnitude = 0.5, largest = 0, sum_of_codes = 0;
      for (int j = 0; j < d_; ++j) {
        const CodedValue k = coded.K(t, j);
        const double q = q_[row * d_ + j];
        exact += q * k.Residual();
        magnitude += std::abs(q) * k.Magnitude();
        largest = std::max(largest, std::abs(q) * k.step());
        sum_of_codes += k.code;
      }
      ASSERT_LE(std::abs(first[row * kBlockTokens + t] - exact),
                IntegerProductBound(largest, sum_of_codes) + SumBound(2 * d_ + 8, magnitude))
          << "row " << row << " token " << t;
    }
  }
}

TEST_P(CodedPageTest, ValuesAreWeightedSumsOfDecodedResiduals) {
  std::vector<float> first;
  ForEachSimdTarget([&] {
    CodedPage page(q_.data(), kRows, d_);
    std::vector<float> out(kRows * d_, 0.5f);
    page.AddValues(frame(), layout(), weights_.data(), out.data());
    if (first.empty()) first = out;
    ASSERT_EQ(out, first);
  });
  const CodedHead coded = Coded();
  for (int row = 0; row < kRows; ++row) {
    for (int j = 0; j < d_; ++j) {
      double exact = 0.5, magnitude = 0.5, largest = 0, sum_of_codes = 0;
      for (int t = 0; t < kBlockTokens; ++t) {
        const CodedValue v = coded.V(t, j);
        const double weight = weights_[row * kBlockTokens + t];
        exact += weight * v.Residual();
        magnitude += weight * v.Magnitude();
        largest = std::max(largest, weight * v.step());
        sum_of_codes += v.code;
      }
      ASSERT_LE(
          std::abs(first[row * d_ + j] - exact),
          IntegerProductBound(largest, sum_of_codes) + SumBound(2 * kBlockTokens + 8, magnitude))
          << "row " << row << " channel " << j;
    }
  }
}

TEST_P(CodedPageTest, ReadsTheQueriesAnewOnceTheyChanged) {
  CodedPage page(q_.data(), kRows, d_);
  std::vector<float> scores(kRows * kBlockTokens), again = scores;
  page.AddScores(frame(), layout(), scores.data());
  for (float& q : q_) q = -q;
  page.QueriesChanged();
  page.AddScores(frame(), layout(), again.data());
  for (size_t i = 0; i < scores.size(); ++i) ASSERT_EQ(again[i], -scores[i]);
}

INSTANTIATE_TEST_SUITE_P(Shapes, CodedPageTest,
                         testing::Values(Case{128, 2, 2, 128}, Case{128, 2, 2, 32},
                                         Case{64, 2, 2, 64}, Case{64, 2, 4, 32},
                                         Case{128, 4, 2, 64}, Case{128, 4, 4, 128},
                                         Case{64, 4, 4, 128}));

}  // namespace
}  // namespace pkv
