#include "kvstore/service/get_call.h"

#include <grpcpp/impl/codegen/proto_utils.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/service/get_plan.h"
#include "pkv/v1/cache_service.pb.h"
#include "proto/base/status_macros.h"
#include "proto/transport/convert.h"
#include "proto/transport/data_frame.h"

namespace pkv {
namespace {

// Of a manifest; its headers are the only copied bytes of a Get.
constexpr uint64_t kMaxManifestBytes = uint64_t{kMaxMessageBytes} - (uint64_t{1} << 20);

absl::StatusOr<GetSpec> ParseRequest(const ServiceParts& parts, const grpc::ByteBuffer& bytes) {
  grpc::ByteBuffer copy(bytes);  // references; parsing consumes it
  v1::GetRequest request;
  if (!grpc::SerializationTraits<v1::GetRequest>::Deserialize(&copy, &request).ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the request of ", bytes.Length(), " bytes is not a GetRequest"));
  }
  if (request.objects_size() > kMaxObjectsPerCall) {
    parts.metrics->Rejected(RejectReason::kTooLarge);
    return absl::InvalidArgumentError(
        absl::StrCat(request.objects_size(), " objects, limit ", kMaxObjectsPerCall));
  }
  GetSpec spec;
  spec.message_bytes =
      request.message_bytes() == 0 ? kDefaultPayloadBytes : uint64_t{request.message_bytes()};
  if (spec.message_bytes < kMinPayloadBytes || spec.message_bytes > kMaxPayloadBytes) {
    return absl::InvalidArgumentError(absl::StrCat("message_bytes ", spec.message_bytes,
                                                   " not in [", kMinPayloadBytes, ", ",
                                                   kMaxPayloadBytes, "]"));
  }
  if (request.layer_begin() > kMaxLayers || request.layer_end() > kMaxLayers ||
      (request.layer_end() != 0 && request.layer_begin() >= request.layer_end())) {
    return absl::InvalidArgumentError(absl::StrCat("layers [", request.layer_begin(), ", ",
                                                   request.layer_end(), ") are no range in [0, ",
                                                   kMaxLayers, ")"));
  }
  spec.layer_begin = static_cast<int>(request.layer_begin());
  spec.layer_end = static_cast<int>(request.layer_end());
  for (const v1::ObjectKey& proto : request.objects()) {
    PKV_ASSIGN_OR_RETURN(ObjectKey key, FromProto(proto));
    spec.keys.push_back(std::move(key));
  }
  return spec;
}

// A slice over stored memory; the last copy of it, wherever gRPC keeps it, ends its share of the
// pin.
grpc::Slice MakeSlice(const GetPlan::Piece& piece) {
  auto* lease = new std::shared_ptr<const Lease>(piece.lease);
  return grpc::Slice(
      const_cast<std::byte*>(piece.bytes.data()), piece.bytes.size(),
      [](void* owned) { delete static_cast<std::shared_ptr<const Lease>*>(owned); }, lease);
}

// gRPC calls one reaction at a time here: there is never a read, and one write at most.
class GetReactor : public grpc::ServerWriteReactor<grpc::ByteBuffer> {
 public:
  GetReactor(const ServiceParts& parts, grpc::CallbackServerContext* context,
             const grpc::ByteBuffer& request)
      : parts_(parts),
        context_(context),
        call_(parts, RpcMethod::kGet),
        ticket_(parts.watchdog->Watch(MakeCancel(*context))) {
    const absl::Status status = Begin(request);
    if (!status.ok()) End(status);
  }

  void OnWriteDone(bool ok) override {
    ticket_->Progress();
    parts_.metrics->WaitedForReader(parts_.clock->MonotonicNow() - write_began_);
    if (!ok || context_->IsCancelled()) {
      End(CutOffStatus(*context_));
    } else if (!plan_->done()) {
      SendPieces();
    } else {
      SendTrailer();
    }
  }

  void OnDone() override {
    if (context_->IsCancelled()) {
      delivered_ = false;
      if (final_code_ == absl::StatusCode::kOk) final_code_ = CutOffStatus(*context_).code();
    }
    if (plan_) CountObjects();
    parts_.metrics->Transferred(Direction::kOut, payload_bytes_);
    call_.End(final_code_);
    delete this;
  }

 private:
  absl::Status Begin(const grpc::ByteBuffer& request) {
    PKV_RETURN_IF_ERROR(RequireDeadline(parts_, *context_));
    PKV_ASSIGN_OR_RETURN(GetSpec spec, ParseRequest(parts_, request));
    if (!parts_.disk.IsNeeded(spec.keys)) return SendManifest(spec, 0);
    const std::vector<ObjectKey> keys = spec.keys;
    // Nothing else happens on this stream until it is called, so this is there when it is.
    parts_.disk.pager->Fetch(keys, PageInPatience(parts_, *context_),
                             [this, spec = std::move(spec)](const Pager::Result& result) {
                               ticket_->Progress();
                               const absl::Status status = SendManifest(spec, result.num_paged_in);
                               if (!status.ok()) End(status);
                             });
    return absl::OkStatus();
  }

