#include "kvstore/service/nccl_session.h"

#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/service/logical_bytes.h"
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
    const absl::Duration patience =
        leases_.empty() ? absl::InfiniteDuration() : shared_.limits.answer_timeout;
    const absl::StatusOr<std::optional<v1::PairRequest>> next = peer_.Next(patience);
    if (absl::IsDeadlineExceeded(next.status())) {
      // The reader lost interest. It may ask again.
      leases_.clear();
      heads_.clear();
      continue;
    }
    PKV_RETURN_IF_ERROR(next.status());
    const std::optional<v1::PairRequest>& request = *next;
    if (!request.has_value()) return absl::OkStatus();
    if (request->has_fetch()) {
      PKV_ASSIGN_OR_RETURN(v1::PairManifest manifest, Fetch(request->fetch()));
      v1::PairReply reply;
      *reply.mutable_manifest() = std::move(manifest);
      peer_.Send(reply);
    } else if (request->has_ready()) {
      PKV_RETURN_IF_ERROR(SendFrames());
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
  PKV_ASSIGN_OR_RETURN(offer.id, shared_.port.calls->MakeUniqueId());
  v1::PairReply reply;
  *reply.mutable_offer() = ToProto(offer);
  peer_.Send(reply);
  return pair_.Open(offer.id, 1 - kReaderRank);
}

absl::StatusOr<v1::PairManifest> NcclSession::Fetch(const v1::PairFetch& fetch) {
  leases_.clear();
  heads_.clear();
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
  // On this thread, which is the pair's own.
  Pager::Result paged_in;
  if (shared_.disk.IsNeeded(keys_)) {
    paged_in = shared_.disk.pager->FetchAndWait(keys_, shared_.disk.patience);
  }
  std::vector<Lease> leases = shared_.store->FindAll(keys_);
  shared_.metrics->TierHits(static_cast<int>(std::ranges::count_if(
                                leases, [](const Lease& lease) { return bool(lease); })),
                            paged_in.num_paged_in);
  v1::PairManifest manifest;
  uint64_t heads_bytes = 0;
  absl::Status status;
  for (Lease& lease : leases) {
    status.Update(AddHead(lease, manifest));
    heads_bytes += manifest.heads(manifest.heads_size() - 1).size();
  }
  if (heads_bytes > kMaxHeadsBytes) {
    shared_.metrics->Rejected(RejectReason::kTooLarge);
    status = absl::ResourceExhaustedError(
        absl::StrCat("the heads have ", heads_bytes, " bytes, limit ", kMaxHeadsBytes));
    manifest.clear_heads();
  }
  if (status.ok()) {
    leases_ = std::move(leases);
  } else if (!absl::IsNotFound(status)) {  // those that are not there have empty heads
    manifest.set_code(static_cast<int>(status.code()));
    manifest.set_message(std::string(status.message()));
  }
  return manifest;
}

absl::Status NcclSession::AddHead(Lease& lease, v1::PairManifest& manifest) {
  std::string* const head = manifest.add_heads();
  if (!lease) {
    shared_.metrics->GetEnded(GetOutcomeKind::kMiss);
    return absl::NotFoundError("an object is not stored");
  }
  const absl::StatusOr<ObjectHeader> header = lease.VerifyHead();
  if (!header.ok()) {
    shared_.store->Quarantine(lease);
    shared_.metrics->GetEnded(GetOutcomeKind::kCorrupt);
    return absl::DataLossError(
        absl::StrCat("damaged in the server's memory: ", header.status().message()));
  }
  head->assign(reinterpret_cast<const char*>(lease.head().data()), lease.head().size());
  heads_.push_back(*header);
  return absl::OkStatus();
}

absl::Status NcclSession::SendFrames() {
  if (leases_.empty()) return absl::InvalidArgumentError("ready for nothing: fetch first");
  int num_layers = 0;
  uint64_t payload_bytes = 0, logical_bytes = 0;
  for (const ObjectHeader& header : heads_) {
    num_layers = std::max<int>(num_layers, header.num_layers);
    payload_bytes += header.frame_bytes * header.num_layers;
    logical_bytes += LogicalFrameBytes(header) * header.num_layers;
  }
  std::vector<std::vector<DeviceSpan>> spans(num_layers);
  for (const Lease& lease : leases_) {
    for (int layer = 0; layer < lease.num_layers(); ++layer) {
      const std::span<const std::byte> frame = lease.frame(layer);
      // A sender's spans are only read.
      spans[layer].push_back({const_cast<std::byte*>(frame.data()), frame.size()});
    }
  }
  std::vector<LayerSpans> layers;
  for (const std::vector<DeviceSpan>& of_layer : spans) {
    layers.push_back({.spans = of_layer, .in_host_memory = true});
  }
  const absl::Status sent = pair_.Send(layers, shared_.limits.transfer);
  const GetOutcomeKind outcome = sent.ok() ? GetOutcomeKind::kHit : GetOutcomeKind::kShed;
  for (size_t i = 0; i < leases_.size(); ++i) shared_.metrics->GetEnded(outcome);
  leases_.clear();
  heads_.clear();
  PKV_RETURN_IF_ERROR(sent);
  shared_.metrics->Moved(Direction::kOut, payload_bytes, logical_bytes, PayloadTransport::kNccl);
  return absl::OkStatus();
}

absl::Status NcclSession::OnDamaged(const v1::PairDamaged& report) {
  // Looking is work: once for each object of a fetch.
  if (report.object_index() >= keys_.size() || reported_[report.object_index()]) {
    return absl::InvalidArgumentError(absl::StrCat("damage of object ", report.object_index(),
                                                   " of ", keys_.size(), ": no such, or again"));
  }
  reported_[report.object_index()] = true;
  const Lease lease = shared_.store->Find(keys_[report.object_index()]);
  if (!lease) return absl::OkStatus();
  absl::Status intact = lease.VerifyHead().status();
  for (int layer = 0; intact.ok() && layer < lease.num_layers(); ++layer) {
    intact = lease.VerifyFrame(layer);
  }
  if (intact.ok()) return absl::OkStatus();
  shared_.store->Quarantine(lease);
  shared_.metrics->GetEnded(GetOutcomeKind::kCorrupt);
  return absl::OkStatus();
}

}  // namespace pkv
