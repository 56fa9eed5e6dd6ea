#include "worker/eval/evaluation.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "tests/support/tiny_worker.h"

namespace pkv {
namespace {

using testing::HasSubstr;

// head_dim 128, the size that rates are quoted for.
class EvaluationTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    TinyModel model;
    model.head_dim = 128;
    folder_ = new TinyModelFolder(model);
    host_ = LoadTinyHost(folder_->path()).release();
  }
  static void TearDownTestSuite() {
    delete host_;
    delete folder_;
  }

  // A text of one token a byte, no two stretches of it alike.
  static std::string WriteText(const std::string& name, int num_bytes, uint64_t seed) {
    TestRandom random(seed);
    std::string text;
    for (int i = 0; i < num_bytes; ++i) text.push_back(static_cast<char>('!' + random.Below(90)));
    return folder_->folder().Write(name, text);
  }
  static EvaluationOptions Options(std::vector<std::string> presets) {
    EvaluationOptions options;
    options.prefix_tokens = 300;
    options.score_tokens = 16;
    options.num_passages = 2;
    options.presets = std::move(presets);
    return options;
  }
  static EvaluationReport Evaluated(const EvaluationOptions& options) {
    const std::vector<std::string> texts = {WriteText("text", 2000, 1)};
    const auto passages = CutPassages(*host_, texts, options);
    EXPECT_THAT(passages, IsOk());
    const auto report = Evaluate(*host_, *passages, options, [](int, int) {});
    EXPECT_THAT(report, IsOk());
    return *report;
  }

  static inline TinyModelFolder* folder_ = nullptr;
  static inline ModelHost* host_ = nullptr;
};

TEST_F(EvaluationTest, FindsNoDifferenceInAnFp16Cache) {
  const PresetScore score = Evaluated(Options({"fp16"})).scores.at(0);
  EXPECT_EQ(score.kl_mean, 0) << "exactly: the same values in the same order";
  EXPECT_EQ(score.kl_p99, 0);
  EXPECT_EQ(score.top1_agreement, 1);
  EXPECT_EQ(score.perplexity_change, 0);
  EXPECT_EQ(score.k_error, 0);
  EXPECT_EQ(score.v_error, 0);
  EXPECT_EQ(score.gate_accepted, 0);
  EXPECT_EQ(score.bits_per_element, 16);
  EXPECT_EQ(score.scored_tokens, 32);
}

TEST_F(EvaluationTest, FindsMoreDifferenceWithFewerBits) {
  const EvaluationReport report = Evaluated(Options({"kivi4", "kivi2", "pkv4", "pkv2", "default"}));
  EXPECT_GT(report.baseline_perplexity, 1);
  for (const PresetScore& score : report.scores) {
    EXPECT_GT(score.kl_mean, 0) << score.preset;
    EXPECT_GE(score.kl_p99, score.kl_mean) << score.preset;
    EXPECT_GT(score.k_error, 0);
    EXPECT_LT(score.k_error, 1);
    EXPECT_GT(score.v_error, 0);
    EXPECT_LT(score.v_error, 1);
    EXPECT_GT(score.bits_all_in, score.bits_per_element) << "windows and headers are in";
    EXPECT_NE(score.perplexity, report.baseline_perplexity);
  }
  const auto& scores = report.scores;
  EXPECT_LT(scores[0].kl_mean, scores[1].kl_mean) << "kivi4, kivi2";
  EXPECT_LT(scores[0].k_error, scores[1].k_error);
  EXPECT_LT(scores[2].v_error, scores[3].v_error) << "pkv4, pkv2";
  EXPECT_EQ(scores[0].gate_accepted, 0);
  EXPECT_GT(scores[3].gate_accepted, 0);
  EXPECT_LE(scores[3].gate_accepted, 1);
}

TEST_F(EvaluationTest, CountsTheBitsOfCodesScalesZeroPointsAndIds) {
  // A code; 32 bits of scale and zero point for each 128 codes; 8 bits of id for each 128.
  const EvaluationReport report = Evaluated(Options({"kivi2", "pkv2", "pkv4", "default"}));
  EXPECT_EQ(report.scores[0].bits_per_element, 2.25);
  EXPECT_EQ(report.scores[1].bits_per_element, 2.3125);
  EXPECT_EQ(report.scores[2].bits_per_element, 4.3125);
  EXPECT_EQ(report.scores[3].bits_per_element, 2.3125);
}

TEST_F(EvaluationTest, CountsAllInWhatObjectsAndWindowTake) {
  // 300 tokens: two blocks in headed objects of 3 * 128 + 2 frames, 44 tokens in fp16.
  const PresetScore score = Evaluated(Options({"kivi2"})).scores.at(0);
  const double token_elements = 2.0 * 2 * 128;  // K and V, layers, head_dim
  const double block_bytes = 384 + 2 * (2.25 / 8) * 2 * 128 * 128;
  const double bytes = 2 * block_bytes + 44 * token_elements * 2;
  EXPECT_EQ(score.bits_all_in, 8 * bytes / (300 * token_elements));
}

