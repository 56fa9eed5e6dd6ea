#include "worker/serve/worker_metrics.h"

#include <prometheus/counter.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace pkv {
namespace {

// Factor-2 buckets from 0.1 ms to 6.5 s.
prometheus::Histogram::BucketBoundaries LatencyBuckets() {
  prometheus::Histogram::BucketBoundaries bounds;
  for (double bound = 1e-4; bound < 7; bound *= 2) bounds.push_back(bound);
  return bounds;
}

// Reasons are a closed set: the status codes a fetch ends with; UNKNOWN stands for any other.
constexpr absl::StatusCode kReasons[] = {absl::StatusCode::kNotFound,
                                         absl::StatusCode::kDataLoss,
                                         absl::StatusCode::kUnavailable,
                                         absl::StatusCode::kDeadlineExceeded,
                                         absl::StatusCode::kFailedPrecondition,
                                         absl::StatusCode::kResourceExhausted,
                                         absl::StatusCode::kAborted,
                                         absl::StatusCode::kUnknown};

// What a request ends with; UNKNOWN stands for any other.
constexpr absl::StatusCode kRequestCodes[] = {
    absl::StatusCode::kOk,          absl::StatusCode::kInvalidArgument,
    absl::StatusCode::kNotFound,    absl::StatusCode::kFailedPrecondition,
    absl::StatusCode::kOutOfRange,  absl::StatusCode::kResourceExhausted,
    absl::StatusCode::kUnavailable, absl::StatusCode::kDeadlineExceeded,
    absl::StatusCode::kDataLoss,    absl::StatusCode::kCancelled,
    absl::StatusCode::kInternal,    absl::StatusCode::kUnknown};

using CountersByCode = std::map<absl::StatusCode, prometheus::Counter*>;

void Count(const CountersByCode& counters, absl::StatusCode code) {
  const auto it = counters.find(code);
  (it != counters.end() ? it->second : counters.at(absl::StatusCode::kUnknown))->Increment();
}

}  // namespace

struct WorkerMetrics::Series {
  std::shared_ptr<prometheus::Registry> registry = std::make_shared<prometheus::Registry>();
  CountersByCode requests, recomputes;  // constant after construction
  prometheus::Counter *prompt_tokens, *saved_tokens, *generated_tokens;
  prometheus::Counter *codec_input_bytes, *codec_output_bytes;
  prometheus::Histogram *fetch_seconds, *first_token_seconds, *encode_seconds;
};

WorkerMetrics::WorkerMetrics(absl::string_view role) : series_(std::make_unique<Series>()) {
  prometheus::Registry& registry = *series_->registry;
  const std::map<std::string, std::string> labels = {{"role", std::string(role)}};
  const auto counter = [&](const char* name, const char* help) -> prometheus::Counter* {
    return &prometheus::BuildCounter().Name(name).Help(help).Labels(labels).Register(registry).Add(
        {});
  };
  const auto histogram = [&](const char* name, const char* help) -> prometheus::Histogram* {
    return &prometheus::BuildHistogram()
                .Name(name)
                .Help(help)
                .Labels(labels)
                .Register(registry)
                .Add({}, LatencyBuckets());
  };
  auto& requests = prometheus::BuildCounter()
                       .Name("pkv_worker_requests_total")
                       .Help("Requests that ended, by status code.")
                       .Labels(labels)
                       .Register(registry);
  for (const absl::StatusCode code : kRequestCodes) {
    series_->requests[code] = &requests.Add({{"code", absl::StatusCodeToString(code)}});
  }
  auto& recomputes = prometheus::BuildCounter()
                         .Name("pkv_client_fallback_recompute_total")
                         .Help("Prompts computed because the cache did not deliver, by reason.")
                         .Labels(labels)
                         .Register(registry);
  for (const absl::StatusCode code : kReasons) {
    series_->recomputes[code] = &recomputes.Add({{"reason", absl::StatusCodeToString(code)}});
  }
  series_->prompt_tokens =
      counter("pkv_worker_prompt_tokens_total", "Prompt tokens of ended requests.");
  series_->saved_tokens = counter("pkv_client_saved_prefill_tokens_total",
                                  "Prompt tokens served by the cache instead of computed.");
  series_->generated_tokens = counter("pkv_worker_generated_tokens_total", "Tokens generated.");
  series_->codec_input_bytes = counter("pkv_codec_input_bytes_total",
                                       "fp16 bytes of K and V that were handed to the encoder.");
  series_->codec_output_bytes =
      counter("pkv_codec_output_bytes_total", "Bytes of blocks, tables and windows put.");
  series_->fetch_seconds = histogram("pkv_client_fetch_duration_seconds",
                                     "Time from a decode request to its last layer.");
  series_->first_token_seconds = histogram("pkv_worker_time_to_first_token_seconds",
                                           "Time from a decode request to its first token.");
  series_->encode_seconds =
      histogram("pkv_codec_duration_seconds",
                "Mining, assigning and encoding of one prompt, summed over layers.");
}

WorkerMetrics::~WorkerMetrics() = default;

std::shared_ptr<prometheus::Registry> WorkerMetrics::registry() const { return series_->registry; }

void WorkerMetrics::CountRequest(const absl::Status& status) {
  Count(series_->requests, status.code());
}

void WorkerMetrics::CountPrefill(const v1::PrefillStats& stats) {
  series_->prompt_tokens->Increment(stats.prompt_tokens());
  series_->saved_tokens->Increment(stats.cached_tokens());
  series_->codec_output_bytes->Increment(static_cast<double>(stats.put_bytes()));
  if (stats.compute_seconds() > 0) {
    const double computed = stats.prompt_tokens() - 1.0 - stats.cached_tokens();
    series_->codec_input_bytes->Increment(static_cast<double>(stats.logical_bytes()) * computed /
                                          (stats.prompt_tokens() - 1.0));
    series_->encode_seconds->Observe(stats.encode_seconds());
  }
}

void WorkerMetrics::CountDecode(const v1::DecodeStats& stats, int num_tokens) {
  series_->generated_tokens->Increment(num_tokens);
  if (stats.recomputed_tokens() == 0) series_->fetch_seconds->Observe(stats.fetch_seconds());
  series_->first_token_seconds->Observe(stats.first_token_seconds());
}

void WorkerMetrics::CountRecompute(const absl::Status& reason) {
  Count(series_->recomputes, reason.code());
}

}  // namespace pkv
