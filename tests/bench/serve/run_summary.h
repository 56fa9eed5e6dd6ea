#ifndef PKV_TESTS_BENCH_SERVE_RUN_SUMMARY_H_
#define PKV_TESTS_BENCH_SERVE_RUN_SUMMARY_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tests/bench/serve/load_runner.h"

namespace pkv {

// A request sent later than this after its time was sent late: the client did not keep up.
inline constexpr double kLateSeconds = 0.010;

// Of exact samples, in seconds. A percentile p is the sample of rank ceil(p n) (nearest rank), so
// it is one that was measured.
struct LatencySummary {
  int64_t count = 0;
  double mean = 0, p50 = 0, p90 = 0, p99 = 0, max = 0;
};
// Of no samples: all 0, and count says so.
LatencySummary SummarizeLatencies(std::vector<double> seconds);

struct SummaryOptions {
  // Open loop: latencies begin at the intended time, not when the client got to it (coordinated
  // omission). Closed loop: when the request was sent.
  bool open_loop = false;
  int concurrency = 1;
  // What a request must not exceed to count as good put; none: no such bound.
  std::optional<double> slo_ttft_s = std::nullopt, slo_tpot_s = std::nullopt;
};

struct ErrorCount {
  int64_t count = 0;
  std::string message;  // the first one's
};

// What a load came to. Latencies, tokens and bytes are of requests that ended well.
struct RunSummary {
  int64_t num_sent = 0, num_ok = 0, num_failed = 0, num_cut = 0;
  int64_t num_refusals = 0, num_retries = 0;
  std::map<std::pair<Stage, absl::StatusCode>, ErrorCount> errors;  // of requests that failed

  // From the load's begin to the end of its last request, and to the last sending.
  double span_s = 0, sending_s = 0;

  LatencySummary ttft;                // to the first token
  LatencySummary prefill;             // of it, to the ticket; only requests with a prefill
  LatencySummary decode_first;        // of it, from the ticket on
  LatencySummary worker_first_token;  // the decode worker's own clock, queueing there not included
  LatencySummary tpot;         // (last token - first) / (tokens - 1), requests of two or more
  LatencySummary inter_token;  // every gap between a request's tokens
  LatencySummary e2e;          // to the end of the request

  int64_t prompt_tokens = 0, output_tokens = 0;  // of prompts: those prefilled in this load
  int64_t short_answers = 0;                     // fewer tokens than asked for: end of sequence
  int64_t shared_tokens = 0;                     // of prompt_tokens, of a common prefix
  int64_t cached_tokens = 0;                     // of prompt_tokens, served by the cache
  int64_t recomputed_tokens = 0, num_recomputed = 0;
  int64_t num_not_stored = 0;  // prefills whose result the cache refused
  std::string first_store_error, first_recompute_reason;
  int64_t put_bytes = 0, prefill_fetched_bytes = 0, decode_fetched_bytes = 0;
  int64_t prompt_cache_bytes = 0;    // blocks, tables and windows that hold the prompts
  int64_t prompt_logical_bytes = 0;  // the same prompts, but their last tokens, as fp16

  int64_t num_good = 0;  // within the bounds
  // Output tokens a second without ramp and drain: from the first token of the `concurrency`-th
  // request that had one to the last sending. None: an open loop, or there was no such time.
  std::optional<double> full_output_tokens_per_s;
  double full_s = 0;

  // The streams of decode workers that were open, as the client saw it.
  int64_t max_decode_streams = 0;
  double mean_decode_streams = 0;  // over the span

  LatencySummary lateness;  // from intended to sent
  int64_t num_late = 0, num_held_back = 0;
  int max_under_way = 0;

  double PerSecond(int64_t count) const {
    return span_s > 0 ? static_cast<double>(count) / span_s : 0;
  }
};

RunSummary Summarize(const LoadResult& load, const SummaryOptions& options);

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SERVE_RUN_SUMMARY_H_
