#include "pkv/client/cache_client.h"

#include <algorithm>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/cache_client_impl.h"
#include "client/nccl_dialer.h"
#include "client/nccl_get.h"
#include "client/put_call.h"
#include "client/put_objects.h"
#include "client/shm_dialer.h"
#include "client/shm_get.h"
#include "client/striped_get.h"
#include "proto/base/status_macros.h"
#include "proto/transport/convert.h"
#include "proto/transport/data_frame.h"

namespace pkv {
namespace {

constexpr int kMaxChannels = 16;
constexpr int kMaxGetStreams = 16;
constexpr int kMaxCheckThreads = 64;
constexpr int kMaxAttempts = 100;
constexpr size_t kMaxVariants = 16;
// Device memory for what has no page: tables, sinks, windows of gets under way. A window of 4,096
// tokens of a Llama-3.1-8B takes 0.5 GiB.
constexpr uint64_t kMaxScratchBytes = uint64_t{1} << 30;
// Longer than any call should last; keeps sums of times far from infinity.
constexpr absl::Duration kMaxDuration = absl::Hours(24);

absl::Status CheckDuration(absl::string_view name, absl::Duration value) {
  if (value > absl::ZeroDuration() && value <= kMaxDuration) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " ", absl::FormatDuration(value),
                                                 " not in (0, ", absl::FormatDuration(kMaxDuration),
                                                 "]"));
}

template <typename T>
absl::Status CheckRange(absl::string_view name, T value, T low, T high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " ", value, " not in ", low, "..", high));
}

absl::Status CheckNumKeys(size_t num_keys) {
  return CheckRange<size_t>("number of keys", num_keys, 0, kMaxObjectsPerCall);
}

absl::StatusOr<LookupResult> ToLookupResult(const v1::LookupResponse& response, size_t num_ids,
                                            size_t num_variants) {
  if (response.num_blocks() > num_ids || response.variant_index() >= num_variants ||
      static_cast<size_t>(response.blocks_per_variant_size()) != num_variants) {
    return absl::DataLossError(absl::StrCat("answer to a lookup of ", num_ids, " ids and ",
                                            num_variants, " variants: ", response.num_blocks(),
                                            " blocks of variant ", response.variant_index(), ", ",
                                            response.blocks_per_variant_size(), " counts"));
  }
  LookupResult result;
  result.variant_index = static_cast<int>(response.variant_index());
  result.num_blocks = static_cast<int>(response.num_blocks());
  result.bytes = response.bytes();
  result.ssd_bytes = std::min(response.ssd_bytes(), response.bytes());
  for (const std::string& id : response.table_ids()) {
    const absl::StatusOr<Digest> table = Digest::FromBytes(id);
    if (!table.ok()) {
      return absl::DataLossError(
          absl::StrCat("answer to a lookup: table id: ", table.status().message()));
    }
    result.table_ids.push_back(*table);
  }
  for (const uint32_t blocks : response.blocks_per_variant()) {
    result.blocks_per_variant.push_back(static_cast<int>(std::min<uint64_t>(blocks, num_ids)));
  }
  return result;
}

ObjectStat ToObjectStat(const v1::ObjectInfo& info) {
  ObjectStat stat;
  stat.present = info.present();
  stat.object_bytes = info.object_bytes();
  stat.idle = absl::Seconds(info.idle_seconds());
  const std::span<const std::byte> head = std::as_bytes(std::span(info.head()));
  stat.head.assign(head.begin(), head.end());
  return stat;
}

class CacheClientImpl final : public CacheClient {
 public:
  explicit CacheClientImpl(std::shared_ptr<ClientCore> core) : core_(std::move(core)) {}

