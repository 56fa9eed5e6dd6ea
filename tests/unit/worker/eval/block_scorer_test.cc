#include "worker/eval/block_scorer.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/error_bound.h"
#include "tests/unit/worker/sequence/sequence_driver.h"
#include "worker/sequence/window_flush.h"

namespace pkv {
namespace {

constexpr int kTokens = 3 * kBlockTokens;

std::vector<float> Identity(int dim) {
  std::vector<float> moment(size_t(dim) * dim);
  for (int i = 0; i < dim; ++i) moment[size_t(i) * dim + i] = 1;
  return moment;
}

class BlockScorerTest : public testing::Test {
 protected:
  // Encodes kTokens random tokens and scores layer 0.
  LayerTotals Score(const std::string& preset,
                    const std::vector<std::vector<float>>& query_moments) {
    const CodecParams params = PresetFor(preset, kSequenceShape);
    const std::unique_ptr<KvSequence> sequence = MakeSequence(params);
    for (int layer = 0; layer < kSequenceShape.num_layers; ++layer) {
      sequence->AppendKv(layer, tensor_.view());
    }
    const std::vector<int32_t> tokens(kTokens, 1);
    EXPECT_THAT(EncodeBlocks(BlockTokensAfterPrefill(params, kTokens) / kBlockTokens,
                             Phase::kPrefill, tokens, *sequence),
                IsOk());
    const auto totals = ScoreBlocks(tensor_.view(), 0, query_moments, *sequence);
    EXPECT_THAT(totals, IsOk());
    return totals.ok() ? *totals : LayerTotals();
  }
  const std::vector<std::vector<float>> plain_{2, Identity(64)};
  const TestTensor tensor_ = RandomTensor(3, 2, kTokens, 64);
};

TEST_F(BlockScorerTest, SeesKAsItIsWhenEveryDirectionCountsAlike) {
  const LayerTotals totals = Score("kivi2", plain_);
  for (const HeadScore& head : totals.heads) {
    EXPECT_GT(head.k.error, 0);
    EXPECT_NEAR(head.k_seen.relative(), head.k.relative(), SumBound(kTokens * 64, 1));
    EXPECT_NEAR(head.k_seen.norm, head.k.norm, SumBound(kTokens * 64, head.k.norm));
  }
}

TEST_F(BlockScorerTest, SeesOnlyTheDirectionsThatQueriesHave) {
  std::vector<float> one_channel(64 * 64);
  one_channel[5 * 64 + 5] = 2;
  const LayerTotals totals = Score("kivi2", {one_channel, Identity(64)});
  double norm = 0;
  for (int t = 0; t < kTokens; ++t) {
    const double k = Float16ToFloat(tensor_.view().k_row(0, t)[5]);
    norm += 2 * k * k;
  }
  EXPECT_NEAR(totals.heads[0].k_seen.norm, norm, SumBound(kTokens, norm));
  EXPECT_LT(totals.heads[0].k_seen.error, 2 * totals.heads[0].k.error);
}

TEST_F(BlockScorerTest, CountsEveryCodeAndIdOnceWithoutSinksAndFineCodes) {
  for (const char* preset : {"default", "default4"}) {
    const CodecParams params = PresetFor(preset, kSequenceShape);
    const Encoding& encoding = params.encoding;
    const LayerTotals totals = Score(preset, plain_);
    // 384 tokens keep 128 in the window; 16 of the other 256 are sinks.
    const int64_t vectors = 2 * (256 - 16);
    EXPECT_EQ(totals.gated, vectors);
    EXPECT_GT(totals.accepted, 0);
    EXPECT_LE(totals.accepted, vectors);
    for (const PatternUse* use : {&totals.k_patterns, &totals.v_patterns}) {
      const bool is_k = use == &totals.k_patterns;
      const int64_t fine = is_k ? int64_t{2} * 2 * encoding.k_fine_tokens : 0;
      int64_t codes = 0;
      for (const int64_t count : use->codes) {
        EXPECT_GE(count, 0);
        codes += count;
      }
      EXPECT_EQ(codes, (vectors - fine) * 64) << preset;
      const int patterns = is_k ? params.num_patterns_k : params.num_patterns_v;
      EXPECT_EQ(use->available, 2 * patterns);
      EXPECT_GT(use->used, 0);
      EXPECT_LE(use->used, use->available);
      EXPECT_LE(use->usage_bits / static_cast<double>(use->num_banks), std::log2(patterns));
      const int bits = is_k ? encoding.bits_k : encoding.bits_v;
      EXPECT_GT(use->code_bits(), bits - 1);
      EXPECT_LE(use->code_bits(), bits);
    }
  }
}

TEST_F(BlockScorerTest, FindsNoErrorAndNoCodesInFp16) {
  const LayerTotals totals = Score("fp16", plain_);
  EXPECT_EQ(totals.heads[1].k.error, 0);
  EXPECT_GT(totals.heads[1].k.norm, 0);
  EXPECT_EQ(totals.gated, 0);
  EXPECT_EQ(totals.k_patterns.code_bits(), 0);
  EXPECT_EQ(totals.k_patterns.num_banks, 0);
}

TEST_F(BlockScorerTest, AddsLayersUp) {
  const LayerTotals once = Score("pkv2", plain_);
  LayerTotals twice;
  twice.Add(once);
  twice.Add(once);
  EXPECT_EQ(twice.heads[1].v.error, 2 * once.heads[1].v.error);
  EXPECT_EQ(twice.heads[1].v.relative(), once.heads[1].v.relative());
  EXPECT_EQ(twice.gated, 2 * once.gated);
  EXPECT_EQ(twice.v_patterns.used, 2 * once.v_patterns.used);
  EXPECT_EQ(twice.v_patterns.code_bits(), once.v_patterns.code_bits());
}

TEST(EntropyBitsTest, IsThatOfTheFrequencies) {
  EXPECT_EQ(EntropyBits(std::vector<int64_t>{}), 0);
  EXPECT_EQ(EntropyBits(std::vector<int64_t>{0, 0}), 0);
  EXPECT_EQ(EntropyBits(std::vector<int64_t>{7, 0}), 0);
  EXPECT_EQ(EntropyBits(std::vector<int64_t>{3, 3, 3, 3}), 2);
  EXPECT_EQ(EntropyBits(std::vector<int64_t>{2, 1, 1}), 1.5);
}

}  // namespace
}  // namespace pkv
