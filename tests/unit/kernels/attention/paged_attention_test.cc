#include "pkv/kernels/paged_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "tests/support/block_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr KvShape kShape = {1, 2, 64};

// A valid call; each test spoils one argument.
class PagedAttentionTest : public testing::Test {
 protected:
  PagedAttentionTest() {
    page_ = {&block_.header, block_.frame.span(), &block_.codebook};
    args_ = {.q = q_.data(),
             .num_queries = 1,
             .num_qo_heads = 4,
             .sm_scale = 0.125f,
             .pages = {&page_, 1},
             .window = window_.view(),
             .out = out_.data(),
             .lse = lse_.data()};
  }
  absl::Status Run() { return PagedAttention(args_, {}); }

  const CodecParams params_ = PresetFor("pkv2", kShape);
  const TestTensor prompt_ = RandomTensor(1, 2, kBlockTokens, 64);
  TestTensor window_ = RandomTensor(2, 2, 3, 64);
  EncodedBlock block_ = EncodeBlock(kShape, params_, prompt_.view(),
                                    *MinePatterns(prompt_.view(), params_, {}), Phase::kPrefill, 0);
  std::vector<float> q_ = std::vector<float>(8 * 64, 0.5f), out_ = std::vector<float>(8 * 64);
  std::vector<float> lse_ = std::vector<float>(8);
  BlockPage page_;
  AttentionArgs args_;
};

TEST_F(PagedAttentionTest, AcceptsMatchingArguments) { EXPECT_THAT(Run(), IsOk()); }

TEST_F(PagedAttentionTest, RunsOnTheCpuOnly) {
  EXPECT_THAT(PagedAttention(args_, {.device = Device::kCuda}),
              StatusIs(absl::StatusCode::kUnimplemented));
}

TEST_F(PagedAttentionTest, QueryHeadsAreAMultipleOfKvHeads) {
  args_.num_qo_heads = 3;
  EXPECT_THAT(Run(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("num_qo_heads 3")));
}

TEST_F(PagedAttentionTest, RefusesAPageOfAnotherShape) {
  window_ = TestTensor(1, 3, 64);
  args_.window = window_.view();
  EXPECT_THAT(
      Run(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("page 0 kv heads 2 is not 1")));
}

TEST_F(PagedAttentionTest, RefusesACutFrame) {
  page_.frame = page_.frame.first(page_.frame.size() - 128);
  EXPECT_THAT(Run(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("frame bytes")));
}

TEST_F(PagedAttentionTest, PatternsNeedTheirCodebook) {
  page_.codebook = nullptr;
  EXPECT_THAT(Run(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no codebook")));
  const Codebook shorter(2, 64);
  page_.codebook = &shorter;
  EXPECT_THAT(Run(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("32 K")));
}

TEST_F(PagedAttentionTest, WindowHoldsTheQueriesOwnTokens) {
  args_.num_queries = 2;
  EXPECT_THAT(Run(), IsOk());
  args_.window.num_tokens = 1;
  EXPECT_THAT(Run(), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("window of 1")));
}

TEST_F(PagedAttentionTest, NoTokenAtAllIsZeroAndMinusInfinity) {
  args_.pages = {};
  args_.window.num_tokens = 0;
  std::fill(out_.begin(), out_.end(), std::nanf(""));
  ASSERT_THAT(Run(), IsOk());
  for (int i = 0; i < 4 * 64; ++i) EXPECT_EQ(out_[i], 0.0f);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(lse_[i], -std::numeric_limits<float>::infinity());
}

TEST_F(PagedAttentionTest, LseIsOptional) {
  args_.lse = nullptr;
  EXPECT_THAT(Run(), IsOk());
}

}  // namespace
}  // namespace pkv
