#include "proto/metrics/metric_registry.h"

#include <limits>

namespace pkv {

MetricRegistry::Labels MetricRegistry::WithOwn(Labels labels) const {
  labels.insert(own_.begin(), own_.end());
  return labels;
}

prometheus::Counter* MetricRegistry::AddCounter(const std::string& name, const std::string& help,
                                                const Labels& labels) {
  return &prometheus::BuildCounter().Name(name).Help(help).Register(registry_).Add(WithOwn(labels));
}

prometheus::Gauge* MetricRegistry::AddGauge(const std::string& name, const std::string& help,
                                            const Labels& labels) {
  return &prometheus::BuildGauge().Name(name).Help(help).Register(registry_).Add(WithOwn(labels));
}

Histogram* MetricRegistry::AddHistogram(const std::string& name, const std::string& help,
                                        const Labels& labels, std::vector<double> bounds) {
  MutexLock lock(&mu_);
  HistogramFamily& family = histograms_[name];
  family.help = help;
  std::unique_ptr<Histogram>& series = family.series[WithOwn(labels)];
  if (series == nullptr) series = std::make_unique<Histogram>(std::move(bounds));
  return series.get();
}

void MetricRegistry::AddCollectable(std::shared_ptr<prometheus::Collectable> collectable) {
  MutexLock lock(&mu_);
  collectables_.push_back(std::move(collectable));
}

std::vector<prometheus::MetricFamily> MetricRegistry::Collect() const {
  std::vector<prometheus::MetricFamily> families = registry_.Collect();
  std::vector<std::shared_ptr<prometheus::Collectable>> collectables;
  {
    MutexLock lock(&mu_);
    AppendHistograms(families);
    collectables = collectables_;
  }
  for (const auto& collectable : collectables) {
    for (prometheus::MetricFamily& family : collectable->Collect()) {
      families.push_back(std::move(family));
    }
  }
  return families;
}

void MetricRegistry::AppendHistograms(std::vector<prometheus::MetricFamily>& families) const {
  for (const auto& [name, family] : histograms_) {
    prometheus::MetricFamily collected;
    collected.name = name;
    collected.help = family.help;
    collected.type = prometheus::MetricType::Histogram;
    for (const auto& [labels, series] : family.series) {
      prometheus::ClientMetric metric;
      for (const auto& [label, value] : labels) metric.label.push_back({label, value});
      metric.histogram = ToPrometheus(series->Read(), series->bounds());
      collected.metric.push_back(std::move(metric));
    }
    families.push_back(std::move(collected));
  }
}

prometheus::ClientMetric::Histogram ToPrometheus(const Histogram::Counts& counts,
                                                 const std::vector<double>& bounds) {
  prometheus::ClientMetric::Histogram histogram;
  histogram.sample_sum = counts.sum;
  for (size_t i = 0; i < counts.buckets.size(); ++i) {
    histogram.sample_count += counts.buckets[i];
    prometheus::ClientMetric::Bucket bucket;
    bucket.cumulative_count = histogram.sample_count;
    bucket.upper_bound = i < bounds.size() ? bounds[i] : std::numeric_limits<double>::infinity();
    histogram.bucket.push_back(bucket);
  }
  return histogram;
}

}  // namespace pkv
