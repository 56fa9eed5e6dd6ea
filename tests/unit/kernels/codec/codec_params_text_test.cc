#include "pkv/kernels/codec_params_text.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/support/block_fixture.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

constexpr KvShape kShape = {2, 2, 128};

// Of "pkv.codec.v2", whose blocks have format 2.
constexpr uint64_t kFp16 = 0x3ad8fcc96e7d4b6, kKivi2 = 0x8d60a7eb1af1b2f6,
                   kPkv2 = 0x9f50b6b7faed6685;

TEST(CodecParamsTextTest, SetsEveryFieldOfEveryPresetFromItsText) {
  for (const std::string& name : PresetNames()) {
    const CodecParams preset = PresetFor(name, kShape);
    CodecParams params;
    for (const auto& [key, value] : ListCodecParams(preset)) {
      ASSERT_THAT(SetCodecParam(params, key, value), IsOk()) << name;
    }
    EXPECT_EQ(params.Digest(), preset.Digest()) << name;
    EXPECT_THAT(params.Validate(kShape), IsOk()) << name;
  }
}

TEST(CodecParamsTextTest, ListsEachKeyOnce) {
  std::set<std::string> keys;
  for (const auto& [key, value] : ListCodecParams(PresetFor("default", kShape))) {
    EXPECT_TRUE(keys.insert(key).second) << key;
    EXPECT_FALSE(value.empty()) << key;
  }
  EXPECT_TRUE(keys.contains("clip_v"));
}

TEST(CodecParamsTextTest, ChangesOnlyTheNamedField) {
  CodecParams params = PresetFor("default", kShape);
  const CodecParams before = params;
  ASSERT_THAT(SetCodecParam(params, "num_patterns_k", "64"), IsOk());
  EXPECT_EQ(params.num_patterns_k, 64);
  EXPECT_NE(params.Digest(), before.Digest());
  params.num_patterns_k = before.num_patterns_k;
  EXPECT_EQ(params.Digest(), before.Digest());
}

TEST(CodecParamsTextTest, KeepsTheDigestsThatStoredObjectsCarry) {
  EXPECT_EQ(PresetFor("fp16", kShape).Digest(), kFp16);
  EXPECT_EQ(PresetFor("kivi2", kShape).Digest(), kKivi2);
  EXPECT_EQ(PresetFor("pkv2", kShape).Digest(), kPkv2);
}

TEST(CodecParamsTextTest, UnknownKeyListsTheKeys) {
  CodecParams params;
  EXPECT_THAT(
      SetCodecParam(params, "clip", "none"),
      StatusIs(absl::StatusCode::kNotFound, AllOf(HasSubstr("\"clip\""), HasSubstr("clip_v"))));
}

TEST(CodecParamsTextTest, RefusalNamesKeyValueAndWhatIsAllowed) {
  CodecParams params = PresetFor("default", kShape);
  const uint64_t digest = params.Digest();
  const std::vector<std::vector<std::string>> cases = {
      {"num_patterns_k", "many", "num_patterns_k \"many\" is not an integer"},
      {"num_patterns_k", "1.5", "integer"},
      {"num_patterns_k", "99999999999", "integer"},
      {"gate_alpha", "nan", "gate_alpha \"nan\" is not a finite number"},
      {"append_v", "2", "append_v \"2\" is not in {0, 1, false, true}"},
      {"clip_k_floor", "low", "clip_k_floor \"low\" is not a finite number"},
      {"unbiased_k", "yes", "unbiased_k \"yes\" is not in {0, 1, false, true}"},
      {"clip_k", "on", "clip_k \"on\" is not in {none, search}"},
      {"clip_v", "", "clip_v \"\" is not in {none, search}"},
      {"gate_v", "exact", "{none, ztest, exactmse}"},
      {"window_rule", "sliding", "{tail, rolling}"},
      {"assign_k_decode", "L2", "{l2, minmax}"},
  };
  for (const std::vector<std::string>& c : cases) {
    EXPECT_THAT(SetCodecParam(params, c[0], c[1]),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(c[2])));
  }
  EXPECT_EQ(params.Digest(), digest) << "a refused value changes nothing";
}

}  // namespace
}  // namespace pkv
