#include "proto/metrics/reload_metrics.h"

namespace pkv {

ReloadMetrics::ReloadMetrics(prometheus::Registry& registry) {
  constexpr std::array kResults = {"success", "partial", "failure"};  // in ReloadResult's order
  auto& reloads = prometheus::BuildCounter()
                      .Name("pkv_config_reloads_total")
                      .Help(
                          "SIGHUPs: every change took effect, some need a restart, or the "
                          "configuration is invalid and nothing changed")
                      .Register(registry);
  for (size_t i = 0; i < kResults.size(); ++i)
    reloads_[i] = &reloads.Add({{"result", kResults[i]}});
  last_successful_ = &prometheus::BuildGauge()
                          .Name("pkv_config_last_reload_successful")
                          .Help("0 when the last SIGHUP found an invalid configuration")
                          .Register(registry)
                          .Add({});
  last_successful_->Set(1);
}

void ReloadMetrics::Count(ReloadResult result) {
  reloads_[static_cast<size_t>(result)]->Increment();
  last_successful_->Set(result == ReloadResult::kFailure ? 0 : 1);
}

}  // namespace pkv
