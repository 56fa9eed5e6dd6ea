#include "client/put_call.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "pkv/block/object_header.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/transport/convert.h"
#include "proto/transport/data_frame.h"

namespace pkv {
namespace {

// 4 MiB at the default message size: enough to keep a connection busy while the caller computes.
constexpr int kMaxQueuedMessages = 8;

// Gathers pieces of frames into messages, their payload in slices of up to `message_bytes` or in a
// stage.
class MessageBuilder {
 public:
  // `total_bytes` will be added in all.
  MessageBuilder(uint64_t message_bytes, uint64_t total_bytes)
      : message_bytes_(message_bytes), left_bytes_(total_bytes) {}

  // REQUIRES: IsEmpty(). `stage` may be null; its slot is free.
  void Begin(PutStage* stage) {
    stage_ = stage;
    if (stage_ != nullptr) {
      place_ = stage_->slot();
    } else {
      payload_ = grpc::Slice(static_cast<size_t>(std::min(message_bytes_, left_bytes_)));
      // The slice is ours alone until it is handed on.
      place_ = {reinterpret_cast<std::byte*>(const_cast<uint8_t*>(payload_.begin())),
                payload_.size()};
    }
  }

  // Copies the front of `bytes`, as much as fits, and returns how much. REQUIRES: begun.
  size_t Add(int object_index, int layer, uint64_t offset, std::span<const std::byte> bytes) {
    const size_t taken = std::min(bytes.size(), place_.size() - used_);
    std::memcpy(place_.data() + used_, bytes.data(), taken);
    used_ += taken;
    left_bytes_ -= taken;
    v1::Piece* piece = control_.add_pieces();
    piece->set_object_index(static_cast<uint32_t>(object_index));
    piece->set_layer(static_cast<uint32_t>(layer));
    piece->set_offset(offset);
    piece->set_length(static_cast<uint32_t>(taken));
    return taken;
  }

  bool IsEmpty() const { return used_ == 0; }
  // The last message is full when all has been added.
  bool IsFull() const { return used_ == place_.size() || left_bytes_ == 0; }

  grpc::ByteBuffer Take() {
    std::span<const grpc::Slice> payload(&payload_, 1);
    if (stage_ != nullptr) {
      control_.mutable_staged()->set_offset(stage_->slot_offset());
      control_.mutable_staged()->set_bytes(used_);
      stage_->NextSlot();
      payload = {};
    }
    grpc::ByteBuffer message = EncodeDataFrame(control_, payload);
    control_.Clear();
    used_ = 0;
    return message;
  }

 private:
  const uint64_t message_bytes_;
  uint64_t left_bytes_;
  v1::FrameControl control_;
  PutStage* stage_ = nullptr;
  grpc::Slice payload_;
  std::span<std::byte> place_;  // of the message's payload
  size_t used_ = 0;
};

absl::StatusOr<v1::PutReply> ParseReply(grpc::ByteBuffer& message) {
  grpc::Slice slice;
  v1::PutReply reply;
  if (!message.DumpToSingleSlice(&slice).ok() ||
      !reply.ParseFromArray(slice.begin(), static_cast<int>(slice.size()))) {
    return absl::DataLossError(
        absl::StrCat("reply to a put of ", message.Length(), " bytes does not parse"));
  }
  return reply;
}

absl::Status ToStatus(const v1::ObjectStatus& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.code()), status.message());
}

}  // namespace

absl::StatusCode CodeOf(std::span<const PutOutcome> outcomes) {
  for (const PutOutcome& outcome : outcomes) {
    if (!outcome.status.ok()) return outcome.status.code();
  }
  return absl::StatusCode::kOk;
}

