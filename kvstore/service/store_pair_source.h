#ifndef PKV_KVSTORE_SERVICE_STORE_PAIR_SOURCE_H_
#define PKV_KVSTORE_SERVICE_STORE_PAIR_SOURCE_H_

#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/service/service_metrics.h"
#include "kvstore/store/block_store.h"
#include "kvstore/store/pager.h"
#include "proto/base/clock.h"
#include "proto/transport/nccl/pair_calls.h"
#include "proto/transport/nccl/pair_source.h"

namespace pkv {

// Stored objects, for pairs of a GPU that reads them through the bus from where they lie, under a
// lease each until they are sent.
//
// Thread-safe.
class StorePairSource final : public PairSource {
 public:
  // Lets the GPU read the store's memory, all of which is pinned for that: seconds to minutes,
  // which the log tells of. What the pointers name outlives this. `disk`: for objects that are
  // asked for and not in memory.
  //   ResourceExhausted  there is less memory than the capacity
  //   others             PairCalls::RegisterHost
  static absl::StatusOr<std::unique_ptr<StorePairSource>> Make(std::shared_ptr<PairCalls> calls,
                                                               BlockStore* store,
                                                               const PageInSource& disk,
                                                               ServiceMetrics* metrics,
                                                               Clock* clock);
  // REQUIRES: no hold is left.
  ~StorePairSource() override;
  StorePairSource(const StorePairSource&) = delete;
  StorePairSource& operator=(const StorePairSource&) = delete;

  // Waits for the disk. DataLoss: a head is damaged in the store's memory; the object is dropped.
  absl::StatusOr<std::unique_ptr<PairHold>> Hold(std::span<const ObjectKey> keys,
                                                 v1::PairManifest& manifest) override;
  // Looks for itself, and drops what is.
  void OnDamaged(const ObjectKey& key) override;
  void OnTooLarge() override { metrics_.Rejected(RejectReason::kTooLarge); }
  void SetNumPairs(size_t num_pairs) override { metrics_.SetNcclPairs(num_pairs); }
  void OnPairEnded(PairEnd reason) override { metrics_.NcclEnded(reason); }

 private:
  StorePairSource(std::shared_ptr<PairCalls> calls, BlockStore* store, const PageInSource& disk,
                  ServiceMetrics* metrics)
      : calls_(std::move(calls)), store_(*store), disk_(disk), metrics_(*metrics) {}
  absl::StatusOr<ObjectHeader> AddHead(Lease& lease, v1::PairManifest& manifest);

  // shared_ptr: as NcclPair wants it.
  const std::shared_ptr<PairCalls> calls_;
  BlockStore& store_;
  const PageInSource disk_;
  ServiceMetrics& metrics_;
};

}  // namespace pkv

#endif  // PKV_KVSTORE_SERVICE_STORE_PAIR_SOURCE_H_
