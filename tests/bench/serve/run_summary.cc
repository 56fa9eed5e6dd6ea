#include "tests/bench/serve/run_summary.h"

#include <algorithm>
#include <cmath>

namespace pkv {
namespace {

struct Samples {
  std::vector<double> ttft, prefill, decode_first, worker_first_token, tpot, inter_token, e2e;
};

// One that ended well.
void AddLatencies(const RequestRecord& record, const SummaryOptions& options, Samples& samples,
                  RunSummary& summary) {
  const double begin = options.open_loop ? record.intended_s : record.sent_s;
  samples.e2e.push_back(record.ended_s - begin);
  if (record.has_prefill_stats) samples.prefill.push_back(record.prefilled_s - begin);
  const std::vector<double>& tokens = record.token_s;
  if (tokens.empty()) return;
  const double ttft = tokens.front() - begin;
  samples.ttft.push_back(ttft);
  samples.decode_first.push_back(tokens.front() - record.prefilled_s);
  if (record.has_decode_stats) {
    samples.worker_first_token.push_back(record.decode.first_token_seconds());
  }
  for (size_t i = 1; i < tokens.size(); ++i) {
    samples.inter_token.push_back(tokens[i] - tokens[i - 1]);
  }
  double tpot = 0;
  if (tokens.size() > 1) {
    tpot = (tokens.back() - tokens.front()) / static_cast<double>(tokens.size() - 1);
    samples.tpot.push_back(tpot);
  }
  if (ttft <= options.slo_ttft_s.value_or(ttft) && tpot <= options.slo_tpot_s.value_or(tpot)) {
    ++summary.num_good;
  }
}

void AddAmounts(const RequestRecord& record, RunSummary& summary) {
  summary.output_tokens += static_cast<int64_t>(record.token_s.size());
  if (static_cast<int>(record.token_s.size()) < record.asked_tokens) ++summary.short_answers;
  if (record.has_prefill_stats) {
    const v1::PrefillStats& prefill = record.prefill;
    summary.prompt_tokens += prefill.prompt_tokens();
    summary.shared_tokens += record.num_shared_tokens;
    summary.cached_tokens += prefill.cached_tokens();
    summary.put_bytes += static_cast<int64_t>(prefill.put_bytes());
    summary.prefill_fetched_bytes += static_cast<int64_t>(prefill.fetched_bytes());
    summary.prompt_cache_bytes += static_cast<int64_t>(prefill.cache_bytes());
    summary.prompt_logical_bytes += static_cast<int64_t>(prefill.logical_bytes());
    if (!prefill.stored() && summary.num_not_stored++ == 0) {
      summary.first_store_error = prefill.store_error();
    }
  }
  if (record.has_decode_stats) {
    summary.decode_fetched_bytes += static_cast<int64_t>(record.decode.fetched_bytes());
    summary.recomputed_tokens += record.decode.recomputed_tokens();
    if (record.decode.recomputed_tokens() > 0 && summary.num_recomputed++ == 0) {
      summary.first_recompute_reason = record.decode.recompute_reason();
    }
  }
}

// Sweeps over the beginnings and ends of decode streams.
void CountDecodeStreams(const std::vector<RequestRecord>& records, RunSummary& summary) {
  std::vector<std::pair<double, int>> changes;
  double stream_s = 0;
  for (const RequestRecord& record : records) {
    if (record.prefilled_s < 0) continue;
    changes.emplace_back(record.prefilled_s, 1);
    changes.emplace_back(record.ended_s, -1);
    stream_s += record.ended_s - record.prefilled_s;
  }
  std::sort(changes.begin(), changes.end());  // at one time, ends before beginnings
  int64_t open = 0;
  for (const auto& [time, change] : changes) {
    open += change;
    summary.max_decode_streams = std::max(summary.max_decode_streams, open);
  }
  if (summary.span_s > 0) summary.mean_decode_streams = stream_s / summary.span_s;
}

void AddFullLoad(const std::vector<RequestRecord>& records, const SummaryOptions& options,
                 RunSummary& summary) {
  if (options.open_loop) return;
  std::vector<double> first_tokens;
  for (const RequestRecord& record : records) {
    if (!record.token_s.empty()) first_tokens.push_back(record.token_s.front());
  }
  if (first_tokens.size() < static_cast<size_t>(options.concurrency)) return;
  const auto last_slot = first_tokens.begin() + options.concurrency - 1;
  std::nth_element(first_tokens.begin(), last_slot, first_tokens.end());
  const double begin = *last_slot, end = summary.sending_s;
  if (begin >= end) return;
  int64_t tokens = 0;
  for (const RequestRecord& record : records) {
    for (const double time : record.token_s) tokens += time > begin && time <= end;
  }
  summary.full_s = end - begin;
  summary.full_output_tokens_per_s = static_cast<double>(tokens) / summary.full_s;
}

}  // namespace

LatencySummary SummarizeLatencies(std::vector<double> seconds) {
  if (seconds.empty()) return {};
  std::sort(seconds.begin(), seconds.end());
  const auto count = static_cast<int64_t>(seconds.size());
  // In integers: 0.9 * 10 as doubles may round up to the next rank.
  const auto percentile = [&](int64_t percent) {
    return seconds[(percent * count + 99) / 100 - 1];
  };
  double sum = 0;
  for (const double sample : seconds) sum += sample;
  return {.count = count,
          .mean = sum / static_cast<double>(count),
          .p50 = percentile(50),
          .p90 = percentile(90),
          .p99 = percentile(99),
          .max = seconds.back()};
}

RunSummary Summarize(const LoadResult& load, const SummaryOptions& options) {
  RunSummary summary;
  summary.span_s = load.ended_s;
  summary.sending_s = load.sending_s;
  summary.max_under_way = load.max_under_way;
  summary.num_held_back = load.num_held_back;
  Samples samples;
  std::vector<double> lateness;
  for (const RequestRecord& record : load.records) {
    ++summary.num_sent;
    summary.num_cut += record.prompt_cut;
    summary.num_refusals += record.num_refusals;
    summary.num_retries += record.num_retries;
    lateness.push_back(record.sent_s - record.intended_s);
    summary.num_late += lateness.back() > kLateSeconds;
    if (!record.status.ok()) {
      ++summary.num_failed;
      ErrorCount& error = summary.errors[{record.failed_stage, record.status.code()}];
      if (error.count++ == 0) error.message = std::string(record.status.message());
      continue;
    }
    ++summary.num_ok;
    AddLatencies(record, options, samples, summary);
    AddAmounts(record, summary);
  }
  summary.ttft = SummarizeLatencies(std::move(samples.ttft));
  summary.prefill = SummarizeLatencies(std::move(samples.prefill));
  summary.decode_first = SummarizeLatencies(std::move(samples.decode_first));
  summary.worker_first_token = SummarizeLatencies(std::move(samples.worker_first_token));
  summary.tpot = SummarizeLatencies(std::move(samples.tpot));
  summary.inter_token = SummarizeLatencies(std::move(samples.inter_token));
  summary.e2e = SummarizeLatencies(std::move(samples.e2e));
  summary.lateness = SummarizeLatencies(std::move(lateness));
  CountDecodeStreams(load.records, summary);
  AddFullLoad(load.records, options, summary);
  return summary;
}

}  // namespace pkv
