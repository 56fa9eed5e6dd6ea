#include "tests/bench/serve/serve_report.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace pkv {
namespace {

using Json = nlohmann::ordered_json;

const char* StageName(Stage stage) { return stage == Stage::kPrefill ? "prefill" : "decode"; }

double Share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

template <typename T>
Json OrNull(const std::optional<T>& value) {
  return value.has_value() ? Json(*value) : Json(nullptr);
}

// Of no samples: null, which no reader takes for a time of 0.
Json ToJson(const LatencySummary& seconds) {
  if (seconds.count == 0) return nullptr;
  return {{"count", seconds.count}, {"mean", seconds.mean}, {"p50", seconds.p50},
          {"p90", seconds.p90},     {"p99", seconds.p99},   {"max", seconds.max}};
}

Json RequestsJson(const RunSummary& summary) {
  Json errors = Json::array();
  for (const auto& [kind, error] : summary.errors) {
    errors.push_back({{"stage", StageName(kind.first)},
                      {"code", absl::StatusCodeToString(kind.second)},
                      {"count", error.count},
                      {"message", error.message}});
  }
  return {{"sent", summary.num_sent},           {"ok", summary.num_ok},
          {"failed", summary.num_failed},       {"refusals", summary.num_refusals},
          {"retries", summary.num_retries},     {"short_answers", summary.short_answers},
          {"prompts_cut", summary.num_cut},     {"max_under_way", summary.max_under_way},
          {"held_back", summary.num_held_back}, {"errors", errors}};
}

Json RatesJson(const ServeReport& report) {
  const RunSummary& summary = report.summary;
  Json json = {
      {"requests_per_s", summary.PerSecond(summary.num_ok)},
      {"output_tokens_per_s", summary.PerSecond(summary.output_tokens)},
      {"total_tokens_per_s", summary.PerSecond(summary.prompt_tokens + summary.output_tokens)},
      {"full_output_tokens_per_s", OrNull(summary.full_output_tokens_per_s)},
      {"full_seconds", summary.full_s}};
  json["goodput"] = nullptr;
  if (report.options.slo_ttft_s.has_value() || report.options.slo_tpot_s.has_value()) {
    json["goodput"] = {{"slo_ttft_s", OrNull(report.options.slo_ttft_s)},
                       {"slo_tpot_s", OrNull(report.options.slo_tpot_s)},
                       {"requests", summary.num_good},
                       {"requests_per_s", summary.PerSecond(summary.num_good)},
                       {"share_of_sent", Share(summary.num_good, summary.num_sent)}};
  }
  return json;
}

Json TokensJson(const RunSummary& summary) {
  return {{"prompt", summary.prompt_tokens},
          {"output", summary.output_tokens},
          {"of_common_prefixes", summary.shared_tokens},
          {"cached", summary.cached_tokens},
          {"cached_share", Share(summary.cached_tokens, summary.prompt_tokens)},
          {"recomputed", summary.recomputed_tokens},
          {"recomputed_requests", summary.num_recomputed},
          {"first_recompute_reason", summary.first_recompute_reason},
          {"not_stored_requests", summary.num_not_stored},
          {"first_store_error", summary.first_store_error}};
}

Json BytesJson(const ServeReport& report) {
  Json shipped = Json::array();
  for (const ShippedBytes& row : ShippedByTransport(report.pages)) {
    shipped.push_back({{"role", row.role},
                       {"series", row.series},
                       {"transport", row.transport},
                       {"direction", row.direction},
                       {"bytes", row.bytes}});
  }
  const RunSummary& summary = report.summary;
  return {{"put", summary.put_bytes},
          {"fetched_by_prefill", summary.prefill_fetched_bytes},
          {"fetched_by_decode", summary.decode_fetched_bytes},
          {"prompts_cached", summary.prompt_cache_bytes},
          {"prompts_fp16", summary.prompt_logical_bytes},
          {"shipped_by_transport", shipped}};
}

bool HasSeries(const MetricsWatch::Page& page, const std::string& name) {
  for (const auto& [series, change] : page.history.changes()) {
    if (SeriesName(series) == name) return true;
  }
  return false;
}

std::vector<std::string> AbsentMetrics(const ServeReport& report) {
  std::vector<std::string> absent;
  for (const std::string& name : report.wanted_metrics) {
    bool found = false;
    for (const MetricsWatch::Page& page : report.pages) found |= HasSeries(page, name);
    if (!found) absent.push_back(name);
  }
  return absent;
}

bool IsNamed(const ServeReport& report, const std::string& series) {
  const std::vector<std::string>& names = report.wanted_metrics;
  return std::find(names.begin(), names.end(), SeriesName(series)) != names.end();
}

bool IsWanted(const ServeReport& report, const std::string& series) {
  return absl::StartsWith(series, "pkv_") || IsNamed(report, series);
}

Json MetricsJson(const ServeReport& report) {
  Json pages = Json::array();
  for (const MetricsWatch::Page& page : report.pages) {
    Json gauges = Json::object(), counters = Json::object();
    for (const auto& [series, change] : page.history.changes()) {
      if (!IsWanted(report, series)) continue;
      // What stayed 0 is worth a line only when it was asked for.
      const bool is_idle = change.is_counter ? change.delta() == 0 : change.peak == 0;
      if (is_idle && !IsNamed(report, series)) continue;
      if (!change.is_counter) {
        gauges[series] = {
            {"before", change.before}, {"after", change.after}, {"peak", change.peak}};
      } else if (change.delta() < 0) {
        counters[series] = nullptr;  // its process was started again
      } else {
        counters[series] = change.delta();
      }
    }
    pages.push_back({{"role", page.role},
                     {"url", page.url},
                     {"scrapes", page.history.num_pages()},
                     {"failed_scrapes", page.num_failures},
                     {"first_failure", page.first_failure},
                     {"ends_scraped", page.ends_scraped},
                     {"gauges", gauges},
                     {"counters", counters}});
  }
  return {{"pages", pages}, {"absent", AbsentMetrics(report)}};
}

void AddLatency(std::string& text, const char* name, const LatencySummary& seconds) {
  if (seconds.count == 0) return;
  absl::StrAppendFormat(&text, "%-28s %8d %10.2f %10.2f %10.2f %10.2f %10.2f\n", name,
                        seconds.count, 1e3 * seconds.mean, 1e3 * seconds.p50, 1e3 * seconds.p90,
                        1e3 * seconds.p99, 1e3 * seconds.max);
}

std::string LatencyText(const RunSummary& summary) {
  std::string text = absl::StrFormat("%-28s %8s %10s %10s %10s %10s %10s\n", "ms", "samples",
                                     "mean", "p50", "p90", "p99", "max");
  AddLatency(text, "time to first token", summary.ttft);
  AddLatency(text, "  prefill", summary.prefill);
  AddLatency(text, "  decode", summary.decode_first);
  AddLatency(text, "  decode, worker's clock", summary.worker_first_token);
  AddLatency(text, "time per output token", summary.tpot);
  AddLatency(text, "between tokens", summary.inter_token);
  AddLatency(text, "whole request", summary.e2e);
  return text;
}

std::string RequestsText(const RunSummary& summary) {
  std::string text = absl::StrFormat(
      "%d requests in %.2f s: %d ok, %d failed; refused %d times, tried again %d times\n",
      summary.num_sent, summary.span_s, summary.num_ok, summary.num_failed, summary.num_refusals,
      summary.num_retries);
  for (const auto& [kind, error] : summary.errors) {
    absl::StrAppendFormat(&text, "  %d x %s %s: %s\n", error.count, StageName(kind.first),
                          absl::StatusCodeToString(kind.second), error.message);
  }
  if (summary.short_answers > 0) {
    absl::StrAppendFormat(&text, "  %d answers ended before they had the tokens asked for\n",
                          summary.short_answers);
  }
  if (summary.num_cut > 0) {
    absl::StrAppendFormat(&text, "  %d prompts were cut to --max-prompt-tokens\n", summary.num_cut);
  }
  return text;
}

// What makes a run one of computing prompts in place of fetching them.
std::string CacheFaultText(const ServeReport& report) {
  const RunSummary& summary = report.summary;
  std::string text;
  if (summary.num_recomputed > 0) {
    absl::StrAppendFormat(&text, "  %d requests were recomputed by decode: %s\n",
                          summary.num_recomputed, summary.first_recompute_reason);
  }
  if (summary.num_not_stored > 0) {
    absl::StrAppendFormat(&text, "  %d prompts were not stored: %s\n", summary.num_not_stored,
                          summary.first_store_error);
  }
  if (report.tickets.has_value() && report.tickets->num_not_stored > 0) {
    absl::StrAppendFormat(&text, "  %d prompts of tickets were not stored\n",
                          report.tickets->num_not_stored);
  }
  return text;
}

std::string AmountsText(const ServeReport& report) {
  const RunSummary& summary = report.summary;
  std::string text =
      absl::StrFormat("%.3f requests/s, %.2f output tokens/s, %.2f tokens/s with prompts\n",
                      summary.PerSecond(summary.num_ok), summary.PerSecond(summary.output_tokens),
                      summary.PerSecond(summary.prompt_tokens + summary.output_tokens));
  if (summary.full_output_tokens_per_s.has_value()) {
    absl::StrAppendFormat(&text, "%.2f output tokens/s in the %.2f s with all %d under way\n",
                          *summary.full_output_tokens_per_s, summary.full_s,
                          report.options.concurrency);
  }
  if (report.options.slo_ttft_s.has_value() || report.options.slo_tpot_s.has_value()) {
    absl::StrAppendFormat(&text, "goodput: %d requests within the bounds, %.3f/s\n",
                          summary.num_good, summary.PerSecond(summary.num_good));
  }
  if (report.tickets.has_value()) {
    absl::StrAppendFormat(&text, "%d tickets for %d prompt tokens, %d of them from the cache\n",
                          report.tickets->num_tickets, report.tickets->prompt_tokens,
                          report.tickets->cached_tokens);
  }
  absl::StrAppendFormat(&text, "tokens: %d generated, %d recomputed by decode",
                        summary.output_tokens, summary.recomputed_tokens);
  if (summary.prompt_tokens > 0) {
    absl::StrAppendFormat(&text, ", %d of prompts, %.1f %% of them from the cache",
                          summary.prompt_tokens,
                          100 * Share(summary.cached_tokens, summary.prompt_tokens));
  }
  absl::StrAppend(&text, "\n", CacheFaultText(report));
  absl::StrAppendFormat(&text, "bytes: %d put, %d fetched by prefill, %d fetched by decode\n",
                        summary.put_bytes, summary.prefill_fetched_bytes,
                        summary.decode_fetched_bytes);
  absl::StrAppendFormat(&text, "decode streams open: %.2f on average, %d at most\n",
                        summary.mean_decode_streams, summary.max_decode_streams);
  return text;
}

std::string MetricsText(const ServeReport& report) {
  if (report.pages.empty()) return "no page of metrics: memory and transports are not known\n";
  std::string text;
  for (const ShippedBytes& row : ShippedByTransport(report.pages)) {
    absl::StrAppendFormat(&text, "%s: %.0f bytes over %s%s%s\n", row.role, row.bytes, row.transport,
                          row.direction.empty() ? "" : ", ", row.direction);
  }
  for (const MetricsWatch::Page& page : report.pages) {
    for (const auto& [series, change] : page.history.changes()) {
      if (change.is_counter || !IsWanted(report, series)) continue;
      if (change.peak == 0 || SeriesName(series) == "pkv_build_info") continue;
      absl::StrAppendFormat(&text, "%s: %s %.0f at most, %.0f after\n", page.role, series,
                            change.peak, change.after);
    }
    if (page.num_failures > 0) {
      absl::StrAppendFormat(&text, "%s: %d scrapes failed%s: %s\n", page.role, page.num_failures,
                            page.ends_scraped ? "" : ", the last one too", page.first_failure);
    }
  }
  for (const std::string& name : AbsentMetrics(report)) absl::StrAppend(&text, name, ": absent\n");
  return text;
}

}  // namespace

