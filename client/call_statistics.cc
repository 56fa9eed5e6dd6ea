#include "pkv/client/call_statistics.h"

#include <atomic>
#include <tuple>
#include <utility>

#include "proto/base/histogram.h"

namespace pkv {

struct CallStatistics::Method {
  std::array<std::atomic<uint64_t>, std::tuple_size_v<decltype(MethodStatistics::ended)>> ended{};
  std::atomic<uint64_t> began{0}, retries{0}, pauses_ended{0};
  Histogram durations{CallDurationBounds()};
};

const char* CallMethodName(CallMethod method) {
  constexpr const char* kNames[kNumCallMethods] = {"Lookup", "Get",        "Put",       "Stat",
                                                   "Delete", "AdminStats", "AdminDrain"};
  return kNames[static_cast<size_t>(method)];
}

std::vector<double> CallDurationBounds() { return ExponentialBounds(100e-6, 2, 20); }

CallStatistics::CallStatistics() : methods_(std::make_unique<Method[]>(kNumCallMethods)) {}

CallStatistics::~CallStatistics() = default;

MethodStatistics CallStatistics::Read(CallMethod method) const {
  const Method& from = methods_[static_cast<size_t>(method)];
  MethodStatistics statistics;
  uint64_t num_ended = 0;
  // Ends before begins: a call that does both meanwhile is in flight, and never less than none.
  for (size_t code = 0; code < statistics.ended.size(); ++code) {
    statistics.ended[code] = from.ended[code];
    num_ended += statistics.ended[code];
  }
  statistics.in_flight = from.began - num_ended;
  const uint64_t pauses_ended = from.pauses_ended;
  statistics.retries = from.retries;
  statistics.backing_off = statistics.retries - pauses_ended;
  Histogram::Counts durations = from.durations.Read();
  statistics.durations = std::move(durations.buckets);
  statistics.duration_sum = durations.sum;
  return statistics;
}

void CallStatistics::Began(CallMethod method) { ++methods_[static_cast<size_t>(method)].began; }

void CallStatistics::Ended(CallMethod method, absl::StatusCode code, absl::Duration duration) {
  Method& of = methods_[static_cast<size_t>(method)];
  // A code that absl does not name is a fault of whoever sent it.
  const bool known = static_cast<size_t>(code) < of.ended.size();
  ++of.ended[static_cast<size_t>(known ? code : absl::StatusCode::kUnknown)];
  of.durations.Observe(absl::ToDoubleSeconds(duration));
}

void CallStatistics::RetryBegan(CallMethod method) {
  ++methods_[static_cast<size_t>(method)].retries;
}

void CallStatistics::PauseEnded(CallMethod method) {
  ++methods_[static_cast<size_t>(method)].pauses_ended;
}

}  // namespace pkv
