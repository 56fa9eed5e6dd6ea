#include "worker/eval/reference_run.h"

#include <gtest/gtest.h>

#include <cmath>

#include "proto/base/float16.h"
#include "tests/support/error_bound.h"
#include "tests/unit/worker/eval/evaluation_driver.h"

namespace pkv {
namespace {

class ReferenceRunTest : public EvaluationTest {
 protected:
  static ScoringOptions Scoring(Protocol protocol) {
    ScoringOptions options = Options({}, protocol).scoring;
    options.score_tokens = 100;
    return options;
  }
  static std::unique_ptr<ReferenceRun> Run(const ScoringOptions& options,
                                           std::span<const int32_t> passage) {
    const std::unique_ptr<LlamaModel> model = host_->MakeReplica();
    auto run = RunReference(*host_, *model, passage, options);
    PKV_CHECK(run.ok(), run.status().ToString());
    return *std::move(run);
  }
  const std::vector<int32_t> passage_ = RandomPrompt(1, 401);
};

TEST_F(ReferenceRunTest, KeepsKAndVAndQueriesOfEveryToken) {
  for (const Protocol protocol : {Protocol::kPrefix, Protocol::kDecode}) {
    const auto run = Run(Scoring(protocol), passage_);
    for (int layer = 0; layer < shape().num_layers; ++layer) {
      EXPECT_EQ(run->kv.num_tokens(layer), 400);
      EXPECT_EQ(run->prefix_queries.num_tokens(layer), 300);
      EXPECT_EQ(run->scored_queries.num_tokens(layer), 100);
      EXPECT_EQ(run->query_moments[layer].size(), 2u);
      // Scored tokens 0, 16, .. 96.
      EXPECT_EQ(run->sampled_q[layer].size(), 7u * 4 * 128);
      EXPECT_EQ(run->sampled_out[layer].size(), run->sampled_q[layer].size());
    }
    EXPECT_EQ(run->logits.num_tokens(), 100);
  }
}

TEST_F(ReferenceRunTest, ScoresAlikeInOnePassAndInSteps) {
  const auto prefix = Run(Scoring(Protocol::kPrefix), passage_);
  const auto decode = Run(Scoring(Protocol::kDecode), passage_);
  for (int token = 0; token < 100; ++token) {
    // The same attention in other orders: a bound for sums of this length, many layers generous.
    EXPECT_NEAR(decode->logits.norm(token), prefix->logits.norm(token), SumBound(4096, 1)) << token;
  }
  const auto k_prefix = prefix->kv.layer(0), k_decode = decode->kv.layer(0);
  EXPECT_TRUE(std::equal(k_prefix.k_row(1, 0), k_prefix.k_row(1, 400), k_decode.k_row(1, 0)))
      << "layer 0 has seen no attention";
}

TEST_F(ReferenceRunTest, SamplesTheQueriesThatItCaptured) {
  const auto run = Run(Scoring(Protocol::kDecode), passage_);
  const std::vector<float> captured = run->scored_queries.Token(1, 2 * kAttentionStride);
  for (size_t i = 0; i < captured.size(); ++i) {
    const float sampled = run->sampled_q[1][2 * captured.size() + i];
    EXPECT_EQ(captured[i], Float16ToFloat(FloatToFloat16(sampled)));
  }
}

TEST_F(ReferenceRunTest, CompressesThePrefixAsPrefillDoes) {
  const auto run = Run(Scoring(Protocol::kPrefix), passage_);
  const auto params = PresetByName("default", shape());
  ASSERT_THAT(params, IsOk());
  const std::span<const int32_t> prefix = std::span(passage_).first(300);
  auto compressed = host_->MakeReplicaSequence(*params);
  ASSERT_THAT(compressed, IsOk());
  ASSERT_THAT(CompressPrefix(run->kv, *run->queries, prefix, **compressed), IsOk());

  auto prefilled = host_->MakeSequence(*params);
  ASSERT_THAT(prefilled, IsOk());
  ASSERT_THAT(ComputePrefill(*host_, **prefilled, prefix, nullptr), IsOk());
  ASSERT_THAT((*prefilled)->StartBlocks(1, Phase::kPrefill, prefix, false), IsOk());
  for (int layer = 0; layer < shape().num_layers; ++layer) {
    ASSERT_THAT((*prefilled)->EncodeLayer(layer), IsOk());
  }
  ASSERT_THAT((*prefilled)->FinishBlocks(), IsOk());

  ASSERT_EQ((*compressed)->num_blocks(), 1) << "300 tokens, of which 128 stay";
  EXPECT_EQ((*compressed)->window_tokens(), 172);
  const auto made = (*compressed)->made_objects().blocks[0]->bytes();
  const auto expected = (*prefilled)->made_objects().blocks[0]->bytes();
  EXPECT_TRUE(std::equal(made.begin(), made.end(), expected.begin(), expected.end()));
}

TEST_F(ReferenceRunTest, TellsHowManyBlocksEachScoredTokenSaw) {
  const ScoringOptions options = Scoring(Protocol::kDecode);
  const auto run = Run(options, passage_);
  const auto params = PresetByName("kivi2", shape());
  auto sequence = host_->MakeReplicaSequence(*params);
  ASSERT_THAT(sequence, IsOk());
  const std::span<const int32_t> tokens(passage_);
  ASSERT_THAT(CompressPrefix(run->kv, *run->queries, tokens.first(300), **sequence), IsOk());
  const std::unique_ptr<LlamaModel> model = host_->MakeReplica();
  const auto scored = ScoreTokens(*model, tokens, options, **sequence, **sequence);
  ASSERT_THAT(scored, IsOk());
  // 300 + 96 tokens: the step that ends there is the first to leave 128 in the window.
  std::vector<int> expected(100, 2);
  std::fill(expected.begin() + 96, expected.end(), 3);
  EXPECT_EQ(scored->num_blocks, expected);
}

}  // namespace
}  // namespace pkv
