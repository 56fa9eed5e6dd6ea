#ifndef PKV_KVSTORE_SERVICE_SERVICE_METRICS_H_
#define PKV_KVSTORE_SERVICE_SERVICE_METRICS_H_

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/gauge.h>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kvstore/store/block_store.h"
#include "proto/metrics/metric_registry.h"
#include "proto/transport/nccl/pair_source.h"

namespace pkv {

// Label values, in the order of the tables in service_metrics.cc.
enum class RpcMethod {
  kLookup,
  kGet,
  kPut,
  kStat,
  kDelete,
  kAdminStats,
  kAdminDrain,
  kHandoffOpen,
  kHandoffPair
};
enum class RejectReason { kNoDeadline, kTooLarge, kDraining, kMemory, kStalled };
enum class PutOutcomeKind { kStored, kDuplicate, kConflict, kRejected, kInvalid, kAbandoned };
enum class GetOutcomeKind { kHit, kMiss, kCorrupt, kShed };
enum class Direction { kIn, kOut };
enum class Tier { kDram, kSsd };
enum class PayloadTransport { kGrpc, kShm, kNccl };
// Why a connection of the shm transport ended.
enum class ShmEnd {
  kClient,     // closed by the client, or the client is gone
  kRefused,    // another user's, or with another server's token
  kFull,       // one connection too many, or one stage
  kMalformed,  // not the protocol
  kSilent,     // did not renew in time
  kHeld,       // a pin was held for too long
  kIdle,       // no put used its stage for too long
  kStopped     // this server ends
};

// Every counter of pkvd (README.md, "Metrics"). All series exist, at zero, from the start.
//
// Thread-safe.
class ServiceMetrics : public StoreObserver, public LogObserver {
 public:
  // `registry` outlives this.
  explicit ServiceMetrics(MetricRegistry& registry);

  void OnEviction(EvictionReason reason, uint64_t object_bytes, absl::Duration idle) override;
  void OnIntegrityFailure(IntegrityStage stage) override;
  void OnDiskIo(DiskOp op, uint64_t bytes, absl::Duration duration) override;
  void OnDiskError(DiskOp op) override { At(ssd_errors_, op)->Increment(); }
  void OnLogEviction(uint64_t object_bytes, absl::Duration idle) override;

  // Requests are counted when they end.
  void CallBegan(RpcMethod method);
  void CallEnded(RpcMethod method, absl::StatusCode code, absl::Duration duration);
  void Rejected(RejectReason reason) { At(rejected_, reason)->Increment(); }
  void PutEnded(PutOutcomeKind outcome) { At(puts_, outcome)->Increment(); }
  void GetEnded(GetOutcomeKind outcome) { At(gets_, outcome)->Increment(); }
  // Objects that a get found, of which the last `num_paged_in` came from disk for it.
  void TierHits(int num_found, int num_paged_in);
  // Tokens of one lookup: asked for and found.
  void LookedUp(uint64_t num_tokens, uint64_t num_hit_tokens);
  // On the wire (shm: pinned for a reader, or copied from a stage; nccl: once all were sent), and
  // as fp16 KV of the same tokens.
  void Moved(Direction direction, uint64_t payload_bytes, uint64_t logical_bytes,
             PayloadTransport transport = PayloadTransport::kGrpc);
  // Payload of one Get or Put call, when it ends; 0 is not observed.
  void Transferred(Direction direction, uint64_t payload_bytes);
  // How long the transport took a message of a Get, at the pace of its reader.
  void WaitedForReader(absl::Duration duration) {
    write_wait_seconds_->Increment(absl::ToDoubleSeconds(duration));
  }
  void SetShm(size_t num_connections, uint64_t pinned_bytes, uint64_t stage_bytes);
  void ShmEnded(ShmEnd reason) { At(shm_ends_, reason)->Increment(); }
  void SetNcclPairs(size_t num_pairs) { nccl_pairs_->Set(static_cast<double>(num_pairs)); }
  void NcclEnded(PairEnd reason) { At(nccl_ends_, reason)->Increment(); }
  void AcceptFailed() { accept_errors_->Increment(); }
  void SetDraining() { draining_->Set(1); }

 private:
  static constexpr size_t kNumMethods = 9;
  static constexpr size_t kNumCodes = 9;
  template <typename T, size_t N, typename Index>
  static T* At(const std::array<T*, N>& series, Index index) {
    return series[static_cast<size_t>(index)];
  }

  void AddCalls(MetricRegistry& registry);
  void AddObjects(MetricRegistry& registry);
  void AddStore(MetricRegistry& registry);
  void AddSsd(MetricRegistry& registry);
  void AddShm(MetricRegistry& registry);
  void AddNccl(MetricRegistry& registry);

  std::array<std::array<prometheus::Counter*, kNumCodes>, kNumMethods> requests_{};
  std::array<Histogram*, kNumMethods> durations_{};
  std::array<prometheus::Gauge*, kNumMethods> inflight_{};
  std::array<prometheus::Counter*, 5> rejected_{};
  std::array<prometheus::Counter*, 6> puts_{};
  std::array<prometheus::Counter*, 4> gets_{};
  std::array<std::array<prometheus::Counter*, 2>, 3> payload_bytes_{};  // by transport
  std::array<prometheus::Counter*, 2> logical_bytes_{};
  std::array<Histogram*, 2> transfer_bytes_{};
  prometheus::Counter* write_wait_seconds_ = nullptr;
  std::array<prometheus::Counter*, 3> evictions_{};  // from memory
  std::array<prometheus::Counter*, 3> evicted_bytes_{};
  std::array<prometheus::Counter*, 3> integrity_failures_{};
  prometheus::Counter* lookup_tokens_ = nullptr;
  prometheus::Counter* lookup_hit_tokens_ = nullptr;
  Histogram* lookup_hit_ratio_ = nullptr;
  std::array<Histogram*, 2> eviction_age_{};  // by tier
  std::array<prometheus::Counter*, 2> tier_hits_{};
  prometheus::Counter* ssd_evictions_ = nullptr;
  prometheus::Counter* ssd_evicted_bytes_ = nullptr;
  std::array<Histogram*, 2> ssd_durations_{};  // read, write
  std::array<prometheus::Counter*, 2> ssd_bytes_{};
  Histogram* ssd_sync_duration_ = nullptr;
  std::array<prometheus::Counter*, 3> ssd_errors_{};
  prometheus::Counter* accept_errors_ = nullptr;
  prometheus::Gauge* draining_ = nullptr;
  std::array<prometheus::Counter*, 8> shm_ends_{};
  prometheus::Gauge* shm_connections_ = nullptr;
  prometheus::Gauge* shm_pinned_bytes_ = nullptr;
  prometheus::Gauge* shm_stage_bytes_ = nullptr;
  std::array<prometheus::Counter*, 4> nccl_ends_{};
  prometheus::Gauge* nccl_pairs_ = nullptr;
};

// The store's sizes, read at every scrape: pkv_tier_* and pkv_admission_inflight_bytes.
// Thread-safe.
class StoreCollector : public prometheus::Collectable {
 public:
  // `log` may be null; both outlive this.
  StoreCollector(const BlockStore* store, const SegmentLog* log) : store_(store), log_(log) {}
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const BlockStore* const store_;
  const SegmentLog* const log_;
};

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_SERVICE_METRICS_H_
