#include "worker/prefill/error_sample.h"

#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"
#include "tests/unit/worker/sequence/sequence_driver.h"

namespace pkv {
namespace {

constexpr int kTokens = 2 * kBlockTokens + 40;

// A prefill of kTokens, sampled in `layer` as the worker does.
absl::StatusOr<RelativeError> Sample(const char* preset, int layer) {
  const CodecParams params = *PresetByName(preset, kSequenceShape);
  const Conversation talk(1, kTokens);
  const std::unique_ptr<KvSequence> sequence = MakeSequence(params);
  const int blocks = BlockTokensAfterPrefill(params, kTokens) / kBlockTokens;
  PKV_RETURN_IF_ERROR(
      sequence->StartBlocks(blocks, Phase::kPrefill, talk.tokens(kTokens), /*with_window=*/true));
  Pass(*sequence, talk, 0, kTokens);
  for (int l = 0; l < kSequenceShape.num_layers; ++l) {
    PKV_RETURN_IF_ERROR(sequence->EncodeLayer(l));
  }
  std::optional<ErrorSample> sample = ErrorSample::Take(*sequence, layer);
  PKV_RETURN_IF_ERROR(sequence->FinishBlocks());
  if (!sample.has_value()) return absl::NotFoundError("nothing was started");
  return sample->Measure(*sequence);
}

TEST(ErrorSampleTest, BlocksInFp16HaveNoError) {
  const auto error = Sample("fp16", 0);
  ASSERT_THAT(error, IsOk());
  EXPECT_EQ(error->k, 0);
  EXPECT_EQ(error->v, 0);
}

// A wrong order of tokens, or rotated values, would be an error of the size of the values.
TEST(ErrorSampleTest, FewerBitsHaveMoreErrorInEveryLayer) {
  for (int layer = 0; layer < kSequenceShape.num_layers; ++layer) {
    const auto four = Sample("default4", layer), two = Sample("default", layer);
    ASSERT_THAT(four, IsOk());
    ASSERT_THAT(two, IsOk());
    EXPECT_GT(four->k, 0);
    EXPECT_GT(four->v, 0);
    EXPECT_GT(two->k, four->k);
    EXPECT_GT(two->v, four->v);
    EXPECT_LT(two->k, 1);
    EXPECT_LT(two->v, 1);
  }
}

TEST(ErrorSampleTest, ThereIsNoneWithoutABlockOrItsValues) {
  const CodecParams params = *PresetByName("fp16", kSequenceShape);
  const Conversation talk(1, kTokens);
  const std::unique_ptr<KvSequence> sequence = MakeSequence(params);
  Pass(*sequence, talk, 0, kTokens);
  EXPECT_FALSE(ErrorSample::Take(*sequence, 0).has_value()) << "no block was started";
  const std::unique_ptr<KvSequence> elsewhere = MakeSequence(params);
  ASSERT_THAT(elsewhere->StartBlocks(2, Phase::kPrefill, talk.tokens(kTokens), true), IsOk());
  EXPECT_FALSE(ErrorSample::Take(*elsewhere, 0).has_value()) << "nothing stands in the window";
}

}  // namespace
}  // namespace pkv
