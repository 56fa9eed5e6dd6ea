#include "worker/sequence/window_flush.h"

#include <gtest/gtest.h>

#include "tests/unit/worker/sequence/sequence_driver.h"

namespace pkv {
namespace {

TEST(WindowFlushTest, MakesABlockWhenThePresetsRuleSaysSo) {
  const CodecParams params = PresetFor("pkv2", kSequenceShape);
  const Conversation talk(1, 2 * kBlockTokens);
  const auto sequence = MakeSequence(params);
  Pass(*sequence, talk, 0, kBlockTokens - 1);
  EXPECT_THAT(FlushWindow(talk.tokens(kBlockTokens - 1), *sequence), IsOkAndHolds(false));
  Pass(*sequence, talk, kBlockTokens - 1, 1);
  EXPECT_THAT(FlushWindow(talk.tokens(kBlockTokens), *sequence), IsOkAndHolds(true));
  EXPECT_EQ(sequence->num_blocks(), 1);
  EXPECT_EQ(sequence->window_tokens(), 0);
  EXPECT_THAT(FlushWindow(talk.tokens(kBlockTokens), *sequence), IsOkAndHolds(false));
}

TEST(WindowFlushTest, MakesTheBlocksOfAPrefillAtOnce) {
  const CodecParams params = PresetFor("default", kSequenceShape);
  const Conversation talk(2, 400);
  const auto at_once = MakeSequence(params), layer_by_layer = MakeSequence(params);
  Pass(*at_once, talk, 0, 400);
  ASSERT_THAT(EncodeBlocks(2, Phase::kPrefill, talk.tokens(400), *at_once), IsOk());
  Pass(*layer_by_layer, talk, 0, 400);
  ASSERT_THAT(layer_by_layer->StartBlocks(2, Phase::kPrefill, talk.tokens(400), false), IsOk());
  EncodeAll(*layer_by_layer);
  EXPECT_EQ(MadeObjectBytes(*at_once), MadeObjectBytes(*layer_by_layer));
}

TEST(WindowFlushTest, PassesOnWhatIsWrong) {
  const auto sequence = MakeSequence(PresetFor("kivi2", kSequenceShape));
  const Conversation talk(3, 100);
  EXPECT_THAT(EncodeBlocks(1, Phase::kDecode, talk.tokens(100), *sequence),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace pkv
