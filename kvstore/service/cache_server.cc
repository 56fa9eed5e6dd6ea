#include "kvstore/service/cache_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <prometheus/exposer.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "kvstore/disk/posix_disk.h"
#include "kvstore/disk/segment_log.h"
#include "kvstore/service/block_service.h"
#include "kvstore/service/service_metrics.h"
#include "kvstore/service/shm_server.h"
#include "kvstore/service/stall_watchdog.h"
#include "kvstore/service/store_pair_source.h"
#include "kvstore/store/block_store.h"
#include "kvstore/store/demoter.h"
#include "kvstore/store/lru.h"
#include "kvstore/store/pager.h"
#include "kvstore/store/slab_arena.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/metrics/build_info.h"
#include "proto/metrics/process_collector.h"
#include "proto/metrics/reload_metrics.h"
#include "proto/serving/grpc_acceptor.h"
#include "proto/serving/health_server.h"
#include "proto/serving/keepalive.h"
#include "proto/serving/listener.h"
#include "proto/transport/data_frame.h"
#include "proto/transport/nccl/nccl_server.h"

namespace pkv {
namespace {

// What clients send: a payload, its pieces, or 4,096 keys.
constexpr int kMaxReceivedBytes = static_cast<int>(2 * kMaxPayloadBytes);

// Caps what one connection may hold.
void SetLimits(grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(kMaxReceivedBytes);
  builder.SetMaxSendMessageSize(kMaxMessageBytes);
  // A codec of our own compresses; inflating a peer's message would come before its size check.
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0);
  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 8 << 10);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 128);
  SetKeepalive(builder);
}

absl::Status CheckMetricsAddress(const std::string& address) {
  if (absl::StartsWith(address, "unix:")) {
    return absl::InvalidArgumentError(
        absl::StrCat("metrics address \"", address, "\" is not host:port"));
  }
  return Listener::IsLocal(address).status();
}

absl::Status CheckShm(const CacheServerOptions& options) {
  if (options.shm_socket.front() != '/') {
    return absl::InvalidArgumentError(absl::StrCat("shm socket \"", options.shm_socket,
                                                   "\": readers need its path from the root on"));
  }
  PKV_RETURN_IF_ERROR(Listener::IsLocal(absl::StrCat("unix:", options.shm_socket)).status());
  if (options.shm_pinned_bytes > options.capacity_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("shm: ", options.shm_pinned_bytes,
                                                   " bytes to pin are above the capacity of ",
                                                   options.capacity_bytes));
  }
  if (options.shm_silence < absl::Milliseconds(100) || options.shm_pin_age < options.shm_silence) {
    return absl::InvalidArgumentError(absl::StrCat(
        "shm: silence ", absl::FormatDuration(options.shm_silence), " (at least 100ms), pin age ",
        absl::FormatDuration(options.shm_pin_age), " (at least the silence)"));
  }
  return absl::OkStatus();
}

// In use, from where on room is made on disk, and until there is some again. What is between the
// first and all is for puts that come faster than the disk writes.
constexpr double kCrowdedPart = 0.90;
constexpr double kRelaxedPart = 0.85;

// Readers over shm and nccl wait two seconds for an answer, and give up what they asked over if it
// is late.
constexpr absl::Duration kHandoffPatience = absl::Milliseconds(1500);

uint64_t PartOf(uint64_t bytes, double part) {
  return static_cast<uint64_t>(static_cast<double>(bytes) * part);
}

absl::Status CheckSsd(const CacheServerOptions& options) {
  if (options.ssd_dir.empty() != (options.ssd_capacity_bytes == 0)) {
    return absl::InvalidArgumentError(absl::StrCat("ssd: folder \"", options.ssd_dir,
                                                   "\" and capacity ", options.ssd_capacity_bytes,
                                                   " go together: set both or none"));
  }
  if (options.ssd_dir.empty()) return absl::OkStatus();
  if (options.ssd_capacity_bytes < kLogBytesMin) {
    return absl::InvalidArgumentError(absl::StrCat("ssd: capacity ", options.ssd_capacity_bytes,
                                                   " bytes is below ", kLogBytesMin));
  }
  if (options.ssd_read_timeout < absl::Milliseconds(10) ||
      options.ssd_read_timeout >= options.stall_timeout) {
    return absl::InvalidArgumentError(absl::StrCat(
        "ssd: read timeout ", absl::FormatDuration(options.ssd_read_timeout), " not in [10ms, ",
        absl::FormatDuration(options.stall_timeout), "), the stall timeout"));
  }
  return absl::OkStatus();
}