absl::StatusOr<std::unique_ptr<PutCall>> PutCall::Start(std::shared_ptr<ClientCore> core,
                                                        std::span<const ObjectDescriptor> objects,
                                                        absl::Time deadline) {
  if (objects.empty() || objects.size() > kMaxObjectsPerCall) {
    return absl::InvalidArgumentError(
        absl::StrCat(objects.size(), " objects in one put, not in 1..", kMaxObjectsPerCall));
  }
  for (const ObjectDescriptor& object : objects) {
    if (object.num_layers < 1 || object.num_layers > kMaxLayers) {
      return absl::InvalidArgumentError(
          absl::StrCat("num_layers ", object.num_layers, " not in 1..", kMaxLayers));
    }
    if (object.frame_bytes == 0 || object.frame_bytes % kFrameAlignment != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          "frame_bytes ", object.frame_bytes, " is not a positive multiple of ", kFrameAlignment));
    }
  }
  std::unique_ptr<PutCall> call(new PutCall(std::move(core), objects, deadline));
  PKV_RETURN_IF_ERROR(call->Open());
  return call;
}

PutCall::PutCall(std::shared_ptr<ClientCore> core, std::span<const ObjectDescriptor> objects,
                 absl::Time deadline)
    : core_(std::move(core)),
      objects_(objects.begin(), objects.end()),
      deadline_(deadline),
      uploads_(objects.size()),
      receipts_(objects.size()) {
  for (size_t i = 0; i < objects_.size(); ++i) {
    uploads_[i].written_layers.resize(objects_[i].num_layers);
  }
}

PutCall::~PutCall() {
  if (record_.has_value()) {
    // One that had broken was given up for that.
    MutexLock lock(&mu_);
    if (!Broken().ok()) record_->End(Broken().code());
  }
  // Ends the callbacks before what they touch goes.
  stream_.reset();
  MutexLock lock(&mu_);
  if (stage_ != nullptr && num_staged_ > 0) stage_->Retire();
}

absl::Status PutCall::OpenStage() {
  const Transport transport = core_->options.transport;
  if (transport != Transport::kAuto && transport != Transport::kShm) return absl::OkStatus();
  absl::StatusOr<std::unique_ptr<PutStage>> stage = PutStage::Open(*core_, deadline_);
  if (stage.ok()) {
    stage_ = *std::move(stage);
    return absl::OkStatus();
  }
  // Where nothing but room is lacking shm works, and a put need not wait for another to end.
  if (transport == Transport::kShm && !absl::IsResourceExhausted(stage.status())) {
    return stage.status();
  }
  // A server without shm is no failure of it.
  falls_back_ = !absl::IsFailedPrecondition(stage.status());
  return absl::OkStatus();
}

absl::Status PutCall::Open() {
  PKV_RETURN_IF_ERROR(OpenStage());
  v1::FrameControl control;
  if (stage_ != nullptr) control.mutable_put_begin()->set_stage(stage_->token());
  for (const ObjectDescriptor& object : objects_) {
    v1::ObjectDescriptor* descriptor = control.mutable_put_begin()->add_objects();
    *descriptor->mutable_key() = ToProto(object.key);
    descriptor->set_num_layers(static_cast<uint32_t>(object.num_layers));
    descriptor->set_frame_bytes(object.frame_bytes);
  }
  const absl::Time now = core_->clock->MonotonicNow();
  {
    // Released before the first callback can take it: what the constructor wrote is visible there.
    MutexLock lock(&mu_);
    last_progress_ = now;
  }
  stream_ = core_->connection->OpenStream(StreamMethod::kPut, deadline_ - now, this);
  PKV_RETURN_IF_ERROR(Send(EncodeDataFrame(control, {})));
  PKV_ASSIGN_OR_RETURN(const bool is_staged, WaitForDecisions());
  return SettleStage(is_staged);
}

absl::Status PutCall::SettleStage(bool is_staged) {
  if (stage_ != nullptr && !is_staged) {
    // Lent by another server: the one before this, which may keep its connection while it drains.
    stage_->Retire();
    stage_.reset();
    if (core_->options.transport == Transport::kShm) {
      return absl::UnavailableError("shm: the server does not find the stage that was lent");
    }
    falls_back_ = true;
  }
  if (stage_ != nullptr) ++core_->counters.shm_puts;
  if (falls_back_) ++core_->counters.shm_put_fallbacks;
  return absl::OkStatus();
}

