#include "tests/bench/serve/metrics_page.h"

#include <gmock/gmock.h>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

// As prometheus-cpp writes it.
constexpr const char* kPage = R"(# HELP pkv_payload_bytes_total Frame bytes.
# TYPE pkv_payload_bytes_total counter
pkv_payload_bytes_total{direction="in",transport="grpc"} 100
pkv_payload_bytes_total{direction="out",transport="grpc"} 2.5e+06
# HELP process_resident_memory_bytes Resident memory
# TYPE process_resident_memory_bytes gauge
process_resident_memory_bytes 4096
# HELP pkv_wait_seconds Time
# TYPE pkv_wait_seconds histogram
pkv_wait_seconds_count 3
pkv_wait_seconds_sum 0.75
pkv_wait_seconds_bucket{le="0.5"} 2
pkv_wait_seconds_bucket{le="+Inf"} 3
)";

MetricsPage Page(const std::string& text) {
  const auto page = MetricsPage::Parse(text);
  EXPECT_THAT(page, IsOk());
  return *page;
}

TEST(MetricsPageTest, ReadsSeriesWithoutBuckets) {
  const MetricsPage page = Page(kPage);
  const auto& series = page.series();
  EXPECT_EQ(series.size(), 5);
  EXPECT_EQ(series.at("pkv_payload_bytes_total{direction=\"out\",transport=\"grpc\"}").value,
            2.5e6);
  EXPECT_EQ(series.at("process_resident_memory_bytes").value, 4096);
  EXPECT_EQ(series.at("pkv_wait_seconds_sum").value, 0.75);
}

TEST(MetricsPageTest, KnowsWhatOnlyGrows) {
  const MetricsPage page = Page(kPage);
  EXPECT_TRUE(
      page.series().at("pkv_payload_bytes_total{direction=\"in\",transport=\"grpc\"}").is_counter);
  EXPECT_TRUE(page.series().at("pkv_wait_seconds_count").is_counter);
  EXPECT_FALSE(page.series().at("process_resident_memory_bytes").is_counter);
}

TEST(MetricsPageTest, ReadsTimesBlanksInLabelsAndLineEndsOfOthers) {
  const MetricsPage page = Page("a{x=\"1 \\\"}, 2\"} 7 1395066363000\r\n\r\nb NaN\n");
  EXPECT_EQ(page.series().at("a{x=\"1 \\\"}, 2\"}").value, 7);
  EXPECT_TRUE(page.series().contains("b"));
  EXPECT_TRUE(Page("").series().empty());
}

TEST(MetricsPageTest, NamesALineThatIsNone) {
  for (const char* text : {"<html>", "a", "a b", "a{x=\"1\"}", "a 1 2 3"}) {
    const auto page = MetricsPage::Parse(std::string(kPage) + text);
    EXPECT_THAT(page, StatusIs(absl::StatusCode::kInvalidArgument)) << text;
    EXPECT_THAT(std::string(page.status().message()), testing::EndsWith(text));
  }
}

TEST(SeriesLabelTest, FindsALabelByItsWholeName) {
  const std::string series = "pkv_bytes{direction=\"in\",transport=\"nccl\"}";
  EXPECT_EQ(SeriesName(series), "pkv_bytes");
  EXPECT_EQ(SeriesLabel(series, "direction"), "in");
  EXPECT_EQ(SeriesLabel(series, "transport"), "nccl");
  EXPECT_EQ(SeriesLabel(series, "port"), std::nullopt);
  EXPECT_EQ(SeriesLabel("pkv_bytes", "transport"), std::nullopt);
}

TEST(MetricsHistoryTest, KeepsFirstLastAndLargest) {
  MetricsHistory history;
  for (const char* value : {"5", "9", "2"}) {
    history.Add(Page(std::string("# TYPE pages gauge\npages ") + value));
  }
  const SeriesChange& change = history.changes().at("pages");
  EXPECT_EQ(history.num_pages(), 3);
  EXPECT_EQ(change.before, 5);
  EXPECT_EQ(change.after, 2);
  EXPECT_EQ(change.peak, 9);
}

TEST(MetricsHistoryTest, ACounterThatAppearsLaterBeganAtZeroAGaugeDidNot) {
  MetricsHistory history;
  history.Add(Page(""));
  history.Add(Page("# TYPE c counter\nc 3\n# TYPE g gauge\ng 4\n"));
  EXPECT_EQ(history.changes().at("c").delta(), 3);
  EXPECT_EQ(history.changes().at("g").before, 4);
}

}  // namespace
}  // namespace pkv
