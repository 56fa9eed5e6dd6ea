#ifndef PKV_WORKER_SERVE_MEMBER_COLLECTOR_H_
#define PKV_WORKER_SERVE_MEMBER_COLLECTOR_H_

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "pkv/client/cache_cluster.h"

namespace pkv {

// pkv_members{role, state}: how many of a cluster's servers are ready, draining and away, as this
// worker sees them when it is scraped. No server is named: there may be any number of them.
//
// Thread-safe.
class MemberCollector final : public prometheus::Collectable {
 public:
  // `cluster` outlives this.
  MemberCollector(absl::string_view role, const CacheCluster* cluster)
      : role_(role), cluster_(*cluster) {}
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const std::string role_;
  const CacheCluster& cluster_;
};

}  // namespace pkv

#endif  // PKV_WORKER_SERVE_MEMBER_COLLECTOR_H_
