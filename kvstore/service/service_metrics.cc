#include "kvstore/service/service_metrics.h"

#include <algorithm>
#include <map>
#include <optional>
#include <string>

namespace pkv {
namespace {

constexpr std::array kMethodNames = {"Lookup",     "Get",         "Put",
                                     "Stat",       "Delete",      "AdminStats",
                                     "AdminDrain", "HandoffOpen", "HandoffPair"};
// What a call can end with as a whole; anything else is a fault of ours and shows as INTERNAL.
constexpr std::array kCodes = {
    std::pair{absl::StatusCode::kOk, "OK"},
    std::pair{absl::StatusCode::kCancelled, "CANCELLED"},
    std::pair{absl::StatusCode::kInvalidArgument, "INVALID_ARGUMENT"},
    std::pair{absl::StatusCode::kDeadlineExceeded, "DEADLINE_EXCEEDED"},
    std::pair{absl::StatusCode::kResourceExhausted, "RESOURCE_EXHAUSTED"},
    std::pair{absl::StatusCode::kAborted, "ABORTED"},
    std::pair{absl::StatusCode::kUnavailable, "UNAVAILABLE"},
    std::pair{absl::StatusCode::kDataLoss, "DATA_LOSS"},
    std::pair{absl::StatusCode::kInternal, "INTERNAL"},
};
constexpr std::array kRejectReasons = {"no_deadline", "too_large", "draining", "memory", "stalled"};
constexpr std::array kPutResults = {"stored",   "duplicate", "conflict",
                                    "rejected", "invalid",   "abandoned"};
constexpr std::array kGetResults = {"hit", "miss", "corrupt", "shed"};
constexpr std::array kDirections = {"in", "out"};
constexpr std::array kTransports = {"grpc", "shm", "nccl"};
constexpr std::array kShmEnds = {"client", "refused", "full", "malformed",
                                 "silent", "held",    "idle", "stopped"};
constexpr std::array kNcclEnds = {"reader", "failed", "stopped", "unopened"};
constexpr std::array kTiers = {"dram", "ssd"};
constexpr std::array kEvictionReasons = {"capacity", "demoted", "integrity"};
constexpr std::array kIntegrityStages = {"wire", "dram", "ssd"};
constexpr std::array kDiskOps = {"read", "write", "sync"};

// One counter for each value of one label.
template <size_t N>
void AddCounters(MetricRegistry& registry, const char* name, const char* help,
                 MetricRegistry::Labels labels, const char* label,
                 const std::array<const char*, N>& values,
                 std::array<prometheus::Counter*, N>& out) {
  for (size_t i = 0; i < N; ++i) {
    labels[label] = values[i];
    out[i] = registry.AddCounter(name, help, labels);
  }
}

}  // namespace

ServiceMetrics::ServiceMetrics(MetricRegistry& registry) {
  static_assert(kMethodNames.size() == kNumMethods && kCodes.size() == kNumCodes);
  AddCalls(registry);
  AddObjects(registry);
  AddStore(registry);
  AddSsd(registry);
  AddShm(registry);
  AddNccl(registry);
}

void ServiceMetrics::AddCalls(MetricRegistry& registry) {
  for (size_t m = 0; m < kNumMethods; ++m) {
    const MetricRegistry::Labels method = {{"method", kMethodNames[m]}};
    for (size_t c = 0; c < kNumCodes; ++c) {
      requests_[m][c] =
          registry.AddCounter("pkv_rpc_requests_total", "Calls that ended, by final status",
                              {{"method", kMethodNames[m]}, {"code", kCodes[c].second}});
    }
    durations_[m] = registry.AddHistogram("pkv_rpc_duration_seconds",
                                          "From the first byte of a call to its status", method,
                                          LatencyBounds());
    inflight_[m] =
        registry.AddGauge("pkv_rpc_inflight", "Calls that have begun and not ended", method);
  }
  AddCounters(registry, "pkv_rpc_rejected_total",
              "Calls, or objects of a put (reason memory), turned away", {}, "reason",
              kRejectReasons, rejected_);
  accept_errors_ =
      registry.AddCounter("pkv_accept_errors_total",
                          "Connections that could not be accepted (file descriptors, memory)");
  draining_ = registry.AddGauge("pkv_draining",
                                "1 once puts are refused because this server is about to end");
}

void ServiceMetrics::AddObjects(MetricRegistry& registry) {
  AddCounters(registry, "pkv_block_puts_total", "Objects put, by outcome", {}, "result",
              kPutResults, puts_);
  AddCounters(registry, "pkv_block_gets_total", "Objects asked for, by outcome", {}, "result",
              kGetResults, gets_);
  lookup_tokens_ = registry.AddCounter("pkv_lookup_tokens_total", "Tokens asked for in lookups");
  lookup_hit_tokens_ =
      registry.AddCounter("pkv_lookup_hit_tokens_total", "Tokens found in lookups");
  lookup_hit_ratio_ =
      registry.AddHistogram("pkv_lookup_prefix_hit_ratio", "Found part of the tokens of one lookup",
                            {}, {0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1});
  for (size_t t = 0; t < kTransports.size(); ++t) {
    AddCounters(registry, "pkv_payload_bytes_total",
                "Frame bytes on the wire, lent in place, or copied from a stage",
                {{"transport", kTransports[t]}}, "direction", kDirections, payload_bytes_[t]);
  }
  for (size_t d = 0; d < kDirections.size(); ++d) {
    // 4 KiB .. 16 GiB in steps of four.
    transfer_bytes_[d] = registry.AddHistogram(
        "pkv_transfer_bytes", "Payload of one Get (out) or Put (in) that ended",
        {{"direction", kDirections[d]}}, ExponentialBounds(4096, 4, 12));
  }
  write_wait_seconds_ = registry.AddCounter(
      "pkv_stall_seconds_total",
      "Time that Gets waited until the network and their reader had taken a message",
      {{"cause", "peer_flow_control"}});
  AddCounters(registry, "pkv_logical_bytes_total",
              "The same tokens as fp16 KV: divide by payload bytes for the compression", {},
              "direction", kDirections, logical_bytes_);
}

void ServiceMetrics::AddStore(MetricRegistry& registry) {
  AddCounters(registry, "pkv_tier_hits_total", "Objects found", {}, "tier", kTiers, tier_hits_);
  const char* const evictions = "Objects evicted";
  const char* const evicted_bytes = "Bytes of evicted objects";
  AddCounters(registry, "pkv_evictions_total", evictions, {{"tier", "dram"}}, "reason",
              kEvictionReasons, evictions_);
  AddCounters(registry, "pkv_evicted_bytes_total", evicted_bytes, {{"tier", "dram"}}, "reason",
              kEvictionReasons, evicted_bytes_);
  const MetricRegistry::Labels from_ssd = {{"tier", "ssd"}, {"reason", "capacity"}};
  ssd_evictions_ = registry.AddCounter("pkv_evictions_total", evictions, from_ssd);
  ssd_evicted_bytes_ = registry.AddCounter("pkv_evicted_bytes_total", evicted_bytes, from_ssd);
  for (size_t t = 0; t < kTiers.size(); ++t) {
    // 1 s .. 3 days in steps of four.
    eviction_age_[t] = registry.AddHistogram("pkv_eviction_age_seconds",
                                             "Time since last use of what is evicted for room",
                                             {{"tier", kTiers[t]}}, ExponentialBounds(1, 4, 10));
  }
  AddCounters(registry, "pkv_integrity_failures_total", "Checksums that did not fit", {}, "stage",
              kIntegrityStages, integrity_failures_);
}

void ServiceMetrics::AddSsd(MetricRegistry& registry) {
  for (size_t op = 0; op < ssd_durations_.size(); ++op) {
    ssd_durations_[op] =
        registry.AddHistogram("pkv_ssd_io_duration_seconds", "Reads and writes of the disk",
                              {{"op", kDiskOps[op]}}, LatencyBounds());
  }
  ssd_bytes_ = {
      registry.AddCounter("pkv_ssd_read_bytes_total", "Bytes read from the disk, without heads"),
      registry.AddCounter("pkv_ssd_written_bytes_total", "Bytes written to the disk: its wear")};
  ssd_sync_duration_ = registry.AddHistogram("pkv_ssd_fsync_duration_seconds", "Calls of fdatasync",
                                             {}, LatencyBounds());
  AddCounters(registry, "pkv_ssd_io_errors_total", "Calls of the disk that failed", {}, "op",
              kDiskOps, ssd_errors_);
}

void ServiceMetrics::AddShm(MetricRegistry& registry) {
  AddCounters(registry, "pkv_shm_ended_total", "Connections of the shm transport that ended", {},
              "reason", kShmEnds, shm_ends_);
  shm_connections_ = registry.AddGauge("pkv_shm_connections", "Connections of the shm transport");
  shm_pinned_bytes_ = registry.AddGauge("pkv_shm_pinned_bytes",
                                        "Bytes lent over the shm transport, once for each pin");
  shm_stage_bytes_ = registry.AddGauge(
      "pkv_shm_stage_bytes", "Bytes of stages of clients that put over the shm transport");
}

void ServiceMetrics::AddNccl(MetricRegistry& registry) {
  AddCounters(registry, "pkv_nccl_ended_total", "Pairs of the nccl transport that ended", {},
              "reason", kNcclEnds, nccl_ends_);
  nccl_pairs_ = registry.AddGauge("pkv_nccl_pairs",
                                  "Pairs of the nccl transport, those being opened included");
}

void ServiceMetrics::OnEviction(EvictionReason reason, uint64_t object_bytes, absl::Duration idle) {
  At(evictions_, reason)->Increment();
  At(evicted_bytes_, reason)->Increment(static_cast<double>(object_bytes));
  if (reason == EvictionReason::kIntegrity) return;
  At(eviction_age_, Tier::kDram)->Observe(absl::ToDoubleSeconds(idle));
}

void ServiceMetrics::OnLogEviction(uint64_t object_bytes, absl::Duration idle) {
  ssd_evictions_->Increment();
  ssd_evicted_bytes_->Increment(static_cast<double>(object_bytes));
  At(eviction_age_, Tier::kSsd)->Observe(absl::ToDoubleSeconds(idle));
}

void ServiceMetrics::OnDiskIo(DiskOp op, uint64_t bytes, absl::Duration duration) {
  const double seconds = absl::ToDoubleSeconds(duration);
  if (op == DiskOp::kSync) {
    ssd_sync_duration_->Observe(seconds);
    return;
  }
  At(ssd_durations_, op)->Observe(seconds);
  At(ssd_bytes_, op)->Increment(static_cast<double>(bytes));
}

void ServiceMetrics::TierHits(int num_found, int num_paged_in) {
  const int from_ssd = std::min(num_found, num_paged_in);
  At(tier_hits_, Tier::kSsd)->Increment(from_ssd);
  At(tier_hits_, Tier::kDram)->Increment(num_found - from_ssd);
}

void ServiceMetrics::OnIntegrityFailure(IntegrityStage stage) {
  At(integrity_failures_, stage)->Increment();
}

void ServiceMetrics::CallBegan(RpcMethod method) { At(inflight_, method)->Increment(); }

void ServiceMetrics::CallEnded(RpcMethod method, absl::StatusCode code, absl::Duration duration) {
  size_t index = 0;
  while (index + 1 < kNumCodes && kCodes[index].first != code) ++index;
  requests_[static_cast<size_t>(method)][index]->Increment();
  At(durations_, method)->Observe(absl::ToDoubleSeconds(duration));
  At(inflight_, method)->Decrement();
}

void ServiceMetrics::LookedUp(uint64_t num_tokens, uint64_t num_hit_tokens) {
  lookup_tokens_->Increment(static_cast<double>(num_tokens));
  lookup_hit_tokens_->Increment(static_cast<double>(num_hit_tokens));
  if (num_tokens == 0) return;
  lookup_hit_ratio_->Observe(static_cast<double>(num_hit_tokens) / static_cast<double>(num_tokens));
}

void ServiceMetrics::Transferred(Direction direction, uint64_t payload_bytes) {
  if (payload_bytes > 0)
    At(transfer_bytes_, direction)->Observe(static_cast<double>(payload_bytes));
}

void ServiceMetrics::SetShm(size_t num_connections, uint64_t pinned_bytes, uint64_t stage_bytes) {
  shm_connections_->Set(static_cast<double>(num_connections));
  shm_pinned_bytes_->Set(static_cast<double>(pinned_bytes));
  shm_stage_bytes_->Set(static_cast<double>(stage_bytes));
}

void ServiceMetrics::Moved(Direction direction, uint64_t payload_bytes, uint64_t logical_bytes,
                           PayloadTransport transport) {
  At(payload_bytes_[static_cast<size_t>(transport)], direction)
      ->Increment(static_cast<double>(payload_bytes));
  At(logical_bytes_, direction)->Increment(static_cast<double>(logical_bytes));
}

std::vector<prometheus::MetricFamily> StoreCollector::Collect() const {
  const StoreStats dram = store_->stats();
  const LogStats ssd = log_ == nullptr ? LogStats{} : log_->stats();
  std::vector<prometheus::MetricFamily> families;
  // Of memory, and of the disk if given.
  const auto add = [&families](const char* name, const char* help, uint64_t dram_value,
                               std::optional<uint64_t> ssd_value = {}) {
    prometheus::MetricFamily family{name, help, prometheus::MetricType::Gauge, {}};
    family.metric.resize(ssd_value.has_value() ? 2 : 1);
    family.metric[0].label.push_back({"tier", "dram"});
    family.metric[0].gauge.value = static_cast<double>(dram_value);
    if (ssd_value.has_value()) {
      family.metric[1].label.push_back({"tier", "ssd"});
      family.metric[1].gauge.value = static_cast<double>(*ssd_value);
    }
    families.push_back(std::move(family));
  };
  add("pkv_tier_capacity_bytes", "Room for objects", dram.capacity_bytes, ssd.capacity_bytes);
  add("pkv_tier_resident_bytes",
      "Taken by objects; dram: reservations included; ssd: records of objects gone included",
      dram.resident_bytes, ssd.resident_bytes);
  add("pkv_tier_pinned_bytes", "Memory of objects being read", dram.pinned_bytes);
  add("pkv_tier_blocks", "Objects stored", dram.num_objects, ssd.num_objects);
  prometheus::ClientMetric inflight;
  inflight.gauge.value = static_cast<double>(dram.reserved_bytes);
  families.push_back({"pkv_admission_inflight_bytes",
                      "Memory reserved for puts and reads of the disk in progress",
                      prometheus::MetricType::Gauge,
                      {inflight}});
  return families;
}

}  // namespace pkv
