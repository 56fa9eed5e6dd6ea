#include "pkv/block/object_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/support/object_checksums.h"
#include "tests/support/sample_object.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;

constexpr Float16Bits kOne = 0x3c00, kMinusOne = 0xbc00, kInfinity = 0x7c00, kNan = 0x7e00;
constexpr Float16Bits kMinusZero = 0x8000, kSmallestNormal = 0x0400, kLargestSubnormal = 0x03ff;

auto IsDataLoss(const char* message) {
  return StatusIs(absl::StatusCode::kDataLoss, HasSubstr(message));
}

std::vector<std::byte> Sample(const ObjectHeader& header) {
  const auto builder = BuildSample(header, 9);
  EXPECT_THAT(builder, IsOk());
  return {builder->bytes().begin(), builder->bytes().end()};
}

// Two layers, three heads, sinks and both appended patterns.
ObjectHeader FullBlock() {
  return SampleBlockHeader({.shape = {2, 3, 64},
                            .encoding = {2, 4, 32, 32, true},
                            .num_sinks = 4,
                            .num_patterns_k = 6,
                            .num_patterns_v = 3,
                            .append_flags = kFlagAppendsK | kFlagAppendsV});
}

// As FullBlock, rotated and with fine K codes.
ObjectHeader FineBlock() {
  return SampleBlockHeader({.shape = {2, 3, 64},
                            .encoding = {2, 4, 32, 32, true, kFineTokens, true},
                            .num_sinks = kMaxSinks,
                            .num_patterns_k = 6,
                            .num_patterns_v = 3,
                            .append_flags = kFlagAppendsK | kFlagAppendsV});
}

// The bytes of layer 1 of an object, where the tests put their damage.
std::span<std::byte> LayerOne(std::vector<std::byte>& object) {
  ObjectHeader header;
  std::memcpy(&header, object.data(), sizeof(header));
  return std::span(object).subspan(FramesOffset(header.num_layers) + header.frame_bytes,
                                   header.frame_bytes);
}

// What VerifyLayer(1) says when a value of kv head 2, or of the whole frame, was replaced and all
// checksums were made right.
absl::Status VerifyWithFloat16(const ObjectHeader& header, int64_t offset, Float16Bits value) {
  std::vector<std::byte> object = Sample(header);
  std::memcpy(LayerOne(object).data() + offset, &value, sizeof(value));
  FixFrameChecksums(object);
  const auto view = ObjectView::Parse(object);
  EXPECT_THAT(view, IsOk());
  EXPECT_THAT(view->VerifyLayer(0), IsOk());
  return view->VerifyLayer(1);
}

absl::Status VerifyWithByte(const ObjectHeader& header, int64_t offset, uint8_t value) {
  std::vector<std::byte> object = Sample(header);
  LayerOne(object)[offset] = std::byte{value};
  FixFrameChecksums(object);
  return ObjectView::Parse(object)->VerifyLayer(1);
}

TEST(ObjectViewTest, VerifiesObjectsOfEveryKind) {
  const KvShape shape{2, 3, 128};
  for (const ObjectHeader& header :
       {FullBlock(), FineBlock(), SampleBlockHeader({.shape = shape}),
        SampleBlockHeader({.shape = shape, .encoding = {2, 2, 64, 64, false, kFineTokens, false}}),
        SampleBlockHeader({.shape = shape, .encoding = {4, 2, 128, 128, false}}),
        SampleWindowHeader(shape, 128, 7), SampleTableHeader(shape, 0, 2)}) {
    const std::vector<std::byte> object = Sample(header);
    const auto view = ObjectView::Parse(object);
    ASSERT_THAT(view, IsOk());
    EXPECT_THAT(view->VerifyAll(), IsOk());
    EXPECT_EQ(view->frame(1).data(), object.data() + FramesOffset(2) + view->header().frame_bytes);
    EXPECT_EQ(view->frame_crc32c(1), Crc32c(view->frame(1)));
  }
}

