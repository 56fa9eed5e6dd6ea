#include "worker/batch/batch_metrics.h"

#include <map>
#include <utility>

#include "proto/metrics/metric_registry.h"

namespace pkv {
namespace {

constexpr std::pair<Refusal, const char*> kRefusals[] = {{Refusal::kInvalid, "invalid"},
                                                         {Refusal::kTooLarge, "too_large"},
                                                         {Refusal::kQueueFull, "queue_full"},
                                                         {Refusal::kDraining, "draining"},
                                                         {Refusal::kFailed, "failed"}};

}  // namespace

struct BatchMetrics::Series {
  // Constant after construction; owned by the registry.
  prometheus::Gauge *waiting, *fetching, *running;
  prometheus::Gauge *free_pages, *referenced_pages, *cached_pages;
  prometheus::Counter *evicted_pages, *shared_pages, *steps;
  Histogram *queue_wait, *batch_size, *step_seconds, *inter_token;
  std::map<Refusal, prometheus::Counter*> refusals;
};

BatchMetrics::BatchMetrics(MetricRegistry& registry) : series_(std::make_unique<Series>()) {
  series_->waiting = registry.AddGauge(
      "pkv_queue_depth", "Requests that wait for a slot and pages.", {{"queue", "decode"}});
  const char* sequences_help =
      "Requests that hold a slot: their prefix is on its way, or decoding.";
  series_->fetching =
      registry.AddGauge("pkv_decode_sequences", sequences_help, {{"state", "fetching"}});
  series_->running =
      registry.AddGauge("pkv_decode_sequences", sequences_help, {{"state", "running"}});
  const char* pages_help =
      "Pages of the pool: free, of a request, or kept with a block that a request may ask for.";
  series_->free_pages = registry.AddGauge("pkv_decode_pages", pages_help, {{"state", "free"}});
  series_->referenced_pages =
      registry.AddGauge("pkv_decode_pages", pages_help, {{"state", "referenced"}});
  series_->cached_pages = registry.AddGauge("pkv_decode_pages", pages_help, {{"state", "cached"}});

  series_->evicted_pages =
      registry.AddCounter("pkv_evictions_total", "Cached pages taken for other blocks.",
                          {{"tier", "page"}, {"reason", "capacity"}});
  series_->shared_pages = registry.AddCounter("pkv_decode_shared_pages_total",
                                              "Blocks found in a page instead of fetched.");
  series_->steps = registry.AddCounter("pkv_decode_steps_total", "Steps of the whole batch.");
  for (const auto& [reason, name] : kRefusals) {
    series_->refusals[reason] = registry.AddCounter(
        "pkv_rpc_rejected_total", "Requests refused before anything was done for them.",
        {{"reason", name}});
  }

  series_->queue_wait =
      registry.AddHistogram("pkv_queue_wait_seconds", "Time from a request to its slot and pages.",
                            {{"queue", "decode"}}, LongBounds());
  series_->batch_size = registry.AddHistogram("pkv_decode_batch_size", "Sequences in one step.", {},
                                              ExponentialBounds(1, 2, 11));
  series_->step_seconds = registry.AddHistogram(
      "pkv_decode_step_duration_seconds",
      "One token for every running sequence, flushes not included.", {}, LatencyBounds());
  series_->inter_token =
      registry.AddHistogram("pkv_decode_inter_token_seconds",
                            "Time from one token of a request to its next.", {}, LatencyBounds());
}

BatchMetrics::~BatchMetrics() = default;

void BatchMetrics::SetSequences(int waiting, int fetching, int running) {
  series_->waiting->Set(waiting);
  series_->fetching->Set(fetching);
  series_->running->Set(running);
}

void BatchMetrics::SetPages(const PagePool::Counts& counts) {
  series_->free_pages->Set(counts.free);
  series_->referenced_pages->Set(counts.referenced);
  series_->cached_pages->Set(counts.cached);
}

void BatchMetrics::CountEvictedPages(int64_t count) {
  series_->evicted_pages->Increment(static_cast<double>(count));
}

void BatchMetrics::CountSharedPages(int64_t count) {
  series_->shared_pages->Increment(static_cast<double>(count));
}

void BatchMetrics::CountRefusal(Refusal reason) { series_->refusals.at(reason)->Increment(); }

void BatchMetrics::ObserveQueueWait(double seconds) { series_->queue_wait->Observe(seconds); }

void BatchMetrics::ObserveStep(int batch_size, double seconds) {
  series_->steps->Increment();
  series_->batch_size->Observe(batch_size);
  series_->step_seconds->Observe(seconds);
}

void BatchMetrics::ObserveInterToken(double seconds) { series_->inter_token->Observe(seconds); }

}  // namespace pkv