absl::StatusOr<bool> PutCall::WaitForDecisions() {
  MutexLock lock(&mu_);
  const absl::Time since = core_->clock->MonotonicNow();
  while (!accepted_) {
    if (ended_ && end_status_.ok()) {
      return absl::DataLossError("put ended before the server answered its begin");
    }
    PKV_RETURN_IF_ERROR(Broken());
    WaitOnce(since);
  }
  decisions_ = received_decisions_;
  refusals_ = received_refusals_;
  return is_staged_;
}

absl::Status PutCall::refusal(int object_index) const {
  PKV_CHECK(object_index >= 0 && object_index < static_cast<int>(objects_.size()), object_index,
            " of ", objects_.size());
  return refusals_[object_index];
}

absl::Status PutCall::CheckFrame(int layer, int object_index,
                                 std::span<const std::byte> frame) const {
  const ObjectDescriptor& object = objects_[object_index];
  if (frame.size() != object.frame_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "object ", object_index, ": frame has ", frame.size(), " bytes, not ", object.frame_bytes));
  }
  if (layer < 0 || layer >= object.num_layers) {
    return absl::InvalidArgumentError(absl::StrCat("object ", object_index, ": layer ", layer,
                                                   " not in [0, ", object.num_layers, ")"));
  }
  if (uploads_[object_index].written_layers[layer]) {
    return absl::InvalidArgumentError(
        absl::StrCat("object ", object_index, ": layer ", layer, " was written before"));
  }
  return absl::OkStatus();
}

absl::Status PutCall::WriteLayer(int layer, std::span<const std::span<const std::byte>> frames) {
  if (frames.size() != objects_.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(frames.size(), " frames for ", objects_.size(), " objects"));
  }
  uint64_t total_bytes = 0;
  for (size_t i = 0; i < frames.size(); ++i) {
    if (frames[i].empty()) continue;
    PKV_RETURN_IF_ERROR(CheckFrame(layer, static_cast<int>(i), frames[i]));
    if (decisions_[i] == PutDecision::kWanted) total_bytes += frames[i].size();
  }
  MessageBuilder builder(core_->options.message_bytes, total_bytes);
  for (size_t i = 0; i < frames.size(); ++i) {
    if (frames[i].empty() || decisions_[i] != PutDecision::kWanted) continue;
    for (size_t offset = 0; offset < frames[i].size();) {
      if (builder.IsEmpty()) {
        PKV_RETURN_IF_ERROR(WaitForSlot());
        builder.Begin(stage_.get());
      }
      offset += builder.Add(static_cast<int>(i), layer, offset, frames[i].subspan(offset));
      if (builder.IsFull()) PKV_RETURN_IF_ERROR(Send(builder.Take(), stage_ != nullptr));
    }
    uploads_[i].written_layers[layer] = true;
    ++uploads_[i].num_written;
  }
  (stage_ != nullptr ? core_->counters.shm_put_bytes : core_->counters.grpc_put_bytes) +=
      total_bytes;
  return absl::OkStatus();
}

absl::Status PutCall::WaitForSlot() {
  if (stage_ == nullptr) return absl::OkStatus();
  MutexLock lock(&mu_);
  const absl::Time since = core_->clock->MonotonicNow();
  while (Broken().ok() && num_staged_ >= PutStage::kNumSlots) WaitOnce(since);
  return Broken();
}