TEST(ObjectViewTest, RefusesEveryOtherLength) {
  std::vector<std::byte> object = Sample(SampleTableHeader({2, 1, 64}, 1, 0));
  ASSERT_EQ(object.size(), 640u);
  for (size_t size = 0; size < object.size(); ++size) {
    // In a vector of its own, so that sanitizers see a read beyond the end.
    const std::vector<std::byte> cut(object.begin(), object.begin() + size);
    ASSERT_THAT(ObjectView::Parse(cut), StatusIs(absl::StatusCode::kDataLoss)) << size;
  }
  object.push_back(std::byte{0});
  EXPECT_THAT(ObjectView::Parse(object), IsDataLoss("641 bytes, its header says 640"));
}

TEST(ObjectViewTest, FindsEveryFlippedBit) {
  std::vector<std::byte> object = Sample(SampleTableHeader({2, 1, 64}, 1, 0));
  for (size_t bit = 0; bit < object.size() * 8; ++bit) {
    object[bit / 8] ^= std::byte{1} << (bit % 8);
    const auto view = ObjectView::Parse(object);
    EXPECT_FALSE(view.ok() && view->VerifyAll().ok()) << "byte " << bit / 8;
    object[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  EXPECT_THAT(ObjectView::Parse(object)->VerifyAll(), IsOk());
}

TEST(ObjectViewTest, DamageInOneFrameLeavesTheOthersReadable) {
  std::vector<std::byte> object = Sample(FullBlock());
  LayerOne(object)[5] ^= std::byte{1};
  const auto view = ObjectView::Parse(object);
  ASSERT_THAT(view, IsOk());
  EXPECT_THAT(view->VerifyLayer(0), IsOk());
  EXPECT_THAT(view->VerifyLayer(1), IsDataLoss("layer 1 frame checksum is"));
  EXPECT_THAT(view->VerifyAll(), IsDataLoss("layer 1 frame checksum is"));
}

TEST(ObjectViewTest, ATableWithAnotherIdThanThatOfItsContentIsDamaged) {
  std::vector<std::byte> object = Sample(SampleTableHeader({2, 1, 64}, 1, 1));
  object[offsetof(ObjectHeader, id)] ^= std::byte{1};
  FixHeaderChecksum(object);
  const auto view = ObjectView::Parse(object);
  ASSERT_THAT(view, IsOk());
  EXPECT_THAT(view->VerifyLayer(0), IsOk());
  EXPECT_THAT(view->VerifyAll(), IsDataLoss("table id is"));
}

TEST(ObjectViewDeathTest, FrameOutsideTheObjectIsABrokenInvariant) {
  const std::vector<std::byte> object = Sample(FullBlock());
  const auto view = ObjectView::Parse(object);
  ASSERT_THAT(view, IsOk());
  EXPECT_DEATH(view->frame(2), "check failed");
  EXPECT_DEATH(view->frame(-1), "check failed");
}

TEST(FrameTableTest, GivesTheChecksumsInLayerOrder) {
  const std::vector<std::byte> object = Sample(FullBlock());
  const auto view = ObjectView::Parse(object);
  const std::span table = std::span(object).subspan(256);
  EXPECT_THAT(ParseFrameTable(table, 2),
              IsOkAndHolds(std::vector{view->frame_crc32c(0), view->frame_crc32c(1)}));
  EXPECT_THAT(ParseFrameTable(table.first(12), 2), IsOk());  // without its padding
}

TEST(FrameTableTest, RefusesDamage) {
  const std::vector<std::byte> object = Sample(FullBlock());
  std::vector<std::byte> table(object.begin() + 256, object.begin() + FramesOffset(2));
  EXPECT_THAT(ParseFrameTable(std::span(table).first(11), 2),
              IsDataLoss("frame table of 2 layers has 11 bytes, not 12"));
  table[4] ^= std::byte{1};
  EXPECT_THAT(ParseFrameTable(table, 2), IsDataLoss("frame table checksum is"));
  table[4] ^= std::byte{1};
  table.back() = std::byte{1};
  EXPECT_THAT(ParseFrameTable(table, 2),
              IsDataLoss("padding after the frame table has byte 1 at 127, not 0"));
}

TEST(VerifyFrameTest, NamesLayerAndBothChecksums) {
  const std::vector<std::byte> frame(32, std::byte{0});
  EXPECT_THAT(VerifyFrame(frame, 3, 0x8a9136aau), IsOk());
  EXPECT_THAT(VerifyFrame(frame, 3, 0x1234u),
              IsDataLoss("layer 3 frame checksum is 8a9136aa, stored is 1234"));
}

TEST(FrameNumbersTest, ScalesAreZeroOrNormalAndNotNegative) {
  const PayloadLayout layout = PayloadLayout::Of(FullBlock());
  for (const auto& [section, name] :
       {std::pair(layout.k_scales, "K scale[1]"), {layout.v_scales, "V scale[1]"}}) {
    const int64_t offset = 2 * layout.head_bytes + section + 2;
    for (const Float16Bits good : {Float16Bits{0}, kSmallestNormal, kOne, Float16Bits{0x7bff}}) {
      EXPECT_THAT(VerifyWithFloat16(FullBlock(), offset, good), IsOk()) << good;
    }
    const std::string message = std::string("layer 1 kv head 2 ") + name;
    for (const Float16Bits bad :
         {kLargestSubnormal, kInfinity, kNan, kMinusOne, kMinusZero, Float16Bits{0xfc00}}) {
      EXPECT_THAT(VerifyWithFloat16(FullBlock(), offset, bad), IsDataLoss(message.c_str())) << bad;
    }
  }
}

TEST(FrameNumbersTest, ZeroPointsSinksAndAppendedPatternsAreFinite) {
  const PayloadLayout layout = PayloadLayout::Of(FullBlock());
  const struct {
    int64_t offset;
    const char* message;
  } places[] = {
      {2 * layout.head_bytes + layout.k_zeros + 2, "layer 1 kv head 2 K zero point[1]"},
      {2 * layout.head_bytes + layout.v_zeros + 2, "layer 1 kv head 2 V zero point[1]"},
      {layout.appended - 2, "layer 1 kv head 2 sink[511]"},
      {layout.sinks, "layer 1 kv head 0 sink[0]"},
      {layout.appended, "layer 1 kv head 0 appended pattern[0]"},
      {layout.frame_bytes - 2, "layer 1 kv head 2 appended pattern[127]"},
  };
  for (const auto& place : places) {
    for (const Float16Bits good : {Float16Bits{0}, kMinusZero, kLargestSubnormal, kMinusOne}) {
      EXPECT_THAT(VerifyWithFloat16(FullBlock(), place.offset, good), IsOk()) << place.message;
    }
    for (const Float16Bits bad : {kInfinity, kNan, Float16Bits{0xfc00}, Float16Bits{0x7c01}}) {
      EXPECT_THAT(VerifyWithFloat16(FullBlock(), place.offset, bad), IsDataLoss(place.message));
    }
  }
}

TEST(FrameNumbersTest, Fp16BlocksWindowsAndTablesAreFinite) {
  const KvShape shape{2, 3, 64};
  for (const ObjectHeader& header :
       {SampleBlockHeader({.shape = shape}), SampleWindowHeader(shape, 0, 3),
        SampleTableHeader(shape, 2, 1)}) {
    const int64_t last = PayloadLayout::Of(header).frame_bytes - 2;
    EXPECT_THAT(VerifyWithFloat16(header, last, kMinusOne), IsOk());
    EXPECT_THAT(VerifyWithFloat16(header, last, kNan), IsDataLoss("layer 1 kv head 2"));
    EXPECT_THAT(VerifyWithFloat16(header, 0, kInfinity), IsDataLoss("layer 1 kv head 0"));
  }
}

TEST(FrameNumbersTest, PatternIdsAreWithinTheBankOrRaw) {
  const PayloadLayout layout = PayloadLayout::Of(FullBlock());
  const int64_t last_head = 2 * layout.head_bytes;
  // Six and three patterns before the block, and one that it appends to either list.
  EXPECT_THAT(VerifyWithByte(FullBlock(), last_head + layout.k_ids + 127, 6), IsOk());
  EXPECT_THAT(VerifyWithByte(FullBlock(), last_head + layout.k_ids + 127, 255), IsOk());
  EXPECT_THAT(VerifyWithByte(FullBlock(), last_head + layout.k_ids + 127, 7),
              IsDataLoss("layer 1 kv head 2 K pattern id[127] is 7, not below the bank size 7"));
  EXPECT_THAT(VerifyWithByte(FullBlock(), last_head + layout.v_ids, 3), IsOk());
  EXPECT_THAT(VerifyWithByte(FullBlock(), last_head + layout.v_ids, 4),
              IsDataLoss("layer 1 kv head 2 V pattern id[0] is 4, not below the bank size 4"));
  ObjectHeader without_append = FullBlock();
  without_append.flags = kFlagHasPatterns;
  const PayloadLayout shorter = PayloadLayout::Of(without_append);
  EXPECT_THAT(VerifyWithByte(without_append, shorter.k_ids, 5), IsOk());
  EXPECT_THAT(VerifyWithByte(without_append, shorter.k_ids, 6), IsDataLoss("bank size 6"));
}

TEST(FrameNumbersTest, CodesMayBeAnyBits) {
  for (const ObjectHeader& header : {FullBlock(), FineBlock()}) {
    std::vector<std::byte> object = Sample(header);
    const PayloadLayout layout = PayloadLayout::Of(header);
    for (std::byte& byte : LayerOne(object).first(layout.k_scales)) byte = std::byte{0xff};
    EXPECT_THAT(CheckFrameNumbers(header, 1, LayerOne(object)), IsOk());
  }
}

TEST(FrameNumbersTest, NumbersBehindFineCodesAreFoundAndChecked) {
  const PayloadLayout layout = PayloadLayout::Of(FineBlock());
  const int64_t last_head = 2 * layout.head_bytes;
  const struct {
    int64_t offset;
    const char* message;
  } places[] = {
      {last_head + layout.k_scales, "layer 1 kv head 2 K scale[0]"},
      {last_head + layout.v_scales - 2, "layer 1 kv head 2 K zero point[255]"},
      {last_head + layout.v_scales, "layer 1 kv head 2 V scale[0]"},
      {last_head + layout.k_ids - 2, "layer 1 kv head 2 V zero point[255]"},
      {layout.sinks, "layer 1 kv head 0 sink[0]"},
      {layout.frame_bytes - 2, "layer 1 kv head 2 appended pattern[127]"},
  };
  for (const auto& place : places) {
    EXPECT_THAT(VerifyWithFloat16(FineBlock(), place.offset, kOne), IsOk()) << place.message;
    EXPECT_THAT(VerifyWithFloat16(FineBlock(), place.offset, kNan), IsDataLoss(place.message));
  }
  for (const int64_t code : {layout.k_fine_codes, layout.v_codes - 2, layout.k_scales - 2}) {
    EXPECT_THAT(VerifyWithFloat16(FineBlock(), last_head + code, kNan), IsOk()) << code;
  }
  EXPECT_THAT(VerifyWithByte(FineBlock(), last_head + layout.v_ids + 127, 4),
              IsDataLoss("layer 1 kv head 2 V pattern id[127] is 4, not below the bank size 4"));
}

TEST(FrameNumbersTest, AFrameOfAnotherSizeIsDamaged) {
  std::vector<std::byte> object = Sample(FullBlock());
  const std::span<std::byte> frame = LayerOne(object);
  EXPECT_THAT(CheckFrameNumbers(FullBlock(), 1, frame.first(frame.size() - 1)),
              IsDataLoss("layer 1 frame has"));
  EXPECT_THAT(CheckFrameNumbers(FullBlock(), 1, {}), IsDataLoss("layer 1 frame has 0 bytes"));
}

}  // namespace
}  // namespace pkv
