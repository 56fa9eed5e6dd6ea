#include "pkv/block/object_header.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/object_checksums.h"
#include "tests/support/sample_object.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;
using HeaderBytes = std::array<std::byte, 256>;

auto Refuses(absl::string_view message) {
  return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(std::string(message)));
}

ObjectHeader CodedBlock(uint64_t first_token) {
  return SampleBlockHeader({.shape = {2, 3, 128},
                            .encoding = {2, 4, 64, 32, true},
                            .first_token = first_token,
                            .num_sinks = first_token == 0 ? 16 : 0,
                            .num_patterns_k = 20,
                            .num_patterns_v = 10,
                            .append_flags = kFlagAppendsK});
}
ObjectHeader FineBlock() {
  return SampleBlockHeader({.shape = {2, 3, 128},
                            .encoding = {2, 4, 64, 32, true, kFineTokens, true},
                            .first_token = 256,
                            .num_patterns_k = 20,
                            .num_patterns_v = 10,
                            .append_flags = kFlagAppendsK});
}
ObjectHeader Fp16Block() { return SampleBlockHeader({.shape = {2, 3, 128}}); }
ObjectHeader PlainBlock() {
  return SampleBlockHeader({.shape = {2, 3, 64}, .encoding = {4, 4, 32, 64, false}});
}
ObjectHeader Window() { return SampleWindowHeader({2, 3, 128}, 256, 100); }
ObjectHeader Table() { return SampleTableHeader({2, 3, 128}, 20, 10); }

HeaderBytes Sealed(ObjectHeader header) {
  HeaderBytes bytes;
  EXPECT_THAT(SealHeader(header, bytes), IsOk());
  return bytes;
}

// One field set to a value that is not allowed, and what the message must say.
struct Mutation {
  std::function<void(ObjectHeader&)> mutate;
  const char* message;
};

void ExpectEachRefused(const ObjectHeader& good, const std::vector<Mutation>& mutations) {
  ASSERT_THAT(ComputeObjectSizes(good), IsOk());
  for (const Mutation& mutation : mutations) {
    ObjectHeader bad = good;
    mutation.mutate(bad);
    EXPECT_THAT(ComputeObjectSizes(bad), Refuses(mutation.message));
    HeaderBytes out;
    EXPECT_THAT(SealHeader(bad, out), Refuses(mutation.message));
  }
}

TEST(ObjectHeaderTest, EveryKindComesBackAsItWasSealed) {
  for (const ObjectHeader& header :
       {CodedBlock(0), CodedBlock(1280), FineBlock(), Fp16Block(), PlainBlock(), Window(),
        SampleWindowHeader({1, 1, 64}, 0, 1), Table()}) {
    ObjectHeader sealed = header;
    HeaderBytes bytes;
    ASSERT_THAT(SealHeader(sealed, bytes), IsOk());
    EXPECT_THAT(ParseHeader(bytes), IsOkAndHolds(sealed));
    EXPECT_EQ(sealed.key().kind, header.kind);
    EXPECT_EQ(sealed.key().id, header.id);
    EXPECT_EQ(sealed.variant(), (Variant{"sample", 0x0123456789abcdefu}));
  }
}

