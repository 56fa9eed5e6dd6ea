#ifndef PKV_PROTO_METRICS_METRIC_REGISTRY_H_
#define PKV_PROTO_METRICS_METRIC_REGISTRY_H_

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>

#include "proto/base/histogram.h"
#include "proto/base/sync.h"

namespace pkv {

// The series of one process. Add every one at the start, also those that may stay at zero: a rate
// does not see the event with which a series appears.
//
// What is added belongs to the registry and lives as long; added again with the same name and
// labels it is the same one. A name has one type and one help text.
//
// Thread-safe.
class MetricRegistry : public prometheus::Collectable {
 public:
  using Labels = std::map<std::string, std::string>;

  MetricRegistry() = default;
  // `own` are labels of every series.
  explicit MetricRegistry(Labels own) : own_(std::move(own)) {}

  prometheus::Counter* AddCounter(const std::string& name, const std::string& help,
                                  const Labels& labels = {});
  prometheus::Gauge* AddGauge(const std::string& name, const std::string& help,
                              const Labels& labels = {});
  // REQUIRES: `bounds` as Histogram; those of the first call count for equal name and labels.
  Histogram* AddHistogram(const std::string& name, const std::string& help, const Labels& labels,
                          std::vector<double> bounds);

  // What comes from elsewhere at each Collect(). shared_ptr: with an exposer that may outlive who
  // made it.
  void AddCollectable(std::shared_ptr<prometheus::Collectable> collectable);

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  struct HistogramFamily {
    std::string help;
    std::map<Labels, std::unique_ptr<Histogram>> series;
  };

  Labels WithOwn(Labels labels) const;
  void AppendHistograms(std::vector<prometheus::MetricFamily>& families) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Labels own_{};
  prometheus::Registry registry_;  // counters and gauges
  mutable Mutex mu_;
  std::map<std::string, HistogramFamily> histograms_ ABSL_GUARDED_BY(mu_);
  std::vector<std::shared_ptr<prometheus::Collectable>> collectables_ ABSL_GUARDED_BY(mu_);
};

// As Prometheus shows it: cumulative, the last bucket's bound is infinite. REQUIRES: one bucket
// more than `bounds`.
prometheus::ClientMetric::Histogram ToPrometheus(const Histogram::Counts& counts,
                                                 const std::vector<double>& bounds);

}  // namespace pkv

#endif  // PKV_PROTO_METRICS_METRIC_REGISTRY_H_
