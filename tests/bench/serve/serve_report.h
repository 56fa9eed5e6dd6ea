#ifndef PKV_TESTS_BENCH_SERVE_SERVE_REPORT_H_
#define PKV_TESTS_BENCH_SERVE_SERVE_REPORT_H_

#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "tests/bench/serve/metrics_watch.h"
#include "tests/bench/serve/run_summary.h"

namespace pkv {

// The prefills of --decode-only, before the load.
struct TicketSetup {
  int64_t num_tickets = 0, prompt_tokens = 0, cached_tokens = 0, num_not_stored = 0;
  int64_t logical_bytes = 0, cache_bytes = 0;  // as in PrefillStats
};

struct ServeReport {
  std::string command_line;
  nlohmann::ordered_json load;  // what was asked for
  SummaryOptions options;
  RunSummary summary;
  std::optional<TicketSetup> tickets;
  // What the metrics pages said; names that are reported even when no page has them.
  std::vector<MetricsWatch::Page> pages;
  std::vector<std::string> wanted_metrics;
  double client_cpu_s = 0;  // user and system, while the load ran
  int num_cpus = 0;         // of this machine
};

// Frame bytes that pages counted by transport (counters of bytes with that label), by page role,
// series name and transport. What no page counts is not in it.
struct ShippedBytes {
  std::string role, series, transport, direction;
  double bytes = 0;
};
std::vector<ShippedBytes> ShippedByTransport(const std::vector<MetricsWatch::Page>& pages);

// Why the client's own figures are to be doubted: it sent late, or held requests back. Empty: it
// kept up.
std::string ClientFault(const RunSummary& summary);

// 0; 1 when a request failed otherwise than by RESOURCE_EXHAUSTED, or none ended well.
int ServeExitCode(const RunSummary& summary);

nlohmann::ordered_json ToJson(const ServeReport& report);
// What people read.
std::string ToText(const ServeReport& report);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SERVE_SERVE_REPORT_H_
