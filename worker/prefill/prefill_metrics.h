#ifndef PKV_WORKER_PREFILL_PREFILL_METRICS_H_
#define PKV_WORKER_PREFILL_PREFILL_METRICS_H_

#include <cstdint>
#include <memory>
#include <string>

namespace pkv {

class MetricRegistry;

// What the codec did for one prompt.
struct CodecWork {
  std::string preset;
  uint64_t input_bytes = 0;   // K and V as fp16
  uint64_t output_bytes = 0;  // of blocks, tables and windows
  // Summed over layers. 0: not measured (on a GPU both run beside the model, on a stream).
  double mine_seconds = 0;
  double encode_seconds = 0;  // assigning patterns included
};

// What a PrefillWorker and its queue export: names and meanings are listed in worker/README.md.
// Every series exists from the start. Thread-safe.
class PrefillMetrics {
 public:
  // Adds the series to `registry`, which outlives this.
  explicit PrefillMetrics(MetricRegistry& registry);
  ~PrefillMetrics();

  // One more request waits, or one less.
  void AddWaiting(int change);
  void ObserveQueueWait(double seconds);
  void CountQueueFull();
  // Of one sampled block (error_sample.h).
  void ObserveRelativeError(double k, double v);
  // REQUIRES: the preset is one of PresetNames().
  void CountCodec(const CodecWork& work);

 private:
  struct Series;
  std::unique_ptr<Series> series_;
};

}  // namespace pkv

#endif  // PKV_WORKER_PREFILL_PREFILL_METRICS_H_
