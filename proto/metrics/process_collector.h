#ifndef PKV_PROTO_METRICS_PROCESS_COLLECTOR_H_
#define PKV_PROTO_METRICS_PROCESS_COLLECTOR_H_

#include <string>
#include <vector>

#include "prometheus/collectable.h"
#include "prometheus/metric_family.h"

namespace pkv {

// The process_* metrics that Prometheus clients agree on, read from /proc at every scrape:
// cpu_seconds_total, open_fds, max_fds, resident_memory_bytes, virtual_memory_bytes,
// start_time_seconds, threads. What cannot be read is left out.
//
// Thread-safe (immutable).
class ProcessCollector : public prometheus::Collectable {
 public:
  // `proc` is where procfs is mounted.
  explicit ProcessCollector(std::string proc = "/proc") : proc_(std::move(proc)) {}
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const std::string proc_;
};

}  // namespace pkv

#endif  // PKV_PROTO_METRICS_PROCESS_COLLECTOR_H_
