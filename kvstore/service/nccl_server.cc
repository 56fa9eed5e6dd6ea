#include "kvstore/service/nccl_server.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/base/thread_pool.h"
#include "proto/transport/nccl/nccl_offer.h"

namespace pkv {
namespace {

constexpr int kPopulatingThreads = 16;

}  // namespace

absl::StatusOr<std::unique_ptr<NcclServer>> NcclServer::Start(const NcclServerOptions& options,
                                                              const NcclPort& port,
                                                              BlockStore* store,
                                                              ServiceMetrics* metrics,
                                                              Clock* clock) {
  if (options.max_pairs < 1) {
    return absl::InvalidArgumentError(absl::StrCat("max_pairs ", options.max_pairs, " below 1"));
  }
  const std::span<std::byte> memory = store->memory();
  Log(LogLevel::kInfo, "pinning memory for the GPU", {{"bytes", memory.size()}});
  const absl::Time begin = clock->MonotonicNow();
  {
    ThreadPool pool(kPopulatingThreads);
    PKV_RETURN_IF_ERROR(store->Populate(pool));
  }
  PKV_RETURN_IF_ERROR(port.calls->RegisterHost(memory.data(), memory.size()));
  const double seconds = absl::ToDoubleSeconds(clock->MonotonicNow() - begin);
  Log(LogLevel::kInfo, "pinned memory for the GPU",
      {{"bytes", memory.size()}, {"seconds", seconds}});
  return std::unique_ptr<NcclServer>(new NcclServer(options, {.store = store,
                                                              .disk = options.disk,
                                                              .metrics = metrics,
                                                              .clock = clock,
                                                              .port = port,
                                                              .limits = options.limits}));
}

NcclServer::NcclServer(const NcclServerOptions& options, const NcclShared& shared)
    : options_(options), shared_(shared) {}

NcclServer::~NcclServer() {
  {
    MutexLock lock(&mu_);
    PKV_CHECK(places_.empty(), places_.size());
  }
  shared_.port.calls->UnregisterHost(shared_.store->memory().data());
}

void NcclServer::Answer(const v1::HandoffOpenRequest& request,
                        v1::HandoffOpenResponse& response) const {
  if (!request.has_nccl()) {
    response.set_nccl_reason("the reader has no NCCL, or no GPU for it");
    return;
  }
  const absl::StatusOr<NcclCapability> reader = FromProto(request.nccl());
  const absl::Status fits =
      reader.ok() ? CheckCapabilities(shared_.port.capability, *reader) : reader.status();
  if (fits.ok()) {
    *response.mutable_nccl() = ToProto(shared_.port.capability);
  } else {
    response.set_nccl_reason(std::string(fits.message()));
  }
}

absl::StatusOr<std::unique_ptr<NcclServer::Place>> NcclServer::TakePlace(
    std::function<void()> stop) {
  MutexLock lock(&mu_);
  if (stopping_) return absl::UnavailableError("this server is about to end");
  if (places_.size() >= static_cast<size_t>(options_.max_pairs)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(places_.size(), " pairs are open, limit ", options_.max_pairs));
  }
  const int id = next_id_++;
  places_[id] = std::move(stop);
  shared_.metrics->SetNcclPairs(places_.size());
  return std::make_unique<Place>(this, id);
}

void NcclServer::Leave(int id) {
  MutexLock lock(&mu_);
  places_.erase(id);
  shared_.metrics->SetNcclPairs(places_.size());
}

void NcclServer::Stop() {
  MutexLock lock(&mu_);
  if (std::exchange(stopping_, true)) return;
  // Under the lock, so that nobody who is told has left.
  for (const auto& [id, stop] : places_) stop();
}

}  // namespace pkv