uint64_t DrawSalt() {
  std::random_device random;
  return uint64_t{random()} << 32 | random();
}

class CacheServerImpl : public CacheServer {
 public:
  explicit CacheServerImpl(const CacheServerOptions& options)
      : options_(options),
        registry_(std::make_shared<MetricRegistry>()),
        metrics_(*registry_),
        reload_metrics_(*registry_),
        watchdog_(Clock::Real(), options.stall_timeout,
                  [this] { metrics_.Rejected(RejectReason::kStalled); }) {}
  ~CacheServerImpl() override {
    Shutdown(absl::ZeroDuration());
    // All that may take its time. Readers over shm wait a moment for this process to end once they
    // find their connection shut down, because then they may go on reading.
    server_.reset();
    exposer_.reset();
    if (shm_ != nullptr) shm_->Stop();
    nccl_.reset();
    pair_source_.reset();
    demoter_.reset();
    pager_.reset();
    AwaitLastSlices();
  }

  absl::Status Start() {
    if (!options_.health_listen.empty()) {
      PKV_ASSIGN_OR_RETURN(health_, HealthServer::Start(options_.health_listen));
    }
    PKV_RETURN_IF_ERROR(OpenLog());
    PKV_ASSIGN_OR_RETURN(
        store_,
        BlockStore::Create({.capacity_bytes = options_.capacity_bytes,
                            .clock = Clock::Real(),
                            .observer = &metrics_,
                            .policy = std::make_unique<Lru>(),
                            .log = log_.get(),
                            .crowded_bytes = PartOf(options_.capacity_bytes, kCrowdedPart)}));
    StartTiers();
    // Takes up to minutes, in which a client that finds no listener goes elsewhere at once.
    if (options_.nccl != nullptr) {
      PKV_ASSIGN_OR_RETURN(pair_source_,
                           StorePairSource::Make(options_.nccl->calls, store_.get(),
                                                 PageInForHandoff(), &metrics_, Clock::Real()));
      PKV_ASSIGN_OR_RETURN(nccl_,
                           NcclServer::Make({}, *options_.nccl, pair_source_.get(), Clock::Real()));
    }
    PKV_ASSIGN_OR_RETURN(listener_, Listener::Bind(options_.listen));
    PKV_RETURN_IF_ERROR(StartMetrics());
    PKV_RETURN_IF_ERROR(StartShm());
    return StartGrpc();
  }

  int port() const override { return listener_->port(); }
  int metrics_port() const override { return metrics_port_; }
  int health_port() const override { return health_ == nullptr ? 0 : health_->port(); }
  int arena_fd() const override { return store_->arena_fd(); }
  ReloadMetrics& reload_metrics() override { return reload_metrics_; }

  void Drain() override {
    if (draining_.exchange(true)) return;
    metrics_.SetDraining();
    SetReady(false);
    Log(LogLevel::kInfo, "draining");
  }

  void Shutdown(absl::Duration grace) override {
    if (server_ == nullptr || was_shut_down_.exchange(true)) return;
    const absl::Time end = Clock::Real()->MonotonicNow() + grace;
    listener_->Stop();
    if (shm_ != nullptr) shm_->StopListening();
    if (nccl_ != nullptr) nccl_->Stop();
    std::thread writer;
    if (demoter_ != nullptr) {
      writer = std::thread([this, end] { demoter_->WriteAll(end); });
    }
    server_->Shutdown(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(grace));
    server_->Wait();
    if (!writer.joinable()) return;
    writer.join();
    // Puts that ended while it wrote.
    demoter_->WriteAll(end);
  }

 private:
  // Reads every record's head: seconds for a large disk.
  absl::Status OpenLog() {
    if (options_.ssd_dir.empty()) return absl::OkStatus();
    const absl::Time begin = Clock::Real()->MonotonicNow();
    absl::StatusOr<std::unique_ptr<Disk>> disk = OpenPosixDisk(options_.ssd_dir);
    if (!disk.ok()) return Named(disk.status());
    disk_ = *std::move(disk);
    absl::StatusOr<std::unique_ptr<SegmentLog>> log =
        SegmentLog::Open({.disk = disk_.get(),
                          .capacity_bytes = options_.ssd_capacity_bytes,
                          .salt = DrawSalt(),
                          .clock = Clock::Real(),
                          .observer = &metrics_});
    if (!log.ok()) return Named(log.status());
    log_ = *std::move(log);
    const LogStats found = log_->stats();
    const double seconds = absl::ToDoubleSeconds(Clock::Real()->MonotonicNow() - begin);
    Log(LogLevel::kInfo, "ssd: opened",
        {{"objects", found.num_objects},
         {"segments", found.num_segments},
         {"bytes", found.resident_bytes},
         {"damaged", found.num_damaged},
         {"seconds", seconds}});
    return absl::OkStatus();
  }

