#include "tests/bench/serve/metrics_watch.h"

#include <gmock/gmock.h>
#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>

#include "absl/strings/str_cat.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;

// A process's page of metrics, as our processes serve it.
class MetricsWatchTest : public ::testing::Test {
 protected:
  MetricsWatchTest() {
    exposer_->RegisterCollectable(registry_);
    host_ = absl::StrCat("http://127.0.0.1:", exposer_->GetListeningPorts().at(0));
    url_ = host_ + "/metrics";
  }

  std::shared_ptr<prometheus::Registry> registry_ = std::make_shared<prometheus::Registry>();
  prometheus::Counter& bytes_ = prometheus::BuildCounter()
                                    .Name("pkv_bytes_total")
                                    .Register(*registry_)
                                    .Add({{"transport", "grpc"}});
  std::unique_ptr<prometheus::Exposer> exposer_ =
      std::make_unique<prometheus::Exposer>("127.0.0.1:0");
  std::string host_, url_;
};

TEST_F(MetricsWatchTest, ScrapesAPage) {
  bytes_.Increment(12);
  const auto page = ScrapeMetrics(url_);
  ASSERT_THAT(page, IsOk());
  EXPECT_EQ(page->series().at("pkv_bytes_total{transport=\"grpc\"}").value, 12);
}

TEST_F(MetricsWatchTest, NamesAnAddressThatIsNone) {
  for (const char* url : {"127.0.0.1:80", "https://127.0.0.1:80/", "http://127.0.0.1/metrics",
                          "http://127.0.0.1:x/metrics", "http://:80/metrics", ""}) {
    EXPECT_THAT(ScrapeMetrics(url), StatusIs(absl::StatusCode::kInvalidArgument)) << url;
  }
}

TEST_F(MetricsWatchTest, NobodyThereAndNoSuchPageAreUnavailable) {
  EXPECT_THAT(ScrapeMetrics(host_ + "/none"), StatusIs(absl::StatusCode::kUnavailable));
  exposer_.reset();
  EXPECT_THAT(ScrapeMetrics(url_), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_THAT(MetricsWatch::Start({{"decode", url_}}, absl::Seconds(1)),
              StatusIs(absl::StatusCode::kUnavailable));
}

TEST_F(MetricsWatchTest, TellsWhatChangedBetweenStartAndStop) {
  bytes_.Increment(5);
  auto watch = MetricsWatch::Start({{"cache", url_}}, absl::Hours(1));
  ASSERT_THAT(watch, IsOk());
  bytes_.Increment(7);
  const std::vector<MetricsWatch::Page> pages = (*watch)->Stop();
  ASSERT_EQ(pages.size(), 1);
  EXPECT_EQ(pages[0].role, "cache");
  EXPECT_EQ(pages[0].history.num_pages(), 2);
  EXPECT_TRUE(pages[0].ends_scraped);
  EXPECT_EQ(pages[0].history.changes().at("pkv_bytes_total{transport=\"grpc\"}").delta(), 7);
}

// Waits for the fact that the page was scraped in between, which its own counter of requests tells.
TEST_F(MetricsWatchTest, ScrapesWhileTheLoadRuns) {
  auto& gauge = prometheus::BuildGauge().Name("pkv_pages").Register(*registry_).Add({});
  auto watch = MetricsWatch::Start({{"decode", url_}}, absl::Milliseconds(1));
  ASSERT_THAT(watch, IsOk());
  gauge.Set(9);
  const auto num_scrapes = [this] {
    return ScrapeMetrics(url_)->series().at("exposer_request_latencies_count").value;
  };
  const double begin = num_scrapes();
  int own = 0;
  do {
    ++own;
  } while (num_scrapes() < begin + own + 2);
  gauge.Set(1);
  const std::vector<MetricsWatch::Page> pages = (*watch)->Stop();
  EXPECT_EQ(pages[0].history.changes().at("pkv_pages").peak, 9);
  EXPECT_EQ(pages[0].history.changes().at("pkv_pages").after, 1);
}

TEST_F(MetricsWatchTest, SaysWhenTheLastScrapeFailed) {
  auto watch = MetricsWatch::Start({{"decode", url_}}, absl::Hours(1));
  ASSERT_THAT(watch, IsOk());
  exposer_.reset();
  const std::vector<MetricsWatch::Page> pages = (*watch)->Stop();
  EXPECT_FALSE(pages[0].ends_scraped);
  EXPECT_EQ(pages[0].num_failures, 1);
  EXPECT_THAT(pages[0].first_failure, HasSubstr("UNAVAILABLE"));
}

}  // namespace
}  // namespace pkv
