#ifndef PKV_PROTO_METRICS_RELOAD_METRICS_H_
#define PKV_PROTO_METRICS_RELOAD_METRICS_H_

#include <array>

#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/registry.h"
#include "proto/config/config_sources.h"

namespace pkv {

// What became of the configuration at each SIGHUP. The series of `registry`, which outlives this:
// pkv_config_reloads_total{result="success" | "partial" | "failure"} and
// pkv_config_last_reload_successful, which is 1 until one fails and again after one that does not.
//
// Thread-safe.
class ReloadMetrics {
 public:
  explicit ReloadMetrics(prometheus::Registry& registry);

  void Count(ReloadResult result);

 private:
  std::array<prometheus::Counter*, 3> reloads_;  // by ReloadResult
  prometheus::Gauge* last_successful_;
};

}  // namespace pkv

#endif  // PKV_PROTO_METRICS_RELOAD_METRICS_H_
