#include "worker/serve/worker_metrics.h"

#include <grpcpp/grpcpp.h>

#include <map>
#include <string>
#include <vector>

#include "proto/metrics/build_info.h"
#include "proto/metrics/metric_registry.h"

namespace pkv {
namespace {

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
  std::shared_ptr<MetricRegistry> registry;
  CountersByCode requests, recomputes;  // constant after construction
  prometheus::Gauge* inflight;
  prometheus::Counter *prompt_tokens, *saved_tokens, *generated_tokens;
  Histogram *request_seconds, *fetch_seconds, *first_token_seconds;
};

WorkerMetrics::WorkerMetrics(absl::string_view role) : series_(std::make_unique<Series>()) {
  series_->registry =
      std::make_shared<MetricRegistry>(MetricRegistry::Labels{{"role", std::string(role)}});
  MetricRegistry& registry = *series_->registry;
  RegisterBuildInfo(registry, {{"grpc_version", grpc::Version()}});
  for (const absl::StatusCode code : kRequestCodes) {
    series_->requests[code] =
        registry.AddCounter("pkv_worker_requests_total", "Requests that ended, by status code.",
                            {{"code", absl::StatusCodeToString(code)}});
  }
  series_->inflight = registry.AddGauge("pkv_worker_requests_inflight",
                                        "Requests that have begun and not ended, queued included.");
  series_->request_seconds =
      registry.AddHistogram("pkv_worker_request_duration_seconds",
                            "From a request to its status, queueing included.", {}, LongBounds());
  for (const absl::StatusCode code : kReasons) {
    series_->recomputes[code] =
        registry.AddCounter("pkv_client_fallback_recompute_total",
                            "Prompts computed because the cache did not deliver, by reason.",
                            {{"reason", absl::StatusCodeToString(code)}});
  }
  series_->prompt_tokens =
      registry.AddCounter("pkv_worker_prompt_tokens_total", "Prompt tokens of ended requests.");
  series_->saved_tokens =
      registry.AddCounter("pkv_client_saved_prefill_tokens_total",
                          "Prompt tokens served by the cache instead of computed.");
  series_->generated_tokens =
      registry.AddCounter("pkv_worker_generated_tokens_total", "Tokens generated.");
  series_->fetch_seconds =
      registry.AddHistogram("pkv_client_fetch_duration_seconds",
                            "Time from a decode request to its last layer.", {}, LongBounds());
  series_->first_token_seconds =
      registry.AddHistogram("pkv_worker_time_to_first_token_seconds",
                            "Time from a decode request to its first token.", {}, LongBounds());
}

WorkerMetrics::~WorkerMetrics() = default;

std::shared_ptr<MetricRegistry> WorkerMetrics::registry() const { return series_->registry; }

void WorkerMetrics::RequestBegan() { series_->inflight->Increment(); }

void WorkerMetrics::RequestEnded(const absl::Status& status, double seconds) {
  Count(series_->requests, status.code());
  series_->request_seconds->Observe(seconds);
  series_->inflight->Decrement();
}

void WorkerMetrics::CountPrefill(const v1::PrefillStats& stats) {
  series_->prompt_tokens->Increment(stats.prompt_tokens());
  series_->saved_tokens->Increment(stats.cached_tokens());
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
