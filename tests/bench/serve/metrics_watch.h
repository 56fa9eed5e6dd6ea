#ifndef PKV_TESTS_BENCH_SERVE_METRICS_WATCH_H_
#define PKV_TESTS_BENCH_SERVE_METRICS_WATCH_H_

#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/base/sync.h"
#include "tests/bench/serve/metrics_page.h"

namespace pkv {

// The page at http://HOST:PORT/PATH.
//   InvalidArgument  another kind of address, or what is there is no page of metrics
//   Unavailable      nobody answers, or not with 200
absl::StatusOr<MetricsPage> ScrapeMetrics(const std::string& url);

// Scrapes pages before, during and after a load.
// Thread-compatible.
class MetricsWatch {
 public:
  struct Page {
    std::string role, url;
    MetricsHistory history = {};
    int num_failures = 0;  // scrapes after the first that gave no page
    std::string first_failure = {};
    bool ends_scraped = true;  // false: the last scrape failed, and history ends before the load
  };

  // {role, url} each. Scrapes each once; the error of the first that gives no page. Then all of
  // them every `interval`, on a thread of its own.
  static absl::StatusOr<std::unique_ptr<MetricsWatch>> Start(
      const std::vector<std::pair<std::string, std::string>>& urls, absl::Duration interval);
  ~MetricsWatch();

  // Scrapes each a last time and ends.
  std::vector<Page> Stop();

 private:
  MetricsWatch() = default;
  void Run(absl::Duration interval);
  void ScrapeAll();
  void EndThread();

  std::vector<Page> pages_;  // of the thread while it runs
  Mutex mu_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SERVE_METRICS_WATCH_H_
