#include "pkv/kernels/codec_params.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <set>

#include "tests/support/block_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr KvShape kShape = {2, 2, 128};

TEST(CodecParamsTest, EveryPresetIsValidForBothHeadDims) {
  for (const std::string& name : PresetNames()) {
    for (const int head_dim : {64, 128}) {
      const KvShape shape = {1, 1, head_dim};
      const auto params = PresetByName(name, shape);
      ASSERT_THAT(params, IsOk()) << name << " head_dim " << head_dim;
      EXPECT_THAT(params->Validate(shape), IsOk());
      EXPECT_EQ(params->name, name);
    }
  }
}

TEST(CodecParamsTest, UnknownPresetListsTheNames) {
  EXPECT_THAT(PresetByName("kivi3", kShape),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("kivi2-g64")));
}

TEST(CodecParamsTest, VGroupsAreNoWiderThanTheHead) {
  EXPECT_EQ(PresetFor("pkv2", {1, 1, 64}).encoding.v_group_channels, 64);
  EXPECT_EQ(PresetFor("pkv2", {1, 1, 128}).encoding.v_group_channels, 128);
  EXPECT_EQ(PresetFor("kivi4-g32", {1, 1, 64}).encoding.v_group_channels, 32);
}

TEST(CodecParamsTest, ParityPresetIsThatOfThePaper) {
  const CodecParams p = PresetFor("pkv2", kShape);
  EXPECT_EQ(p.encoding, (Encoding{2, 2, 128, 128, true}));
  EXPECT_EQ(p.num_patterns_k, 32);
  EXPECT_EQ(p.num_patterns_v, 32);
  EXPECT_EQ(p.kmeans_iterations, 30);
  EXPECT_EQ(p.kmeans_tolerance, 1e-4);
  EXPECT_EQ(p.assign_k_prefill, AssignMetric::kL2);
  EXPECT_EQ(p.assign_k_decode, AssignMetric::kMinMax);
  EXPECT_EQ(p.clip_v, Clip::kNone);
  EXPECT_EQ(p.assign_v_prefill, AssignMetric::kL2);
  EXPECT_EQ(p.assign_v_decode, AssignMetric::kMinMax);
  EXPECT_EQ(p.gate_v, Gate::kZTest);
  EXPECT_EQ(p.gate_alpha, 0.05);
  EXPECT_TRUE(p.append_k && p.append_v);
  EXPECT_EQ(p.window_rule, WindowRule::kTail);
  EXPECT_EQ(p.num_sinks, 0);
}

TEST(CodecParamsTest, DigestIgnoresTheNameAndSeesEveryOtherField) {
  CodecParams base = PresetFor("default", kShape);
  CodecParams renamed = base;
  renamed.name = "other";
  EXPECT_EQ(renamed.Digest(), base.Digest());

  const std::vector<std::function<void(CodecParams&)>> changes = {
      [](CodecParams& p) { p.encoding.bits_k = 4; },
      [](CodecParams& p) { p.encoding.bits_v = 4; },
      [](CodecParams& p) { p.encoding.k_fine_tokens = 0; },
      [](CodecParams& p) { p.encoding.rotated = false; },
      [](CodecParams& p) { p.encoding.k_group_tokens = 64; },
      [](CodecParams& p) { p.encoding.v_group_channels = 64; },
      [](CodecParams& p) { p.encoding.has_patterns = false; },
      [](CodecParams& p) { p.num_patterns_k = 31; },
      [](CodecParams& p) { p.num_patterns_v = 31; },
      [](CodecParams& p) { p.kmeans_iterations = 29; },
      [](CodecParams& p) { p.kmeans_tolerance = 2e-4; },
      [](CodecParams& p) { p.assign_k_prefill = AssignMetric::kMinMax; },
      [](CodecParams& p) { p.assign_v_prefill = AssignMetric::kMinMax; },
      [](CodecParams& p) { p.assign_k_decode = AssignMetric::kL2; },
      [](CodecParams& p) { p.assign_v_decode = AssignMetric::kL2; },
      [](CodecParams& p) { p.gate_v = Gate::kExactMse; },
      [](CodecParams& p) { p.gate_alpha = 0.01; },
      [](CodecParams& p) { p.clip_k = Clip::kNone; },
      [](CodecParams& p) { p.clip_k_floor = 0.7; },
      [](CodecParams& p) { p.clip_v = Clip::kNone; },
      [](CodecParams& p) { p.unbiased_k = false; },
      [](CodecParams& p) { p.unbiased_v = false; },
      [](CodecParams& p) { p.feedback_k = false; },
      [](CodecParams& p) { p.feedback_damping = 0.02; },
      [](CodecParams& p) { p.append_k = true; },
      [](CodecParams& p) { p.append_v = false; },
      [](CodecParams& p) { p.num_sinks = 4; },
      [](CodecParams& p) { p.window_rule = WindowRule::kTail; },
      [](CodecParams& p) { p.recent_tokens = 64; },
  };
  std::set<uint64_t> digests = {base.Digest()};
  for (const auto& change : changes) {
    CodecParams changed = base;
    change(changed);
    digests.insert(changed.Digest());
  }
  EXPECT_EQ(digests.size(), changes.size() + 1);
}

