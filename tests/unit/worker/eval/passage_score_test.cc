#include "worker/eval/passage_score.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/error_bound.h"
#include "tests/unit/worker/eval/evaluation_driver.h"

namespace pkv {
namespace {

class PassageScoreTest : public EvaluationTest {
 protected:
  static RowScore Score(const std::string& row, Protocol protocol = Protocol::kPrefix,
                        int score_tokens = 16, int step_tokens = 16) {
    EvaluationOptions options = Options({row}, protocol);
    options.scoring.score_tokens = score_tokens;
    options.scoring.step_tokens = step_tokens;
    return Evaluated(options).rows.at(0).overall;
  }
};

TEST_F(PassageScoreTest, FindsNoDifferenceInAnFp16Cache) {
  for (const Protocol protocol : {Protocol::kPrefix, Protocol::kDecode}) {
    const RowScore score = Score("fp16", protocol, /*score_tokens=*/200);
    EXPECT_EQ(score.logits.kl, 0) << "exactly: the same values in the same order";
    EXPECT_EQ(score.logits.kl_p99, 0);
    EXPECT_EQ(score.logits.top1_agreement, 1);
    EXPECT_EQ(score.logits.top5_agreement, 1);
    EXPECT_EQ(score.perplexity_change, 0);
    EXPECT_EQ(score.kl_standard_error, 0);
    EXPECT_EQ(score.k_error, 0);
    EXPECT_EQ(score.v_error, 0);
    EXPECT_EQ(score.k_seen_error, 0);
    // Pages and dense tiles sum in different orders: relative roundings, squared.
    EXPECT_LE(score.attention_error, std::pow(SumBound(1024, 1), 2));
    EXPECT_EQ(score.gate_accepted, 0);
    EXPECT_EQ(score.bits_per_element, 16);
    EXPECT_EQ(score.scored_tokens, 400);
  }
}

TEST_F(PassageScoreTest, CountsTheBitsOfCodesScalesZeroPointsAndIds) {
  // A code; 32 bits of scale and zero point for each 128 codes; 8 bits of id for each 128.
  EXPECT_EQ(Score("kivi2").bits_per_element, 2.25);
  EXPECT_EQ(Score("pkv2").bits_per_element, 2.3125);
  EXPECT_EQ(Score("pkv4").bits_per_element, 4.3125);
}

TEST_F(PassageScoreTest, CountsAllInWhatObjectsAndWindowTake) {
  // 300 tokens: two blocks in headed objects of 3 * 128 + 2 frames, 44 tokens in fp16.
  const double token_elements = 2.0 * 2 * 2 * 128;  // K and V, layers, kv heads, head_dim
  const double block_bytes = 384 + (2.25 / 8) * token_elements * kBlockTokens;
  const double bytes = 2 * block_bytes + 44 * token_elements * 2;
  const RowScore score = Score("kivi2");
  EXPECT_EQ(score.bits_all_in, 8 * bytes / (300 * token_elements));
  EXPECT_EQ(score.bits_all_in_long, 8 * block_bytes / (kBlockTokens * token_elements))
      << "32,768 tokens are blocks alone";
}

TEST_F(PassageScoreTest, CountsTheTableOnceWhenExtrapolating) {
  const double token_elements = 2.0 * 2 * 2 * 128;
  const double patterns_bytes = 64.0 * 2 * 2 * 128 * 2;  // 32 K and 32 V a head, two heads, layers
  const double table_bytes = 384 + patterns_bytes;
  const double block_bytes = 384 + (2.3125 / 8) * token_elements * kBlockTokens;
  EXPECT_EQ(Score("pkv2").bits_all_in_long,
            8 * (256 * block_bytes + table_bytes) / (kLongTokens * token_elements));
}

TEST_F(PassageScoreTest, DecodesAsThePrefixProtocolUntilABlockIsMade) {
  // 300 tokens leave 44 in the window; 83 more fill no block. One pass and steps of 16 sum
  // attention in the same order, token by token.
  const RowScore prefix = Score("pkv2", Protocol::kPrefix, 83);
  const RowScore decode = Score("pkv2", Protocol::kDecode, 83);
  EXPECT_NEAR(decode.logits.kl, prefix.logits.kl, SumBound(4096, 1));
  EXPECT_EQ(decode.k_error, prefix.k_error);
  EXPECT_EQ(decode.gate_accepted, prefix.gate_accepted);
  // All 383 tokens count, not the prefix alone.
  EXPECT_GT(decode.bits_all_in, prefix.bits_all_in) << "the window is larger";
}

TEST_F(PassageScoreTest, FlushesTheWindowWhileDecoding) {
  // 300 + 212 tokens are four blocks of 128, two of them made while decoding.
  const RowScore decode = Score("pkv2", Protocol::kDecode, 212);
  const RowScore prefix = Score("pkv2", Protocol::kPrefix, 212);
  const auto vectors = [](const RowScore& score) {
    return static_cast<double>(score.layers[0].gated) / (2.0 * 2);  // passages, kv heads
  };
  EXPECT_EQ(vectors(prefix), 256);
  EXPECT_EQ(vectors(decode), 512);
  // Each block flushed adds a pattern of K and V: 2 heads, 2 passages.
  EXPECT_EQ(prefix.layers[0].k_patterns.available, 32 * 4);
  EXPECT_EQ(decode.layers[0].k_patterns.available, 34 * 4);
  EXPECT_LT(decode.bits_all_in, prefix.bits_all_in) << "no window is left";
  EXPECT_NE(decode.logits.kl, prefix.logits.kl);
}

TEST_F(PassageScoreTest, FlushesByTheSameRuleInStepsOfAnyLength) {
  for (const int step : {1, 7, 128}) {
    const RowScore score = Score("kivi2", Protocol::kDecode, 212, step);
    EXPECT_GT(score.logits.kl, 0);
    EXPECT_EQ(score.layers[0].heads.size(), 2u);
    const double code_count = 2.0 * 2 * 512 * 128;  // passages, kv heads, tokens, channels
    int64_t codes = 0;
    for (const int64_t count : score.layers[0].k_patterns.codes) codes += count;
    EXPECT_EQ(static_cast<double>(codes), code_count) << "step " << step;
  }
}

TEST_F(PassageScoreTest, SplitsTheScoredTokensIntoQuarters) {
  const RowScore score = Score("kivi2", Protocol::kPrefix, 100);
  double sum = 0;
  for (const LogitSummary& quarter : score.quarters) sum += quarter.kl / kNumQuarters;
  EXPECT_NEAR(sum, score.logits.kl, SumBound(16, sum));
}

TEST(SummariseTest, ComputesStandardErrorsOverPassages) {
  // Means 1 and 3: deviation sqrt(2), over sqrt(2) passages.
  PassageScore first, second;
  first.tokens = {{.kl = 0.5, .nll = 2, .reference_nll = 2}, {.kl = 1.5, .nll = 2}};
  second.tokens = {{.kl = 3, .nll = 3, .reference_nll = 1}};
  const PassageScore* passages[] = {&first, &second};
  const RowScore score = Summarise(CodecParams(), {2, 2, 128}, passages);
  EXPECT_EQ(score.kl_standard_error, 1);
  EXPECT_EQ(score.nll_difference_standard_error, 0.5);
  EXPECT_EQ(Summarise(CodecParams(), {2, 2, 128}, std::span(passages).first(1)).kl_standard_error,
            0)
      << "one passage has no spread";
}

}  // namespace
}  // namespace pkv
