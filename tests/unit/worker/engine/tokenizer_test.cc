#include "worker/engine/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "tests/support/sentencepiece_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tensor_gen.h"
#include "tests/support/tiny_model.h"

namespace pkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr int kFirstAdded = 259;

std::string NovellaPath() {
  return absl::StrCat(std::getenv("PKV_SOURCE_DIR"), "/deploy/models/novella-14m");
}

std::unique_ptr<Tokenizer> Make(const SentencePieceWriter& writer) {
  const ScratchFolder folder;
  folder.Write("tokenizer.model", writer.Bytes());
  return *Tokenizer::Load(folder.path());
}

std::vector<int32_t> Ids(const Tokenizer& tokenizer, absl::string_view text) {
  return *tokenizer.Encode(text, /*add_bos=*/false);
}

// Ids of the byte pieces of `text`.
std::vector<int32_t> ByteIds(absl::string_view text) {
  std::vector<int32_t> ids;
  for (const char c : text) ids.push_back(3 + static_cast<uint8_t>(c));
  return ids;
}

// Novella's ids, from an independent program.
TEST(TokenizerTest, EncodesThePromptsOfNovellaAsExpected) {
  const auto tokenizer = Tokenizer::Load(NovellaPath());
  ASSERT_THAT(tokenizer, IsOk());
  const nlohmann::json expected =
      nlohmann::json::parse(std::ifstream(NovellaPath() + "/expected.json"));
  for (const auto& prompt : expected["cases"]) {
    const std::string text = prompt["prompt"];
    const std::vector<int32_t> ids = prompt["token_ids"];
    EXPECT_THAT((*tokenizer)->Encode(text, /*add_bos=*/true), IsOkAndHolds(ids));
    EXPECT_THAT((*tokenizer)->Decode(ids), IsOkAndHolds(text));
    const std::vector<int32_t> continued = prompt["greedy_48"];
    EXPECT_THAT((*tokenizer)->Decode(continued), IsOkAndHolds(std::string(prompt["text"])));
  }
}

TEST(TokenizerTest, DecodesWhatItEncodedForAnyUtf8Text) {
  const auto tokenizer = Tokenizer::Load(NovellaPath());
  ASSERT_THAT(tokenizer, IsOk());
  TestRandom random(21);
  const std::vector<std::string> characters = {
      "a",   "Z",  " ", "  ", "\n", "\t", ".", "\xc3\xa9", "\xe6\xbc\xa2", "\xf0\x9f\x98\x80",
      "the", "<s>"};
  for (int i = 0; i < 200; ++i) {
    std::string text;
    for (int j = random.Below(40); j > 0; --j) {
      text += characters[random.Below(static_cast<int>(characters.size()))];
    }
    EXPECT_THAT((*tokenizer)->Decode(Ids(**tokenizer, text)), IsOkAndHolds(text));
  }
}

TEST(TokenizerTest, MergesTheHighestScoreFirstAndTheLeftmostOfEquals) {
  SentencePieceWriter writer;
  writer.add_dummy_prefix = false;
  writer.Add("a", -9, 1).Add("b", -9, 1).Add("c", -9, 1);     // 259, 260, 261
  writer.Add("ab", -2, 1).Add("bc", -1, 1).Add("aa", -4, 1);  // 262, 263, 264
  const auto tokenizer = Make(writer);
  EXPECT_THAT(Ids(*tokenizer, "abc"), ElementsAre(259, 263));
  EXPECT_THAT(Ids(*tokenizer, "aaa"), ElementsAre(264, 259));
  EXPECT_THAT(Ids(*tokenizer, "aab"), ElementsAre(259, 262));
}

TEST(TokenizerTest, KeepsMergingWhatMergesFormed) {
  SentencePieceWriter writer;
  writer.add_dummy_prefix = false;
  writer.Add("a", -9, 1).Add("aa", -1, 1).Add("aaaa", -2, 1);
  const auto tokenizer = Make(writer);
  EXPECT_THAT(Ids(*tokenizer, "aaa"), ElementsAre(260, 259));
  EXPECT_THAT(Ids(*tokenizer, "aaaaaa"), ElementsAre(261, 260));
}

