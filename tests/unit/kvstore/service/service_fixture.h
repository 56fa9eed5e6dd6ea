#ifndef PKV_TESTS_UNIT_KVSTORE_SERVICE_SERVICE_FIXTURE_H_
#define PKV_TESTS_UNIT_KVSTORE_SERVICE_SERVICE_FIXTURE_H_

#include <prometheus/text_serializer.h>

#include <atomic>
#include <memory>
#include <sstream>
#include <string>

#include "kvstore/service/rpc_call.h"
#include "kvstore/service/service_metrics.h"
#include "kvstore/service/stall_watchdog.h"
#include "tests/unit/kvstore/store/store_fixture.h"

namespace pkv {

// A store with everything the handlers need, and no server.
class ServiceFixture : public StoreFixture {
 protected:
  // With a disk: MakeLog() first.
  void MakeService(uint64_t units) {
    MakeStore(units, &metrics_);
    if (log_ != nullptr) {
      pager_ = std::make_unique<Pager>(
          Pager::Options{.store = store_.get(), .log = log_.get(), .clock = Clock::Real()});
    }
    parts_ = {.store = store_.get(),
              .log = log_.get(),
              .disk = {pager_.get(), absl::Seconds(20)},
              .metrics = &metrics_,
              .watchdog = &watchdog_,
              .clock = Clock::Real(),
              .draining = &draining_,
              .stages = &stages_};
  }

  // The value of one series, spelled as /metrics spells it: name{label="value",...}. -1: absent.
  double Metric(const std::string& series) const {
    std::istringstream lines(prometheus::TextSerializer().Serialize(registry_.Collect()));
    std::string line;
    while (std::getline(lines, line)) {
      if (line.rfind(series + " ", 0) == 0) return std::stod(line.substr(series.size() + 1));
    }
    return -1;
  }

  MetricRegistry registry_;
  ServiceMetrics metrics_{registry_};
  StallWatchdog watchdog_{&clock_, absl::Seconds(10),
                          [this] { metrics_.Rejected(RejectReason::kStalled); }};
  std::atomic<bool> draining_{false};
  ShmStages stages_{&clock_};
  std::unique_ptr<Pager> pager_;  // null: no disk
  ServiceParts parts_;
};

}  // namespace pkv

#endif  // PKV_TESTS_UNIT_KVSTORE_SERVICE_SERVICE_FIXTURE_H_
