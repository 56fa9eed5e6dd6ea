#include "kvstore/service/put_session.h"

#include <algorithm>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/service/logical_bytes.h"
#include "proto/base/status_macros.h"
#include "proto/transport/convert.h"

namespace pkv {
namespace {

// Another put may store the key, and an eviction drop it, between the two questions asked of the
// store; more than a few such races in a row are not one.
constexpr int kAdmitAttempts = 4;

std::span<const std::byte> AsBytes(const std::string& text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

PutOutcomeKind OutcomeOf(v1::PutResult result, const absl::Status& status) {
  if (result == v1::PUT_RESULT_STORED) return PutOutcomeKind::kStored;
  if (result == v1::PUT_RESULT_DUPLICATE) return PutOutcomeKind::kDuplicate;
  if (absl::IsAlreadyExists(status)) return PutOutcomeKind::kConflict;
  if (absl::IsResourceExhausted(status)) return PutOutcomeKind::kRejected;
  return PutOutcomeKind::kInvalid;
}

}  // namespace

// The bytes of one message's pieces, front to back: in the message, or in the stage, where the
// client may change them at any time. They are copied once, and the copy is looked at.
class PutSession::Payload {
 public:
  // Both outlive this. REQUIRES: a stage where the frame says staged.
  Payload(DecodedDataFrame& frame, const ShmStage* stage)
      : reader_(frame.payload),
        stage_(frame.control.has_staged() ? stage : nullptr),
        offset_(frame.control.staged().offset()) {}

  absl::Status Read(std::span<std::byte> out) {
    if (stage_ == nullptr) return reader_.Read(out);
    PKV_RETURN_IF_ERROR(stage_->Read(offset_, out));
    offset_ += out.size();
    return absl::OkStatus();
  }
  absl::Status Skip(uint64_t bytes) {
    if (stage_ == nullptr) return reader_.Skip(bytes);
    offset_ += bytes;
    return absl::OkStatus();
  }