  absl::Status SendManifest(const GetSpec& spec, int num_paged_in) {
    GetPlan plan(parts_.store, spec);
    v1::FrameControl control;
    control.set_layers_done(static_cast<uint32_t>(spec.layer_begin));
    uint64_t heads_bytes = 0;
    for (const auto& head : plan.heads()) heads_bytes += head.size();
    if (heads_bytes > kMaxManifestBytes) {
      parts_.metrics->Rejected(RejectReason::kTooLarge);
      return absl::InvalidArgumentError(absl::StrCat("the heads of ", spec.keys.size(),
                                                     " objects have ", heads_bytes,
                                                     " bytes, limit ", kMaxManifestBytes));
    }
    for (const auto& head : plan.heads()) {
      control.mutable_manifest()->add_heads(head.data(), head.size());
    }
    control.mutable_manifest();
    parts_.metrics->TierHits(
        static_cast<int>(std::ranges::count_if(
            plan.statuses(), [](const absl::Status& status) { return status.ok(); })),
        num_paged_in);
    plan_.emplace(std::move(plan));
    message_ = EncodeDataFrame(control, {});
    Write();
    return absl::OkStatus();
  }

  void SendPieces() {
    const GetPlan::Message next = plan_->Next();
    v1::FrameControl control;
    std::vector<grpc::Slice> payload;
    payload.reserve(next.pieces.size());
    for (const GetPlan::Piece& piece : next.pieces) {
      v1::Piece* proto = control.add_pieces();
      proto->set_object_index(static_cast<uint32_t>(piece.object_index));
      proto->set_layer(static_cast<uint32_t>(piece.layer));
      proto->set_offset(piece.offset);
      proto->set_length(static_cast<uint32_t>(piece.bytes.size()));
      payload.push_back(MakeSlice(piece));
    }
    control.set_layers_done(static_cast<uint32_t>(next.layers_done));
    parts_.metrics->Moved(Direction::kOut, next.payload_bytes, next.logical_bytes);
    payload_bytes_ += next.payload_bytes;
    message_ = EncodeDataFrame(control, payload);
    Write();
  }

  void Write() {
    write_began_ = parts_.clock->MonotonicNow();
    StartWrite(&message_);
  }

  void SendTrailer() {
    v1::FrameControl control;
    const std::vector<absl::Status>& statuses = plan_->statuses();
    for (size_t i = 0; i < statuses.size(); ++i) {
      v1::ObjectStatus* proto = control.mutable_trailer()->add_statuses();
      proto->set_object_index(static_cast<uint32_t>(i));
      proto->set_code(static_cast<int>(statuses[i].code()));
      proto->set_message(std::string(statuses[i].message()));
    }
    control.mutable_trailer();
    message_ = EncodeDataFrame(control, {});
    delivered_ = true;
    final_code_ = absl::StatusCode::kOk;
    StartWriteAndFinish(&message_, grpc::WriteOptions(), grpc::Status::OK);
  }

  // Leaves only the slices that gRPC still holds.
  void End(const absl::Status& status) {
    if (plan_) CountObjects();
    plan_.reset();
    message_.Clear();
    final_code_ = status.code();
    Finish(ToGrpc(status));
  }

  void CountObjects() {
    for (const absl::Status& status : plan_->statuses()) {
      if (absl::IsNotFound(status)) {
        parts_.metrics->GetEnded(GetOutcomeKind::kMiss);
      } else if (absl::IsDataLoss(status)) {
        parts_.metrics->GetEnded(GetOutcomeKind::kCorrupt);
      } else {
        parts_.metrics->GetEnded(delivered_ && status.ok() ? GetOutcomeKind::kHit
                                                           : GetOutcomeKind::kShed);
      }
    }
  }

  const ServiceParts parts_;
  grpc::CallbackServerContext* const context_;
  RpcCall call_;
  const std::unique_ptr<StallWatchdog::Ticket> ticket_;
  std::optional<GetPlan> plan_;
  grpc::ByteBuffer message_;  // under way
  absl::Time write_began_;
  uint64_t payload_bytes_ = 0;  // sent
  bool delivered_ = false;
  absl::StatusCode final_code_ = absl::StatusCode::kInternal;
};

}  // namespace

grpc::ServerWriteReactor<grpc::ByteBuffer>* ServeGet(const ServiceParts& parts,
                                                     grpc::CallbackServerContext* context,
                                                     const grpc::ByteBuffer& request) {
  return new GetReactor(parts, context, request);
}

}  // namespace pkv