TEST(ObjectHeaderTest, SealingWritesTheDocumentedBytes) {
  const HeaderBytes bytes = Sealed(FineBlock());
  const auto at = [&bytes](size_t offset, size_t num_bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < num_bytes; ++i) {
      value |= std::to_integer<uint64_t>(bytes[offset + i]) << (8 * i);
    }
    return value;
  };
  EXPECT_EQ(at(0, 8), 0x0a1a0a0d564b5089u);  // 89 'P' 'K' 'V' CR LF SUB LF
  EXPECT_EQ(at(8, 2), 2u);
  EXPECT_EQ(at(10, 2), 0u);
  EXPECT_EQ(at(12, 4), 256u);
  EXPECT_EQ(at(16, 1), 1u);
  EXPECT_EQ(at(17, 1), 2u);
  EXPECT_EQ(at(18, 1), 4u);
  EXPECT_EQ(at(19, 1), 11u);  // has patterns, appends a K pattern, rotated
  EXPECT_EQ(at(20, 2), 64u);
  EXPECT_EQ(at(22, 2), 32u);
  EXPECT_EQ(at(24, 2), 2u);
  EXPECT_EQ(at(26, 2), 3u);
  EXPECT_EQ(at(28, 2), 128u);
  EXPECT_EQ(at(30, 2), 128u);
  EXPECT_EQ(at(32, 2), 0u);
  EXPECT_EQ(at(34, 2), 20u);
  EXPECT_EQ(at(36, 2), 10u);
  EXPECT_EQ(at(38, 2), 16u);
  EXPECT_EQ(at(40, 8), 256u);
  const uint64_t k_bytes = 112 * 128 * 2 / 8 + 16 * 128 * 4 / 8;
  const uint64_t head_bytes =
      k_bytes + 128 * 128 * 4 / 8 + 2 * (2 * 128 * 2) + 2 * (4 * 128 * 2) + 2 * 128;
  const uint64_t frame_bytes = 3 * head_bytes + 3 * 128 * 2;
  EXPECT_EQ(at(48, 8), frame_bytes);
  EXPECT_EQ(at(56, 8), 384 + 2 * frame_bytes);
  EXPECT_EQ(at(64, 8), 0x656c706d6173u);  // "sample"
  EXPECT_EQ(at(72, 8), 0u);
  EXPECT_EQ(at(80, 8), 0x0123456789abcdefu);
  EXPECT_EQ(at(88, 8), 0u);
  for (const auto& [offset, name] :
       {std::pair(96, "profile"), {128, "id"}, {160, "parent"}, {192, "table"}}) {
    EXPECT_EQ(0, std::memcmp(bytes.data() + offset, SampleDigest(name).bytes.data(), 32)) << name;
  }
  EXPECT_EQ(at(252, 4), Crc32c(std::span(bytes).first(252)));
}

TEST(ObjectHeaderTest, AnEncodingComesBackAsItWasSet) {
  for (const Encoding& encoding :
       {Encoding{}, Encoding{4, 2, 32, 64, false}, Encoding{2, 2, 128, 128, true},
        Encoding{2, 4, 64, 32, false, kFineTokens, false}, Encoding{4, 4, 32, 32, false, 0, true},
        Encoding{2, 2, 128, 128, true, kFineTokens, true}}) {
    for (ObjectHeader header : {ObjectHeader(), FineBlock(), CodedBlock(0)}) {
      header.set_encoding(encoding);
      EXPECT_EQ(header.encoding(), encoding);
    }
  }
}

TEST(ObjectHeaderTest, SettingAnEncodingLeavesEveryOtherField) {
  ObjectHeader header = FineBlock();
  header.flags |= kFlagAppendsV;
  const Encoding before = header.encoding();
  const ObjectHeader expected = header;
  header.set_encoding({4, 4, 32, 64, false});
  EXPECT_EQ(header.flags, kFlagAppendsK | kFlagAppendsV);
  header.set_encoding(before);
  EXPECT_EQ(header, expected);
}

TEST(ObjectHeaderTest, FramesStartAtTheNextMultipleOf128) {
  EXPECT_EQ(FramesOffset(1), 384u);
  EXPECT_EQ(FramesOffset(31), 384u);  // 256 + 4 * 32
  EXPECT_EQ(FramesOffset(32), 512u);
  EXPECT_EQ(FramesOffset(kMaxLayers), 4480u);
}

