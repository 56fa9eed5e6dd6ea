#ifndef PKV_WORKER_SERVE_CLIENT_COLLECTOR_H_
#define PKV_WORKER_SERVE_CLIENT_COLLECTOR_H_

#include <prometheus/collectable.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "pkv/client/cache_cluster.h"
#include "pkv/client/call_statistics.h"

namespace pkv {

// The client's side of what pkvd tells, read at every scrape: pkv_client_rpc_* by method and code,
// retries, payload bytes, and damage that the client found (worker/README.md lists them). Methods
// are those that workers call, codes a closed set; UNKNOWN stands for any other.
//
// Thread-safe.
class ClientCollector : public prometheus::Collectable {
 public:
  // `role` is a label of every series; `cluster`, whose clients count in `statistics`, outlives
  // this. shared_ptr: with the clients.
  ClientCollector(absl::string_view role, const CacheCluster* cluster,
                  std::shared_ptr<const CallStatistics> statistics)
      : role_(role), cluster_(*cluster), statistics_(std::move(statistics)) {}

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const std::string role_;
  const CacheCluster& cluster_;
  const std::shared_ptr<const CallStatistics> statistics_;
};

}  // namespace pkv

#endif  // PKV_WORKER_SERVE_CLIENT_COLLECTOR_H_
