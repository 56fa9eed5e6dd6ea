#include "worker/prefill/direct_metrics.h"

#include "proto/metrics/metric_registry.h"

namespace pkv {
namespace {

constexpr std::array kEnds = {"reader", "failed", "stopped", "unopened"};
constexpr std::array kPrompts = {"kept", "no_room", "failed"};
constexpr std::array kGets = {"hit", "miss", "shed"};
constexpr std::array kEvictions = {"capacity", "damaged"};

template <size_t n>
void AddCounters(MetricRegistry& registry, const char* name, const char* help, const char* label,
                 const std::array<const char*, n>& values,
                 std::array<prometheus::Counter*, n>& series) {
  for (size_t i = 0; i < n; ++i) series[i] = registry.AddCounter(name, help, {{label, values[i]}});
}

}  // namespace

DirectMetrics::DirectMetrics(MetricRegistry& registry)
    : capacity_(registry.AddGauge("pkv_direct_capacity_bytes",
                                  "Device memory for prompts that decode workers fetch here.")),
      resident_(registry.AddGauge("pkv_direct_resident_bytes", "Part of it that is in use.")),
      pairs_(registry.AddGauge("pkv_direct_pairs",
                               "NCCL pairs with decode workers, those being opened included.")),
      sent_(registry.AddCounter("pkv_direct_sent_bytes_total",
                                "Frame bytes sent to decode workers, once all of a get are.")) {
  AddCounters(registry, "pkv_direct_ended_total", "NCCL pairs that ended.", "reason", kEnds,
              ended_);
  AddCounters(
      registry, "pkv_direct_prompts_total",
      "Computed prompts that were kept on the GPU, or why they were not; failed: cancelled, "
      "or another chain is stored, too.",
      "result", kPrompts, prompts_);
  AddCounters(registry, "pkv_direct_gets_total", "Fetches of decode workers.", "result", kGets,
              gets_);
  AddCounters(registry, "pkv_direct_evictions_total", "Prompts that were kept and are no more.",
              "reason", kEvictions, evictions_);
}

}  // namespace pkv