  absl::StatusOr<LookupResult> Lookup(std::span<const Digest> prefix_ids,
                                      std::span<const Variant> variants) override;
  std::unique_ptr<GetStream> StartGet(std::span<const ObjectKey> keys) override;
  std::unique_ptr<GetStream> StartDeviceGet(std::span<const ObjectKey> keys,
                                            absl::string_view direct_server) override;
  absl::StatusOr<std::vector<AlignedBuffer>> Get(std::span<const ObjectKey> keys) override;
  absl::StatusOr<std::unique_ptr<PutStream>> StartPut(
      std::span<const ObjectDescriptor> objects) override;
  std::vector<PutOutcome> Put(std::span<const std::span<const std::byte>> objects) override;
  absl::StatusOr<std::vector<ObjectStat>> Stat(std::span<const ObjectKey> keys) override;
  absl::StatusOr<int> Delete(std::span<const ObjectKey> keys) override;
  absl::StatusOr<ServerStats> Stats() override;
  absl::Status Drain() override;
  ClientCounters counters() const override;
  std::string address() const override { return core_->options.address; }

 private:
  // Calls `call(deadline)` until it succeeds, fails for good, or attempts or time are over.
  template <typename CallT>
  absl::Status Retry(CallMethod method, absl::Duration timeout, const CallT& call) {
    const absl::Time deadline = core_->clock->MonotonicNow() + timeout;
    Backoff backoff = core_->MakeBackoff();
    for (int attempt = 1;; ++attempt) {
      const absl::Status status = call(deadline);
      const absl::Duration pause = backoff.Next();
      if (!IsRetryable(status) || attempt >= core_->options.max_attempts ||
          core_->clock->MonotonicNow() + pause >= deadline) {
        core_->counters.CountEnd(status);
        return status;
      }
      ++core_->counters.retries;
      const RetryPause waiting = core_->PauseOf(method);
      absl::SleepFor(pause);
    }
  }

  // Retry() of a call that is over then.
  template <typename CallT>
  absl::Status RetryWhole(CallMethod method, const CallT& call) {
    CallRecord record = core_->Record(method);
    const absl::Status status = Retry(method, core_->options.lookup_deadline, call);
    record.End(status.code());
    return status;
  }

  std::shared_ptr<DirectPeer> FindDirect(absl::string_view server);
  absl::Duration Left(absl::Time deadline) { return deadline - core_->clock->MonotonicNow(); }

  // shared_ptr: streams may outlive the client.
  const std::shared_ptr<ClientCore> core_;
};

absl::StatusOr<LookupResult> CacheClientImpl::Lookup(std::span<const Digest> prefix_ids,
                                                     std::span<const Variant> variants) {
  PKV_RETURN_IF_ERROR(
      CheckRange<size_t>("number of prefix ids", prefix_ids.size(), 0, kMaxObjectsPerCall));
  PKV_RETURN_IF_ERROR(CheckRange<size_t>("number of variants", variants.size(), 1, kMaxVariants));
  ++core_->counters.lookups;
  if (prefix_ids.empty()) {
    LookupResult miss;
    miss.blocks_per_variant.resize(variants.size());
    return miss;
  }
  v1::LookupRequest request;
  for (const Digest& id : prefix_ids) request.add_prefix_ids(id.bytes.data(), id.bytes.size());
  for (const Variant& variant : variants) *request.add_variants() = ToProto(variant);
  v1::LookupResponse response;
  PKV_RETURN_IF_ERROR(RetryWhole(CallMethod::kLookup, [&](absl::Time deadline) {
    return core_->connection->Lookup(request, Left(deadline), response);
  }));
  return ToLookupResult(response, prefix_ids.size(), variants.size());
}

std::unique_ptr<GetStream> CacheClientImpl::StartGet(std::span<const ObjectKey> keys) {
  ++core_->counters.gets;
  std::vector<ObjectKey> copied(keys.begin(), keys.end());
  const absl::Time deadline = core_->clock->MonotonicNow() + core_->options.get_deadline;
  const Transport transport = core_->options.transport;
  if (transport == Transport::kShm ||
      (transport == Transport::kAuto && core_->shm->IsWorthATry())) {
    return std::make_unique<ShmGet>(core_, std::move(copied), deadline,
                                    core_->Record(CallMethod::kGet));
  }
  return StartGrpcGet(core_, std::move(copied), deadline, core_->Record(CallMethod::kGet));
}

