#include "tests/bench/attention_case.h"

#include <gmock/gmock.h>

#include "tests/support/block_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;

std::string ErrorOf(absl::string_view text) {
  return std::string(ParseAttentionCase(text).status().message());
}

TEST(AttentionCaseTest, ReadsWhatItNames) {
  std::vector<AttentionCase> cases = DefaultAttentionCases();
  for (const AttentionCase& c : ExtraAttentionCases()) cases.push_back(c);
  cases.push_back({.batch = 3, .context_tokens = 1000, .num_qo_heads = 28, .num_kv_heads = 4});
  for (const AttentionCase& c : cases) {
    const auto parsed = ParseAttentionCase(c.Name());
    ASSERT_THAT(parsed, IsOk()) << c.Name();
    EXPECT_EQ(*parsed, c) << c.Name();
  }
}

TEST(AttentionCaseTest, NamesOnlyWhatDiffersFromTheDefaults) {
  EXPECT_EQ((AttentionCase{.batch = 8, .context_tokens = 32768}).Name(), "8x32k");
  EXPECT_EQ((AttentionCase{.batch = 1, .context_tokens = 1000, .mixed = true}).Name(),
            "1x1000,mixed");
}

TEST(AttentionCaseTest, RefusesWhatItCannotReadByName) {
  EXPECT_THAT(ErrorOf("8"), HasSubstr("BATCHxCONTEXT"));
  EXPECT_THAT(ErrorOf("0x4k"), HasSubstr("batch '0'"));
  EXPECT_THAT(ErrorOf("1x4m"), HasSubstr("context '4m'"));
  EXPECT_THAT(ErrorOf("1x999999k"), HasSubstr("1..16384"));
  EXPECT_THAT(ErrorOf("1x4k,heads=3"), HasSubstr("'heads=3' is none of"));
  EXPECT_THAT(ErrorOf("1x4k,d=96"), HasSubstr("96"));
  EXPECT_THAT(ErrorOf("1x4k,q=12"), HasSubstr("q=12 is no multiple of kv=8"));
}

TEST(PlanLengthsTest, FillsTheWindowFirstThenWholeBlocks) {
  const auto only = [](int context, int window) {
    return PlanLengths({.batch = 1, .context_tokens = context}, window, 1)[0];
  };
  EXPECT_EQ(only(32768, 128).num_blocks, 255);
  EXPECT_EQ(only(32768, 128).num_window_tokens, 128);
  EXPECT_EQ(only(128, 128).num_blocks, 0);
  EXPECT_EQ(only(1, 128).num_window_tokens, 1);
  EXPECT_EQ(only(128 + 63, 128).num_blocks, 0) << "rounded down";
  EXPECT_EQ(only(128 + 64, 128).num_blocks, 1) << "rounded up";
}

TEST(PlanLengthsTest, MixesLengthsFromOneToTwiceTheMean) {
  const AttentionCase c = {.batch = 4000, .context_tokens = 1280, .mixed = true};
  int least = 1 << 30, most = 0;
  double sum = 0;
  for (const RequestLength& length : PlanLengths(c, 128, 1)) {
    ASSERT_GE(length.num_window_tokens, 1);
    const int tokens = 128 * length.num_blocks + length.num_window_tokens;
    least = std::min(least, tokens);
    most = std::max(most, tokens);
    sum += tokens;
  }
  EXPECT_LT(least, 128);
  EXPECT_GT(most, 2 * 1280 - 128);
  EXPECT_LE(most, 2 * 1280 + 64);
  // The mean of 4000 uniform lengths errs by 2560 / sqrt(12 * 4000) = 12: five times that.
  EXPECT_GT(sum / c.batch, 1280 - 60);
  EXPECT_LT(sum / c.batch, 1280 + 60);
}

TEST(LaunchBytesTest, CountsEveryCachedTokenOnce) {
  const AttentionCase c = {.batch = 2, .context_tokens = 4096};
  const auto lengths = PlanLengths(c, 128, 1);
  const LaunchBytes pkv2 = CountLaunchBytes(c, PresetFor("pkv2", c.kv_shape()), lengths);
  // A token and head: 64 bytes of codes, 4 of K's scales and zero points, 4 of V's, 2 ids.
  EXPECT_EQ(pkv2.blocks, int64_t{2} * 31 * 128 * 8 * 74);
  EXPECT_EQ(pkv2.windows, int64_t{2} * 128 * 8 * 512);
  EXPECT_EQ(pkv2.sinks, 0);
  EXPECT_EQ(pkv2.banks, int64_t{2} * 64 * 8 * 256);
  EXPECT_EQ(pkv2.queries, 2 * (2 * 32 * 256 + 8 * 512));
  EXPECT_EQ(pkv2.own(), pkv2.blocks + pkv2.windows);
  const LaunchBytes fp16 = CountLaunchBytes(c, PresetFor("fp16", c.kv_shape()), lengths);
  EXPECT_EQ(fp16.own(), int64_t{2} * 4096 * 8 * 512);
  EXPECT_EQ(fp16.banks, 0);
}

TEST(LaunchBytesTest, CountsSinksOfRequestsWithBlocks) {
  const AttentionCase c = {.batch = 3, .context_tokens = 4096};
  const CodecParams params = PresetFor("default", c.kv_shape());
  std::vector<RequestLength> lengths = PlanLengths(c, 128, 1);
  EXPECT_EQ(CountLaunchBytes(c, params, lengths).sinks, int64_t{3} * 16 * 8 * 512);
  lengths[1] = {.num_blocks = 0, .num_window_tokens = 5};
  EXPECT_EQ(CountLaunchBytes(c, params, lengths).sinks, int64_t{2} * 16 * 8 * 512);
}

TEST(LaunchBytesTest, CountsFourOperationsPerHeadTokenAndChannel) {
  const AttentionCase c = {.batch = 2, .context_tokens = 4096};
  EXPECT_EQ(CountOperations(c, PlanLengths(c, 128, 1)), 4.0 * 2 * 4096 * 32 * 128);
}

TEST(PlanCopiesTest, PutsWholeLaunchesBetweenTwoUses) {
  EXPECT_EQ(PlanCopies(1'000'000'000, 60 << 20), 2);
  EXPECT_EQ(PlanCopies(300'000'000, 60 << 20), 2);
  EXPECT_EQ(PlanCopies(299'999'999, 60 << 20), 3);
  EXPECT_EQ(PlanCopies(1'000'000, 60 << 20), 301);
  EXPECT_EQ(PlanCopies(1'000'000, 200'000'000), 402) << "more than twice a larger L2";
}

}  // namespace
}  // namespace pkv
