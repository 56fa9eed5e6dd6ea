#ifndef PKV_PROTO_METRICS_RELOAD_METRICS_H_
#define PKV_PROTO_METRICS_RELOAD_METRICS_H_

#include <array>
#include <cstdint>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>

#include "proto/config/config_sources.h"
#include "proto/metrics/metric_registry.h"

namespace pkv {

// What became of the configuration at each SIGHUP. The series of `registry`, which outlives this:
// pkv_config_reloads_total{result="success" | "partial" | "failure"},
// pkv_config_last_reload_successful, which is 1 until one fails and again after one that does not,
// and pkv_config_hash, a number rather than a label so that a reload makes no other series.
//
// Thread-safe.
class ReloadMetrics {
 public:
  explicit ReloadMetrics(MetricRegistry& registry);

  // Of the configuration that is served with: at the start and after each SIGHUP.
  void SetHash(uint32_t hash) { hash_->Set(hash); }
  void Count(ReloadResult result);

 private:
  std::array<prometheus::Counter*, 3> reloads_;  // by ReloadResult
  prometheus::Gauge *last_successful_, *hash_;
};

}  // namespace pkv

#endif  // PKV_PROTO_METRICS_RELOAD_METRICS_H_