TEST(TokenizerTest, FallsBackToBytesOrToOneUnknownTokenForARun) {
  SentencePieceWriter writer;
  writer.add_dummy_prefix = false;
  writer.Add("a", -1, 1);
  EXPECT_EQ(Ids(*Make(writer), "\xc3\xa9"), ByteIds("\xc3\xa9"));
  writer.byte_fallback = false;
  EXPECT_THAT(Ids(*Make(writer), "xyax"), ElementsAre(0, kFirstAdded, 0));
}

TEST(TokenizerTest, ReplacesInvalidUtf8) {
  SentencePieceWriter writer;
  writer.add_dummy_prefix = false;
  const auto tokenizer = Make(writer);
  EXPECT_EQ(Ids(*tokenizer, "\xff"), ByteIds("\xef\xbf\xbd"));
  EXPECT_EQ(Ids(*tokenizer, "\xe2\x82"), ByteIds("\xef\xbf\xbd\xef\xbf\xbd"));
}

TEST(TokenizerTest, MatchesUserDefinedPiecesBeforeAnyMerge) {
  SentencePieceWriter writer;
  writer.add_dummy_prefix = false;
  writer.Add("a", -9, 1).Add("b", -9, 1).Add("ab", -1, 1);  // 259, 260, 261
  writer.Add("<x", 0, 4).Add("<x>", 0, 4).Add("ba", 0, 4);  // 262, 263, 264
  const auto tokenizer = Make(writer);
  EXPECT_THAT(Ids(*tokenizer, "ab<x>ab<xa"), ElementsAre(261, 263, 261, 262, 259));
  EXPECT_THAT(Ids(*tokenizer, "bab"), ElementsAre(264, 260));
}

TEST(TokenizerTest, SplitsUnusedPiecesIntoWhatTheyWereMergedFrom) {
  SentencePieceWriter writer;
  writer.add_dummy_prefix = false;
  writer.Add("a", -9, 1).Add("b", -9, 1).Add("ab", -1, 5).Add("aba", -2, 1);
  const auto tokenizer = Make(writer);
  EXPECT_THAT(Ids(*tokenizer, "ab"), ElementsAre(259, 260));
  EXPECT_THAT(Ids(*tokenizer, "aba"), ElementsAre(262));
}

TEST(TokenizerTest, AddsAndStripsTheDummyPrefix) {
  SentencePieceWriter writer;
  writer.Add("\xe2\x96\x81", -1, 1).Add("a", -2, 1);  // 259, 260
  const auto tokenizer = Make(writer);
  EXPECT_THAT(Ids(*tokenizer, "a"), ElementsAre(259, 260));
  EXPECT_THAT(Ids(*tokenizer, " a"), ElementsAre(259, 259, 260));
  EXPECT_THAT(Ids(*tokenizer, ""), IsEmpty());
  EXPECT_THAT(tokenizer->Decode(std::vector<int32_t>{259, 259, 260}), IsOkAndHolds(" a"));
  EXPECT_THAT(tokenizer->Decode(std::vector<int32_t>{1, 259, 260}), IsOkAndHolds("a"));
  EXPECT_THAT(tokenizer->Decode(std::vector<int32_t>{260, 259, 260, 2}), IsOkAndHolds("a a"));
}

TEST(TokenizerTest, TrimsWhiteSpaceWhenTheModelSaysSo) {
  SentencePieceWriter writer;
  writer.remove_extra_whitespaces = true;
  writer.Add("\xe2\x96\x81", -1, 1).Add("a", -2, 1);
  const auto tokenizer = Make(writer);
  EXPECT_THAT(Ids(*tokenizer, "  a   a  "), ElementsAre(259, 260, 259, 260));
  EXPECT_THAT(Ids(*tokenizer, "   "), IsEmpty());
}

TEST(TokenizerTest, AddsBosWhenThereIsOne) {
  SentencePieceWriter writer;
  EXPECT_THAT(Make(writer)->Encode("", true), IsOkAndHolds(ElementsAre(1)));
  writer.bos_id = -1;
  EXPECT_THAT(Make(writer)->Encode("", true),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("no BOS")));
  EXPECT_THAT(Make(writer)->Encode("", false), IsOkAndHolds(IsEmpty()));
}