std::unique_ptr<GetStream> CacheClientImpl::StartDeviceGet(std::span<const ObjectKey> keys,
                                                           absl::string_view direct_server) {
  const Transport transport = core_->options.transport;
  if (core_->nccl == nullptr || (transport != Transport::kAuto && transport != Transport::kNccl)) {
    return StartGet(keys);
  }
  ++core_->counters.gets;
  return std::make_unique<NcclGet>(core_, std::vector<ObjectKey>(keys.begin(), keys.end()),
                                   core_->clock->MonotonicNow() + core_->options.get_deadline,
                                   core_->Record(CallMethod::kGet), FindDirect(direct_server));
}

// Null: none, or none that may be asked.
std::shared_ptr<DirectPeer> CacheClientImpl::FindDirect(absl::string_view server) {
  if (core_->direct == nullptr) return nullptr;
  if (server.empty()) {
    core_->direct->DropDead();
    return nullptr;
  }
  absl::StatusOr<std::shared_ptr<DirectPeer>> peer = core_->direct->Find(std::string(server));
  if (peer.ok()) return *std::move(peer);
  if (absl::IsFailedPrecondition(peer.status())) ++core_->counters.direct_refusals;
  if (absl::IsResourceExhausted(peer.status())) ++core_->counters.direct_crowded;
  return nullptr;
}

absl::StatusOr<std::vector<AlignedBuffer>> CacheClientImpl::Get(std::span<const ObjectKey> keys) {
  std::vector<AlignedBuffer> objects;
  if (keys.empty()) return objects;
  absl::Status held;
  for (int attempt = 1; attempt <= core_->options.max_attempts; ++attempt) {
    const std::unique_ptr<GetStream> stream = StartGet(keys);
    PKV_RETURN_IF_ERROR(stream->WaitForAll());
    objects.clear();
    for (int i = 0; i < stream->num_objects(); ++i) objects.push_back(stream->TakeObject(i));
    held = stream->CheckHeld();
    if (held.ok()) return objects;
    ++core_->counters.retries;
  }
  return held;
}

absl::StatusOr<std::unique_ptr<PutStream>> CacheClientImpl::StartPut(
    std::span<const ObjectDescriptor> objects) {
  ++core_->counters.puts;
  CallRecord record = core_->Record(CallMethod::kPut);
  std::unique_ptr<PutCall> stream;
  const absl::Status started = Retry(
      CallMethod::kPut, core_->options.put_deadline, [&](absl::Time deadline) -> absl::Status {
        PKV_ASSIGN_OR_RETURN(stream, PutCall::Start(core_, objects, deadline));
        return absl::OkStatus();
      });
  if (!started.ok()) {
    record.End(started.code());
    return started;
  }
  stream->CountIn(std::move(record));
  return stream;
}

std::vector<PutOutcome> CacheClientImpl::Put(std::span<const std::span<const std::byte>> objects) {
  return PutObjects(core_, objects);
}

absl::StatusOr<std::vector<ObjectStat>> CacheClientImpl::Stat(std::span<const ObjectKey> keys) {
  PKV_RETURN_IF_ERROR(CheckNumKeys(keys.size()));
  std::vector<ObjectStat> stats;
  if (keys.empty()) return stats;
  v1::StatRequest request;
  for (const ObjectKey& key : keys) *request.add_objects() = ToProto(key);
  v1::StatResponse response;
  PKV_RETURN_IF_ERROR(RetryWhole(CallMethod::kStat, [&](absl::Time deadline) {
    return core_->connection->Stat(request, Left(deadline), response);
  }));
  if (static_cast<size_t>(response.objects_size()) != keys.size()) {
    return absl::DataLossError(absl::StrCat("answer to a stat of ", keys.size(), " objects lists ",
                                            response.objects_size()));
  }
  for (const v1::ObjectInfo& info : response.objects()) stats.push_back(ToObjectStat(info));
  return stats;
}

absl::StatusOr<int> CacheClientImpl::Delete(std::span<const ObjectKey> keys) {
  PKV_RETURN_IF_ERROR(CheckNumKeys(keys.size()));
  if (keys.empty()) return 0;
  v1::DeleteRequest request;
  for (const ObjectKey& key : keys) *request.add_objects() = ToProto(key);
  v1::DeleteResponse response;
  PKV_RETURN_IF_ERROR(RetryWhole(CallMethod::kDelete, [&](absl::Time deadline) {
    return core_->connection->Delete(request, Left(deadline), response);
  }));
  return static_cast<int>(response.num_deleted());
}