// Each case names the field that is wrong.
struct BadParams {
  const char* field;
  std::function<void(CodecParams&)> change;
};

TEST(CodecParamsTest, ValidateNamesTheFieldAndItsValue) {
  const std::vector<BadParams> cases = {
      {"name \"\"", [](CodecParams& p) { p.name.clear(); }},
      {"name \"Pkv2\"", [](CodecParams& p) { p.name = "Pkv2"; }},
      {"name \"sixteen-letters-\"", [](CodecParams& p) { p.name = "sixteen-letters-"; }},
      {"bits_k 3", [](CodecParams& p) { p.encoding.bits_k = 3; }},
      {"num_patterns_k 256", [](CodecParams& p) { p.num_patterns_k = 256; }},
      {"num_patterns_v -1", [](CodecParams& p) { p.num_patterns_v = -1; }},
      {"kmeans_iterations 0", [](CodecParams& p) { p.kmeans_iterations = 0; }},
      {"kmeans_tolerance -1", [](CodecParams& p) { p.kmeans_tolerance = -1; }},
      {"gate_alpha 0", [](CodecParams& p) { p.gate_alpha = 0; }},
      {"gate_alpha 0.5", [](CodecParams& p) { p.gate_alpha = 0.5; }},
      {"has_patterns false", [](CodecParams& p) { p.encoding.has_patterns = false; }},
      {"k_fine_tokens 16", [](CodecParams& p) { p.encoding.bits_k = 4; }},
      {"k_fine_tokens 8", [](CodecParams& p) { p.encoding.k_fine_tokens = 8; }},
      {"clip_k_floor 0.3", [](CodecParams& p) { p.clip_k_floor = 0.3; }},
      {"clip_k_floor 0.75", [](CodecParams& p) { p.clip_k_floor = 0.75; }},
      {"clip_k_floor 1.1", [](CodecParams& p) { p.clip_k_floor = 1.1; }},
      {"clip_k_floor nan", [](CodecParams& p) { p.clip_k_floor = NAN; }},
      {"feedback_damping 0", [](CodecParams& p) { p.feedback_damping = 0; }},
      {"feedback_damping 11", [](CodecParams& p) { p.feedback_damping = 11; }},
      {"feedback_damping nan", [](CodecParams& p) { p.feedback_damping = NAN; }},
      {"num_sinks 15", [](CodecParams& p) { p.num_sinks = 15; }},
      {"recent_tokens 1025", [](CodecParams& p) { p.recent_tokens = 1025; }},
      {"recent_tokens 128", [](CodecParams& p) { p.window_rule = WindowRule::kTail; }},
  };
  for (const BadParams& c : cases) {
    CodecParams params = PresetFor("default", kShape);
    ASSERT_THAT(params.Validate(kShape), IsOk());
    c.change(params);
    EXPECT_THAT(params.Validate(kShape),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c.field)));
  }
}

