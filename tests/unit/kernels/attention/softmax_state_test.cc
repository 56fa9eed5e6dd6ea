#include "kernels/attention/softmax_state.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "tests/support/error_bound.h"

namespace pkv {
namespace {

constexpr int kDim = 16;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// One token a call: its score and a value equal in all channels.
void AddToken(SoftmaxState& state, float score, float value) {
  std::vector<float> scores(16, kMinusInfinity);
  scores[3] = score;
  state.Update(0, 16, scores.data());
  for (int j = 0; j < kDim; ++j) state.acc(0)[j] += scores[3] * value;
}

TEST(SoftmaxStateTest, WithoutTokensIsZeroAndMinusInfinity) {
  const SoftmaxState state(1, kDim);
  std::vector<float> out(kDim, 7.0f);
  EXPECT_EQ(state.Finish(0, out.data()), kMinusInfinity);
  EXPECT_EQ(out, std::vector<float>(kDim, 0.0f));
}

TEST(SoftmaxStateTest, OneTokenIsItsValueAndItsScore) {
  SoftmaxState state(1, kDim);
  AddToken(state, -3.5f, 0.75f);
  std::vector<float> out(kDim);
  EXPECT_EQ(state.Finish(0, out.data()), -3.5f);
  EXPECT_EQ(out[5], 0.75f);
}

TEST(SoftmaxStateTest, MaskedTileChangesNothing) {
  SoftmaxState state(1, kDim);
  std::vector<float> masked(16, kMinusInfinity);
  EXPECT_EQ(state.Update(0, 16, masked.data()), 1.0f);
  EXPECT_EQ(masked, std::vector<float>(16, 0.0f));
  AddToken(state, 2.0f, 1.0f);
  masked.assign(16, kMinusInfinity);
  EXPECT_EQ(state.Update(0, 16, masked.data()), 1.0f);
  std::vector<float> out(kDim);
  EXPECT_EQ(state.Finish(0, out.data()), 2.0f);
}

TEST(SoftmaxStateTest, RescalesWhatStandsWhenTheMaximumGrows) {
  SoftmaxState state(1, kDim);
  AddToken(state, 0.0f, 1.0f);
  std::vector<float> scores(16, kMinusInfinity);
  scores[0] = 2.0f;
  EXPECT_NEAR(state.Update(0, 16, scores.data()), std::exp(-2.0), kExpBound);
}

TEST(SoftmaxStateTest, MergeOfPartsIsTheWhole) {
  const float scores[] = {0.5f, -40.0f, 12.0f, 11.5f}, values[] = {1.0f, 2.0f, 3.0f, -4.0f};
  SoftmaxState whole(1, kDim), first(1, kDim), second(1, kDim), empty(1, kDim);
  for (int t = 0; t < 4; ++t) {
    AddToken(whole, scores[t], values[t]);
    AddToken(t < 2 ? first : second, scores[t], values[t]);
  }
  first.Merge(empty);
  first.Merge(second);
  empty.Merge(first);
  std::vector<float> want(kDim), got(kDim);
  const float want_lse = whole.Finish(0, want.data());
  const double bound = SumBound(16, 16) + 16 * kExpBound;
  EXPECT_NEAR(empty.Finish(0, got.data()), want_lse, bound);
  for (int j = 0; j < kDim; ++j) EXPECT_NEAR(got[j], want[j], bound);
}

}  // namespace
}  // namespace pkv
