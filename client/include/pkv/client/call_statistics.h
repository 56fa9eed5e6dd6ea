#ifndef PKV_CLIENT_CALL_STATISTICS_H_
#define PKV_CLIENT_CALL_STATISTICS_H_

// How a client's calls went: for whoever exports metrics, in whatever system.

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace pkv {

// kGet lasts from StartGet() until its last layer is verified, kPut from StartPut() to the end of
// Finish(): as long as who reads or writes takes. The others are as CacheClient has them.
enum class CallMethod { kLookup, kGet, kPut, kStat, kDelete, kStats, kDrain };
inline constexpr int kNumCallMethods = 7;

// "Lookup", "Get", ..: as pkvd calls them in its own metrics.
const char* CallMethodName(CallMethod method);

// Of one method, since the start.
struct MethodStatistics {
  // Calls that ended, by code; absl's codes are 0..16. A miss is NotFound for Get, OK for Lookup. A
  // Put has the first code of its objects that is not OK; a stream that its owner gave up is
  // Cancelled.
  std::array<uint64_t, 17> ended{};
  uint64_t in_flight = 0;    // begun and not ended
  uint64_t retries = 0;      // attempts after the first
  uint64_t backing_off = 0;  // in the pause before one of those, now
  // Of calls that ended, in seconds: counts between CallDurationBounds(), and above the last one.
  std::vector<uint64_t> durations;
  double duration_sum = 0;
};

// 100 us .. 52 s in 20 steps of two, in seconds.
std::vector<double> CallDurationBounds();

// What one or several clients count; hand it to them as ClientOptions::statistics and read it at
// any time. Takes no lock.
//
// Thread-safe.
class CallStatistics {
 public:
  CallStatistics();
  ~CallStatistics();

  MethodStatistics Read(CallMethod method) const;

  // For clients.
  void Began(CallMethod method);
  void Ended(CallMethod method, absl::StatusCode code, absl::Duration duration);
  void RetryBegan(CallMethod method);  // and its pause
  void PauseEnded(CallMethod method);

 private:
  struct Method;
  const std::unique_ptr<Method[]> methods_;  // kNumCallMethods
};

}  // namespace pkv

#endif  // PKV_CLIENT_CALL_STATISTICS_H_