TEST(ObjectHeaderTest, TheLargestGeometryHasTheSizeOfTheExactProduct) {
  ObjectHeader header =
      SampleWindowHeader({kMaxLayers, kMaxKvHeads, 128}, kMaxFirstToken, kMaxWindowTokens);
  const auto sizes = ComputeObjectSizes(header);
  ASSERT_THAT(sizes, IsOk());
  EXPECT_EQ(sizes->frame_bytes, uint64_t{256} * 2 * 4096 * 128 * 2);
  EXPECT_EQ(sizes->object_bytes, 4480 + 1024 * sizes->frame_bytes);
}

TEST(ObjectHeaderTest, RefusesFieldsThatNoKindAllows) {
  for (const ObjectHeader& good : {CodedBlock(0), Fp16Block(), Window(), Table()}) {
    ExpectEachRefused(
        good, {
                  {[](ObjectHeader& h) { h.magic[0] = 'x'; }, "magic"},
                  {[](ObjectHeader& h) { h.version_major = 1; }, "version_major 1 is not 2"},
                  {[](ObjectHeader& h) { h.header_bytes = 255; }, "header_bytes 255 is not 256"},
                  {[](ObjectHeader& h) { h.kind = ObjectKind{0}; }, "kind 0 not in 1..3"},
                  {[](ObjectHeader& h) { h.kind = ObjectKind{4}; }, "kind 4 not in 1..3"},
                  {[](ObjectHeader& h) { h.bits_k = 8; }, "bits_k 8"},
                  {[](ObjectHeader& h) { h.bits_v = 1; }, "bits_v 1"},
                  {[](ObjectHeader& h) { h.k_group_tokens = 16; }, "k_group_tokens 16"},
                  {[](ObjectHeader& h) { h.v_group_channels = 256; }, "v_group_channels 256"},
                  {[](ObjectHeader& h) { h.flags |= 16; }, "flags"},
                  {[](ObjectHeader& h) { h.num_layers = 0; }, "num_layers 0"},
                  {[](ObjectHeader& h) { h.num_layers = 1025; }, "num_layers 1025"},
                  {[](ObjectHeader& h) { h.num_kv_heads = 0; }, "num_kv_heads 0"},
                  {[](ObjectHeader& h) { h.num_kv_heads = 257; }, "num_kv_heads 257"},
                  {[](ObjectHeader& h) { h.head_dim = 96; }, "head_dim 96"},
                  {[](ObjectHeader& h) { h.num_tokens = 4097; }, "num_tokens 4097"},
                  {[](ObjectHeader& h) { h.num_sinks = 65; }, "num_sinks 65"},
                  {[](ObjectHeader& h) { h.num_patterns_k = 256; }, "num_patterns_k 256"},
                  {[](ObjectHeader& h) { h.num_patterns_v = 256; }, "num_patterns_v 256"},
                  {[](ObjectHeader& h) { h.k_fine_tokens = 8; }, "k_fine_tokens 8 is n"},
                  {[](ObjectHeader& h) { h.first_token = 64; }, "first_token 64"},
                  {[](ObjectHeader& h) { h.first_token = kMaxFirstToken + 128; }, "first_token"},
                  {[](ObjectHeader& h) { h.reserved1 = 1; }, "reserved1 1 is not 0"},
                  {[](ObjectHeader& h) { h.reserved2[27] = 1; }, "reserved2 byte 1 is not 0"},
                  {[](ObjectHeader& h) { h.variant_name = {}; }, "variant name"},
                  {[](ObjectHeader& h) { h.variant_name[0] = 'A'; }, "variant name"},
                  {[](ObjectHeader& h) { h.variant_name[15] = 'a'; }, "variant_name"},
                  {[](ObjectHeader& h) { h.variant_name.fill('a'); }, "variant_name"},
              });
  }
}