absl::StatusOr<ServerStats> CacheClientImpl::Stats() {
  v1::StatsResponse response;
  PKV_RETURN_IF_ERROR(RetryWhole(CallMethod::kStats, [&](absl::Time deadline) {
    return core_->connection->Stats(Left(deadline), response);
  }));
  ServerStats stats;
  stats.capacity_bytes = response.capacity_bytes();
  stats.resident_bytes = response.resident_bytes();
  stats.pinned_bytes = response.pinned_bytes();
  stats.reserved_bytes = response.reserved_bytes();
  stats.num_objects = response.num_objects();
  stats.num_evictions = response.num_evictions();
  stats.ssd_capacity_bytes = response.ssd_capacity_bytes();
  stats.ssd_resident_bytes = response.ssd_resident_bytes();
  stats.ssd_objects = response.ssd_objects();
  stats.draining = response.draining();
  stats.version = response.version();
  return stats;
}

absl::Status CacheClientImpl::Drain() {
  return RetryWhole(CallMethod::kDrain,
                    [&](absl::Time deadline) { return core_->connection->Drain(Left(deadline)); });
}

ClientCounters CacheClientImpl::counters() const {
  const CounterSet& set = core_->counters;
  ClientCounters counters;
  counters.lookups = set.lookups;
  counters.gets = set.gets;
  counters.puts = set.puts;
  counters.retries = set.retries;
  counters.failures = set.failures;
  counters.put_bytes = set.put_bytes;
  counters.integrity_failures = set.integrity_failures;
  counters.shm_gets = set.shm_gets;
  counters.shm_get_bytes = set.shm_get_bytes;
  counters.shm_fallbacks = set.shm_fallbacks;
  counters.nccl_gets = set.nccl_gets;
  counters.nccl_get_bytes = set.nccl_get_bytes;
  counters.nccl_fallbacks = set.nccl_fallbacks;
  counters.direct_gets = set.direct_gets;
  counters.direct_get_bytes = set.direct_get_bytes;
  counters.direct_fallbacks = set.direct_fallbacks;
  counters.direct_refusals = set.direct_refusals;
  counters.direct_crowded = set.direct_crowded;
  // Of one reading of each: what is neither never falls.
  counters.get_bytes = set.grpc_get_bytes + counters.shm_get_bytes + counters.nccl_get_bytes +
                       counters.direct_get_bytes;
  return counters;
}

}  // namespace

absl::StatusOr<Transport> ParseTransport(absl::string_view name) {
  if (name == "auto") return Transport::kAuto;
  if (name == "grpc") return Transport::kGrpc;
  if (name == "shm") return Transport::kShm;
  if (name == "nccl") return Transport::kNccl;
  return absl::InvalidArgumentError(
      absl::StrCat("transport \"", name, "\" not in {auto, grpc, shm, nccl}"));
}

absl::Status CheckDirectFrom(absl::string_view list) { return ParseDirectNames(list).status(); }

absl::StatusOr<std::string> SpellDirectAddress(absl::string_view address) {
  PKV_ASSIGN_OR_RETURN(const std::vector<DirectName> names, ParseDirectNames(address));
  if (names.size() == 1) return Spell(names[0]);
  return absl::InvalidArgumentError(absl::StrCat("'", address, "' is not one address"));
}