TEST(TokenizerTest, RefusesIdsOutsideTheVocabulary) {
  const auto tokenizer = Make(SentencePieceWriter());
  EXPECT_THAT(tokenizer->Decode(std::vector<int32_t>{258}), IsOk());
  for (const int32_t id : {-1, 259}) {
    EXPECT_THAT(tokenizer->Decode(std::vector<int32_t>{id}),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not in [0, 259)")));
  }
}

TEST(TokenizerTest, ReportsWhatItCannotLoad) {
  const ScratchFolder folder;
  EXPECT_THAT(Tokenizer::Load(folder.path()), StatusIs(absl::StatusCode::kNotFound));
  folder.Write("tokenizer.json", "{}");
  EXPECT_THAT(Tokenizer::Load(folder.path()),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("tokenizer.json")));
  folder.Write("tokenizer.model", "\xff\xff");
  EXPECT_THAT(Tokenizer::Load(folder.path()),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("tokenizer.model")));
}

TEST(StreamDecoderTest, HoldsBackUnfinishedCharacters) {
  SentencePieceWriter writer;
  writer.Add("a", -1, 1);
  const auto tokenizer = Make(writer);
  StreamDecoder decoder(tokenizer.get());
  const std::vector<int32_t> euro = ByteIds("\xe2\x82\xac");
  EXPECT_THAT(decoder.Add(euro[0]), IsOkAndHolds(""));
  EXPECT_THAT(decoder.Add(euro[1]), IsOkAndHolds(""));
  EXPECT_THAT(decoder.Add(euro[2]), IsOkAndHolds("\xe2\x82\xac"));
  EXPECT_THAT(decoder.Add(euro[0]), IsOkAndHolds(""));
  EXPECT_THAT(decoder.Add(kFirstAdded), IsOkAndHolds("\xef\xbf\xbd"
                                                     "a"));
}

TEST(StreamDecoderTest, KeepsSpacesBetweenTokens) {
  SentencePieceWriter writer;
  writer.Add("\xe2\x96\x81", -3, 1)
      .Add("a", -3, 1)
      .Add(
          "\xe2\x96\x81"
          "a",
          -1, 1);
  const auto tokenizer = Make(writer);
  StreamDecoder decoder(tokenizer.get());
  EXPECT_THAT(decoder.Add(1), IsOkAndHolds(""));
  EXPECT_THAT(decoder.Add(261), IsOkAndHolds("a"));
  EXPECT_THAT(decoder.Add(261), IsOkAndHolds(" a"));
  EXPECT_THAT(decoder.Add(259), IsOkAndHolds(" "));
  EXPECT_THAT(decoder.Add(261), IsOkAndHolds(" a"));
}

TEST(StreamDecoderTest, SurvivesAnIdOutsideTheVocabulary) {
  SentencePieceWriter writer;
  writer.Add("a", -1, 1);
  const auto tokenizer = Make(writer);
  StreamDecoder decoder(tokenizer.get());
  EXPECT_THAT(decoder.Add(kFirstAdded), IsOkAndHolds("a"));
  EXPECT_THAT(decoder.Add(9999), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(decoder.Add(kFirstAdded), IsOkAndHolds("a"));
}

// Random ids of novella: bytes that form no character, spaces and control tokens included. What is
// held back at the end is at most the three bytes of an unfinished character, each read as U+FFFD.
TEST(StreamDecoderTest, AddsUpToDecodingEverything) {
  const auto tokenizer = Tokenizer::Load(NovellaPath());
  ASSERT_THAT(tokenizer, IsOk());
  TestRandom random(22);
  for (int i = 0; i < 300; ++i) {
    StreamDecoder decoder(tokenizer->get());
    std::vector<int32_t> ids;
    std::string streamed;
    for (int j = random.Below(30); j >= 0; --j) {
      ids.push_back(random.Below(random.Below(2) == 0 ? 300 : 8192));
      const auto added = decoder.Add(ids.back());
      ASSERT_THAT(added, IsOk());
      streamed += *added;
    }
    std::string whole = *(*tokenizer)->Decode(ids);
    for (int held = 0; held < 3 && whole != streamed && absl::EndsWith(whole, "\xef\xbf\xbd");
         ++held) {
      whole.resize(whole.size() - 3);
    }
    EXPECT_EQ(streamed, whole);
  }
}

}  // namespace
}  // namespace pkv
