#include "proto/transport/nccl/nccl_server.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/transport/nccl/nccl_offer.h"

namespace pkv {

absl::StatusOr<std::unique_ptr<NcclServer>> NcclServer::Make(const NcclServerOptions& options,
                                                             const NcclPort& port,
                                                             PairSource* source, Clock* clock) {
  if (options.max_pairs < 1) {
    return absl::InvalidArgumentError(absl::StrCat("max_pairs ", options.max_pairs, " below 1"));
  }
  return std::unique_ptr<NcclServer>(new NcclServer(options, port, source, clock));
}

NcclServer::NcclServer(const NcclServerOptions& options, const NcclPort& port, PairSource* source,
                       Clock* clock)
    : options_(options), offers_(clock), shared_{source, &offers_, clock, port, options.limits} {}

NcclServer::~NcclServer() {
  MutexLock lock(&mu_);
  PKV_CHECK(places_.empty(), places_.size());
}

void NcclServer::Answer(const v1::HandoffOpenRequest& request,
                        v1::HandoffOpenResponse& response) const {
  if (!request.has_nccl()) {
    response.set_nccl_reason("the reader has no NCCL, or no GPU for it");
    return;
  }
  const absl::StatusOr<NcclCapability> reader = FromProto(request.nccl());
  absl::Status fits =
      reader.ok() ? CheckCapabilities(shared_.port.capability, *reader) : reader.status();
  fits.Update(offers_.Check());
  if (fits.ok()) {
    *response.mutable_nccl() = ToProto(shared_.port.capability);
  } else {
    response.set_nccl_reason(std::string(fits.message()));
  }
}

absl::StatusOr<std::unique_ptr<NcclServer::Place>> NcclServer::TakePlace(
    std::function<void()> stop) {
  const absl::Status offered = offers_.Check();
  MutexLock lock(&mu_);
  if (stopping_) return absl::UnavailableError("this server is about to end");
  PKV_RETURN_IF_ERROR(offered);
  if (places_.size() >= static_cast<size_t>(options_.max_pairs)) {
    return absl::ResourceExhaustedError(
        absl::StrCat(places_.size(), " pairs are open, limit ", options_.max_pairs));
  }
  const int id = next_id_++;
  places_[id] = std::move(stop);
  shared_.source->SetNumPairs(places_.size());
  return std::make_unique<Place>(this, id);
}

void NcclServer::Leave(int id) {
  MutexLock lock(&mu_);
  places_.erase(id);
  shared_.source->SetNumPairs(places_.size());
}

void NcclServer::Stop() {
  MutexLock lock(&mu_);
  if (std::exchange(stopping_, true)) return;
  // Under the lock, so that nobody who is told has left.
  for (const auto& [id, stop] : places_) stop();
}

}  // namespace pkv
