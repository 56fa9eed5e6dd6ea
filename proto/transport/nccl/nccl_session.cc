#include "proto/transport/nccl/nccl_session.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "proto/transport/convert.h"
#include "proto/transport/data_frame.h"
#include "proto/transport/nccl/nccl_offer.h"

namespace pkv {
namespace {

constexpr int kReaderRank = 1;
// Of a manifest: a message, less what is around the heads.
constexpr uint64_t kMaxHeadsBytes = uint64_t{kMaxMessageBytes} - (uint64_t{1} << 20);

}  // namespace

NcclSession::NcclSession(const NcclShared* shared, PairPeer* peer)
    : shared_(*shared),
      peer_(*peer),
      pair_(shared->port.calls, shared->limits.pair, shared->clock) {}

absl::Status NcclSession::Run() {
  PKV_RETURN_IF_ERROR(Greet());
  for (;;) {
    PKV_ASSIGN_OR_RETURN(const std::optional<v1::PairRequest> request,
                         peer_.Next(absl::InfiniteDuration()));
    if (!request.has_value()) return absl::OkStatus();
    if (request->has_fetch()) {
      PKV_RETURN_IF_ERROR(Fetch(request->fetch()));
    } else if (request->has_damaged()) {
      PKV_RETURN_IF_ERROR(OnDamaged(request->damaged()));
    } else {
      return absl::InvalidArgumentError(absl::StrCat("a reader does not send kind ",
                                                     static_cast<int>(request->kind_case()),
                                                     " after its hello"));
    }
  }
}

absl::Status NcclSession::Greet() {
  PKV_ASSIGN_OR_RETURN(const std::optional<v1::PairRequest> hello,
                       peer_.Next(shared_.limits.answer_timeout));
  if (!hello.has_value()) return absl::UnavailableError("the reader went before its hello");
  if (!hello->has_hello()) return absl::InvalidArgumentError("the first message is no hello");
  PKV_ASSIGN_OR_RETURN(const NcclCapability reader, FromProto(hello->hello()));
  // Handoff.Open has told the reader that its NCCL or its GPU will not do.
  if (const absl::Status fits = CheckCapabilities(shared_.port.capability, reader); !fits.ok()) {
    return absl::InvalidArgumentError(fits.message());
  }
  NcclOffer offer{.rank = kReaderRank,
                  .sender = shared_.port.capability,
                  .group_bytes = shared_.limits.pair.group_bytes};
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<PairOffers::Offer> opening, shared_.offers->Begin());
  PKV_ASSIGN_OR_RETURN(offer.id, shared_.port.calls->MakeUniqueId());
  v1::PairReply reply;
  *reply.mutable_offer() = ToProto(offer);
  peer_.Send(reply);
  is_unopened_ = true;
  PKV_RETURN_IF_ERROR(pair_.Open(offer.id, 1 - kReaderRank));
  is_unopened_ = false;
  opening->Opened();
  return absl::OkStatus();
}

absl::Status NcclSession::Fetch(const v1::PairFetch& fetch) {
  keys_.clear();
  if (fetch.objects_size() < 1 || fetch.objects_size() > kMaxObjectsPerCall) {
    return absl::InvalidArgumentError(absl::StrCat("fetch of ", fetch.objects_size(),
                                                   " objects, not in 1..", kMaxObjectsPerCall));
  }
  for (const v1::ObjectKey& proto : fetch.objects()) {
    PKV_ASSIGN_OR_RETURN(ObjectKey key, FromProto(proto));
    keys_.push_back(std::move(key));
  }
  reported_.assign(keys_.size(), false);
  v1::PairReply reply;
  const std::unique_ptr<PairHold> hold = Hold(*reply.mutable_manifest());
  peer_.Send(reply);
  if (hold == nullptr) return absl::OkStatus();
  // The first group waits for the reader while the manifest travels.
  const absl::Status sent = pair_.Send(hold->layers(), shared_.limits.transfer);
  hold->SendEnded(sent);
  return sent;
}

std::unique_ptr<PairHold> NcclSession::Hold(v1::PairManifest& manifest) {
  absl::StatusOr<std::unique_ptr<PairHold>> hold = shared_.source->Hold(keys_, manifest);
  uint64_t heads_bytes = 0;
  for (const std::string& head : manifest.heads()) heads_bytes += head.size();
  if (heads_bytes > kMaxHeadsBytes) {
    shared_.source->OnTooLarge();
    hold = absl::ResourceExhaustedError(
        absl::StrCat("the heads have ", heads_bytes, " bytes, limit ", kMaxHeadsBytes));
    manifest.clear_heads();
  }
  if (hold.ok()) return *std::move(hold);
  if (!absl::IsNotFound(hold.status())) {  // those that are not there have empty heads
    manifest.set_code(static_cast<int>(hold.status().code()));
    manifest.set_message(std::string(hold.status().message()));
  }
  return nullptr;
}

absl::Status NcclSession::OnDamaged(const v1::PairDamaged& report) {
  // Looking is work: once for each object of a fetch.
  if (report.object_index() >= keys_.size() || reported_[report.object_index()]) {
    return absl::InvalidArgumentError(absl::StrCat("damage of object ", report.object_index(),
                                                   " of ", keys_.size(), ": no such, or again"));
  }
  reported_[report.object_index()] = true;
  shared_.source->OnDamaged(keys_[report.object_index()]);
  return absl::OkStatus();
}

}  // namespace pkv
