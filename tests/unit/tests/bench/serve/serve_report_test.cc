#include "tests/bench/serve/serve_report.h"

#include <gmock/gmock.h>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;
using testing::Not;

ServeReport SomeReport() {
  ServeReport report;
  report.command_line = "pkv-bench serve";
  report.load = {{"loop", "closed"}};
  report.options.concurrency = 2;
  RunSummary& summary = report.summary;
  summary.num_sent = summary.num_ok = 4;
  summary.span_s = 2;
  summary.prompt_tokens = 400;
  summary.cached_tokens = 100;
  summary.output_tokens = 50;
  summary.decode_fetched_bytes = 12345;
  summary.ttft = {4, 0.015, 0.0125, 0.03, 0.03, 0.03};
  summary.lateness = {4, 0.001, 0.001, 0.001, 0.001, 0.001};
  return report;
}

MetricsWatch::Page CachePage() {
  MetricsWatch::Page page = {.role = "cache", .url = "http://127.0.0.1:1/metrics"};
  for (const char* text : {"# TYPE pkv_payload_bytes_total counter\n"
                           "pkv_payload_bytes_total{direction=\"out\",transport=\"grpc\"} 100\n"
                           "# TYPE pkv_lookups_total counter\npkv_lookups_total 7\n"
                           "# TYPE pkv_pages gauge\npkv_pages 3\n",
                           "# TYPE pkv_payload_bytes_total counter\n"
                           "pkv_payload_bytes_total{direction=\"out\",transport=\"grpc\"} 350\n"
                           "# TYPE pkv_lookups_total counter\npkv_lookups_total 7\n"
                           "# TYPE pkv_pages gauge\npkv_pages 2\n"}) {
    page.history.Add(*MetricsPage::Parse(text));
  }
  return page;
}

TEST(ServeReportTest, JsonHoldsWhatWasMeasured) {
  const auto json = ToJson(SomeReport());
  EXPECT_EQ(json["version"], PKV_VERSION);
  EXPECT_EQ(json["command_line"], "pkv-bench serve");
  EXPECT_EQ(json["load"]["loop"], "closed");
  EXPECT_EQ(json["requests"]["ok"], 4);
  EXPECT_EQ(json["latency_seconds"]["ttft"]["p50"], 0.0125);
  EXPECT_EQ(json["rates"]["requests_per_s"], 2);
  EXPECT_EQ(json["rates"]["output_tokens_per_s"], 25);
  EXPECT_EQ(json["rates"]["total_tokens_per_s"], 225);
  EXPECT_EQ(json["tokens"]["cached_share"], 0.25);
  EXPECT_EQ(json["bytes"]["fetched_by_decode"], 12345);
}

TEST(ServeReportTest, WhatWasNotMeasuredIsNullAndNotInTheText) {
  ServeReport report = SomeReport();
  EXPECT_TRUE(ToJson(report)["latency_seconds"]["tpot"].is_null());
  EXPECT_TRUE(ToJson(report)["rates"]["full_output_tokens_per_s"].is_null());
  EXPECT_TRUE(ToJson(report)["rates"]["goodput"].is_null());
  EXPECT_TRUE(ToJson(report)["tickets"].is_null());
  for (const char* word : {"time per output token", "goodput", "tickets", "all 2 under way"}) {
    EXPECT_THAT(ToText(report), Not(HasSubstr(word)));
  }
  report.summary.tpot = report.summary.ttft;
  report.summary.full_output_tokens_per_s = 30;
  report.options.slo_ttft_s = 1;
  report.tickets.emplace();
  EXPECT_EQ(ToJson(report)["latency_seconds"]["tpot"]["count"], 4);
  EXPECT_EQ(ToJson(report)["rates"]["full_output_tokens_per_s"], 30);
  EXPECT_EQ(ToJson(report)["rates"]["goodput"]["slo_ttft_s"], 1);
  EXPECT_EQ(ToJson(report)["tickets"]["count"], 0);
  for (const char* word : {"time per output token", "goodput", "tickets", "all 2 under way"}) {
    EXPECT_THAT(ToText(report), HasSubstr(word));
  }
}

TEST(ServeReportTest, TextIsInMilliseconds) {
  EXPECT_THAT(ToText(SomeReport()),
              HasSubstr("time to first token                 4      15.00      12.50      30.00"));
}

