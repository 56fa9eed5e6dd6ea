#include "tests/bench/serve/token_source.h"

#include <gmock/gmock.h>

#include "absl/strings/str_join.h"

namespace pkv {
namespace {

using testing::Each;
using testing::ElementsAre;

std::vector<int32_t> Filled(const TokenSource& source, uint64_t seed, int count) {
  std::vector<int32_t> ids(count);
  source.Fill(seed, ids);
  return ids;
}

TEST(TokenSourceTest, RandomIdsAreBelowTheVocabularyAndTheSeeds) {
  const TokenSource source = TokenSource::Random(50);
  const std::vector<int32_t> ids = Filled(source, 1, 1000);
  EXPECT_THAT(ids, Each(testing::AllOf(testing::Ge(0), testing::Lt(50))));
  EXPECT_THAT(ids, testing::Contains(49));
  EXPECT_EQ(Filled(source, 1, 1000), ids);
  EXPECT_NE(Filled(source, 2, 1000), ids);
}

TEST(TokenSourceTest, AShorterSpanIsTheBeginningOfALongerOne) {
  for (const TokenSource& source :
       {TokenSource::Random(8192), TokenSource::Text({3, 1, 4, 1, 5, 9, 2, 6}, 0)}) {
    std::vector<int32_t> ids = Filled(source, 7, 100);
    ids.resize(60);
    EXPECT_EQ(Filled(source, 7, 60), ids);
  }
}

TEST(TokenSourceTest, PassagesOfATextGoOnAtItsStart) {
  const TokenSource source = TokenSource::Text({10, 11, 12}, 1);
  std::vector<int32_t> places;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const std::vector<int32_t> ids = Filled(source, seed, 7);
    places.push_back(ids[0]);
    for (size_t i = 1; i < ids.size(); ++i) EXPECT_EQ(ids[i], 10 + (ids[i - 1] - 10 + 1) % 3);
  }
  for (const int place : {10, 11, 12}) EXPECT_THAT(places, testing::Contains(place));
}

TEST(TokenSourceTest, OnlyPromptsOfATextBeginWithItsFirstToken) {
  std::vector<int32_t> prompt = {5, 6};
  TokenSource::Random(10).Begin(prompt);
  EXPECT_THAT(prompt, ElementsAre(5, 6));
  TokenSource::Text({7}, 1).Begin(prompt);
  EXPECT_THAT(prompt, ElementsAre(1, 6));
}

TEST(SplitTextTest, CutsBetweenCharacters) {
  EXPECT_THAT(SplitText("abcdefghi", 4), ElementsAre("abcd", "efgh", "i"));
  // Two bytes a character: the third would not fit whole.
  EXPECT_THAT(SplitText("\u00e4\u00f6\u00fc\u00df", 5),
              ElementsAre("\u00e4\u00f6", "\u00fc\u00df"));
  EXPECT_THAT(SplitText("abc\U0001F600def", 4), ElementsAre("abc", "\U0001F600", "def"));
  EXPECT_THAT(SplitText("", 4), ElementsAre());
}

TEST(SplitTextTest, KeepsEveryByteOfWhatIsNoText) {
  const std::string bytes(11, '\x80');
  const std::vector<std::string> pieces = SplitText(bytes, 4);
  EXPECT_EQ(absl::StrJoin(pieces, ""), bytes);
  EXPECT_EQ(pieces.size(), 3);
}

}  // namespace
}  // namespace pkv
