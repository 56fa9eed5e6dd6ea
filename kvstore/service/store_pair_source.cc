#include "kvstore/service/store_pair_source.h"

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/service/logical_bytes.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/base/thread_pool.h"

namespace pkv {
namespace {

constexpr int kPopulatingThreads = 16;

class LeaseHold final : public PairHold {
 public:
  LeaseHold(std::vector<Lease> leases, const std::vector<ObjectHeader>& headers,
            ServiceMetrics* metrics)
      : leases_(std::move(leases)), metrics_(*metrics) {
    for (const ObjectHeader& header : headers) {
      payload_bytes_ += header.frame_bytes * header.num_layers;
      logical_bytes_ += LogicalFrameBytes(header) * header.num_layers;
    }
  }

  std::span<const LayerSpans> layers() override {
    if (!layers_.empty()) return layers_;
    for (const Lease& lease : leases_) {
      spans_.resize(std::max<size_t>(spans_.size(), lease.num_layers()));
      for (int layer = 0; layer < lease.num_layers(); ++layer) {
        const std::span<const std::byte> frame = lease.frame(layer);
        // A sender's spans are only read.
        spans_[layer].push_back({const_cast<std::byte*>(frame.data()), frame.size()});
      }
    }
    for (const std::vector<DeviceSpan>& of_layer : spans_) {
      layers_.push_back({.spans = of_layer, .in_host_memory = true});
    }
    return layers_;
  }

  void SendEnded(const absl::Status& status) override {
    const GetOutcomeKind outcome = status.ok() ? GetOutcomeKind::kHit : GetOutcomeKind::kShed;
    for (size_t i = 0; i < leases_.size(); ++i) metrics_.GetEnded(outcome);
    if (!status.ok()) return;
    metrics_.Moved(Direction::kOut, payload_bytes_, logical_bytes_, PayloadTransport::kNccl);
  }

 private:
  const std::vector<Lease> leases_;
  ServiceMetrics& metrics_;
  uint64_t payload_bytes_ = 0, logical_bytes_ = 0;
  std::vector<std::vector<DeviceSpan>> spans_;  // by layer
  std::vector<LayerSpans> layers_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<StorePairSource>> StorePairSource::Make(
    std::shared_ptr<PairCalls> calls, BlockStore* store, const PageInSource& disk,
    ServiceMetrics* metrics, Clock* clock) {
  const std::span<std::byte> memory = store->memory();
  Log(LogLevel::kInfo, "pinning memory for the GPU", {{"bytes", memory.size()}});
  const absl::Time begin = clock->MonotonicNow();
  {
    ThreadPool pool(kPopulatingThreads);
    PKV_RETURN_IF_ERROR(store->Populate(pool));
  }
  PKV_RETURN_IF_ERROR(calls->RegisterHost(memory.data(), memory.size()));
  const double seconds = absl::ToDoubleSeconds(clock->MonotonicNow() - begin);
  Log(LogLevel::kInfo, "pinned memory for the GPU",
      {{"bytes", memory.size()}, {"seconds", seconds}});
  return std::unique_ptr<StorePairSource>(
      new StorePairSource(std::move(calls), store, disk, metrics));
}

StorePairSource::~StorePairSource() { calls_->UnregisterHost(store_.memory().data()); }

absl::StatusOr<std::unique_ptr<PairHold>> StorePairSource::Hold(std::span<const ObjectKey> keys,
                                                                v1::PairManifest& manifest) {
  Pager::Result paged_in;
  if (disk_.IsNeeded(keys)) paged_in = disk_.pager->FetchAndWait(keys, disk_.patience);
  std::vector<Lease> leases = store_.FindAll(keys);
  const auto num_found = std::ranges::count_if(leases, [](const Lease& x) { return bool(x); });
  metrics_.TierHits(static_cast<int>(num_found), paged_in.num_paged_in);
  std::vector<ObjectHeader> headers;
  absl::Status status;
  for (Lease& lease : leases) {
    const absl::StatusOr<ObjectHeader> header = AddHead(lease, manifest);
    status.Update(header.status());
    if (header.ok()) headers.push_back(*header);
  }
  PKV_RETURN_IF_ERROR(status);
  return std::make_unique<LeaseHold>(std::move(leases), headers, &metrics_);
}

absl::StatusOr<ObjectHeader> StorePairSource::AddHead(Lease& lease, v1::PairManifest& manifest) {
  std::string* const head = manifest.add_heads();
  if (!lease) {
    metrics_.GetEnded(GetOutcomeKind::kMiss);
    return absl::NotFoundError("an object is not stored");
  }
  const absl::StatusOr<ObjectHeader> header = lease.VerifyHead();
  if (!header.ok()) {
    store_.Quarantine(lease);
    metrics_.GetEnded(GetOutcomeKind::kCorrupt);
    return absl::DataLossError(
        absl::StrCat("damaged in the server's memory: ", header.status().message()));
  }
  head->assign(reinterpret_cast<const char*>(lease.head().data()), lease.head().size());
  return *header;
}

void StorePairSource::OnDamaged(const ObjectKey& key) {
  const Lease lease = store_.Find(key, Use::kNone);
  if (!lease) return;
  absl::Status intact = lease.VerifyHead().status();
  for (int layer = 0; intact.ok() && layer < lease.num_layers(); ++layer) {
    intact = lease.VerifyFrame(layer);
  }
  if (intact.ok()) return;
  store_.Quarantine(lease);
  metrics_.GetEnded(GetOutcomeKind::kCorrupt);
}

}  // namespace pkv
