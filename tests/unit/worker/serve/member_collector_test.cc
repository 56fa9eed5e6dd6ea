#include "worker/serve/member_collector.h"

#include <gtest/gtest.h>

#include <map>

#include "pkv/client/cache_client.h"

namespace pkv {
namespace {

// Only its servers matter.
class ServersOnly final : public CacheCluster {
 public:
  explicit ServersOnly(std::vector<ServerStatus> servers) : servers_(std::move(servers)) {}
  CacheClient& ServerFor(std::span<const Digest>, absl::string_view) override { std::abort(); }
  std::vector<ServerStatus> servers() const override { return servers_; }
  ClientCounters counters() const override { return {}; }

 private:
  const std::vector<ServerStatus> servers_;
};

std::map<std::string, double> Members(const std::vector<ServerStatus>& servers) {
  const ServersOnly cluster(servers);
  const std::vector<prometheus::MetricFamily> families =
      MemberCollector("decode", &cluster).Collect();
  EXPECT_EQ(families.size(), 1u);
  EXPECT_EQ(families.at(0).name, "pkv_members");
  std::map<std::string, double> members;
  for (const prometheus::ClientMetric& metric : families.at(0).metric) {
    EXPECT_EQ(metric.label.at(0).name, "role");
    EXPECT_EQ(metric.label.at(0).value, "decode");
    EXPECT_EQ(metric.label.at(1).name, "state");
    members[metric.label.at(1).value] = metric.gauge.value;
  }
  return members;
}

TEST(MemberCollectorTest, CountsServersByState) {
  using Counts = std::map<std::string, double>;
  EXPECT_EQ(Members({{"a", ServerState::kAway},
                     {"b", ServerState::kReady},
                     {"c", ServerState::kDraining},
                     {"d", ServerState::kReady}}),
            (Counts{{"ready", 2}, {"draining", 1}, {"away", 1}}));
  EXPECT_EQ(Members({}), (Counts{{"ready", 0}, {"draining", 0}, {"away", 0}}));
}

}  // namespace
}  // namespace pkv