TEST(ObjectHeaderTest, RefusesWhatBlocksMayNotHave) {
  ExpectEachRefused(
      CodedBlock(0),
      {
          {[](ObjectHeader& h) { h.num_tokens = 127; }, "num_tokens 127 is not 128"},
          {[](ObjectHeader& h) { h.first_token = 128; }, "num_sinks 16 is not 0"},
          {[](ObjectHeader& h) { h.num_patterns_k = 255; }, "num_patterns_k 255 not in 0..254"},
          {[](ObjectHeader& h) { h.num_patterns_k = h.num_patterns_v = 0; },
           "num_patterns_k + num_patterns_v 0"},
          {[](ObjectHeader& h) { h.bits_k = h.bits_v = 16; }, "k_group_tokens 64 is not 0"},
      });
  ExpectEachRefused(PlainBlock(),
                    {
                        {[](ObjectHeader& h) { h.flags = kFlagAppendsV; }, "flags 4"},
                        {[](ObjectHeader& h) { h.num_patterns_k = 1; }, "num_patterns_k 1"},
                        {[](ObjectHeader& h) { h.num_patterns_v = 1; }, "num_patterns_v 1"},
                        {[](ObjectHeader& h) { h.k_fine_tokens = 16; }, "k_fine_tokens 16"},
                    });
  ExpectEachRefused(Fp16Block(),
                    {
                        {[](ObjectHeader& h) { h.num_sinks = 1; }, "num_sinks 1 is not 0"},
                        {[](ObjectHeader& h) { h.flags = kFlagHasPatterns; }, "has_patterns"},
                        {[](ObjectHeader& h) { h.flags = kFlagRotated; }, "rotated"},
                        {[](ObjectHeader& h) { h.k_fine_tokens = 16; }, "k_fine_tokens 16"},
                    });
}

TEST(ObjectHeaderTest, RefusesWhatWindowsMayNotHave) {
  ExpectEachRefused(Window(),
                    {
                        {[](ObjectHeader& h) { h.num_tokens = 0; }, "num_tokens 0 not in 1..4096"},
                        {[](ObjectHeader& h) { h.num_sinks = 1; }, "num_sinks 1 is not 0"},
                        {[](ObjectHeader& h) { h.flags = kFlagAppendsK; }, "flags 2 is not 0"},
                        {[](ObjectHeader& h) { h.flags = kFlagRotated; }, "rotated"},
                        {[](ObjectHeader& h) { h.k_fine_tokens = 16; }, "k_fine_tokens 16"},
                        {[](ObjectHeader& h) { h.num_patterns_k = 1; }, "num_patterns_k 1"},
                        {[](ObjectHeader& h) { h.num_patterns_v = 1; }, "num_patterns_v 1"},
                        {[](ObjectHeader& h) {
                           h.bits_k = h.bits_v = 4;
                           h.k_group_tokens = h.v_group_channels = 32;
                         },
                         "bits_k 4 is not 16"},
                    });
}

TEST(ObjectHeaderTest, RefusesWhatTablesMayNotHave) {
  ExpectEachRefused(Table(),
                    {
                        {[](ObjectHeader& h) { h.num_tokens = 1; }, "num_tokens 1 is not 0"},
                        {[](ObjectHeader& h) { h.first_token = 128; }, "first_token 128 is not 0"},
                        {[](ObjectHeader& h) { h.num_sinks = 1; }, "num_sinks 1 is not 0"},
                        {[](ObjectHeader& h) { h.flags = kFlagAppendsV; }, "flags 4 is not 0"},
                        {[](ObjectHeader& h) { h.flags = kFlagRotated; }, "rotated"},
                        {[](ObjectHeader& h) { h.k_fine_tokens = 16; }, "k_fine_tokens 16"},
                        {[](ObjectHeader& h) { h.num_patterns_k = h.num_patterns_v = 0; },
                         "num_patterns_k + num_patterns_v 0"},
                    });
}