 private:
  PayloadReader& reader_;
  const ShmStage* const stage_;
  uint64_t offset_;  // in the stage
};

PutSession::~PutSession() {
  std::vector<ObjectKey> kept;
  for (Object& object : objects_) {
    if (object.committed && object.status.ok()) kept.push_back(object.key);
    // Those stored before and those refused were no attempt.
    if (!object.committed && object.decision == v1::PUT_DECISION_WANTED) {
      parts_.metrics->PutEnded(PutOutcomeKind::kAbandoned);
    }
  }
  parts_.metrics->Transferred(Direction::kIn, payload_bytes_);
  // As one sequence: its first blocks are worth most.
  parts_.store->TouchAll(kept);
}

absl::StatusOr<std::vector<v1::PutReply>> PutSession::Take(DecodedDataFrame& frame) {
  std::vector<v1::PutReply> replies;
  const v1::FrameControl& control = frame.control;
  if (control.has_manifest() || control.has_trailer()) {
    return absl::InvalidArgumentError("a put has no manifest and no trailer");
  }
  if (control.has_put_begin()) {
    PKV_ASSIGN_OR_RETURN(v1::PutReply accepted, Begin(control.put_begin()));
    replies.push_back(std::move(accepted));
  }
  if (!begun_) return absl::InvalidArgumentError("the first message of a put is not its begin");
  PKV_RETURN_IF_ERROR(TakePieces(frame));
  if (control.has_staged()) replies.emplace_back().mutable_taken();
  if (control.has_put_commit()) {
    PKV_ASSIGN_OR_RETURN(v1::PutReply receipt, Commit(control.put_commit()));
    replies.push_back(std::move(receipt));
  }
  return replies;
}

absl::StatusOr<v1::PutReply> PutSession::Begin(const v1::PutBegin& begin) {
  if (begun_) return absl::InvalidArgumentError("a second begin in one put");
  if (begin.objects_size() > kMaxObjectsPerCall) {
    parts_.metrics->Rejected(RejectReason::kTooLarge);
    return absl::InvalidArgumentError(
        absl::StrCat(begin.objects_size(), " objects, limit ", kMaxObjectsPerCall));
  }
  begun_ = true;
  objects_.resize(begin.objects_size());
  v1::PutReply reply;
  for (int i = 0; i < begin.objects_size(); ++i) {
    Object& object = objects_[i];
    Admit(begin.objects(i), object);
    reply.mutable_accepted()->add_decisions(object.decision);
    if (object.decision != v1::PUT_DECISION_REFUSED) continue;
    v1::ObjectStatus* refusal = reply.mutable_accepted()->add_refusals();
    refusal->set_object_index(static_cast<uint32_t>(i));
    refusal->set_code(static_cast<int>(object.status.code()));
    refusal->set_message(std::string(object.status.message()));
  }
  if (parts_.stages != nullptr) stage_ = parts_.stages->Find(begin.stage());
  reply.mutable_accepted()->set_staged(stage_ != nullptr);
  return reply;
}

void PutSession::Admit(const v1::ObjectDescriptor& descriptor, Object& object) {
  absl::StatusOr<ObjectKey> key = FromProto(descriptor.key());
  if (!key.ok()) {
    object.status = key.status();
    return;
  }
  object.key = *std::move(key);
  // Above kMaxLayers every number is as wrong as kMaxLayers + 1, and that one fits an int.
  const int num_layers =
      static_cast<int>(std::min<uint32_t>(descriptor.num_layers(), kMaxLayers + 1));
  for (int attempt = 0; attempt < kAdmitAttempts; ++attempt) {
    object.present = parts_.store->Find(object.key, Use::kPut);
    if (!object.present) object.on_disk = parts_.store->FindOnDisk(object.key);
    if (object.present || object.on_disk.has_value()) {
      object.decision = v1::PUT_DECISION_PRESENT;
      return;
    }
    absl::StatusOr<Reservation> reservation =
        parts_.store->Reserve({object.key, num_layers, descriptor.frame_bytes()});
    if (reservation.ok()) {
      object.reservation = *std::move(reservation);
      object.decision = v1::PUT_DECISION_WANTED;
      object.status = absl::OkStatus();
      return;
    }
    object.status = reservation.status();
    if (!absl::IsAlreadyExists(object.status)) break;
  }
  if (absl::IsResourceExhausted(object.status)) parts_.metrics->Rejected(RejectReason::kMemory);
}

absl::StatusOr<PutSession::Object*> PutSession::Find(uint32_t object_index) {
  if (object_index < objects_.size()) return &objects_[object_index];
  return absl::InvalidArgumentError(
      absl::StrCat("object_index ", object_index, " not in [0, ", objects_.size(), ")"));
}

absl::Status PutSession::TakePieces(DecodedDataFrame& frame) {
  const bool is_staged = frame.control.has_staged();
  if (is_staged && stage_ == nullptr) {
    return absl::InvalidArgumentError("staged payload of a put without stage");
  }
  const uint64_t payload_bytes =
      is_staged ? frame.control.staged().bytes() : frame.payload.remaining();
  Payload payload(frame, stage_.get());
  for (const v1::Piece& piece : frame.control.pieces()) {
    PKV_RETURN_IF_ERROR(TakePiece(piece, payload));
  }
  if (payload_bytes > 0) {
    parts_.metrics->Moved(Direction::kIn, payload_bytes, 0,
                          is_staged ? PayloadTransport::kShm : PayloadTransport::kGrpc);
  }
  payload_bytes_ += payload_bytes;
  return absl::OkStatus();
}

absl::Status PutSession::TakePiece(const v1::Piece& piece, Payload& payload) {
  PKV_ASSIGN_OR_RETURN(Object * object, Find(piece.object_index()));
  // Not wanted, committed or failed already: whoever sent it will learn from the receipt.
  if (!object->reservation) return payload.Skip(piece.length());
  const int layer = static_cast<int>(std::min<uint32_t>(piece.layer(), kMaxLayers));
  const absl::StatusOr<std::span<std::byte>> destination =
      object->reservation.Prepare(layer, piece.offset(), piece.length());
  if (!destination.ok()) {
    object->status = destination.status();
    object->reservation = Reservation();
    return payload.Skip(piece.length());
  }
  PKV_RETURN_IF_ERROR(payload.Read(*destination));
  object->reservation.Finish(layer, piece.length());
  return absl::OkStatus();
}

absl::StatusOr<v1::PutReply> PutSession::Commit(const v1::PutCommit& commit) {
  PKV_ASSIGN_OR_RETURN(Object * object, Find(commit.object_index()));
  if (object->committed) {
    return absl::InvalidArgumentError(
        absl::StrCat("a second commit of object ", commit.object_index()));
  }
  object->committed = true;
  const std::span<const std::byte> head = AsBytes(commit.head());
  v1::PutResult result = v1::PUT_RESULT_FAILED;
  if (object->decision == v1::PUT_DECISION_PRESENT) {
    // Its frames were not sent, but its head has their checksums.
    const bool is_equal = object->present ? std::ranges::equal(head, object->present.head())
                                          : IsHeadOf(head, *object->on_disk);
    if (!head.empty() && !is_equal) {
      object->status = absl::AlreadyExistsError(
          absl::StrCat("different bytes are stored under ", object->key.id.ToShortHex(), " ",
                       object->key.variant.name, ": an object is written once"));
    } else {
      result = v1::PUT_RESULT_DUPLICATE;
    }
  } else if (object->reservation) {
    const absl::StatusOr<CommitResult> committed =
        parts_.store->Commit(std::move(object->reservation), head);
    object->status = committed.status();
    if (committed.ok()) {
      result =
          *committed == CommitResult::kStored ? v1::PUT_RESULT_STORED : v1::PUT_RESULT_DUPLICATE;
      const absl::StatusOr<ObjectHeader> header = ParseHeader(head);
      if (header.ok()) {
        parts_.metrics->Moved(Direction::kIn, 0, LogicalFrameBytes(*header) * header->num_layers);
      }
    }
  }
  return MakeReceipt(commit.object_index(), result, object->status);
}

v1::PutReply PutSession::MakeReceipt(uint32_t object_index, v1::PutResult result,
                                     const absl::Status& status) {
  parts_.metrics->PutEnded(OutcomeOf(result, status));
  v1::PutReply reply;
  reply.mutable_receipt()->set_object_index(object_index);
  reply.mutable_receipt()->set_result(result);
  v1::ObjectStatus* proto = reply.mutable_receipt()->mutable_status();
  proto->set_object_index(object_index);
  proto->set_code(static_cast<int>(status.code()));
  proto->set_message(std::string(status.message()));
  return reply;
}

}  // namespace pkv
