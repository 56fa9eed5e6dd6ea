#include "proto/block/payload_layout.h"

#include <gtest/gtest.h>

#include <vector>

#include "pkv/block/aligned_buffer.h"
#include "proto/block/fragment_order.h"
#include "tests/support/sample_object.h"

namespace pkv {
namespace {

// Every block encoding the format allows, for both head_dims.
std::vector<SampleBlock> AllCodedBlocks() {
  std::vector<SampleBlock> blocks;
  for (const int head_dim : {64, 128}) {
    for (const int bits_k : {2, 4}) {
      for (const int bits_v : {2, 4}) {
        for (const int k_group : {32, 64, 128}) {
          for (const int v_group : {32, 64, 128}) {
            for (const bool has_patterns : {false, true}) {
              for (const int k_fine_tokens : {0, kFineTokens}) {
                if (v_group > head_dim || (k_fine_tokens != 0 && bits_k != 2)) continue;
                blocks.push_back({.shape = {2, 3, head_dim},
                                  .encoding = {bits_k, bits_v, k_group, v_group, has_patterns,
                                               k_fine_tokens, k_group == 64},
                                  .num_patterns_k = has_patterns ? 5 : 0});
              }
            }
          }
        }
      }
    }
  }
  return blocks;
}

TEST(PayloadLayoutTest, SectionsOfAHeadFollowEachOtherWithoutGapsAtMultiplesOf128) {
  for (const SampleBlock& block : AllCodedBlocks()) {
    const PayloadLayout layout = PayloadLayout::Of(SampleBlockHeader(block));
    const int d = block.shape.head_dim;
    const Encoding& e = block.encoding;
    const int64_t k_params = 128 / e.k_group_tokens * d * 2;
    const int64_t v_params = d / e.v_group_channels * 128 * 2;
    const int64_t ids = e.has_patterns ? 128 : 0;
    EXPECT_EQ(layout.k_codes, 0);
    EXPECT_EQ(layout.k_fine_codes, (128 - e.k_fine_tokens) * d * e.bits_k / 8);
    EXPECT_EQ(layout.v_codes - layout.k_fine_codes, e.k_fine_tokens * d * 4 / 8);
    EXPECT_EQ(layout.k_scales - layout.v_codes, 128 * d * e.bits_v / 8);
    EXPECT_EQ(layout.k_zeros - layout.k_scales, k_params);
    EXPECT_EQ(layout.v_scales - layout.k_zeros, k_params);
    EXPECT_EQ(layout.v_zeros - layout.v_scales, v_params);
    EXPECT_EQ(layout.k_ids - layout.v_zeros, v_params);
    EXPECT_EQ(layout.v_ids - layout.k_ids, ids);
    EXPECT_EQ(layout.head_bytes - layout.v_ids, ids);
    for (const int64_t offset :
         {layout.k_fine_codes, layout.v_codes, layout.k_scales, layout.k_zeros, layout.v_scales,
          layout.v_zeros, layout.k_ids, layout.v_ids, layout.head_bytes}) {
      EXPECT_EQ(offset % static_cast<int64_t>(kFrameAlignment), 0);
    }
    EXPECT_EQ(layout.page_bytes, 3 * layout.head_bytes);
    EXPECT_EQ(layout.frame_bytes, layout.page_bytes);
  }
}

// 74, 78 and 138 bytes a token and kv head.
TEST(PayloadLayoutTest, TwoAndFourBitBlocksWeighWhatTheDesignSays) {
  const KvShape shape{1, 1, 128};
  EXPECT_EQ(PayloadLayout::OfBlock(shape, {2, 2, 128, 128, true}).head_bytes, 74 * 128);
  EXPECT_EQ(PayloadLayout::OfBlock(shape, {2, 2, 128, 128, true, 16, true}).head_bytes, 78 * 128);
  EXPECT_EQ(PayloadLayout::OfBlock(shape, {4, 4, 128, 128, true}).head_bytes, 138 * 128);
  EXPECT_EQ(PayloadLayout::OfBlock(shape, {}).head_bytes, 512 * 128);
}

TEST(PayloadLayoutTest, SinksAndAppendedPatternsFollowThePage) {
  SampleBlock block{.shape = {1, 3, 64},
                    .encoding = {2, 4, 32, 64, true},
                    .num_sinks = 16,
                    .num_patterns_k = 7,
                    .append_flags = kFlagAppendsK};
  const PayloadLayout one = PayloadLayout::Of(SampleBlockHeader(block));
  EXPECT_EQ(one.sinks, one.page_bytes);
  EXPECT_EQ(one.sink_head_bytes, 2 * 16 * 64 * 2);
  EXPECT_EQ(one.appended, one.sinks + 3 * one.sink_head_bytes);
  EXPECT_EQ(one.appended_head_bytes, 64 * 2);
  EXPECT_EQ(one.frame_bytes, one.appended + 3 * 64 * 2);
  block.append_flags = kFlagAppendsK | kFlagAppendsV;
  const PayloadLayout two = PayloadLayout::Of(SampleBlockHeader(block));
  EXPECT_EQ(two.appended_head_bytes, 2 * 64 * 2);
  EXPECT_EQ(two.frame_bytes, two.appended + 3 * 2 * 64 * 2);
}

TEST(PayloadLayoutTest, Fp16BlocksWindowsAndTablesAreRowsOfKThenV) {
  const KvShape shape{2, 3, 64};
  const PayloadLayout block = PayloadLayout::OfBlock(shape, {});
  EXPECT_EQ(block.k_fine_codes, 0);
  EXPECT_EQ(block.v_codes, 128 * 64 * 2);
  EXPECT_EQ(block.head_bytes, 2 * 128 * 64 * 2);
  const PayloadLayout window = PayloadLayout::Of(SampleWindowHeader(shape, 128, 5));
  EXPECT_EQ(window.v_codes, 5 * 64 * 2);
  EXPECT_EQ(window.head_bytes, 2 * 5 * 64 * 2);
  const PayloadLayout table = PayloadLayout::Of(SampleTableHeader(shape, 7, 2));
  EXPECT_EQ(table.v_codes, 7 * 64 * 2);
  EXPECT_EQ(table.head_bytes, 9 * 64 * 2);
  EXPECT_EQ(table.frame_bytes, 3 * table.head_bytes);
}

TEST(PayloadLayoutTest, AbsentSectionsAreEmptyAtTheEndOfTheHead) {
  const PayloadLayout fp16 = PayloadLayout::OfBlock({1, 1, 64}, {});
  EXPECT_EQ(fp16.k_groups(), 0);
  EXPECT_EQ(fp16.v_groups(), 0);
  for (const int64_t offset :
       {fp16.k_scales, fp16.k_zeros, fp16.v_scales, fp16.v_zeros, fp16.k_ids, fp16.v_ids}) {
    EXPECT_EQ(offset, fp16.head_bytes);
  }
  EXPECT_EQ(fp16.sinks, fp16.frame_bytes);
  EXPECT_EQ(fp16.appended, fp16.frame_bytes);
}

// Each section ends with the word of its last code.
TEST(PayloadLayoutTest, FineCodesTakeThePlaceOfTheLastRowTile) {
  for (const int head_dim : {64, 128}) {
    const PayloadLayout layout =
        PayloadLayout::OfBlock({1, 1, head_dim}, {2, 2, 128, 64, false, kFineTokens, false});
    const int last_slot = kBlockTokens - kFineTokens - 1, last_channel = head_dim - 1;
    EXPECT_EQ(layout.k_fine_codes,
              4 * (LocateCode(last_slot, last_channel, head_dim, 2).word_index + 1));
    EXPECT_EQ(layout.v_codes - layout.k_fine_codes,
              4 * (LocateCode(kFineTokens - 1, last_channel, head_dim, kFineBits).word_index + 1));
  }
}

TEST(PayloadLayoutTest, ARotationMovesNoByte) {
  Encoding encoding{2, 4, 64, 32, true, kFineTokens, false};
  const PayloadLayout plain = PayloadLayout::OfBlock({1, 2, 64}, encoding);
  encoding.rotated = true;
  const PayloadLayout rotated = PayloadLayout::OfBlock({1, 2, 64}, encoding);
  EXPECT_TRUE(rotated.encoding.rotated);
  EXPECT_EQ(rotated.v_codes, plain.v_codes);
  EXPECT_EQ(rotated.head_bytes, plain.head_bytes);
  EXPECT_EQ(rotated.frame_bytes, plain.frame_bytes);
}

TEST(PayloadLayoutTest, GroupsCountWhatSharesAScale) {
  const PayloadLayout layout = PayloadLayout::OfBlock({1, 1, 128}, {2, 2, 32, 64, false});
  EXPECT_EQ(layout.k_groups(), 4);
  EXPECT_EQ(layout.v_groups(), 2);
}

TEST(PayloadLayoutTest, OfBlockAgreesWithTheHeaderOfSuchABlock) {
  for (const SampleBlock& block : AllCodedBlocks()) {
    const PayloadLayout of_header = PayloadLayout::Of(SampleBlockHeader(block));
    const PayloadLayout of_block = PayloadLayout::OfBlock(block.shape, block.encoding);
    EXPECT_EQ(of_block.head_bytes, of_header.head_bytes);
    EXPECT_EQ(of_block.page_bytes, of_header.page_bytes);
    EXPECT_EQ(of_block.v_ids, of_header.v_ids);
  }
}

}  // namespace
}  // namespace pkv