TEST(ObjectHeaderTest, AcceptsTheLastValueBeforeEachLimit) {
  ObjectHeader block = CodedBlock(0);
  block.num_sinks = kMaxSinks;
  block.num_patterns_k = 254;
  block.num_patterns_v = 255;
  EXPECT_THAT(ComputeObjectSizes(block), IsOk());
  block.num_patterns_v = 0;
  EXPECT_THAT(ComputeObjectSizes(block), IsOk());
  for (const auto& [k, v] : {std::pair(255, 255), {1, 0}, {0, 1}}) {
    EXPECT_THAT(ComputeObjectSizes(SampleTableHeader({1, 1, 64}, k, v)), IsOk());
  }
  for (const int num_tokens : {1, kMaxWindowTokens}) {
    EXPECT_THAT(ComputeObjectSizes(SampleWindowHeader({1, 1, 64}, kMaxFirstToken, num_tokens)),
                IsOk());
  }
}

TEST(ObjectHeaderTest, IdsAreCheckedWhenSealedAndWhenParsedButNotBefore) {
  const auto expect_refused = [](ObjectHeader header, const char* message) {
    EXPECT_THAT(ComputeObjectSizes(header), IsOk());
    HeaderBytes bytes;
    EXPECT_THAT(SealHeader(header, bytes), Refuses(message));
    const ObjectSizes sizes = ComputeObjectSizes(header).value();
    header.frame_bytes = sizes.frame_bytes;
    header.object_bytes = sizes.object_bytes;
    std::memcpy(bytes.data(), &header, sizeof(header));
    FixHeaderChecksum(bytes);
    EXPECT_THAT(ParseHeader(bytes), Refuses(message));
  };
  const auto with = [](ObjectHeader header, Digest ObjectHeader::*field, const Digest& digest) {
    header.*field = digest;
    return header;
  };
  const Digest set = SampleDigest("set");
  expect_refused(with(CodedBlock(0), &ObjectHeader::profile, {}), "profile 000000000000 is zero");
  expect_refused(with(CodedBlock(0), &ObjectHeader::id, {}), "id 000000000000 is zero");
  expect_refused(with(CodedBlock(0), &ObjectHeader::parent, set), "is not zero");
  expect_refused(with(CodedBlock(128), &ObjectHeader::parent, {}), "parent 000000000000 is zero");
  expect_refused(with(CodedBlock(0), &ObjectHeader::table, {}), "table 000000000000 is zero");
  expect_refused(with(PlainBlock(), &ObjectHeader::table, set), "is not zero");
  expect_refused(with(Window(), &ObjectHeader::parent, {}), "parent 000000000000 is zero");
  expect_refused(with(Window(), &ObjectHeader::table, set), "is not zero");
  expect_refused(with(Table(), &ObjectHeader::parent, set), "is not zero");
  expect_refused(with(Table(), &ObjectHeader::table, set), "is not zero");
}

TEST(ObjectHeaderTest, EveryFlippedBitIsFound) {
  HeaderBytes bytes = Sealed(CodedBlock(256));
  for (size_t bit = 0; bit < 256 * 8; ++bit) {
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
    const bool is_major = bit / 8 == 8 || bit / 8 == 9;
    EXPECT_THAT(ParseHeader(bytes), StatusIs(is_major ? absl::StatusCode::kFailedPrecondition
                                                      : absl::StatusCode::kDataLoss))
        << bit;
    bytes[bit / 8] ^= std::byte{1} << (bit % 8);
  }
}

