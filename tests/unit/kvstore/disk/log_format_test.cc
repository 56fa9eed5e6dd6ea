#include "kvstore/disk/log_format.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/strings/escaping.h"
#include "proto/base/checksum.h"
#include "tests/support/sealed_object.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

class LogFormatTest : public ::testing::Test {
 protected:
  static SegmentHead Segment() {
    return {.number = 3, .salt = 0x1122334455667788, .segment_bytes = 1 << 20};
  }
  static RecordHead Record() {
    const SealedObject object = MakeTestBlock(9, 1, TestDigest(5));
    RecordHead head = RecordHeadOf(RecordKind::kObject, object.key());
    head.salt = Segment().salt;
    head.segment = Segment().number;
    head.offset = 8192;
    head.num_layers = object.header.num_layers;
    head.frame_bytes = object.header.frame_bytes;
    head.object_bytes = object.header.object_bytes;
    head.table = TestDigest(5);
    head.num_patterns_k = 2;
    head.num_patterns_v = 3;
    head.content_crc32c = 0xcafe;
    return head;
  }
  absl::StatusOr<RecordHead> Parse(const RecordHead& head) {
    SealRecordHead(head, unit_.span().first<kDiskUnitBytes>());
    return ParseRecordHead(unit_.span(), Segment(), 8192);
  }

  DiskBuffer unit_{kDiskUnitBytes};
};

TEST_F(LogFormatTest, ReadsTheSegmentHeadItWrote) {
  SealSegmentHead(Segment(), unit_.span().first<kDiskUnitBytes>());
  const absl::StatusOr<SegmentHead> read = ParseSegmentHead(unit_.span());
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->number, 3u);
  EXPECT_EQ(read->salt, Segment().salt);
  EXPECT_EQ(read->segment_bytes, uint64_t{1} << 20);
}

// The example of README.md, "Format".
TEST_F(LogFormatTest, WritesTheSegmentHeadOfTheExample) {
  SealSegmentHead(Segment(), unit_.span().first<kDiskUnitBytes>());
  const std::string head(reinterpret_cast<const char*>(unit_.span().data()), 64);
  EXPECT_EQ(absl::BytesToHexString(head),
            "89504b564c4f470a0100000000000000030000000000000088776655443322110000100000000000"
            "000000000000000000000000000000000000000035b5dd00");
}

TEST_F(LogFormatTest, ReadsTheRecordHeadItWrote) {
  const absl::StatusOr<RecordHead> read = Parse(Record());
  ASSERT_THAT(read, IsOk());
  RecordHead expected = Record();
  expected.crc32c = read->crc32c;
  EXPECT_EQ(*read, expected);
  EXPECT_EQ(read->key(), MakeTestBlock(9, 1, TestDigest(5)).key());
  EXPECT_EQ(read->record_bytes() % kDiskUnitBytes, 0u);
  EXPECT_GT(read->record_bytes(), read->object_bytes);
}

TEST_F(LogFormatTest, ReadsTombstones) {
  RecordHead head = RecordHeadOf(RecordKind::kTombstone, MakeTestWindow(1, 1).key());
  head.salt = Segment().salt;
  head.segment = Segment().number;
  head.offset = 8192;
  const absl::StatusOr<RecordHead> read = Parse(head);
  ASSERT_THAT(read, IsOk());
  EXPECT_EQ(read->record_bytes(), kDiskUnitBytes);
}

