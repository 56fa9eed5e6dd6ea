#include "proto/metrics/reload_metrics.h"

namespace pkv {

ReloadMetrics::ReloadMetrics(MetricRegistry& registry) {
  constexpr std::array kResults = {"success", "partial", "failure"};  // in ReloadResult's order
  for (size_t i = 0; i < kResults.size(); ++i) {
    reloads_[i] = registry.AddCounter("pkv_config_reloads_total",
                                      "SIGHUPs: every change took effect, some need a restart, or "
                                      "the configuration is invalid and nothing changed",
                                      {{"result", kResults[i]}});
  }
  last_successful_ = registry.AddGauge("pkv_config_last_reload_successful",
                                       "0 when the last SIGHUP found an invalid configuration");
  last_successful_->Set(1);
  hash_ = registry.AddGauge("pkv_config_hash",
                            "Of all settings: the same where processes run with the same");
}

void ReloadMetrics::Count(ReloadResult result) {
  reloads_[static_cast<size_t>(result)]->Increment();
  last_successful_->Set(result == ReloadResult::kFailure ? 0 : 1);
}

}  // namespace pkv
