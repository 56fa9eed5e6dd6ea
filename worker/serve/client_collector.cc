#include "worker/serve/client_collector.h"

#include <array>
#include <map>

#include "proto/metrics/metric_registry.h"

namespace pkv {
namespace {

using Labels = MetricRegistry::Labels;

constexpr CallMethod kMethods[] = {CallMethod::kLookup, CallMethod::kGet, CallMethod::kPut,
                                   CallMethod::kStat, CallMethod::kDelete};
constexpr absl::StatusCode kCodes[] = {absl::StatusCode::kOk,
                                       absl::StatusCode::kCancelled,
                                       absl::StatusCode::kUnknown,
                                       absl::StatusCode::kInvalidArgument,
                                       absl::StatusCode::kNotFound,
                                       absl::StatusCode::kDeadlineExceeded,
                                       absl::StatusCode::kAlreadyExists,
                                       absl::StatusCode::kResourceExhausted,
                                       absl::StatusCode::kFailedPrecondition,
                                       absl::StatusCode::kAborted,
                                       absl::StatusCode::kInternal,
                                       absl::StatusCode::kUnavailable,
                                       absl::StatusCode::kDataLoss};

// One family; series are added with their labels and values.
class Family {
 public:
  Family(const char* name, const char* help, prometheus::MetricType type, const std::string& role)
      : role_(role) {
    family_.name = name;
    family_.help = help;
    family_.type = type;
  }

  void Add(Labels labels, uint64_t value) {
    prometheus::ClientMetric& metric = AddSeries(std::move(labels));
    if (family_.type == prometheus::MetricType::Counter) {
      metric.counter.value = static_cast<double>(value);
    } else {
      metric.gauge.value = static_cast<double>(value);
    }
  }
  void Add(Labels labels, const prometheus::ClientMetric::Histogram& histogram) {
    AddSeries(std::move(labels)).histogram = histogram;
  }
  prometheus::MetricFamily Take() { return std::move(family_); }

 private:
  prometheus::ClientMetric& AddSeries(Labels labels) {
    labels["role"] = role_;
    prometheus::ClientMetric& metric = family_.metric.emplace_back();
    for (const auto& [name, value] : labels) metric.label.push_back({name, value});
    return metric;
  }

  const std::string role_;
  prometheus::MetricFamily family_;
};

constexpr auto kCounter = prometheus::MetricType::Counter;
constexpr auto kGauge = prometheus::MetricType::Gauge;
constexpr auto kHistogram = prometheus::MetricType::Histogram;

// How often the calls of one method ended with each of kCodes.
std::map<absl::StatusCode, uint64_t> ByListedCode(const MethodStatistics& statistics) {
  std::map<absl::StatusCode, uint64_t> counts;
  for (const absl::StatusCode code : kCodes) counts[code] = 0;
  for (size_t i = 0; i < statistics.ended.size(); ++i) {
    const auto it = counts.find(static_cast<absl::StatusCode>(i));
    (it != counts.end() ? it->second : counts[absl::StatusCode::kUnknown]) += statistics.ended[i];
  }
  return counts;
}

}  // namespace

std::vector<prometheus::MetricFamily> ClientCollector::Collect() const {
  Family requests("pkv_client_rpc_requests_total",
                  "Calls to the cache that ended, by final status, retries included.", kCounter,
                  role_);
  Family durations("pkv_client_rpc_duration_seconds",
                   "From a call to its end; Get and Put: to the last layer read or receipt.",
                   kHistogram, role_);
  Family inflight("pkv_client_rpc_inflight", "Calls that have begun and not ended.", kGauge, role_);
  Family retries("pkv_client_retries_total", "Attempts after the first.", kCounter, role_);
  Family backing_off("pkv_client_backing_off", "Calls in the pause before another attempt.", kGauge,
                     role_);
  for (const CallMethod method : kMethods) {
    const MethodStatistics statistics = statistics_->Read(method);
    const Labels labels = {{"method", CallMethodName(method)}};
    for (const auto& [code, count] : ByListedCode(statistics)) {
      requests.Add({{"method", CallMethodName(method)}, {"code", absl::StatusCodeToString(code)}},
                   count);
    }
    durations.Add(labels, ToPrometheus({statistics.durations, statistics.duration_sum},
                                       CallDurationBounds()));
    inflight.Add(labels, statistics.in_flight);
    retries.Add(labels, statistics.retries);
    backing_off.Add(labels, statistics.backing_off);
  }

  const ClientCounters counters = cluster_.counters();
  Family bytes("pkv_client_payload_bytes_total",
               "Frame bytes received, or read in place, and sent.", kCounter, role_);
  bytes.Add({{"direction", "in"}, {"transport", "grpc"}},
            counters.get_bytes - counters.shm_get_bytes - counters.nccl_get_bytes -
                counters.direct_get_bytes);
  bytes.Add({{"direction", "in"}, {"transport", "shm"}}, counters.shm_get_bytes);
  bytes.Add({{"direction", "in"}, {"transport", "nccl"}}, counters.nccl_get_bytes);
  bytes.Add({{"direction", "in"}, {"transport", "direct"}}, counters.direct_get_bytes);
  bytes.Add({{"direction", "out"}, {"transport", "grpc"}},
            counters.put_bytes - counters.shm_put_bytes);
  bytes.Add({{"direction", "out"}, {"transport", "shm"}}, counters.shm_put_bytes);
  Family fallbacks("pkv_client_shm_fallbacks_total",
                   "Gets over gRPC although the server offers shm.", kCounter, role_);
  fallbacks.Add({}, counters.shm_fallbacks);
  Family put_fallbacks("pkv_client_shm_put_fallbacks_total",
                       "Streams of puts over gRPC although the server offers shm.", kCounter,
                       role_);
  put_fallbacks.Add({}, counters.shm_put_fallbacks);
  Family nccl_fallbacks("pkv_client_nccl_fallbacks_total",
                        "Gets that NCCL began, or refused, and gRPC finished.", kCounter, role_);
  nccl_fallbacks.Add({}, counters.nccl_fallbacks);
  Family direct_fallbacks("pkv_client_direct_fallbacks_total",
                          "Gets that a prefill worker began, or refused, and the cache finished.",
                          kCounter, role_);
  direct_fallbacks.Add({}, counters.direct_fallbacks);
  Family direct_refusals("pkv_client_direct_refusals_total",
                         "Tickets that name a direct server which is none to be asked.", kCounter,
                         role_);
  direct_refusals.Add({}, counters.direct_refusals);
  Family direct_crowded("pkv_client_direct_crowded_total",
                        "Gets whose prefill worker was not asked: too many others have pairs.",
                        kCounter, role_);
  direct_crowded.Add({}, counters.direct_crowded);
  Family integrity("pkv_integrity_failures_total", "Checksums that did not fit", kCounter, role_);
  integrity.Add({{"stage", "client"}}, counters.integrity_failures);

  std::vector<prometheus::MetricFamily> families;
  for (Family* family : {&requests, &durations, &inflight, &retries, &backing_off, &bytes,
                         &fallbacks, &put_fallbacks, &nccl_fallbacks, &direct_fallbacks,
                         &direct_refusals, &direct_crowded, &integrity}) {
    families.push_back(family->Take());
  }
  return families;
}

}  // namespace pkv
