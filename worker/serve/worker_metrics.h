#ifndef PKV_WORKER_SERVE_WORKER_METRICS_H_
#define PKV_WORKER_SERVE_WORKER_METRICS_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "pkv/v1/worker_service.pb.h"

namespace pkv {

class MetricRegistry;

// What workers of both roles export besides process_*: names and meanings are listed in
// worker/README.md.
//
// Every series exists from the start, so that rates see the first event.
// Thread-safe.
class WorkerMetrics {
 public:
  // `role` is "prefill" or "decode".
  explicit WorkerMetrics(absl::string_view role);
  ~WorkerMetrics();

  // Its series all have the label `role`.
  std::shared_ptr<MetricRegistry> registry() const;

  // Each call of the service, those that are refused included.
  void RequestBegan();
  void RequestEnded(const absl::Status& status, double seconds);
  void CountPrefill(const v1::PrefillStats& stats);
  void CountDecode(const v1::DecodeStats& stats, int num_tokens);
  // The cache did not deliver and the prompt was computed instead.
  void CountRecompute(const absl::Status& reason);

 private:
  struct Series;
  std::unique_ptr<Series> series_;
};

}  // namespace pkv

#endif  // PKV_WORKER_SERVE_WORKER_METRICS_H_
