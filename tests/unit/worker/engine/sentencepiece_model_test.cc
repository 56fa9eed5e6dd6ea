#include "worker/engine/sentencepiece_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>

#include "absl/strings/str_cat.h"
#include "tests/support/sentencepiece_writer.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;
using Type = SentencePiece::Type;

TEST(SentencePieceModelTest, ReadsPiecesAndSettings) {
  SentencePieceWriter writer;
  writer.Add("ab", -1.5f, 1).Add("<u>", 0, 4);
  writer.add_dummy_prefix = false;
  writer.remove_extra_whitespaces = true;
  const auto model = SentencePieceModel::Parse(writer.Bytes());
  ASSERT_THAT(model, IsOk());
  ASSERT_EQ(model->pieces.size(), 261u);
  EXPECT_EQ(model->pieces[0].type, Type::kUnknown);
  EXPECT_EQ(model->pieces[259].text, "ab");
  EXPECT_EQ(model->pieces[259].score, -1.5f);
  EXPECT_EQ(model->pieces[259].type, Type::kNormal);
  EXPECT_EQ(model->mergeable_ids.at("ab"), 259);
  EXPECT_EQ(model->mergeable_ids.at("<u>"), 260);
  EXPECT_EQ(model->reserved_ids.at("<s>"), 1);
  EXPECT_EQ(model->byte_ids[0x41], 3 + 0x41);
  EXPECT_EQ(model->unknown_id, 0);
  EXPECT_EQ(model->bos_id, 1);
  EXPECT_TRUE(model->byte_fallback);
  EXPECT_FALSE(model->add_dummy_prefix);
  EXPECT_TRUE(model->remove_extra_whitespaces);
  EXPECT_TRUE(model->escape_whitespaces);
}

TEST(SentencePieceModelTest, RefusesOtherAlgorithmsAndNormalizers) {
  SentencePieceWriter unigram;
  unigram.model_type = 1;
  EXPECT_THAT(SentencePieceModel::Parse(unigram.Bytes()),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("model_type 1 is not 2")));
  SentencePieceWriter charsmap;
  charsmap.character_map = "abc";
  EXPECT_THAT(SentencePieceModel::Parse(charsmap.Bytes()),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("precompiled_charsmap of 3")));
  SentencePieceWriter suffix;
  suffix.whitespace_as_suffix = true;
  EXPECT_THAT(SentencePieceModel::Parse(suffix.Bytes()),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("treat_whitespace_as_suffix")));
}

TEST(SentencePieceModelTest, RefusesPiecesThatContradictEachOther) {
  const auto parse = [](const std::string& text, int type) {
    return SentencePieceModel::Parse(SentencePieceWriter().Add(text, 0, type).Bytes());
  };
  EXPECT_THAT(parse("x", 1), IsOk());
  EXPECT_THAT(parse("", 1), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("piece 259")));
  EXPECT_THAT(parse("<s>", 3), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("there twice")));
  EXPECT_THAT(parse("<u>", 2),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("pieces 0 and 259")));
  EXPECT_THAT(parse("x", 7), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("piece type 7")));
  EXPECT_THAT(parse("0x41", 6), StatusIs(absl::StatusCode::kDataLoss, HasSubstr("'0x41'")));
  SentencePieceWriter no_bos;
  no_bos.bos_id = 259;
  EXPECT_THAT(SentencePieceModel::Parse(no_bos.Bytes()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("bos_id 259")));
}

TEST(SentencePieceModelTest, RefusesByteFallbackWithoutAllBytes) {
  SentencePieceWriter writer;
  writer.num_byte_pieces = 255;
  EXPECT_THAT(SentencePieceModel::Parse(writer.Bytes()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("without a piece for byte 255")));
  writer.byte_fallback = false;
  EXPECT_THAT(SentencePieceModel::Parse(writer.Bytes()), IsOk());
}

// A message may end before each optional field of it: here, once, before the normalizer_spec.
TEST(SentencePieceModelTest, RefusesEveryTruncationThatLeavesNoWholeModel) {
  const std::string bytes = SentencePieceWriter().Add("ab", -1, 1).Bytes();
  ASSERT_THAT(SentencePieceModel::Parse(bytes), IsOk());
  int parsed = 0;
  for (size_t size = 0; size < bytes.size(); ++size) {
    const auto model = SentencePieceModel::Parse(bytes.substr(0, size));
    if (!model.ok()) continue;
    ++parsed;
    EXPECT_EQ(model->pieces.size(), 260u);
  }
  EXPECT_EQ(parsed, 1);
  EXPECT_THAT(SentencePieceModel::Parse(""),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("no pieces")));
}

TEST(SentencePieceModelTest, RefusesMalformedWireFormat) {
  const std::string endless(11, '\xff');
  for (const std::string& bytes : {endless, std::string("\x0b"),
                                   std::string("\x0a\x05"
                                               "ab"),
                                   std::string("\x0d\x01\x02"), std::string("\x09\x01\x02")}) {
    EXPECT_THAT(SentencePieceModel::Parse(bytes), StatusIs(absl::StatusCode::kDataLoss));
  }
}

TEST(SentencePieceModelTest, ReadsTheTokenizerOfNovella) {
  std::ifstream file(
      absl::StrCat(std::getenv("PKV_SOURCE_DIR"), "/deploy/models/novella-14m/tokenizer.model"),
      std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  const auto model = SentencePieceModel::Parse(bytes);
  ASSERT_THAT(model, IsOk());
  EXPECT_EQ(model->pieces.size(), 8192u);
  EXPECT_TRUE(model->byte_fallback);
  EXPECT_FALSE(model->remove_extra_whitespaces);
}

TEST(ByteOfPieceTest, ReadsTwoUpperCaseHexDigits) {
  EXPECT_EQ(ByteOfPiece("<0x00>"), 0);
  EXPECT_EQ(ByteOfPiece("<0x4A>"), 0x4a);
  EXPECT_EQ(ByteOfPiece("<0xFF>"), 255);
  for (const char* text : {"", "<0x4a>", "<0x4>", "<0x444>", "<0xG0>", "<1x00>", "0x4141"}) {
    EXPECT_EQ(ByteOfPiece(text), -1) << text;
  }
}

TEST(Utf8CharLengthTest, MeasuresValidCharactersOnly) {
  EXPECT_EQ(Utf8CharLength("a\xff"), 1);
  EXPECT_EQ(Utf8CharLength(absl::string_view("\0", 1)), 1);
  EXPECT_EQ(Utf8CharLength("\xc2\x80"), 2);
  EXPECT_EQ(Utf8CharLength("\xe0\xa0\x80"), 3);
  EXPECT_EQ(Utf8CharLength("\xed\x9f\xbf"), 3);
  EXPECT_EQ(Utf8CharLength("\xee\x80\x80"), 3);
  EXPECT_EQ(Utf8CharLength("\xf0\x90\x80\x80"), 4);
  EXPECT_EQ(Utf8CharLength("\xf4\x8f\xbf\xbf"), 4);
  for (const char* invalid :
       {"", "\x80", "\xc1\xbf", "\xc2", "\xc2\x41", "\xe0\x9f\xbf", "\xe2\x82", "\xed\xa0\x80",
        "\xf0\x8f\xbf\xbf", "\xf0\x9f\x98", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff"}) {
    EXPECT_EQ(Utf8CharLength(invalid), 0) << invalid;
  }
}

}  // namespace
}  // namespace pkv
