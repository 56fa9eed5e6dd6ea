#include "worker/eval/evaluation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "proto/base/sync.h"
#include "tests/support/error_bound.h"
#include "tests/unit/worker/eval/evaluation_driver.h"
#include "worker/eval/report_json.h"

namespace pkv {
namespace {

using testing::HasSubstr;

TEST_F(EvaluationTest, FindsMoreDifferenceWithFewerBits) {
  const EvaluationReport report = Evaluated(Options({"kivi4", "kivi2", "pkv4", "pkv2", "default"}));
  EXPECT_GT(report.baseline_perplexity, 1);
  for (const RowReport& row : report.rows) {
    const RowScore& score = row.overall;
    EXPECT_GT(score.logits.kl, 0) << row.row.label;
    EXPECT_GE(score.logits.kl_p99, score.logits.kl) << row.row.label;
    EXPECT_GT(score.k_error, 0);
    EXPECT_LT(score.k_error, 1);
    EXPECT_GT(score.v_error, 0);
    EXPECT_LT(score.v_error, 1);
    EXPECT_GT(score.bits_all_in, score.bits_per_element) << "windows and headers are in";
    EXPECT_NE(score.perplexity, report.baseline_perplexity);
  }
  const auto& rows = report.rows;
  EXPECT_LT(rows[0].overall.logits.kl, rows[1].overall.logits.kl) << "kivi4, kivi2";
  EXPECT_LT(rows[0].overall.k_error, rows[1].overall.k_error);
  EXPECT_LT(rows[0].overall.k_seen_error, rows[1].overall.k_seen_error);
  EXPECT_LT(rows[0].overall.attention_error, rows[1].overall.attention_error);
  EXPECT_LT(rows[2].overall.v_error, rows[3].overall.v_error) << "pkv4, pkv2";
  EXPECT_EQ(rows[0].overall.gate_accepted, 0);
  EXPECT_GT(rows[3].overall.gate_accepted, 0);
  EXPECT_LE(rows[3].overall.gate_accepted, 1);
}

TEST_F(EvaluationTest, EvaluatesAPresetWithItsFieldsChanged) {
  const EvaluationReport report =
      Evaluated(Options({"default", "default:clip_v=none", "default:clip_v=search"}));
  EXPECT_EQ(report.rows[1].row.label, "default clip_v=none");
  EXPECT_GT(report.rows[1].overall.v_error, report.rows[0].overall.v_error);
  EXPECT_EQ(report.rows[1].overall.k_error, report.rows[0].overall.k_error);
  EXPECT_EQ(report.rows[2].overall.logits.kl, report.rows[0].overall.logits.kl);
}

class ProtocolTest : public EvaluationTest, public testing::WithParamInterface<Protocol> {};

TEST_P(ProtocolTest, GivesTheSameNumbersWithAnyNumberOfThreads) {
  EvaluationOptions options = Options({"kivi2", "default"}, GetParam());
  options.scoring.score_tokens = 150;
  const PassageSet set = Cut(options, 3, 2);
  EvaluationSetting setting;
  setting.set = set;
  std::string one_thread;
  for (const int num_threads : {1, 2, 5}) {
    options.num_threads = num_threads;
    const auto report = Evaluate(*host_, set, options, [](int, int) {});
    ASSERT_THAT(report, IsOk());
    const std::string json = ToJson(setting, *report).dump();
    if (num_threads == 1) one_thread = json;
    EXPECT_EQ(json, one_thread) << num_threads << " threads";
  }
}

TEST_P(ProtocolTest, AddsUpTextsToTheWhole) {
  const EvaluationReport report =
      Evaluated(Options({"default"}, GetParam()), /*num_passages=*/3, /*num_texts=*/2);
  const RowScore& all = report.rows[0].overall;
  const std::vector<RowScore>& texts = report.rows[0].texts;
  ASSERT_EQ(texts.size(), 2u);
  EXPECT_EQ(texts[0].num_passages, 2);
  EXPECT_EQ(texts[1].num_passages, 1);
  EXPECT_EQ(texts[0].scored_tokens + texts[1].scored_tokens, all.scored_tokens);
  const auto sums = [&](auto value) {
    const double sum = value(texts[0]) + value(texts[1]);
    EXPECT_NEAR(sum, value(all), SumBound(64, std::abs(sum)));
  };
  sums([](const RowScore& s) { return s.logits.kl * static_cast<double>(s.scored_tokens); });
  sums([](const RowScore& s) { return s.logits.nll * static_cast<double>(s.scored_tokens); });
  sums([](const RowScore& s) { return s.layers[1].heads[0].k.error; });
  sums([](const RowScore& s) { return s.layers[1].attention.norm; });
  sums([](const RowScore& s) { return static_cast<double>(s.layers[0].accepted); });
  sums([](const RowScore& s) { return static_cast<double>(s.layers[0].v_patterns.codes[1]); });
}

INSTANTIATE_TEST_SUITE_P(Protocols, ProtocolTest,
                         testing::Values(Protocol::kPrefix, Protocol::kDecode));

TEST_F(EvaluationTest, ReportsProgressToTheEnd) {
  EvaluationOptions options = Options({"fp16", "kivi2"});
  options.num_threads = 2;
  Mutex mu;
  std::vector<int> steps;
  ASSERT_THAT(Evaluate(*host_, Cut(options, 2), options,
                       [&](int done, int total) {
                         MutexLock lock(&mu);
                         steps.push_back(done);
                         EXPECT_EQ(total, 6);
                       }),
              IsOk());
  std::sort(steps.begin(), steps.end());
  EXPECT_EQ(steps, (std::vector<int>{1, 2, 3, 4, 5, 6}));
}

TEST_F(EvaluationTest, RefusesOptionsOutOfRange) {
  const auto refused = [&](auto change) {
    ScoringOptions options = Options({}).scoring;
    change(options);
    EXPECT_THAT(PassageTokens(host_->config(), options),
                StatusIs(absl::StatusCode::kInvalidArgument));
  };
  refused([](ScoringOptions& o) { o.prefix_tokens = kBlockTokens - 1; });
  refused([](ScoringOptions& o) { o.score_tokens = 0; });
  refused([](ScoringOptions& o) { o.prefix_tokens = 1024 - o.score_tokens + 1; });
  refused([](ScoringOptions& o) { o.prefix_tokens = o.score_tokens = 2147483647; });
  refused([](ScoringOptions& o) {
    o.protocol = Protocol::kDecode;
    o.step_tokens = 0;
  });
  refused([](ScoringOptions& o) {
    o.protocol = Protocol::kDecode;
    o.step_tokens = kBlockTokens + 1;
  });
  ScoringOptions most = Options({}).scoring;
  most.prefix_tokens = 1024 - most.score_tokens;
  EXPECT_THAT(PassageTokens(host_->config(), most), IsOkAndHolds(1024));
}

TEST_F(EvaluationTest, RefusesForeignPassages) {
  const EvaluationOptions options = Options({"fp16"});
  PassageSet set = Cut(options, 1);
  const auto ignore = [](int, int) {};
  EXPECT_THAT(Evaluate(*host_, set, options, ignore), IsOk());
  std::vector<int32_t>& tokens = set.passages[0].tokens;
  tokens.back() = kTinyVocabulary;  // a target only: no forward pass would see it
  EXPECT_THAT(Evaluate(*host_, set, options, ignore),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("token id 264")));
  tokens.pop_back();
  EXPECT_THAT(Evaluate(*host_, set, options, ignore),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("316 tokens")));
  set.passages[0].text_index = 1;
  EXPECT_THAT(Evaluate(*host_, set, options, ignore),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("text 1 of 1")));
}

}  // namespace
}  // namespace pkv
