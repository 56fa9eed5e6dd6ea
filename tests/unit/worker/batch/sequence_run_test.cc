#include "worker/batch/sequence_run.h"

#include <gmock/gmock.h>

#include "tests/support/batch_fixture.h"

namespace pkv {
namespace {

using testing::ElementsAre;

class SequenceRunTest : public BatchTest {
 protected:
  static std::vector<std::optional<PagePool::Resident>> Resident(int num_blocks,
                                                                 std::vector<int> blocks) {
    std::vector<std::optional<PagePool::Resident>> resident(num_blocks);
    for (const int block : blocks) resident[block] = PagePool::Resident{int32_t(50 + block), {}};
    return resident;
  }
};

TEST_F(SequenceRunTest, CountsThePagesThatDecodingFills) {
  for (const char* preset : {"fp16", "default"}) {
    const int kept = Params(preset).recent_tokens;
    for (const int num_tokens : {1, 200, 500}) {
      BatchRequest request = Request(Prompt(1, num_tokens), 1, {.preset = preset});
      // As a prefill leaves it: the newest `kept` tokens stand in the window.
      request.num_blocks = BlockTokensAfterPrefill(request.params, num_tokens - 1) / kBlockTokens;
      for (const int max_tokens : {1, 100, 129, 400}) {
        request.max_tokens = max_tokens;
        // All but the last token are cached in the end, and by then the rule keeps as much.
        const int cached = num_tokens + max_tokens - 1;
        EXPECT_EQ(MaxPages(request), std::max(cached - kept, 0) / kBlockTokens)
            << preset << " " << num_tokens << " " << max_tokens;
      }
    }
  }
}

TEST_F(SequenceRunTest, ALargeWindowShrinksByABlockAStep) {
  BatchRequest request = Request(Prompt(2, 1), 1);
  request.tokens = Prompt(2, 1025);  // 1,024 cached tokens, none in a block
  request.max_tokens = 3;
  EXPECT_EQ(MaxPages(request), 3);
  request.max_tokens = 100;
  EXPECT_EQ(MaxPages(request), 8);
}

TEST_F(SequenceRunTest, ItsChainIsItsBlocksOrElseItsWindow) {
  const BatchRequest request = Request(Prompt(3, 600), 1, {.preset = "pkv2"});
  ASSERT_EQ(request.num_blocks, 4);
  std::vector<Digest> blocks;
  for (int i = 0; i < 4; ++i) blocks.push_back(request.keys[request.num_tables + i].id);
  EXPECT_EQ(SequenceRun(1, request).Chain(), blocks);
  const BatchRequest small = Request(Prompt(3, 100), 1, {.preset = "pkv2"});
  ASSERT_EQ(small.num_blocks, 0);
  EXPECT_THAT(SequenceRun(1, small).Chain(), ElementsAre(small.keys.back().id));
  EXPECT_TRUE(SequenceRun(1, Request(Prompt(3, 1), 1)).Chain().empty());
}

TEST_F(SequenceRunTest, FetchesWhatIsNotResidentAndTheFirstBlockInAnyCase) {
  const BatchRequest request = Request(Prompt(3, 600), 200, {.preset = "pkv2"});
  ASSERT_EQ(request.num_blocks, 4);
  SequenceRun run(7, request);
  ASSERT_EQ(run.max_pages, 6);
  run.Place(2, Resident(4, {0, 2}), {10, 11, 12, 13});
  EXPECT_EQ(run.slot, 2);
  EXPECT_THAT(run.pages, ElementsAre(50, 10, 52, 11, 12, 13));
  const EnginePrefix prefix = run.Prefix();
  EXPECT_THAT(prefix.pages, ElementsAre(50, 10, 52, 11));
  EXPECT_THAT(prefix.fetched, ElementsAre(0, 1, 3));
  EXPECT_EQ(prefix.num_tables, 1);
  EXPECT_EQ(prefix.num_window_tokens, 87);
  for (const int block : {0, 1, 2, 3}) {
    EXPECT_EQ(prefix.resident[block].has_value(), block % 2 == 0);
  }
  // Table, blocks 0, 1 and 3, window.
  const std::vector<ObjectKey>& keys = request.keys;
  EXPECT_THAT(run.FetchedKeys(), ElementsAre(keys[0], keys[1], keys[2], keys[4], keys[5]));
}

TEST_F(SequenceRunTest, FetchesNothingOfAPromptOfOneToken) {
  SequenceRun run(1, Request(Prompt(4, 1), 5));
  run.Place(0, {}, {});
  EXPECT_TRUE(run.FetchedKeys().empty());
  EXPECT_TRUE(run.Prefix().fetched.empty());
  EXPECT_TRUE(run.cached_prompt().empty());
}

TEST_F(SequenceRunTest, EndsAfterMaxTokensOrAnEndToken) {
  BatchRequest request = Request(Prompt(5, 10), 3);
  request.end_tokens = {7};
  std::vector<int32_t> taken;
  request.on_token = [&taken](const SampledToken& token) {
    taken.push_back(token.token_id);
    return absl::OkStatus();
  };
  SequenceRun by_count(1, request), by_token(2, request);
  StepOutput output;
  for (const int token : {1, 2, 3}) {
    EXPECT_FALSE(by_count.ended.has_value());
    output.greedy_token = token;
    by_count.TakeToken(output);
    EXPECT_EQ(by_count.NextStep().token, token);
  }
  ASSERT_TRUE(by_count.ended.has_value());
  EXPECT_THAT(*by_count.ended, IsOk());
  output.greedy_token = 7;
  by_token.TakeToken(output);
  ASSERT_TRUE(by_token.ended.has_value());
  EXPECT_THAT(taken, ElementsAre(1, 2, 3, 7));
}

TEST_F(SequenceRunTest, EndsWithTheErrorOfLogitsThatAreNone) {
  BatchRequest request = Request(Prompt(6, 10), 3);
  request.sampling.temperature = 1;
  request.on_token = [](const SampledToken&) { return absl::OkStatus(); };
  SequenceRun run(1, request);
  EXPECT_TRUE(run.NextStep().wants_logits);
  const std::vector<float> logits = {0, std::numeric_limits<float>::quiet_NaN()};
  StepOutput output;
  output.logits = logits;
  run.TakeToken(output);
  ASSERT_TRUE(run.ended.has_value());
  EXPECT_THAT(*run.ended, StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace pkv
