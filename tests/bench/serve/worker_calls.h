#ifndef PKV_TESTS_BENCH_SERVE_WORKER_CALLS_H_
#define PKV_TESTS_BENCH_SERVE_WORKER_CALLS_H_

#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "pkv/v1/worker_service.pb.h"

namespace pkv {

struct WorkerCallsOptions {
  std::vector<std::string> prefill, decode;  // host:port or unix:/path; calls take turns
  // Connections to each worker: what is read from one is read by one thread at a time, on both
  // sides.
  int num_channels = 4;
  absl::Duration deadline = absl::Minutes(10);  // of each call
};

// Calls of running workers that do not block: the answers come on gRPC's own threads, so that a
// thousand streams need no thousand threads. Reactions must not block either.
// Thread-safe. Must outlive its calls.
class WorkerCalls {
 public:
  // REQUIRES: num_channels >= 1
  explicit WorkerCalls(const WorkerCallsOptions& options);
  ~WorkerCalls();

  // `turn` chooses worker and channel: calls with turns 0, 1, ... go round.
  // REQUIRES: there is a worker of the role
  // `done` gets the answer, or an error of the worker, Unavailable or DeadlineExceeded.
  void Prefill(int64_t turn, v1::PrefillRequest request,
               std::function<void(absl::StatusOr<v1::PrefillResponse>)> done);
  // `on_event` gets each event, one at a time, and never after `done`.
  void Decode(int64_t turn, v1::DecodeRequest request,
              std::function<void(const v1::DecodeEvent&)> on_event,
              std::function<void(absl::Status)> done);

  // Prefill, for who waits.
  std::future<absl::StatusOr<v1::PrefillResponse>> PrefillLater(int64_t turn,
                                                                v1::PrefillRequest request);

 private:
  struct Stubs;
  std::unique_ptr<const Stubs> stubs_;
  const absl::Duration deadline_;
};

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_SERVE_WORKER_CALLS_H_