TEST(CodecParamsTest, AppendingNeedsPatterns) {
  CodecParams params = PresetFor("kivi2", kShape);
  params.append_v = true;
  EXPECT_THAT(params.Validate(kShape),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("append_v")));
}

TEST(CodecParamsTest, Fp16TakesNothingThatShapesCodes) {
  const std::vector<std::function<void(CodecParams&)>> changes = {
      [](CodecParams& p) { p.num_sinks = 16; },
      [](CodecParams& p) { p.clip_k = Clip::kSearch; },
      [](CodecParams& p) { p.clip_v = Clip::kSearch; },
      [](CodecParams& p) { p.unbiased_k = true; },
      [](CodecParams& p) { p.unbiased_v = true; },
      [](CodecParams& p) { p.feedback_k = true; },
  };
  for (const auto& change : changes) {
    CodecParams params = PresetFor("fp16", kShape);
    change(params);
    EXPECT_THAT(params.Validate(kShape),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("fp16 takes no num_sinks")));
  }
}

TEST(CodecParamsTest, DefaultsDifferInEncodingPatternsAndClipFloorAlone) {
  CodecParams two = PresetFor("default", kShape);
  EXPECT_EQ(two.encoding, (Encoding{2, 2, 128, 128, true, kFineTokens, true}));
  const CodecParams four = PresetFor("default4", kShape);
  EXPECT_EQ(four.encoding, (Encoding{4, 4, 128, 128, true, 0, true}));
  two.encoding = four.encoding;
  two.num_patterns_k = four.num_patterns_k;
  two.num_patterns_v = four.num_patterns_v;
  two.clip_k_floor = four.clip_k_floor;
  EXPECT_EQ(two.Digest(), four.Digest());
}

// Plays prefill and 300 decode steps; says where each token stands.
class WindowRuleTest : public testing::TestWithParam<std::string> {
 protected:
  const CodecParams params_ = PresetFor(GetParam(), kShape);
  const int kept_ = params_.window_rule == WindowRule::kRolling ? params_.recent_tokens : 0;
};

TEST_P(WindowRuleTest, KeepsTheNewestTokensAndFlushesWholeBlocksAtOnce) {
  for (const int prompt : {0, 1, 31, 127, 128, 129, 255, 256, 257, 383, 384, 385}) {
    int in_blocks = BlockTokensAfterPrefill(params_, prompt);
    ASSERT_EQ(in_blocks % kBlockTokens, 0);
    ASSERT_GE(in_blocks, 0);
    ASSERT_LE(in_blocks, std::max(prompt - kept_, 0));
    // What stays is what is kept and less than a block more.
    ASSERT_LT(prompt - in_blocks, kept_ + kBlockTokens) << "prompt " << prompt;
    for (int step = 1; step <= 300; ++step) {
      const int num_tokens = prompt + step;
      const int before = in_blocks;
      in_blocks = BlockTokensAfterDecodeStep(params_, num_tokens, in_blocks);
      const int window = num_tokens - in_blocks;
      const bool flush_due = num_tokens - before == kept_ + kBlockTokens;
      ASSERT_EQ(in_blocks - before, flush_due ? kBlockTokens : 0)
          << "prompt " << prompt << " step " << step;
      ASSERT_GE(window, std::min(kept_, num_tokens));
      ASSERT_LT(window, kept_ + kBlockTokens);
    }
  }
}

TEST_P(WindowRuleTest, PrefillAndDecodeAgreeOnEveryLength) {
  int in_blocks = 0;
  for (int num_tokens = 1; num_tokens <= 700; ++num_tokens) {
    in_blocks = BlockTokensAfterDecodeStep(params_, num_tokens, in_blocks);
    ASSERT_EQ(in_blocks, BlockTokensAfterPrefill(params_, num_tokens)) << num_tokens;
  }
}

INSTANTIATE_TEST_SUITE_P(Presets, WindowRuleTest,
                         testing::Values("pkv2", "default", "default4", "kivi2"));

}  // namespace
}  // namespace pkv