std::vector<ShippedBytes> ShippedByTransport(const std::vector<MetricsWatch::Page>& pages) {
  std::vector<ShippedBytes> rows;
  for (const MetricsWatch::Page& page : pages) {
    for (const auto& [series, change] : page.history.changes()) {
      const std::optional<std::string> transport = SeriesLabel(series, "transport");
      const std::string name = SeriesName(series);
      if (!change.is_counter || !transport.has_value() || change.delta() < 0 ||
          !absl::StrContains(name, "bytes")) {
        continue;
      }
      rows.push_back({.role = page.role,
                      .series = name,
                      .transport = *transport,
                      .direction = SeriesLabel(series, "direction").value_or(""),
                      .bytes = change.delta()});
    }
  }
  return rows;
}

std::string ClientFault(const RunSummary& summary) {
  std::string fault;
  if (summary.num_late > 0) {
    absl::StrAppendFormat(
        &fault, "the client fell behind: %d of %d requests were sent more than %.0f ms late, ",
        summary.num_late, summary.num_sent, 1e3 * kLateSeconds);
    absl::StrAppendFormat(&fault, "at most %.1f ms", 1e3 * summary.lateness.max);
  }
  if (summary.num_held_back > 0) {
    absl::StrAppendFormat(&fault, "%s%d waited because so many were under way",
                          fault.empty() ? "" : "; ", summary.num_held_back);
  }
  return fault;
}

