#include "worker/sequence/object_place.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "pkv/block/prefix_hash.h"
#include "tests/support/sealed_object.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

constexpr KvShape kShape{3, 2, 64};

class ObjectPlaceTest : public testing::Test {
 protected:
  absl::StatusOr<ObjectHeader> Block(uint64_t first_token, const Digest& parent) const {
    return BlockHeaderOf(kShape, params_, profile_, first_token, parent, tokens_);
  }

  const CodecParams params_ = *PresetByName("default", kShape);
  const Digest profile_ = TestDigest(7);
  const std::vector<int32_t> tokens_ = std::vector<int32_t>(kBlockTokens, 5);
};

TEST_F(ObjectPlaceTest, ABlockIsNamedByItsTokensAndTheOneBefore) {
  const auto first = Block(0, {});
  ASSERT_THAT(first, IsOk());
  EXPECT_EQ(first->id, *BlockPrefixId(profile_, {}, tokens_));
  EXPECT_EQ(first->num_sinks, 16);
  EXPECT_EQ(first->encoding(), params_.encoding);
  const auto second = Block(kBlockTokens, first->id);
  ASSERT_THAT(second, IsOk());
  EXPECT_EQ(second->id, *BlockPrefixId(profile_, first->id, tokens_));
  EXPECT_EQ(second->num_sinks, 0);
  EXPECT_THAT(BlockHeaderOf(kShape, params_, profile_, 0, {}, std::span(tokens_).first(127)),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(ObjectPlaceTest, WhatDiffersInAnythingIsNotTheOne) {
  const ObjectHeader block = *Block(kBlockTokens, TestDigest(1));
  const ObjectPlace place = {ObjectKind::kBlock, kBlockTokens, TestDigest(1)};
  const PlaceRules rules(kShape, params_, profile_);
  const auto check = [&](const ObjectHeader& header) { return rules.Check(header, place); };
  EXPECT_THAT(check(block), IsOk());
  std::vector<ObjectHeader> others(8, block);
  others[0].kind = ObjectKind::kWindow;
  others[1].profile = TestDigest(8);
  others[2].params_digest ^= 1;
  others[3].num_layers = 4;
  others[4].bits_k = 4;
  others[5].first_token = 0;
  others[6].parent = TestDigest(2);
  others[7].num_sinks = 16;  // not the first block
  for (const ObjectHeader& other : others) {
    EXPECT_THAT(check(other), StatusIs(absl::StatusCode::kFailedPrecondition,
                                       testing::HasSubstr(block.id.ToShortHex())));
  }
  ObjectHeader first = *Block(0, {});
  const ObjectPlace start = {ObjectKind::kBlock, 0, {}};
  EXPECT_THAT(rules.Check(first, start), IsOk());
  first.num_sinks = 64;
  EXPECT_THAT(rules.Check(first, start),
              StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr("64 sinks")));
}

}  // namespace
}  // namespace pkv