absl::Status PutCall::Commit(int object_index, std::span<const std::byte> head) {
  if (object_index < 0 || object_index >= static_cast<int>(objects_.size())) {
    return absl::InvalidArgumentError(
        absl::StrCat("object_index ", object_index, " not in [0, ", objects_.size(), ")"));
  }
  const ObjectDescriptor& object = objects_[object_index];
  Upload& upload = uploads_[object_index];
  if (head.size() != FramesOffset(object.num_layers)) {
    return absl::InvalidArgumentError(absl::StrCat("object ", object_index, ": head has ",
                                                   head.size(), " bytes, not ",
                                                   FramesOffset(object.num_layers)));
  }
  if (upload.committed) {
    return absl::InvalidArgumentError(
        absl::StrCat("object ", object_index, " was committed before"));
  }
  const PutDecision decision = decisions_[object_index];
  if (decision == PutDecision::kWanted && upload.num_written != object.num_layers) {
    return absl::InvalidArgumentError(absl::StrCat("object ", object_index, ": ",
                                                   upload.num_written, " of ", object.num_layers,
                                                   " layers were written"));
  }
  upload.committed = true;
  if (decision == PutDecision::kRefused) return absl::OkStatus();
  // Of an object that is present the server compares the head: it holds every frame's checksum.
  v1::FrameControl control;
  control.mutable_put_commit()->set_object_index(static_cast<uint32_t>(object_index));
  control.mutable_put_commit()->set_head(head.data(), head.size());
  return Send(EncodeDataFrame(control, {}));
}

absl::Status PutCall::Send(grpc::ByteBuffer message, bool is_staged) {
  {
    MutexLock lock(&mu_);
    const absl::Time since = core_->clock->MonotonicNow();
    while (Broken().ok() && num_queued_ >= kMaxQueuedMessages) WaitOnce(since);
    PKV_RETURN_IF_ERROR(Broken());
    ++num_queued_;
    if (is_staged) ++num_staged_;
  }
  stream_->Send(std::move(message));
  return absl::OkStatus();
}

void PutCall::WaitOnce(absl::Time since) {
  const absl::Duration patience = core_->options.progress_timeout;
  const absl::Time stalled = std::max(last_progress_, since) + patience;
  const absl::Time now = core_->clock->MonotonicNow();
  if (now >= deadline_) {
    Fail(absl::DeadlineExceededError(absl::StrCat("put of ", objects_.size(),
                                                  " objects not done by its deadline, ",
                                                  num_queued_, " messages wait")));
  } else if (now >= stalled) {
    Fail(absl::DeadlineExceededError(absl::StrCat("put: nothing moved for ",
                                                  absl::FormatDuration(patience), ", ", num_queued_,
                                                  " messages wait")));
  } else {
    changed_.WaitWithTimeout(&mu_, std::min(stalled, deadline_) - now);
  }
}

void PutCall::Fail(const absl::Status& status) {
  if (!failure_.ok()) return;
  failure_ = status;
  stream_->Cancel();
  changed_.SignalAll();
}

absl::Status PutCall::Broken() const {
  if (!failure_.ok()) return failure_;
  if (!ended_) return absl::OkStatus();
  return end_status_.ok() ? absl::UnavailableError("put was ended by the server") : end_status_;
}

std::vector<PutOutcome> PutCall::Finish() {
  std::vector<PutOutcome> outcomes = Collect();
  for (const PutOutcome& outcome : outcomes) core_->counters.CountEnd(outcome.status);
  if (record_.has_value()) record_->End(CodeOf(outcomes));
  return outcomes;
}

std::vector<PutOutcome> PutCall::Collect() {
  stream_->HalfClose();
  std::vector<PutOutcome> outcomes(objects_.size());
  MutexLock lock(&mu_);
  const absl::Time since = core_->clock->MonotonicNow();
  while (!ended_ && failure_.ok()) WaitOnce(since);
  for (size_t i = 0; i < outcomes.size(); ++i) outcomes[i] = OutcomeOf(static_cast<int>(i));
  return outcomes;
}

PutOutcome PutCall::OutcomeOf(int object_index) {
  if (decisions_[object_index] == PutDecision::kRefused) return {refusals_[object_index], false};
  if (receipts_[object_index].has_value()) return *receipts_[object_index];
  if (!uploads_[object_index].committed) {
    const absl::Status broken = ended_ && end_status_.ok() ? absl::OkStatus() : Broken();
    return {broken.ok() ? absl::CancelledError("never committed") : broken, false};
  }
  return {Broken(), false};
}

