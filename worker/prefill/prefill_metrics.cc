#include "worker/prefill/prefill_metrics.h"

#include <map>

#include "pkv/kernels/codec_params.h"
#include "proto/metrics/metric_registry.h"

namespace pkv {

struct PrefillMetrics::Series {
  // Of one preset.
  struct Codec {
    prometheus::Counter *input_bytes, *output_bytes, *mine_seconds, *encode_seconds;
  };
  // Constant after construction; owned by the registry.
  prometheus::Gauge* queue_depth;
  Histogram* queue_wait;
  prometheus::Counter* queue_full;
  Histogram *mine_duration, *encode_duration;
  Histogram *k_error, *v_error;
  std::map<std::string, Codec> codecs;
};

PrefillMetrics::PrefillMetrics(MetricRegistry& registry) : series_(std::make_unique<Series>()) {
  const MetricRegistry::Labels queue = {{"queue", "prefill"}};
  series_->queue_depth =
      registry.AddGauge("pkv_queue_depth", "Requests that wait to be begun.", queue);
  series_->queue_wait = registry.AddHistogram(
      "pkv_queue_wait_seconds", "Time from a request to its begin.", queue, LongBounds());
  series_->queue_full = registry.AddCounter("pkv_rpc_rejected_total",
                                            "Requests refused before anything was done for them.",
                                            {{"reason", "queue_full"}});
  const char* duration_help =
      "Mining, or assigning and encoding, of one prompt, summed over layers.";
  series_->mine_duration = registry.AddHistogram("pkv_codec_duration_seconds", duration_help,
                                                 {{"stage", "mine"}}, LongBounds());
  series_->encode_duration = registry.AddHistogram("pkv_codec_duration_seconds", duration_help,
                                                   {{"stage", "encode"}}, LongBounds());
  const char* error_help =
      "Norm of the error over the norm, of one layer of one block of a prompt; on the CPU alone.";
  // 0.1 % .. 1 in 11 steps of two: a block that says nothing of its tokens has 1.
  series_->k_error = registry.AddHistogram("pkv_codec_relative_error", error_help,
                                           {{"tensor", "k"}}, ExponentialBounds(1.0 / 1024, 2, 11));
  series_->v_error = registry.AddHistogram("pkv_codec_relative_error", error_help,
                                           {{"tensor", "v"}}, ExponentialBounds(1.0 / 1024, 2, 11));
  // By preset the times are counters: as histograms they would be 440 series of one process.
  const char* seconds_help = "Time of pkv_codec_duration_seconds, by preset.";
  for (const std::string& preset : PresetNames()) {
    const MetricRegistry::Labels codec = {{"codec", preset}};
    series_->codecs[preset] = {
        registry.AddCounter("pkv_codec_input_bytes_total", "K and V that were computed, as fp16.",
                            codec),
        registry.AddCounter("pkv_codec_output_bytes_total",
                            "Bytes of the blocks, tables and windows made of them.", codec),
        registry.AddCounter("pkv_codec_seconds_total", seconds_help,
                            {{"codec", preset}, {"stage", "mine"}}),
        registry.AddCounter("pkv_codec_seconds_total", seconds_help,
                            {{"codec", preset}, {"stage", "encode"}})};
  }
}

PrefillMetrics::~PrefillMetrics() = default;

void PrefillMetrics::AddWaiting(int change) { series_->queue_depth->Increment(change); }

void PrefillMetrics::ObserveQueueWait(double seconds) { series_->queue_wait->Observe(seconds); }

void PrefillMetrics::CountQueueFull() { series_->queue_full->Increment(); }

void PrefillMetrics::ObserveRelativeError(double k, double v) {
  series_->k_error->Observe(k);
  series_->v_error->Observe(v);
}

void PrefillMetrics::CountCodec(const CodecWork& work) {
  const Series::Codec& codec = series_->codecs.at(work.preset);
  codec.input_bytes->Increment(static_cast<double>(work.input_bytes));
  codec.output_bytes->Increment(static_cast<double>(work.output_bytes));
  if (work.mine_seconds > 0) {
    codec.mine_seconds->Increment(work.mine_seconds);
    series_->mine_duration->Observe(work.mine_seconds);
  }
  if (work.encode_seconds > 0) {
    codec.encode_seconds->Increment(work.encode_seconds);
    series_->encode_duration->Observe(work.encode_seconds);
  }
}

}  // namespace pkv