TEST_F(LogFormatTest, SaysOfZerosThatNothingIsThere) {
  EXPECT_THAT(ParseSegmentHead(unit_.span()), StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(ParseRecordHead(unit_.span(), Segment(), 8192),
              StatusIs(absl::StatusCode::kNotFound));
}

TEST_F(LogFormatTest, RefusesOtherFilesAndOtherVersions) {
  unit_.span()[9] = std::byte{1};
  EXPECT_THAT(ParseSegmentHead(unit_.span()), StatusIs(absl::StatusCode::kFailedPrecondition));
  SegmentHead other = Segment();
  other.version = 2;
  SealSegmentHead(other, unit_.span().first<kDiskUnitBytes>());
  EXPECT_THAT(ParseSegmentHead(unit_.span()),
              StatusIs(absl::StatusCode::kFailedPrecondition, HasSubstr("version 2")));
}

// But for the magic, which says whose file it is.
TEST_F(LogFormatTest, FindsEveryFlippedBitOfASegmentHead) {
  SealSegmentHead(Segment(), unit_.span().first<kDiskUnitBytes>());
  for (size_t bit = 64; bit < sizeof(SegmentHead) * 8; ++bit) {
    unit_.span()[bit / 8] ^= std::byte(1 << bit % 8);
    EXPECT_THAT(ParseSegmentHead(unit_.span()), StatusIs(absl::StatusCode::kDataLoss)) << bit;
    unit_.span()[bit / 8] ^= std::byte(1 << bit % 8);
  }
}

TEST_F(LogFormatTest, FindsEveryFlippedBitOfARecordHead) {
  ASSERT_THAT(Parse(Record()), IsOk());
  for (size_t bit = 0; bit < sizeof(RecordHead) * 8; ++bit) {
    unit_.span()[bit / 8] ^= std::byte(1 << bit % 8);
    EXPECT_THAT(ParseRecordHead(unit_.span(), Segment(), 8192),
                StatusIs(absl::StatusCode::kDataLoss))
        << bit;
    unit_.span()[bit / 8] ^= std::byte(1 << bit % 8);
  }
}

TEST_F(LogFormatTest, RefusesARecordOfAnotherPlaceOrProcess) {
  ASSERT_THAT(Parse(Record()), IsOk());
  EXPECT_THAT(ParseRecordHead(unit_.span(), Segment(), 4096),
              StatusIs(absl::StatusCode::kDataLoss));
  SegmentHead other = Segment();
  other.number = 4;
  EXPECT_THAT(ParseRecordHead(unit_.span(), other, 8192), StatusIs(absl::StatusCode::kDataLoss));
  other = Segment();
  ++other.salt;
  EXPECT_THAT(ParseRecordHead(unit_.span(), other, 8192), StatusIs(absl::StatusCode::kDataLoss));
}

// With a checksum that fits: what a reader computes with is checked all the same.
TEST_F(LogFormatTest, RefusesFieldsThatCannotBe) {
  const auto change = [this](auto&& set) {
    RecordHead head = Record();
    set(head);
    return Parse(head).status();
  };
  const auto is_data_loss = StatusIs(absl::StatusCode::kDataLoss);
  EXPECT_THAT(change([](RecordHead& h) { h.num_layers = 0; }), is_data_loss);
  EXPECT_THAT(change([](RecordHead& h) { h.num_layers = 1025; }), is_data_loss);
  EXPECT_THAT(change([](RecordHead& h) { h.frame_bytes = 0; }), is_data_loss);
  EXPECT_THAT(change([](RecordHead& h) { h.frame_bytes = ~uint64_t{0}; }), is_data_loss);
  EXPECT_THAT(change([](RecordHead& h) { h.object_bytes += 1; }), is_data_loss);
  EXPECT_THAT(change([](RecordHead& h) { h.variant_name.fill('x'); }), is_data_loss);
  EXPECT_THAT(change([](RecordHead& h) { h.object_kind = ObjectKind{0}; }), is_data_loss);
  EXPECT_THAT(change([](RecordHead& h) { h.object_kind = ObjectKind{4}; }), is_data_loss);
  EXPECT_THAT(change([](RecordHead& h) { h.kind = RecordKind{3}; }), is_data_loss);
  // Larger than the segment.
  EXPECT_THAT(change([](RecordHead& h) {
                h.object_bytes += h.num_layers * ((1 << 19) - h.frame_bytes);
                h.frame_bytes = 1 << 19;
              }),
              is_data_loss);
}

}  // namespace
}  // namespace pkv
