#include "tests/bench/serve/run_summary.h"

#include <gmock/gmock.h>

#include <numeric>

namespace pkv {
namespace {

// A request of three tokens. Its times are sums of powers of two, so that differences are exact.
RequestRecord GoodRecord(int64_t index = 0, double sent_s = 0) {
  RequestRecord record;
  record.index = index;
  record.intended_s = sent_s;
  record.sent_s = sent_s;
  record.prefilled_s = sent_s + 1;
  record.token_s = {sent_s + 1.5, sent_s + 1.75, sent_s + 2.5};
  record.ended_s = sent_s + 3;
  record.asked_tokens = 3;
  record.has_prefill_stats = record.has_decode_stats = true;
  record.prefill.set_prompt_tokens(100);
  record.prefill.set_cached_tokens(25);
  record.prefill.set_stored(true);
  record.prefill.set_put_bytes(1000);
  record.decode.set_first_token_seconds(0.25);
  record.decode.set_fetched_bytes(3000);
  return record;
}

RequestRecord FailedRecord(int64_t index, Stage stage, absl::Status status) {
  RequestRecord record;
  record.index = index;
  record.sent_s = 0;
  record.ended_s = 0.5;
  record.failed_stage = stage;
  record.status = std::move(status);
  return record;
}

LoadResult Load(std::vector<RequestRecord> records) {
  LoadResult load;
  load.records = std::move(records);
  for (const RequestRecord& record : load.records) {
    load.sending_s = std::max(load.sending_s, record.sent_s);
    load.ended_s = std::max(load.ended_s, record.ended_s);
  }
  return load;
}

TEST(LatencySummaryTest, PercentilesAreSamplesOfTheNearestRank) {
  std::vector<double> samples(100);
  std::iota(samples.rbegin(), samples.rend(), 1);
  const LatencySummary hundred = SummarizeLatencies(samples);
  EXPECT_EQ(hundred.count, 100);
  EXPECT_EQ(hundred.mean, 50.5);
  EXPECT_EQ(hundred.p50, 50);
  EXPECT_EQ(hundred.p90, 90);
  EXPECT_EQ(hundred.p99, 99);
  EXPECT_EQ(hundred.max, 100);
  samples.push_back(0);
  EXPECT_EQ(SummarizeLatencies(samples).p50, 50);  // of 0..100, rank 51
  EXPECT_EQ(SummarizeLatencies(samples).p99, 99);  // rank 100
  const LatencySummary two = SummarizeLatencies({4, 2});
  EXPECT_EQ(two.p50, 2);
  EXPECT_EQ(two.p90, 4);
}

TEST(LatencySummaryTest, OfOneSampleIsThatSampleOfNoneIsNothing) {
  const LatencySummary one = SummarizeLatencies({3});
  EXPECT_EQ(one.p50, 3);
  EXPECT_EQ(one.p99, 3);
  EXPECT_EQ(SummarizeLatencies({}).count, 0);
}

TEST(RunSummaryTest, SplitsTheTimeToTheFirstToken) {
  const RunSummary summary = Summarize(Load({GoodRecord()}), {});
  EXPECT_EQ(summary.ttft.max, 1.5);
  EXPECT_EQ(summary.prefill.max, 1);
  EXPECT_EQ(summary.decode_first.max, 0.5);
  EXPECT_EQ(summary.worker_first_token.max, 0.25);
  EXPECT_EQ(summary.e2e.max, 3);
}

TEST(RunSummaryTest, TokensAreTimedFromOneToTheNext) {
  const RunSummary summary = Summarize(Load({GoodRecord()}), {});
  EXPECT_EQ(summary.inter_token.count, 2);
  EXPECT_EQ(summary.inter_token.p50, 0.25);
  EXPECT_EQ(summary.inter_token.max, 0.75);
  EXPECT_EQ(summary.tpot.mean, 0.5);
}

TEST(RunSummaryTest, OneTokenHasNoTimeBetweenTokens) {
  RequestRecord record = GoodRecord();
  record.token_s.resize(1);
  const RunSummary summary = Summarize(Load({record}), {.slo_tpot_s = 0.1});
  EXPECT_EQ(summary.ttft.count, 1);
  EXPECT_EQ(summary.tpot.count, 0);
  EXPECT_EQ(summary.inter_token.count, 0);
  EXPECT_EQ(summary.num_good, 1);
  EXPECT_EQ(summary.short_answers, 1);
}

// A client that sends late must not make the workers look quick.
TEST(RunSummaryTest, OpenLoopLatenciesBeginAtTheIntendedTime) {
  RequestRecord record = GoodRecord(0, 4);
  record.intended_s = 2;
  const RunSummary open = Summarize(Load({record}), {.open_loop = true});
  EXPECT_EQ(open.ttft.max, 3.5);
  EXPECT_EQ(open.prefill.max, 3);
  EXPECT_EQ(open.e2e.max, 5);
  EXPECT_EQ(open.lateness.max, 2);
  EXPECT_EQ(open.num_late, 1);
  EXPECT_EQ(Summarize(Load({record}), {.open_loop = false}).ttft.max, 1.5);
}

TEST(RunSummaryTest, AHundredthOfASecondIsNotLate) {
  RequestRecord record = GoodRecord();
  record.intended_s = record.sent_s - kLateSeconds;
  EXPECT_EQ(Summarize(Load({record}), {}).num_late, 0);
  record.intended_s -= 1e-6;
  EXPECT_EQ(Summarize(Load({record}), {}).num_late, 1);
}

TEST(RunSummaryTest, CountsErrorsByStageAndCode) {
  const RunSummary summary = Summarize(
      Load({GoodRecord(0), FailedRecord(1, Stage::kPrefill, absl::UnavailableError("first")),
            FailedRecord(2, Stage::kPrefill, absl::UnavailableError("second")),
            FailedRecord(3, Stage::kDecode, absl::UnavailableError("other"))}),
      {});
  EXPECT_EQ(summary.num_sent, 4);
  EXPECT_EQ(summary.num_ok, 1);
  EXPECT_EQ(summary.num_failed, 3);
  ASSERT_EQ(summary.errors.size(), 2);
  const ErrorCount& error = summary.errors.at({Stage::kPrefill, absl::StatusCode::kUnavailable});
  EXPECT_EQ(error.count, 2);
  EXPECT_EQ(error.message, "first");
}

TEST(RunSummaryTest, AFailedRequestGivesNoLatencyAndNoTokens) {
  RequestRecord failed = GoodRecord(1);
  failed.status = absl::InternalError("broke off");
  failed.failed_stage = Stage::kDecode;
  const RunSummary summary = Summarize(Load({GoodRecord(0), failed}), {});
  EXPECT_EQ(summary.ttft.count, 1);
  EXPECT_EQ(summary.output_tokens, 3);
  EXPECT_EQ(summary.prompt_tokens, 100);
  EXPECT_EQ(summary.num_good, 1);
}

TEST(RunSummaryTest, AddsUpTokensAndBytes) {
  RequestRecord other = GoodRecord(1, 1);
  other.num_refusals = 3;
  other.num_retries = 2;
  other.num_shared_tokens = 50;
  other.prefill.set_stored(false);
  other.prefill.set_store_error("full");
  other.decode.set_recomputed_tokens(99);
  other.decode.set_recompute_reason("gone");
  const RunSummary summary = Summarize(Load({GoodRecord(0), other}), {});
  EXPECT_EQ(summary.prompt_tokens, 200);
  EXPECT_EQ(summary.cached_tokens, 50);
  EXPECT_EQ(summary.shared_tokens, 50);
  EXPECT_EQ(summary.put_bytes, 2000);
  EXPECT_EQ(summary.decode_fetched_bytes, 6000);
  EXPECT_EQ(summary.recomputed_tokens, 99);
  EXPECT_EQ(summary.num_recomputed, 1);
  EXPECT_EQ(summary.first_recompute_reason, "gone");
  EXPECT_EQ(summary.num_not_stored, 1);
  EXPECT_EQ(summary.first_store_error, "full");
  EXPECT_EQ(summary.num_refusals, 3);
  EXPECT_EQ(summary.num_retries, 2);
  EXPECT_EQ(summary.span_s, 4);
  EXPECT_EQ(summary.PerSecond(summary.output_tokens), 1.5);
}

TEST(RunSummaryTest, GoodputKeepsEachBound) {
  const auto good = [](std::optional<double> ttft, std::optional<double> tpot) {
    return Summarize(Load({GoodRecord()}), {.slo_ttft_s = ttft, .slo_tpot_s = tpot}).num_good;
  };
  EXPECT_EQ(good(1.5, 0.5), 1);
  EXPECT_EQ(good(1.4375, std::nullopt), 0);
  EXPECT_EQ(good(std::nullopt, 0.4375), 0);
  EXPECT_EQ(good(std::nullopt, std::nullopt), 1);
}

// Two slots: the second has its first token at 2.5, the last request is sent at 4. In between
// request 1 has tokens at 2.75 and 3.5; that of 2.5 is not within.
TEST(RunSummaryTest, FullLoadIsFromTheLastSlotsFirstTokenToTheLastSending) {
  const LoadResult load = Load({GoodRecord(0, 0), GoodRecord(1, 1), GoodRecord(2, 4)});
  const RunSummary summary = Summarize(load, {.concurrency = 2});
  EXPECT_EQ(summary.full_s, 1.5);
  EXPECT_EQ(summary.full_output_tokens_per_s, 2 / 1.5);
  EXPECT_EQ(Summarize(load, {.concurrency = 4}).full_output_tokens_per_s, std::nullopt);
  EXPECT_EQ(Summarize(load, {.open_loop = true}).full_output_tokens_per_s, std::nullopt);
  EXPECT_EQ(Summarize(Load({GoodRecord()}), {}).full_output_tokens_per_s, std::nullopt);
}

// Streams are open in [1, 3], [2, 4] and [5, 7].
TEST(RunSummaryTest, CountsOpenDecodeStreams) {
  const RunSummary summary =
      Summarize(Load({GoodRecord(0, 0), GoodRecord(1, 1), GoodRecord(2, 4),
                      FailedRecord(3, Stage::kPrefill, absl::UnavailableError(""))}),
                {});
  EXPECT_EQ(summary.max_decode_streams, 2);
  EXPECT_EQ(summary.mean_decode_streams, 6.0 / 7);
}

TEST(RunSummaryTest, OfNothingIsZero) {
  const RunSummary summary = Summarize({}, {});
  EXPECT_EQ(summary.num_sent, 0);
  EXPECT_EQ(summary.PerSecond(summary.num_ok), 0);
}

}  // namespace
}  // namespace pkv
