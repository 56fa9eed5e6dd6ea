#ifndef PKV_WORKER_BATCH_BATCH_METRICS_H_
#define PKV_WORKER_BATCH_BATCH_METRICS_H_

#include <memory>

#include "worker/batch/page_pool.h"

namespace pkv {

class MetricRegistry;

// Why a decode request was not taken.
enum class Refusal { kInvalid, kTooLarge, kQueueFull, kDraining, kFailed };

// What a BatchScheduler exports: names and meanings are listed in worker/README.md. Every series
// exists from the start. Thread-safe.
class BatchMetrics {
 public:
  // Adds the series to `registry`, which gives them their role and outlives this.
  explicit BatchMetrics(MetricRegistry& registry);
  ~BatchMetrics();

  void SetSequences(int waiting, int fetching, int running);
  void SetPages(const PagePool::Counts& counts);
  void CountEvictedPages(int64_t count);
  void CountSharedPages(int64_t count);
  void CountRefusal(Refusal reason);
  void ObserveQueueWait(double seconds);
  void ObserveStep(int batch_size, double seconds);
  void ObserveInterToken(double seconds);

 private:
  struct Series;
  std::unique_ptr<Series> series_;
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_BATCH_METRICS_H_