int ServeExitCode(const RunSummary& summary) {
  for (const auto& [kind, error] : summary.errors) {
    if (kind.second != absl::StatusCode::kResourceExhausted) return 1;
  }
  return summary.num_ok > 0 ? 0 : 1;
}

Json ToJson(const ServeReport& report) {
  const RunSummary& summary = report.summary;
  Json json = {{"version", PKV_VERSION},
               {"command_line", report.command_line},
               {"load", report.load},
               {"seconds", summary.span_s},
               {"sending_seconds", summary.sending_s},
               {"requests", RequestsJson(summary)},
               {"latency_seconds",
                {{"ttft", ToJson(summary.ttft)},
                 {"ttft_prefill", ToJson(summary.prefill)},
                 {"ttft_decode", ToJson(summary.decode_first)},
                 {"worker_first_token", ToJson(summary.worker_first_token)},
                 {"tpot", ToJson(summary.tpot)},
                 {"inter_token", ToJson(summary.inter_token)},
                 {"request", ToJson(summary.e2e)}}},
               {"rates", RatesJson(report)},
               {"tokens", TokensJson(summary)},
               {"bytes", BytesJson(report)},
               {"decode_streams",
                {{"mean", summary.mean_decode_streams}, {"max", summary.max_decode_streams}}}};
  json["tickets"] = nullptr;
  if (report.tickets.has_value()) {
    json["tickets"] = {{"count", report.tickets->num_tickets},
                       {"prompt_tokens", report.tickets->prompt_tokens},
                       {"cached_tokens", report.tickets->cached_tokens},
                       {"not_stored", report.tickets->num_not_stored},
                       {"fp16_bytes", report.tickets->logical_bytes},
                       {"cached_bytes", report.tickets->cache_bytes}};
  }
  json["client"] = {{"cpu_seconds", report.client_cpu_s},
                    {"num_cpus", report.num_cpus},
                    {"late_requests", summary.num_late},
                    {"lateness_seconds", ToJson(summary.lateness)},
                    {"fault", ClientFault(summary)}};
  json["metrics"] = MetricsJson(report);
  return json;
}

std::string ToText(const ServeReport& report) {
  std::string text = absl::StrCat(RequestsText(report.summary), "\n", LatencyText(report.summary),
                                  "\n", AmountsText(report), MetricsText(report));
  absl::StrAppendFormat(&text, "client: %.2f CPU seconds, sent %.2f ms late on average\n",
                        report.client_cpu_s, 1e3 * report.summary.lateness.mean);
  if (const std::string fault = ClientFault(report.summary); !fault.empty()) {
    absl::StrAppend(&text, "WARNING: ", fault, "\n");
  }
  return text;
}

}  // namespace pkv
