#include "pkv/kernels/pattern_miner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/pattern/kmeans.h"
#include "kernels/pattern/mined_sample.h"
#include "proto/base/thread_pool.h"
#include "tests/support/block_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr KvShape kShape = {1, 3, 64};

TEST(MinePatternsTest, GivesTheCountsOfTheParams) {
  CodecParams params = PresetFor("pkv2", kShape);
  params.num_patterns_v = 7;
  const TestTensor tensor = RandomTensor(1, 3, 200, 64);
  const auto codebook = MinePatterns(tensor.view(), params, {});
  ASSERT_THAT(codebook, IsOk());
  EXPECT_EQ(codebook->num_k(), 32);
  EXPECT_EQ(codebook->num_v(), 7);
  EXPECT_EQ(codebook->num_kv_heads(), 3);
}

TEST(MinePatternsTest, FewerTokensThanPatternsAreMinedWhole) {
  const CodecParams params = PresetFor("pkv2", kShape);
  const TestTensor tensor = RandomTensor(2, 3, 5, 64);
  const auto codebook = MinePatterns(tensor.view(), params, {});
  ASSERT_THAT(codebook, IsOk());
  ASSERT_EQ(codebook->num_k(), 5);
  EXPECT_TRUE(std::ranges::equal(codebook->k(0), std::span(tensor.k).first(5 * 64)));
}

TEST(MinePatternsTest, NoTokensGiveAnEmptyCodebook) {
  const auto codebook = MinePatterns(TestTensor(3, 0, 64).view(), PresetFor("pkv2", kShape), {});
  ASSERT_THAT(codebook, IsOk());
  EXPECT_EQ(codebook->num_k(), 0);
  EXPECT_EQ(codebook->num_kv_heads(), 3);
}

TEST(MinePatternsTest, NoPatternsAskedForGiveAnEmptyCodebook) {
  const TestTensor tensor = RandomTensor(2, 3, 50, 64);
  const auto codebook = MinePatterns(tensor.view(), PresetFor("kivi2", kShape), {});
  ASSERT_THAT(codebook, IsOk());
  EXPECT_EQ(codebook->num_k() + codebook->num_v(), 0);
}

TEST(MinePatternsTest, EqualBitsWithAnyThreadPool) {
  const CodecParams params = PresetFor("default", kShape);
  const TestTensor tensor = RandomTensor(3, 3, 300, 64);
  ThreadPool pool(4);
  const auto alone = MinePatterns(tensor.view(), params, {});
  const auto shared = MinePatterns(tensor.view(), params, {.pool = &pool});
  ASSERT_THAT(alone, IsOk());
  ASSERT_THAT(shared, IsOk());
  for (int head = 0; head < 3; ++head) {
    EXPECT_TRUE(std::ranges::equal(alone->k(head), shared->k(head)));
    EXPECT_TRUE(std::ranges::equal(alone->v(head), shared->v(head)));
  }
}

TEST(MinedSampleTest, IsThePromptUpToTheLimit) {
  for (const int num_tokens : {1, 300, kMaxMinedTokens}) {
    ASSERT_EQ(NumMinedTokens(num_tokens), num_tokens);
    for (int i = 0; i < num_tokens; ++i) ASSERT_EQ(MinedToken(i, num_tokens), i);
  }
}

TEST(MinedSampleTest, StandsAtEqualStridesBeyondIt) {
  for (const int num_tokens : {kMaxMinedTokens + 1, 32768, 1 << 30}) {
    ASSERT_EQ(NumMinedTokens(num_tokens), kMaxMinedTokens);
    EXPECT_EQ(MinedToken(0, num_tokens), 0);
    const int stride = num_tokens / kMaxMinedTokens;
    for (int i = 1; i < kMaxMinedTokens; ++i) {
      const int step = MinedToken(i, num_tokens) - MinedToken(i - 1, num_tokens);
      ASSERT_TRUE(step == stride || step == stride + 1) << i << " of " << num_tokens;
    }
    EXPECT_LT(MinedToken(kMaxMinedTokens - 1, num_tokens), num_tokens);
  }
}

TEST(MinePatternsTest, OfALongPromptTheSampleAloneIsMined) {
  constexpr int kTokens = 2 * kMaxMinedTokens + 777;
  CodecParams params = PresetFor("pkv2", kShape);
  params.kmeans_iterations = 3;
  params.num_patterns_k = params.num_patterns_v = 5;
  const TestTensor prompt = RandomTensor(6, 1, kTokens, 64);
  TestTensor sample(1, kMaxMinedTokens, 64);
  for (int i = 0; i < kMaxMinedTokens; ++i) {
    const int64_t from = int64_t{i} * kTokens / kMaxMinedTokens * 64;
    std::copy_n(prompt.k.begin() + from, 64, sample.k.begin() + int64_t{i} * 64);
    std::copy_n(prompt.v.begin() + from, 64, sample.v.begin() + int64_t{i} * 64);
  }
  const auto of_prompt = MinePatterns(prompt.view(), params, {});
  const auto of_sample = MinePatterns(sample.view(), params, {});
  ASSERT_THAT(of_prompt, IsOk());
  ASSERT_THAT(of_sample, IsOk());
  EXPECT_TRUE(std::ranges::equal(of_prompt->k(0), of_sample->k(0)));
  EXPECT_TRUE(std::ranges::equal(of_prompt->v(0), of_sample->v(0)));
}

#ifndef PKV_WITH_CUDA
TEST(MinePatternsTest, NeedsABuildWithCudaForTheDevice) {
  const TestTensor tensor = RandomTensor(7, 3, 200, 64);
  EXPECT_THAT(MinePatterns(tensor.view(), PresetFor("pkv2", kShape), {.device = Device::kCuda}),
              StatusIs(absl::StatusCode::kUnimplemented));
}
#endif

TEST(MinePatternsTest, NamesThePlaceOfANaN) {
  TestTensor tensor = RandomTensor(4, 3, 40, 64);
  tensor.v[(2 * 40 + 11) * 64 + 5] = 0x7e00;
  EXPECT_THAT(MinePatterns(tensor.view(), PresetFor("pkv2", kShape), {}),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("V is nan at kv head 2, token 11, channel 5")));
}

// The stop rule: never after the first iteration, later when no head moved further.
TEST(MinePatternsTest, StopsByOneTestOverAllHeadsFromTheSecondIterationOn) {
  CodecParams params = PresetFor("pkv2", kShape);
  params.num_patterns_k = params.num_patterns_v = 8;
  params.kmeans_tolerance = 0.25;
  params.kmeans_iterations = 100;
  const TestTensor tensor = RandomTensor(5, 3, 400, 64);
  std::vector<KMeans> heads;
  for (int head = 0; head < 3; ++head) {
    heads.emplace_back(tensor.k.data() + head * 400 * 64, 400, 64, 8);
  }
  int iterations = 0;
  for (double move = 1e9; iterations < 2 || move > params.kmeans_tolerance; ++iterations) {
    move = 0;
    for (KMeans& head : heads) move = std::max(move, head.Iterate());
  }
  ASSERT_GE(iterations, 2);
  const auto codebook = MinePatterns(tensor.view(), params, {});
  ASSERT_THAT(codebook, IsOk());
  for (int head = 0; head < 3; ++head) {
    std::vector<uint16_t> want;
    for (const float c : heads[head].centroids()) want.push_back(FloatToFloat16(c));
    EXPECT_TRUE(std::ranges::equal(codebook->k(head), want)) << "after " << iterations;
  }
}

}  // namespace
}  // namespace pkv
