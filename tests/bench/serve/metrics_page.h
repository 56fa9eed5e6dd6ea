#ifndef PKV_TESTS_BENCH_SERVE_METRICS_PAGE_H_
#define PKV_TESTS_BENCH_SERVE_METRICS_PAGE_H_

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace pkv {

// A page of metrics in Prometheus' text format 0.0.4, without histogram buckets.
class MetricsPage {
 public:
  struct Series {
    bool is_counter = false;  // or the sum or count of a histogram: it only grows
    double value = 0;
  };

  // InvalidArgument names the first line that is neither a comment nor `name{labels} value`.
  static absl::StatusOr<MetricsPage> Parse(absl::string_view text);

  // By name and labels as the page writes them, say `pkv_tier_blocks{tier="dram"}`.
  const std::map<std::string, Series>& series() const { return series_; }

 private:
  std::map<std::string, Series> series_;
};

// `pkv_tier_blocks` of `pkv_tier_blocks{tier="dram"}`.
std::string SeriesName(const std::string& series);
// The value of a label as the page writes it; none when there is no such label.
std::optional<std::string> SeriesLabel(const std::string& series, const std::string& label);

// What one series did during a load.
struct SeriesChange {
  bool is_counter = false;
  double before = 0, after = 0;
  double peak = 0;  // the largest of all scrapes, first and last included

  double delta() const { return after - before; }
};

// A page, scraped again and again.
// Thread-compatible.
class MetricsHistory {
 public:
  // Pages in the order of time. A series that appears later begins at 0 when it is a counter, and
  // with its first value otherwise.
  void Add(const MetricsPage& page);

  int num_pages() const { return num_pages_; }
  const std::map<std::string, SeriesChange>& changes() const { return changes_; }

 private:
  int num_pages_ = 0;
  std::map<std::string, SeriesChange> changes_;
};

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SERVE_METRICS_PAGE_H_
