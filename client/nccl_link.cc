#include "client/nccl_link.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/object_check.h"
#include "proto/base/status_macros.h"
#include "proto/transport/convert.h"
#include "proto/transport/nccl/nccl_offer.h"

namespace pkv {
namespace {

// Of the control connection; then a link is made anew.
constexpr absl::Duration kLinkLasts = absl::Hours(24);
// For an answer that costs the server a look into its index and, for what is on its disk alone, a
// wait of 1.5 s at most.
constexpr absl::Duration kAnswerTimeout = absl::Seconds(2);

// Bytes of all frames, as the heads say; 0: the manifest is not complete. Nothing: they cannot be
// right.
std::optional<uint64_t> FramesBytes(const v1::PairManifest& manifest) {
  uint64_t bytes = 0;
  if (manifest.code() != 0) return bytes;
  for (const std::string& head : manifest.heads()) {
    ObjectHeader header;
    if (head.empty()) return 0;
    if (head.size() < sizeof(header)) return std::nullopt;
    std::memcpy(&header, head.data(), sizeof(header));
    if (header.frame_bytes > kMaxObjectBytes) return std::nullopt;
    bytes += header.frame_bytes * header.num_layers;  // of 4,096 heads below 2^60
  }
  const bool is_possible = bytes != 0 && bytes % kSpanAlignmentBytes == 0 && bytes <= kMaxGetBytes;
  return is_possible ? std::optional(bytes) : std::nullopt;
}

}  // namespace

absl::StatusOr<std::shared_ptr<NcclLink>> NcclLink::Open(Connection* connection,
                                                         const NcclPort& port,
                                                         absl::Duration timeout, Clock* clock) {
  const absl::Time deadline = clock->MonotonicNow() + timeout;
  // shared_ptr: gets keep the link that they receive over.
  std::shared_ptr<NcclLink> link(new NcclLink(port, clock));
  link->stream_ = connection->OpenStream(StreamMethod::kPair, kLinkLasts, link.get());
  PKV_RETURN_IF_ERROR(link->OpenPair(deadline));
  return link;
}

absl::Status NcclLink::OpenPair(absl::Time deadline) {
  v1::PairRequest hello;
  *hello.mutable_hello() = ToProto(port_.capability);
  Send(hello);
  PKV_ASSIGN_OR_RETURN(const v1::PairReply reply, Await(deadline));
  if (!reply.has_offer())
    return absl::DataLossError("nccl: the server's first message is no offer");
  const absl::StatusOr<NcclOffer> offer = FromProto(reply.offer());
  if (!offer.ok()) {
    return absl::DataLossError(absl::StrCat("nccl: offer: ", offer.status().message()));
  }
  NcclPairOptions options{.group_bytes = offer->group_bytes,
                          .open_timeout = deadline - clock_->MonotonicNow()};
  {
    MutexLock lock(&mu_);
    if (!end_.ok()) return end_;
    pair_ = std::make_unique<NcclPair>(port_.calls, options, clock_);
  }
  return pair_->Open(offer->id, offer->rank);
}

// The stream first: it calls OnEnd.
NcclLink::~NcclLink() { stream_.reset(); }

absl::Status NcclLink::OnMessage(grpc::ByteBuffer& message) {
  grpc::Slice slice;
  v1::PairReply reply;
  if (!message.DumpToSingleSlice(&slice).ok() ||
      !reply.ParseFromArray(slice.begin(), static_cast<int>(slice.size()))) {
    return absl::DataLossError("nccl: not what a server sends");
  }
  MutexLock lock(&mu_);
  if (reply_.has_value()) return absl::DataLossError("nccl: answer to no question");
  reply_ = std::move(reply);
  changed_.SignalAll();
  return absl::OkStatus();
}

void NcclLink::OnEnd(const absl::Status& status) {
  Break(status.ok() ? absl::UnavailableError("nccl: the server ended the call") : status);
}

void NcclLink::Break(const absl::Status& reason) {
  MutexLock lock(&mu_);
  if (end_.ok()) end_ = reason;
  if (pair_ != nullptr) pair_->PeerGone(end_.message());
  changed_.SignalAll();
}

void NcclLink::Send(const v1::PairRequest& request) {
  const grpc::Slice slice(request.SerializeAsString());
  stream_->Send(grpc::ByteBuffer(&slice, 1));
}

absl::StatusOr<v1::PairReply> NcclLink::Await(absl::Time deadline) {
  MutexLock lock(&mu_);
  for (;;) {
    if (reply_.has_value()) {
      v1::PairReply reply = *std::move(reply_);
      reply_.reset();
      return reply;
    }
    if (!end_.ok()) return end_;
    const absl::Duration left = deadline - clock_->MonotonicNow();
    if (left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError("nccl: the server does not answer");
    }
    changed_.WaitWithTimeout(&mu_, left);
  }
}

absl::StatusOr<std::unique_ptr<NcclLink::Turn>> NcclLink::TakeTurn(
    absl::Time deadline, const std::atomic<bool>& cancelled) {
  MutexLock lock(&mu_);
  for (;;) {
    if (!end_.ok()) return absl::UnavailableError(absl::StrCat("nccl: ", end_.message()));
    if (cancelled) return absl::CancelledError("get cancelled by its owner");
    if (!taken_) break;
    const absl::Duration left = deadline - clock_->MonotonicNow();
    if (left <= absl::ZeroDuration()) {
      return absl::DeadlineExceededError("nccl: other gets had their turn until the deadline");
    }
    changed_.WaitWithTimeout(&mu_, left);
  }
  taken_ = true;
  return std::make_unique<Turn>(this);
}

void NcclLink::EndTurn() {
  if (coming_bytes_ > 0) Drop();
  MutexLock lock(&mu_);
  taken_ = false;
  changed_.SignalAll();
}

void NcclLink::Wake() {
  MutexLock lock(&mu_);
  changed_.SignalAll();
}

bool NcclLink::broken() const {
  MutexLock lock(&mu_);
  return !end_.ok();
}

absl::StatusOr<v1::PairManifest> NcclLink::Fetch(std::span<const ObjectKey> keys,
                                                 absl::Time deadline) {
  if (coming_bytes_ > 0) Drop();
  v1::PairRequest request;
  for (const ObjectKey& key : keys) *request.mutable_fetch()->add_objects() = ToProto(key);
  const absl::Time answered = std::min(clock_->MonotonicNow() + kAnswerTimeout, deadline);
  Send(request);
  absl::StatusOr<v1::PairReply> reply = Await(answered);
  std::optional<uint64_t> coming_bytes;
  if (reply.ok() && reply->has_manifest() &&
      (reply->manifest().code() != 0 ||
       static_cast<size_t>(reply->manifest().heads_size()) == keys.size())) {
    coming_bytes = FramesBytes(reply->manifest());
  }
  if (reply.ok() && !coming_bytes.has_value()) {
    reply = absl::DataLossError(
        absl::StrCat("nccl: the answer to a fetch of ", keys.size(), " objects makes no sense"));
  }
  absl::Status status = reply.status();
  if (status.ok() && *coming_bytes > 0) {
    status = pair_->BeginReceive(*coming_bytes);
    if (status.ok()) coming_bytes_ = *coming_bytes, fetched_until_ = deadline;
  }
  if (status.ok()) return std::move(*reply->mutable_manifest());
  // A late answer would be taken for the next.
  GiveUp(status);
  return status;
}

void NcclLink::GiveUp(const absl::Status& reason) {
  coming_bytes_ = 0;
  Break(reason);
  stream_->Cancel();
}

void NcclLink::Drop() {
  const LayerSource nowhere{
      .num_layers = 1,
      .total_bytes = coming_bytes_,
      .layer = [](size_t) -> absl::StatusOr<LayerSpans> {
        return absl::CancelledError("nccl: nobody has a place for the frames");
      }};
  Receive(nowhere, {.timeout = fetched_until_ - clock_->MonotonicNow()}, nullptr).IgnoreError();
}

absl::Status NcclLink::Receive(const LayerSource& source, const TransferLimits& limits,
                               const NcclPair::LayerDone& layer_done) {
  coming_bytes_ = 0;
  const absl::Status status = pair_->Receive(source, limits, layer_done);
  // Damage, and layers that nobody wanted any more, leave the pair as it is.
  if (!status.ok() && !absl::IsDataLoss(status) && !absl::IsCancelled(status)) GiveUp(status);
  return status;
}

std::optional<NcclPair::BadSpan> NcclLink::ReportDamage() {
  const std::optional<NcclPair::BadSpan> bad = pair_->bad_span();
  if (!bad.has_value()) return bad;
  v1::PairRequest request;
  request.mutable_damaged()->set_object_index(static_cast<uint32_t>(bad->span_index));
  Send(request);
  return bad;
}

}  // namespace pkv
