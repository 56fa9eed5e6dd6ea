#ifndef PKV_WORKER_PREFILL_DIRECT_METRICS_H_
#define PKV_WORKER_PREFILL_DIRECT_METRICS_H_

#include <array>
#include <cstddef>
#include <cstdint>

#include <prometheus/counter.h>
#include <prometheus/gauge.h>

#include "proto/transport/nccl/pair_source.h"

namespace pkv {

class MetricRegistry;

// What became of a prompt, or of a fetch. In the order of the tables in direct_metrics.cc.
enum class DirectPrompt { kKept, kNoRoom, kFailed };
enum class DirectGet { kHit, kMiss, kShed };
enum class DirectEviction { kCapacity, kDamaged };

// What a DirectStore and its pairs export, pkv_direct_*: names and meanings are listed in
// worker/README.md. Every series exists from the start. Thread-safe.
class DirectMetrics {
 public:
  // `registry` outlives this.
  explicit DirectMetrics(MetricRegistry& registry);

  void SetCapacity(uint64_t bytes) { capacity_->Set(static_cast<double>(bytes)); }
  void SetResident(uint64_t bytes) { resident_->Set(static_cast<double>(bytes)); }
  void SetPairs(size_t num_pairs) { pairs_->Set(static_cast<double>(num_pairs)); }
  void PairEnded(PairEnd reason) { ended_[static_cast<size_t>(reason)]->Increment(); }
  void PromptEnded(DirectPrompt result) { prompts_[static_cast<size_t>(result)]->Increment(); }
  void GetEnded(DirectGet result) { gets_[static_cast<size_t>(result)]->Increment(); }
  void Evicted(DirectEviction reason) { evictions_[static_cast<size_t>(reason)]->Increment(); }
  void Sent(uint64_t bytes) { sent_->Increment(static_cast<double>(bytes)); }

 private:
  prometheus::Gauge *capacity_, *resident_, *pairs_;
  std::array<prometheus::Counter*, 4> ended_{};
  std::array<prometheus::Counter*, 3> prompts_{}, gets_{};
  std::array<prometheus::Counter*, 2> evictions_{};
  prometheus::Counter* sent_;
};

}  // namespace pkv

#endif  // PKV_WORKER_PREFILL_DIRECT_METRICS_H_
