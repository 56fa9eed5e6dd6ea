#include "pkv/block/prefix_hash.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;

// Vectors computed apart from this code; they never change.
const nlohmann::json& GoldenVectors() {
  static const nlohmann::json* const vectors = [] {
    std::ifstream file(std::string(std::getenv("PKV_SOURCE_DIR")) +
                       "/tests/golden/v1/identity.json");
    return new nlohmann::json(nlohmann::json::parse(file));
  }();
  return *vectors;
}

Digest FromHex(const nlohmann::json& hex) {
  return Digest::FromHex(hex.get<std::string>()).value();
}

ModelProfile BaseProfile() {
  return {.shape = {32, 8, 128}, .rope_theta = 500000.0, .weights = Sha256({}), .adapter = ""};
}

std::vector<int32_t> Tokens(int count) {
  std::vector<int32_t> tokens(count);
  std::iota(tokens.begin(), tokens.end(), 1000);
  return tokens;
}

TEST(ModelProfileTest, DigestsAreTheGoldenOnes) {
  ASSERT_FALSE(GoldenVectors()["profiles"].empty());
  for (const nlohmann::json& vector : GoldenVectors()["profiles"]) {
    const ModelProfile profile{
        .shape = {vector["num_layers"], vector["num_kv_heads"], vector["head_dim"]},
        .rope_theta = vector["rope_theta"],
        .weights = FromHex(vector["weights"]),
        .adapter = vector["adapter"]};
    EXPECT_EQ(profile.ComputeDigest().ToHex(), vector["digest"]) << vector["text"];
  }
}

TEST(ModelProfileTest, EveryFieldEntersTheDigest) {
  const Digest base = BaseProfile().ComputeDigest();
  std::vector<ModelProfile> changed(6, BaseProfile());
  changed[0].shape.num_layers = 33;
  changed[1].shape.num_kv_heads = 4;
  changed[2].shape.head_dim = 64;
  changed[3].rope_theta = 500000.0000000001;  // the next double
  changed[4].weights.bytes[31] ^= 1;
  changed[5].adapter = "a";
  for (size_t i = 0; i < changed.size(); ++i) EXPECT_NE(changed[i].ComputeDigest(), base) << i;
}

TEST(PrefixIdTest, IdsAreTheGoldenOnes) {
  ASSERT_FALSE(GoldenVectors()["prefixes"].empty());
  for (const nlohmann::json& vector : GoldenVectors()["prefixes"]) {
    EXPECT_THAT(BlockPrefixId(FromHex(vector["profile"]), FromHex(vector["parent"]),
                              vector["tokens"].get<std::vector<int32_t>>()),
                IsOkAndHolds(FromHex(vector["id"])));
  }
}

TEST(PrefixIdTest, RefusesEveryOtherNumberOfTokens) {
  for (const int count : {0, 127, 129, 256}) {
    EXPECT_THAT(BlockPrefixId({}, {}, Tokens(count)),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("token ids, not 128")));
  }
}

TEST(PrefixIdTest, EveryInputEntersTheId) {
  const Digest profile = BaseProfile().ComputeDigest();
  const Digest base = BlockPrefixId(profile, {}, Tokens(128)).value();
  EXPECT_NE(BlockPrefixId(base, {}, Tokens(128)).value(), base);
  EXPECT_NE(BlockPrefixId(profile, profile, Tokens(128)).value(), base);
  for (int i = 0; i < 128; ++i) {
    std::vector<int32_t> tokens = Tokens(128);
    tokens[i] ^= 1 << 30;
    ASSERT_NE(BlockPrefixId(profile, {}, tokens).value(), base) << i;
  }
}

TEST(PrefixIdsTest, ChainsTheFullBlocksAndLeavesTheRest) {
  const Digest profile = BaseProfile().ComputeDigest();
  const std::vector<int32_t> tokens = Tokens(2 * 128 + 127);
  const std::vector<Digest> ids = PrefixIds(profile, tokens);
  ASSERT_EQ(ids.size(), 2u);
  EXPECT_THAT(BlockPrefixId(profile, {}, std::span(tokens).first(128)), IsOkAndHolds(ids[0]));
  EXPECT_THAT(BlockPrefixId(profile, ids[0], std::span(tokens).subspan(128, 128)),
              IsOkAndHolds(ids[1]));
}

TEST(PrefixIdsTest, CountsFullBlocks) {
  for (const auto& [num_tokens, num_ids] :
       {std::pair(0, 0), {127, 0}, {128, 1}, {255, 1}, {256, 2}}) {
    EXPECT_EQ(PrefixIds({}, Tokens(num_tokens)).size(), static_cast<size_t>(num_ids));
  }
}

TEST(PrefixIdsTest, PromptsShareIdsAsFarAsTheyAgree) {
  const Digest profile = BaseProfile().ComputeDigest();
  std::vector<int32_t> tokens = Tokens(3 * 128);
  const std::vector<Digest> before = PrefixIds(profile, tokens);
  tokens[130] = 0;
  const std::vector<Digest> after = PrefixIds(profile, tokens);
  EXPECT_EQ(after[0], before[0]);
  EXPECT_NE(after[1], before[1]);
  EXPECT_NE(after[2], before[2]);  // its own tokens are the same: the chain differs
}

TEST(TailIdTest, IdsAreTheGoldenOnes) {
  ASSERT_FALSE(GoldenVectors()["tails"].empty());
  for (const nlohmann::json& vector : GoldenVectors()["tails"]) {
    EXPECT_EQ(TailId(FromHex(vector["profile"]), FromHex(vector["parent"]),
                     vector["tokens"].get<std::vector<int32_t>>())
                  .ToHex(),
              vector["id"]);
  }
}

TEST(TailIdTest, IsNeverThePrefixIdOfTheSameTokens) {
  EXPECT_NE(TailId({}, {}, Tokens(128)), BlockPrefixId({}, {}, Tokens(128)).value());
}

TEST(TableIdTest, IdsAreTheGoldenOnes) {
  ASSERT_FALSE(GoldenVectors()["tables"].empty());
  for (const nlohmann::json& vector : GoldenVectors()["tables"]) {
    const KvShape shape{vector["num_layers"], vector["num_kv_heads"], vector["head_dim"]};
    const int k = vector["num_patterns_k"], v = vector["num_patterns_v"];
    std::vector<std::byte> frames(shape.num_layers * shape.num_kv_heads * (k + v) * shape.head_dim *
                                  2);
    for (size_t i = 0; i < frames.size(); ++i) {
      frames[i] = static_cast<std::byte>((31 * i + 7) & 0x3b);
    }
    EXPECT_EQ(TableId(FromHex(vector["profile"]), shape, k, v, frames).ToHex(), vector["id"]);
  }
}

TEST(TableIdTest, EveryInputEntersTheId) {
  const KvShape shape{1, 2, 64};
  std::vector<std::byte> frames(256);
  const Digest base = TableId({}, shape, 1, 2, frames);
  EXPECT_NE(TableId(base, shape, 1, 2, frames), base);
  EXPECT_NE(TableId({}, {2, 1, 64}, 1, 2, frames), base);
  EXPECT_NE(TableId({}, {1, 2, 128}, 1, 2, frames), base);
  EXPECT_NE(TableId({}, shape, 2, 1, frames), base);
  frames[255] = std::byte{1};
  EXPECT_NE(TableId({}, shape, 1, 2, frames), base);
}

}  // namespace
}  // namespace pkv