  absl::Status Named(const absl::Status& status) const {
    return absl::Status(status.code(),
                        absl::StrCat("ssd ", options_.ssd_dir, ": ", status.message()));
  }

  void StartTiers() {
    if (log_ == nullptr) return;
    pager_ = std::make_unique<Pager>(
        Pager::Options{.store = store_.get(), .log = log_.get(), .clock = Clock::Real()});
    demoter_ = std::make_unique<Demoter>(
        Demoter::Options{.store = store_.get(),
                         .log = log_.get(),
                         .clock = Clock::Real(),
                         .relaxed_bytes = PartOf(options_.capacity_bytes, kRelaxedPart),
                         .reused_only = options_.ssd_reused_only});
  }

  PageInSource PageIn() const { return {pager_.get(), options_.ssd_read_timeout}; }
  PageInSource PageInForHandoff() const {
    return {pager_.get(), std::min(options_.ssd_read_timeout, kHandoffPatience)};
  }

  void SetReady(bool ready) {
    SetHealth(*server_, ready);
    if (health_ != nullptr) health_->SetReady(ready);
  }

  // A transport may let go of its last slices, and so of their pins, a moment after its server
  // ended.
  void AwaitLastSlices() const {
    if (store_ == nullptr) return;
    constexpr int kAttempts = 5000;
    for (int i = 0; i < kAttempts && store_->stats().pinned_bytes > 0; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  absl::Status StartMetrics() {
    RegisterBuildInfo(*registry_, {{"grpc_version", grpc::Version()}});
    if (options_.metrics_listen.empty()) return absl::OkStatus();
    // The one place where a library of ours throws.
    try {
      exposer_ = std::make_unique<prometheus::Exposer>(options_.metrics_listen);
    } catch (const std::exception& error) {
      return absl::UnavailableError(
          absl::StrCat("serve metrics on ", options_.metrics_listen, ": ", error.what()));
    }
    metrics_port_ = exposer_->GetListeningPorts().at(0);
    store_collector_ = std::make_shared<StoreCollector>(store_.get(), log_.get());
    process_collector_ = std::make_shared<ProcessCollector>();
    exposer_->RegisterCollectable(registry_);
    exposer_->RegisterCollectable(store_collector_);
    exposer_->RegisterCollectable(process_collector_);
    return absl::OkStatus();
  }

  absl::Status StartShm() {
    if (options_.shm_socket.empty()) return absl::OkStatus();
    const uint64_t capacity_bytes = store_->stats().capacity_bytes;
    ShmServerOptions shm{
        .path = options_.shm_socket, .any_user = options_.shm_any_user, .disk = PageInForHandoff()};
    shm.limits.connection_pinned_bytes =
        options_.shm_pinned_bytes == 0 ? capacity_bytes / 2 : options_.shm_pinned_bytes;
    const uint64_t rest_bytes = capacity_bytes - shm.limits.connection_pinned_bytes;
    shm.limits.total_pinned_bytes = shm.limits.connection_pinned_bytes + rest_bytes / 2;
    shm.limits.silence = options_.shm_silence;
    shm.limits.pin_age = options_.shm_pin_age;
    PKV_ASSIGN_OR_RETURN(shm_, ShmServer::Start(shm, store_.get(), &metrics_, Clock::Real()));
    return absl::OkStatus();
  }

  v1::HandoffOpenResponse OpenHandoff(const v1::HandoffOpenRequest& request) const {
    v1::HandoffOpenResponse response;
    if (shm_ != nullptr) {
      response = shm_->Answer(request);
    } else {
      response.set_reason("this server has no shm socket");
    }
    if (nccl_ != nullptr) {
      nccl_->Answer(request, response);
    } else {
      response.set_nccl_reason("this server has no GPU for NCCL");
    }
    return response;
  }

  absl::Status StartGrpc() {
    const ServiceParts parts{.store = store_.get(),
                             .log = log_.get(),
                             .disk = PageIn(),
                             .metrics = &metrics_,
                             .watchdog = &watchdog_,
                             .clock = Clock::Real(),
                             .draining = &draining_,
                             .stages = shm_ == nullptr ? nullptr : shm_->stages()};
    block_service_ = MakeBlockService(parts);
    admin_service_ = MakeAdminService(parts, [this] { Drain(); });
    handoff_service_ = MakeHandoffService(
        parts, [this](const v1::HandoffOpenRequest& request) { return OpenHandoff(request); },
        nccl_.get());
    grpc::EnableDefaultHealthCheckService(true);
    if (options_.reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    grpc::ServerBuilder builder;
    SetLimits(builder);
    builder.RegisterService(block_service_.get());
    builder.RegisterService(admin_service_.get());
    builder.RegisterService(handoff_service_.get());
    acceptor_ = std::make_unique<GrpcAcceptor>(builder, grpc::InsecureServerCredentials());
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) {
      return absl::InternalError(absl::StrCat("gRPC did not start on ", options_.listen));
    }
    acceptor_->Start(*listener_, [this] { metrics_.AcceptFailed(); });
    SetReady(true);
    return absl::OkStatus();
  }

  // In the order of need: what stands below uses what stands above.
  const CacheServerOptions options_;
  std::atomic<bool> draining_{false};
  std::atomic<bool> was_shut_down_{false};
  const std::shared_ptr<MetricRegistry> registry_;  // shared with the exposer
  ServiceMetrics metrics_;
  ReloadMetrics reload_metrics_;
  StallWatchdog watchdog_;
  std::unique_ptr<HealthServer> health_;  // null: none
  std::unique_ptr<Disk> disk_;            // null, with the next one: none
  std::unique_ptr<SegmentLog> log_;
  std::unique_ptr<BlockStore> store_;
  std::unique_ptr<Pager> pager_;  // null, with the next one: no disk
  std::unique_ptr<Demoter> demoter_;
  std::unique_ptr<ShmServer> shm_;
  std::unique_ptr<StorePairSource> pair_source_;
  std::unique_ptr<NcclServer> nccl_;
  std::shared_ptr<StoreCollector> store_collector_;      // shared with the exposer
  std::shared_ptr<ProcessCollector> process_collector_;  // shared with the exposer
  std::unique_ptr<prometheus::Exposer> exposer_;
  int metrics_port_ = 0;
  std::unique_ptr<grpc::Service> block_service_;
  std::unique_ptr<grpc::Service> admin_service_;
  std::unique_ptr<grpc::Service> handoff_service_;
  std::unique_ptr<GrpcAcceptor> acceptor_;
  std::unique_ptr<Listener> listener_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::Status CacheServer::Check(const CacheServerOptions& options) {
  if (options.stall_timeout < absl::Milliseconds(100)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "stall timeout ", absl::FormatDuration(options.stall_timeout), " is below 100ms"));
  }
  if (options.capacity_bytes < kArenaUnitBytes || options.capacity_bytes > kArenaBytesMax) {
    return absl::InvalidArgumentError(absl::StrCat("capacity ", options.capacity_bytes,
                                                   " bytes not in [", kArenaUnitBytes, ", ",
                                                   kArenaBytesMax, "]"));
  }
  PKV_ASSIGN_OR_RETURN(const bool is_local, Listener::IsLocal(options.listen));
  if (!is_local && !options.allow_insecure_remote) {
    return absl::InvalidArgumentError(
        absl::StrCat("address ", options.listen,
                     " is reachable from other hosts, without encryption or authentication: "
                     "--i-understand-insecure allows that"));
  }
  if (!options.metrics_listen.empty()) {
    PKV_RETURN_IF_ERROR(CheckMetricsAddress(options.metrics_listen));
  }
  PKV_RETURN_IF_ERROR(CheckSsd(options));
  return options.shm_socket.empty() ? absl::OkStatus() : CheckShm(options);
}

absl::StatusOr<std::unique_ptr<CacheServer>> CacheServer::Start(const CacheServerOptions& options) {
  PKV_RETURN_IF_ERROR(Check(options));
  auto server = std::make_unique<CacheServerImpl>(options);
  PKV_RETURN_IF_ERROR(server->Start());
  return server;
}

}  // namespace pkv