void PutCall::Cancel() {
  MutexLock lock(&mu_);
  Fail(absl::CancelledError("put cancelled by its owner"));
}

absl::Status PutCall::OnMessage(grpc::ByteBuffer& message) {
  PKV_ASSIGN_OR_RETURN(const v1::PutReply reply, ParseReply(message));
  MutexLock lock(&mu_);
  last_progress_ = core_->clock->MonotonicNow();
  changed_.SignalAll();
  switch (reply.kind_case()) {
    case v1::PutReply::kAccepted:
      return OnAccepted(reply.accepted());
    case v1::PutReply::kReceipt:
      return OnReceipt(reply.receipt());
    case v1::PutReply::kTaken:
      return OnTaken();
    case v1::PutReply::KIND_NOT_SET:
      break;
  }
  return absl::DataLossError("reply to a put of no known kind");
}

absl::Status PutCall::OnAccepted(const v1::PutAccepted& accepted) {
  if (accepted_) return absl::DataLossError("second answer to one begin");
  if (accepted.decisions_size() != static_cast<int>(objects_.size())) {
    return absl::DataLossError(
        absl::StrCat(accepted.decisions_size(), " decisions on ", objects_.size(), " objects"));
  }
  received_refusals_.assign(objects_.size(), absl::OkStatus());
  for (const int decision : accepted.decisions()) {
    switch (decision) {
      case v1::PUT_DECISION_WANTED:
        received_decisions_.push_back(PutDecision::kWanted);
        break;
      case v1::PUT_DECISION_PRESENT:
        received_decisions_.push_back(PutDecision::kPresent);
        break;
      case v1::PUT_DECISION_REFUSED:
        received_refusals_[received_decisions_.size()] =
            absl::ResourceExhaustedError("refused by the server without a reason");
        received_decisions_.push_back(PutDecision::kRefused);
        break;
      default:
        return absl::DataLossError(absl::StrCat("decision ", decision, " not in {1, 2, 3}"));
    }
  }
  for (const v1::ObjectStatus& refused : accepted.refusals()) {
    if (refused.object_index() >= objects_.size() || refused.code() == 0 ||
        received_decisions_[refused.object_index()] != PutDecision::kRefused) {
      return absl::DataLossError(absl::StrCat("refusal of object ", refused.object_index(),
                                              " with code ", refused.code()));
    }
    received_refusals_[refused.object_index()] = ToStatus(refused);
  }
  is_staged_ = accepted.staged();
  accepted_ = true;
  return absl::OkStatus();
}

absl::Status PutCall::OnTaken() {
  if (num_staged_ == 0) return absl::DataLossError("the server took payload that was not staged");
  --num_staged_;
  return absl::OkStatus();
}

absl::Status PutCall::OnReceipt(const v1::PutReceipt& receipt) {
  if (!accepted_ || receipt.object_index() >= objects_.size() ||
      receipts_[receipt.object_index()].has_value()) {
    return absl::DataLossError(
        absl::StrCat("receipt for object ", receipt.object_index(), " out of turn"));
  }
  PutOutcome outcome;
  switch (receipt.result()) {
    case v1::PUT_RESULT_STORED:
      outcome.stored = true;
      break;
    case v1::PUT_RESULT_DUPLICATE:
      break;
    default:
      outcome.status = ToStatus(receipt.status());
      if (outcome.status.ok()) {
        outcome.status = absl::InternalError(
            absl::StrCat("receipt with result ", static_cast<int>(receipt.result())));
      }
  }
  receipts_[receipt.object_index()] = outcome;
  return absl::OkStatus();
}

void PutCall::OnSent() {
  MutexLock lock(&mu_);
  --num_queued_;
  last_progress_ = core_->clock->MonotonicNow();
  changed_.SignalAll();
}

void PutCall::OnEnd(const absl::Status& status) {
  MutexLock lock(&mu_);
  ended_ = true;
  end_status_ = status;
  changed_.SignalAll();
}

}  // namespace pkv