TEST(ServeReportTest, NamesErrorsByStageAndCode) {
  ServeReport report = SomeReport();
  report.summary.errors[{Stage::kDecode, absl::StatusCode::kUnavailable}] = {3, "gone"};
  const auto errors = ToJson(report)["requests"]["errors"];
  ASSERT_EQ(errors.size(), 1);
  EXPECT_EQ(errors[0]["stage"], "decode");
  EXPECT_EQ(errors[0]["code"], "UNAVAILABLE");
  EXPECT_EQ(errors[0]["count"], 3);
  EXPECT_THAT(ToText(report), HasSubstr("3 x decode UNAVAILABLE: gone"));
}

TEST(ServeReportTest, SaysWhenPromptsWereComputedInPlaceOfFetched) {
  ServeReport report = SomeReport();
  EXPECT_THAT(ToText(report), Not(HasSubstr("  recomputed")));
  report.summary.num_recomputed = 2;
  report.summary.first_recompute_reason = "NOT_FOUND";
  report.summary.num_not_stored = 1;
  report.summary.first_store_error = "full";
  EXPECT_THAT(ToText(report), HasSubstr("2 requests were recomputed by decode: NOT_FOUND"));
  EXPECT_THAT(ToText(report), HasSubstr("1 prompts were not stored: full"));
}

TEST(ServeReportTest, ShowsHowMetricsChanged) {
  ServeReport report = SomeReport();
  report.pages = {CachePage()};
  const auto json = ToJson(report);
  const auto& page = json["metrics"]["pages"][0];
  EXPECT_EQ(page["gauges"]["pkv_pages"]["peak"], 3);
  EXPECT_EQ(page["gauges"]["pkv_pages"]["after"], 2);
  EXPECT_FALSE(page["counters"].contains("pkv_lookups_total"));
  const auto& shipped = json["bytes"]["shipped_by_transport"];
  ASSERT_EQ(shipped.size(), 1);
  EXPECT_EQ(shipped[0]["transport"], "grpc");
  EXPECT_EQ(shipped[0]["direction"], "out");
  EXPECT_EQ(shipped[0]["bytes"], 250);
  EXPECT_THAT(ToText(report), HasSubstr("cache: 250 bytes over grpc, out"));
}

TEST(ServeReportTest, ANamedMetricIsShownThoughIdleAndAbsentWhenNoPageHasIt) {
  ServeReport report = SomeReport();
  report.pages = {CachePage()};
  report.wanted_metrics = {"pkv_lookups_total", "pkv_unknown"};
  EXPECT_EQ(ToJson(report)["metrics"]["pages"][0]["counters"]["pkv_lookups_total"], 0);
  EXPECT_EQ(ToJson(report)["metrics"]["absent"], nlohmann::ordered_json({"pkv_unknown"}));
  EXPECT_THAT(ToText(report), HasSubstr("pkv_unknown: absent"));
  report.pages.clear();
  EXPECT_THAT(ToText(report), HasSubstr("no page of metrics"));
}

TEST(ServeReportTest, ACounterThatWentBackIsOfAnotherProcess) {
  ServeReport report = SomeReport();
  report.pages = {CachePage()};
  report.pages[0].history.Add(
      *MetricsPage::Parse("# TYPE pkv_payload_bytes_total counter\n"
                          "pkv_payload_bytes_total{direction=\"out\",transport=\"grpc\"} 4\n"));
  EXPECT_TRUE(ShippedByTransport(report.pages).empty());
  const auto json = ToJson(report);
  EXPECT_TRUE(json["metrics"]["pages"][0]["counters"].begin()->is_null());
}

TEST(ServeReportTest, SaysThatTheClientFellBehind) {
  ServeReport report = SomeReport();
  EXPECT_EQ(ClientFault(report.summary), "");
  EXPECT_THAT(ToText(report), Not(HasSubstr("WARNING")));
  report.summary.num_late = 1;
  report.summary.lateness.max = 0.5;
  EXPECT_THAT(ToText(report), HasSubstr("WARNING: the client fell behind: 1 of 4 requests were "
                                        "sent more than 10 ms late, at most 500.0 ms"));
  report.summary.num_held_back = 2;
  EXPECT_THAT(ClientFault(report.summary), HasSubstr("2 waited"));
}

TEST(ServeReportTest, BackPressureAloneIsNoFailureOfTheRun) {
  RunSummary summary = SomeReport().summary;
  EXPECT_EQ(ServeExitCode(summary), 0);
  summary.errors[{Stage::kPrefill, absl::StatusCode::kResourceExhausted}] = {1, ""};
  EXPECT_EQ(ServeExitCode(summary), 0);
  summary.errors[{Stage::kDecode, absl::StatusCode::kUnavailable}] = {1, ""};
  EXPECT_EQ(ServeExitCode(summary), 1);
  EXPECT_EQ(ServeExitCode({}), 1);
}

}  // namespace
}  // namespace pkv