TEST_F(EvaluationTest, ReportsProgressToTheEnd) {
  const EvaluationOptions options = Options({"fp16", "kivi2"});
  const auto passages = CutPassages(*host_, std::vector{WriteText("text", 2000, 1)}, options);
  ASSERT_THAT(passages, IsOk());
  std::vector<int> steps;
  ASSERT_THAT(Evaluate(*host_, *passages, options,
                       [&](int done, int total) {
                         steps.push_back(done);
                         EXPECT_EQ(total, 6);
                       }),
              IsOk());
  EXPECT_EQ(steps, (std::vector<int>{1, 2, 3, 4, 5, 6}));
}

TEST_F(EvaluationTest, CutsPassagesAtEqualStridesTakingTurnsAmongTexts) {
  const std::vector<std::string> texts = {WriteText("a", 1000, 2), WriteText("b", 2000, 3)};
  EvaluationOptions options = Options({});
  options.num_passages = 5;
  const auto passages = CutPassages(*host_, texts, options);
  ASSERT_THAT(passages, IsOk());
  ASSERT_EQ(passages->size(), 5u);
  std::vector<std::vector<int32_t>> tokens;
  for (const std::string& path : texts) {
    std::stringstream text;
    text << std::ifstream(path).rdbuf();
    tokens.push_back(*host_->tokenizer().Encode(text.str(), /*add_bos=*/false));
  }
  const std::vector<int> count = {3, 2};
  for (int i = 0; i < 5; ++i) {
    const std::vector<int32_t>& passage = (*passages)[i];
    ASSERT_EQ(passage.size(), 317u);
    EXPECT_EQ(passage[0], host_->config().bos_token_id);
    // The middle of each of `count` equal parts of where a passage may begin.
    const std::vector<int32_t>& text = tokens[i % 2];
    const size_t room = text.size() - 316;
    const size_t begin = room * (2 * (i / 2) + 1) / (2 * count[i % 2]);
    EXPECT_TRUE(std::equal(passage.begin() + 1, passage.end(), text.begin() + begin)) << i;
  }
  EXPECT_EQ(*CutPassages(*host_, texts, options), *passages);
}

TEST_F(EvaluationTest, RefusesTextsThatAreTooShortOrNotThere) {
  // A leading space is added by the tokenizer.
  const std::string enough = WriteText("enough", 316, 4), few = WriteText("few", 312, 4);
  const EvaluationOptions options = Options({});
  EXPECT_THAT(CutPassages(*host_, std::vector{enough}, options), IsOk());
  EXPECT_THAT(CutPassages(*host_, std::vector{enough, few}, options),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("few has 31")));
  EXPECT_THAT(CutPassages(*host_, std::vector{enough, few + "er"}, options),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("fewer")));
  EXPECT_THAT(CutPassages(*host_, std::vector{folder_->path()}, options),
              StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(CutPassages(*host_, {}, options), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST_F(EvaluationTest, RefusesOptionsOutOfRange) {
  const std::vector<std::string> texts = {WriteText("long", 3000, 5)};
  const auto refused = [&](auto change) {
    EvaluationOptions options = Options({});
    change(options);
    EXPECT_THAT(CutPassages(*host_, texts, options), StatusIs(absl::StatusCode::kInvalidArgument));
  };
  refused([](EvaluationOptions& o) { o.prefix_tokens = kBlockTokens - 1; });
  refused([](EvaluationOptions& o) { o.score_tokens = 0; });
  refused([](EvaluationOptions& o) { o.num_passages = 0; });
  refused([](EvaluationOptions& o) { o.prefix_tokens = 1024 - o.score_tokens + 1; });
  refused([](EvaluationOptions& o) { o.prefix_tokens = o.score_tokens = 2147483647; });
  EvaluationOptions most = Options({});
  most.prefix_tokens = 1024 - most.score_tokens;
  EXPECT_THAT(CutPassages(*host_, texts, most), IsOk());
}

TEST_F(EvaluationTest, RefusesForeignPassagesAndPresets) {
  EvaluationOptions options = Options({"kivi3"});
  std::vector<std::vector<int32_t>> passages = {std::vector<int32_t>(317, 5)};
  const auto ignore = [](int, int) {};
  EXPECT_THAT(Evaluate(*host_, passages, options, ignore),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("kivi3")));
  options.presets = {"fp16"};
  EXPECT_THAT(Evaluate(*host_, passages, options, ignore), IsOk());
  passages[0].back() = kTinyVocabulary;  // a target only: no forward pass would see it
  EXPECT_THAT(Evaluate(*host_, passages, options, ignore),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("token id 264")));
  passages[0].pop_back();
  EXPECT_THAT(Evaluate(*host_, passages, options, ignore),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("316 tokens")));
}

}  // namespace
}  // namespace pkv
