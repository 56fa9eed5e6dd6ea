#include "worker/serve/member_collector.h"

#include <algorithm>
#include <utility>

namespace pkv {
namespace {

constexpr std::pair<ServerState, const char*> kStates[] = {{ServerState::kReady, "ready"},
                                                           {ServerState::kDraining, "draining"},
                                                           {ServerState::kAway, "away"}};

}  // namespace

std::vector<prometheus::MetricFamily> MemberCollector::Collect() const {
  prometheus::MetricFamily family;
  family.name = "pkv_members";
  family.help = "Servers of the cache, by what this worker knows of them.";
  family.type = prometheus::MetricType::Gauge;
  const std::vector<ServerStatus> servers = cluster_.servers();
  for (const auto& [state, name] : kStates) {
    prometheus::ClientMetric metric;
    metric.label = {{"role", role_}, {"state", name}};
    metric.gauge.value = static_cast<double>(
        std::count_if(servers.begin(), servers.end(),
                      [state = state](const ServerStatus& one) { return one.state == state; }));
    family.metric.push_back(std::move(metric));
  }
  return {family};
}

}  // namespace pkv