// Fields whose value is free, at least in some bits; every other bit is decided by the rest.
TEST(ObjectHeaderTest, EveryFlippedBitOfADecidedFieldIsRefusedWithAnyChecksum) {
  const auto is_free = [](const ObjectHeader& header, size_t bit) {
    const size_t byte = bit / 8;
    const bool is_rotated_flag = byte == 19 && 1 << (bit % 8) == kFlagRotated;
    return (is_rotated_flag && header.bits_k != 16) || byte == 10 || byte == 11 ||  // version_minor
           (byte >= 34 && byte < 38) ||                                             // bank size
           (byte >= 40 && byte < 48) ||                                             // first_token
           (byte >= 64 && byte < 88) ||                                             // variant
           (byte >= 96 && byte < 224) ||                                            // ids
           byte >= 252;  // the checksum itself
  };
  int num_refused = 0;
  for (const ObjectHeader& header :
       {CodedBlock(256), FineBlock(), Fp16Block(), Window(), Table()}) {
    for (size_t bit = 0; bit < 256 * 8; ++bit) {
      if (is_free(header, bit)) continue;
      HeaderBytes bytes = Sealed(header);
      bytes[bit / 8] ^= std::byte{1} << (bit % 8);
      FixHeaderChecksum(bytes);
      EXPECT_FALSE(ParseHeader(bytes).ok()) << bit / 8 << " bit " << bit % 8;
      ++num_refused;
    }
  }
  EXPECT_EQ(num_refused, 5 * 8 * (256 - 2 - 4 - 8 - 24 - 128 - 4) - 2);
}

TEST(ObjectHeaderTest, ErrorsTellDamageFromVersionFromContent) {
  const HeaderBytes good = Sealed(CodedBlock(0));
  EXPECT_THAT(ParseHeader(std::span(good).first(255)),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("255 bytes, a header 256")));
  EXPECT_THAT(ParseHeader({}), StatusIs(absl::StatusCode::kDataLoss));
  HeaderBytes bad = good;
  bad[0] = std::byte{'P'};
  EXPECT_THAT(ParseHeader(bad), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("magic")));
  bad = good;
  bad[8] = std::byte{1};
  EXPECT_THAT(ParseHeader(bad), StatusIs(absl::StatusCode::kFailedPrecondition,
                                         HasSubstr("format version 1.0, this build reads 2.x")));
  bad = good;
  bad[252] ^= std::byte{1};
  EXPECT_THAT(ParseHeader(bad), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("checksum")));
}

TEST(ObjectHeaderTest, SizesMustBeThoseOfTheGeometry) {
  for (const size_t offset : {48, 56}) {
    HeaderBytes bytes = Sealed(CodedBlock(0));
    bytes[offset] ^= std::byte{128};
    FixHeaderChecksum(bytes);
    EXPECT_THAT(ParseHeader(bytes), Refuses("is not the geometry's"));
  }
}

TEST(ObjectHeaderTest, ALaterMinorVersionMayUseReservedBytes) {
  HeaderBytes bytes = Sealed(CodedBlock(0));
  bytes[224] = std::byte{1};
  FixHeaderChecksum(bytes);
  EXPECT_THAT(ParseHeader(bytes), Refuses("reserved2"));
  bytes[10] = std::byte{1};
  FixHeaderChecksum(bytes);
  EXPECT_THAT(ParseHeader(bytes), IsOk());
}

TEST(SetVariantTest, AcceptsOneToFifteenOfItsAlphabet) {
  ObjectHeader header;
  for (const char* name : {"a", "pkv2", "kivi2-g32", "abcdefghijklmno", "0_-"}) {
    ASSERT_THAT(SetVariant({name, 7}, header), IsOk());
    EXPECT_EQ(header.variant(), (Variant{name, 7}));
  }
}

TEST(SetVariantTest, RefusesEveryOtherNameAndLeavesTheHeader) {
  ObjectHeader header;
  ASSERT_THAT(SetVariant({"before", 1}, header), IsOk());
  const std::string with_nul("a\0b", 3);
  for (const std::string& name :
       {std::string(), std::string("abcdefghijklmnop"), std::string("Pkv"), std::string("a b"),
        std::string("a."), std::string("\xc3\xa9"), with_nul}) {
    EXPECT_THAT(SetVariant({name, 2}, header), Refuses("is not 1..15 of [a-z0-9_-]"));
  }
  EXPECT_EQ(header.variant(), (Variant{"before", 1}));
}

}  // namespace
}  // namespace pkv