absl::Status ValidateOptions(const ClientOptions& options, const NcclPort* gpu) {
  if (options.address.empty()) return absl::InvalidArgumentError("address is empty");
  if (options.address.find(',') != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(
        "address '", options.address, "' names several servers: only a CacheCluster can"));
  }
  PKV_RETURN_IF_ERROR(CheckRange("num_channels", options.num_channels, 1, kMaxChannels));
  PKV_RETURN_IF_ERROR(CheckRange("num_get_streams", options.num_get_streams, 1, kMaxGetStreams));
  PKV_RETURN_IF_ERROR(
      CheckRange("num_check_threads", options.num_check_threads, 1, kMaxCheckThreads));
  PKV_RETURN_IF_ERROR(CheckDuration("lookup_deadline", options.lookup_deadline));
  PKV_RETURN_IF_ERROR(CheckDuration("get_deadline", options.get_deadline));
  PKV_RETURN_IF_ERROR(CheckDuration("put_deadline", options.put_deadline));
  PKV_RETURN_IF_ERROR(CheckDuration("progress_timeout", options.progress_timeout));
  PKV_RETURN_IF_ERROR(CheckDuration("probe_interval", options.probe_interval));
  PKV_RETURN_IF_ERROR(CheckRange("max_attempts", options.max_attempts, 1, kMaxAttempts));
  PKV_RETURN_IF_ERROR(CheckDuration("initial_backoff", options.initial_backoff));
  PKV_RETURN_IF_ERROR(CheckDuration("max_backoff", options.max_backoff));
  if (options.max_backoff < options.initial_backoff) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_backoff ", absl::FormatDuration(options.max_backoff),
                     " is below initial_backoff ", absl::FormatDuration(options.initial_backoff)));
  }
  if (const absl::Status named = CheckDirectFrom(options.direct_from); !named.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("direct_from: ", named.message()));
  }
  if (!options.direct_from.empty() && options.transport != Transport::kAuto) {
    return absl::InvalidArgumentError(
        absl::StrCat("direct_from '", options.direct_from, "' needs transport auto"));
  }
  if (options.transport == Transport::kNccl && gpu == nullptr) {
    return absl::InvalidArgumentError(
        "transport nccl needs a GPU of this process that frames come to");
  }
  return CheckRange<uint64_t>("message_bytes", options.message_bytes, kMinPayloadBytes,
                              kMaxPayloadBytes);
}

std::shared_ptr<DeviceScratch> MakeDeviceScratch(const NcclPort& gpu) {
  return std::make_shared<DeviceScratch>(gpu.calls, kMaxScratchBytes);
}

std::shared_ptr<DirectPeers> MakeDirectPeers(const ClientOptions& options, const NcclPort* gpu) {
  absl::StatusOr<std::vector<DirectName>> names = ParseDirectNames(options.direct_from);
  if (gpu == nullptr || !names.ok() || names->empty()) return nullptr;
  const auto connect = [options](const std::string& address) {
    ClientOptions one = options;
    one.address = address;
    one.num_channels = 1;  // control messages alone
    return MakeGrpcConnection(one);
  };
  return std::make_shared<DirectPeers>(*std::move(names), connect, *gpu, Clock::Real());
}

std::unique_ptr<CacheClient> MakeCacheClient(const ClientOptions& options,
                                             std::unique_ptr<Connection> connection,
                                             const NcclPort* gpu,
                                             std::shared_ptr<DeviceScratch> scratch,
                                             std::shared_ptr<DirectPeers> direct) {
  auto core = std::make_shared<ClientCore>();
  core->options = options;
  if (core->options.statistics == nullptr) {
    core->options.statistics = std::make_shared<CallStatistics>();
  }
  core->connection = std::move(connection);
  if (options.num_check_threads > 1) {
    core->check_pool = std::make_unique<ThreadPool>(options.num_check_threads - 1);
  }
  core->clock = Clock::Real();
  core->shm = std::make_unique<ShmDialer>(core->connection.get(), core->clock);
  if (gpu != nullptr) {
    core->scratch = std::move(scratch);
    core->direct = std::move(direct);
    core->nccl = std::make_unique<NcclDialer>(core->connection.get(), *gpu, core->clock);
  }
  core->next_seed = std::random_device{}();
  return std::make_unique<CacheClientImpl>(std::move(core));
}

absl::StatusOr<std::unique_ptr<CacheClient>> CacheClient::Create(const ClientOptions& options,
                                                                 const NcclPort* gpu) {
  PKV_RETURN_IF_ERROR(ValidateOptions(options, gpu));
  return MakeCacheClient(options, MakeGrpcConnection(options), gpu,
                         gpu == nullptr ? nullptr : MakeDeviceScratch(*gpu),
                         MakeDirectPeers(options, gpu));
}

}  // namespace pkv
