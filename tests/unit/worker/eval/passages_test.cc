#include "worker/eval/passages.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "tests/unit/worker/eval/evaluation_driver.h"

namespace pkv {
namespace {

using testing::HasSubstr;

class PassagesTest : public EvaluationTest {
 protected:
  static std::vector<int32_t> Tokens(const std::string& path) {
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    return *host_->tokenizer().Encode(text.str(), /*add_bos=*/false);
  }
};

TEST_F(PassagesTest, AreCutAtEqualStridesTakingTurnsAmongTexts) {
  const std::vector<std::string> texts = {WriteText("a", 1000, 2), WriteText("b", 2000, 3)};
  const PassageOptions options{.num_tokens = 316, .num_passages = 5};
  const auto set = CutPassages(*host_, texts, options);
  ASSERT_THAT(set, IsOk());
  ASSERT_EQ(set->passages.size(), 5u);
  const std::vector<int> count = {3, 2};
  for (int i = 0; i < 5; ++i) {
    const Passage& passage = set->passages[i];
    ASSERT_EQ(passage.tokens.size(), 317u);
    EXPECT_EQ(passage.text_index, i % 2);
    EXPECT_EQ(passage.tokens[0], host_->config().bos_token_id);
    // The middle of each of `count` equal parts of where a passage may begin.
    const std::vector<int32_t> text = Tokens(texts[i % 2]);
    const size_t room = text.size() - 316;
    const size_t begin = room * (2 * (i / 2) + 1) / (2 * count[i % 2]);
    EXPECT_EQ(passage.first_token, static_cast<int64_t>(begin));
    EXPECT_TRUE(std::equal(passage.tokens.begin() + 1, passage.tokens.end(), text.begin() + begin))
        << i;
  }
}

TEST_F(PassagesTest, NameTheirTexts) {
  const std::string path = folder_->folder().Write("abc", "abc");
  const auto set = CutPassages(*host_, std::vector{path}, {.num_tokens = 2, .num_passages = 1});
  ASSERT_THAT(set, IsOk());
  ASSERT_EQ(set->texts.size(), 1u);
  EXPECT_EQ(set->texts[0].path, path);
  EXPECT_EQ(set->texts[0].bytes, 3u);
  EXPECT_EQ(set->texts[0].num_tokens, static_cast<int64_t>(Tokens(path).size()));
  // FIPS 180-2, appendix B.1.
  EXPECT_EQ(set->texts[0].sha256,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST_F(PassagesTest, MoveWithTheSeedWithinTheirShareOfTheText) {
  const std::vector<std::string> texts = {WriteText("long", 5000, 7)};
  PassageOptions options{.num_tokens = 316, .num_passages = 4};
  const int64_t room = static_cast<int64_t>(Tokens(texts[0]).size()) - 316;
  std::vector<std::vector<int64_t>> begins;
  for (const uint64_t seed : {0, 1, 2, 1}) {
    options.seed = seed;
    const auto set = CutPassages(*host_, texts, options);
    ASSERT_THAT(set, IsOk());
    begins.emplace_back();
    for (int i = 0; i < 4; ++i) {
      const int64_t begin = set->passages[i].first_token;
      EXPECT_GE(begin, room * i / 4);
      EXPECT_LE(begin, room * (i + 1) / 4);
      begins.back().push_back(begin);
    }
  }
  EXPECT_NE(begins[0], begins[1]);
  EXPECT_NE(begins[1], begins[2]);
  EXPECT_EQ(begins[1], begins[3]) << "a function of the seed alone";
}

TEST_F(PassagesTest, RefuseTextsThatAreTooShortOrNotThere) {
  // A leading space is added by the tokenizer.
  const std::string enough = WriteText("enough", 316, 4), few = WriteText("few", 312, 4);
  const PassageOptions options{.num_tokens = 316, .num_passages = 2};
  EXPECT_THAT(CutPassages(*host_, std::vector{enough}, options), IsOk());
  EXPECT_THAT(CutPassages(*host_, std::vector{enough, few}, options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("few has 31")));
  EXPECT_THAT(CutPassages(*host_, std::vector{enough, few + "er"}, options),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("fewer")));
  EXPECT_THAT(CutPassages(*host_, std::vector{folder_->path()}, options),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(CutPassages(*host_, {}, options), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(CutPassages(*host_, std::vector{enough}, {.num_tokens = 316, .num_passages = 0}),
              StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace pkv
