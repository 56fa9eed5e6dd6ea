#include "client/shm_get.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/shm_dialer.h"
#include "client/striped_get.h"
#include "pkv/block/kv_shape.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/transport/data_frame.h"

namespace pkv {
namespace {

// For an answer, where gRPC could be tried instead.
constexpr absl::Duration kPinPatience = absl::Seconds(2);

}  // namespace

ShmGet::ShmGet(std::shared_ptr<ClientCore> core, std::vector<ObjectKey> keys, absl::Time deadline,
               CallRecord record)
    : core_(std::move(core)),
      keys_(std::move(keys)),
      deadline_(deadline),
      backoff_(core_->MakeBackoff()),
      record_(std::move(record)) {
  if (keys_.empty() || keys_.size() > kMaxObjectsPerCall) {
    Fail(absl::InvalidArgumentError(
             absl::StrCat(keys_.size(), " keys in one get, not in 1..", kMaxObjectsPerCall)))
        .IgnoreError();
  }
}

// The pin first: it uses the link.
ShmGet::~ShmGet() { LetGo(); }

absl::Status ShmGet::Fail(const absl::Status& status) {
  if (!failure_.ok()) return failure_;
  failure_ = status;
  core_->counters.CountEnd(status);
  record_.End(status.code());
  LetGo();
  return failure_;
}

void ShmGet::LetGo() {
  // The link stays: its arena must stay mapped under frames that were shown.
  pin_.reset();
}

absl::Status ShmGet::Begin() {
  while (failure_.ok() && inner_ == nullptr && pin_ == nullptr) {
    if (cancelled_) return Fail(absl::CancelledError("get cancelled by its owner"));
    const absl::Status tried = TryToPin();
    if (!tried.ok()) PKV_RETURN_IF_ERROR(RecoverFrom(tried));
  }
  if (failure_.ok() && cancelled_) return Fail(absl::CancelledError("get cancelled by its owner"));
  return failure_;
}

absl::Status ShmGet::TryToPin() {
  ++num_attempts_;
  const absl::Time now = core_->clock->MonotonicNow();
  if (now >= deadline_) return absl::DeadlineExceededError("get not done by its deadline");
  absl::Duration patience = core_->options.progress_timeout;
  if (core_->options.transport == Transport::kAuto) patience = std::min(patience, kPinPatience);
  const absl::Time until = std::min(now + patience, deadline_);
  // shared_ptr: the client's, and kept by every stream that reads over it.
  PKV_ASSIGN_OR_RETURN(std::shared_ptr<ShmLink> link, core_->shm->Link(until));
  {
    MutexLock lock(&mu_);
    link_.swap(link);
  }
  link.reset();  // an earlier one, which may end with it
  PKV_ASSIGN_OR_RETURN(std::unique_ptr<ShmLink::Pin> pin,
                       link_->PinObjects(keys_, until, cancelled_));
  PKV_RETURN_IF_ERROR(ReadHeads(*pin));
  // What was parsed was still pinned.
  PKV_RETURN_IF_ERROR(link_->CheckHeld());
  PKV_RETURN_IF_ERROR(KeepHeaders());
  pin_ = std::move(pin);
  ++core_->counters.shm_gets;
  core_->counters.shm_get_bytes += payload_bytes_;
  return absl::OkStatus();
}

absl::Status ShmGet::ReadHeads(const ShmLink::Pin& pin) {
  for (int i = 0; i < num_objects(); ++i) {
    if (pin.extents[i].code() == static_cast<int>(absl::StatusCode::kNotFound)) {
      return absl::NotFoundError(absl::StrCat(ObjectName(keys_[i], i), " is not stored"));
    }
  }
  objects_.assign(keys_.size(), {});
  num_layers_ = 0;
  payload_bytes_ = 0;
  for (int i = 0; i < num_objects(); ++i) {
    Object& object = objects_[i];
    PKV_RETURN_IF_ERROR(ReadHead(pin.extents[i], i, object));
    const ObjectHeader& header = object.head.header;
    num_layers_ = std::max<int>(num_layers_, header.num_layers);
    payload_bytes_ += header.frame_bytes * header.num_layers;  // 4,096 times kMaxObjectBytes
  }
  if (payload_bytes_ > kMaxGetBytes) {
    return absl::DataLossError(
        absl::StrCat("objects of ", payload_bytes_, " bytes, limit ", kMaxGetBytes));
  }
  verified_layers_.assign(num_layers_, false);
  return absl::OkStatus();
}

absl::Status ShmGet::ReadHead(const v1::ShmExtent& extent, int object_index, Object& object) const {
  const std::string name = ObjectName(keys_[object_index], object_index);
  if (extent.code() != 0) {
    return absl::Status(static_cast<absl::StatusCode>(extent.code()),
                        absl::StrCat(name, ": damaged in the server's memory"));
  }
  object.bytes = link_->arena().subspan(extent.offset(), extent.bytes());
  // A copy, so that what is checked is what is used.
  const size_t copied = std::min<size_t>(extent.bytes(), FramesOffset(kMaxLayers));
  std::vector<std::byte> head(object.bytes.begin(), object.bytes.begin() + copied);
  const absl::StatusOr<ObjectHeader> header = ParseHeader(head);
  if (header.ok() && FramesOffset(header->num_layers) <= head.size()) {
    head.resize(FramesOffset(header->num_layers));
  }
  PKV_ASSIGN_OR_RETURN(object.head, ParseObjectHead(keys_[object_index], object_index, head));
  if (object.head.header.object_bytes != extent.bytes()) {
    return absl::DataLossError(absl::StrCat(name, ": ", extent.bytes(), " bytes, its header says ",
                                            object.head.header.object_bytes));
  }
  return absl::OkStatus();
}

absl::Status ShmGet::KeepHeaders() {
  const bool is_first = headers_.empty();
  for (int i = 0; i < num_objects(); ++i) {
    const ObjectHeader& header = inner_ != nullptr ? inner_->header(i) : objects_[i].head.header;
    if (is_first) {
      headers_.push_back(header);
    } else if (header != headers_[i]) {
      return Fail(absl::AbortedError(absl::StrCat(
          ObjectName(keys_[i], i), ": replaced by other bytes while it was being fetched")));
    }
  }
  return absl::OkStatus();
}

absl::Status ShmGet::RecoverFrom(const absl::Status& status) {
  // The same answer as gRPC would give; and damage is damage.
  if (!failure_.ok() || absl::IsNotFound(status) || absl::IsDataLoss(status) ||
      absl::IsCancelled(status)) {
    return Fail(status);
  }
  if (core_->clock->MonotonicNow() >= deadline_) {
    return Fail(absl::DeadlineExceededError(absl::StrCat(
        "get of ", keys_.size(), " objects not done by its deadline: ", status.message())));
  }
  if (core_->options.transport == Transport::kAuto) {
    // A server without shm is no failure of it.
    if (!absl::IsFailedPrecondition(status)) ++core_->counters.shm_fallbacks;
    GoOverToGrpc();
    return absl::OkStatus();
  }
  const absl::Duration pause = backoff_.Next();
  const bool passes = IsRetryable(status) || absl::IsAborted(status);
  if (!passes || num_attempts_ >= core_->options.max_attempts ||
      core_->clock->MonotonicNow() + pause >= deadline_) {
    return Fail(status);
  }
  ++core_->counters.retries;
  const RetryPause waiting = core_->PauseOf(CallMethod::kGet);
  absl::SleepFor(pause);
  return absl::OkStatus();
}

void ShmGet::GoOverToGrpc() {
  LetGo();
  std::unique_ptr<GetStream> inner = StartGrpcGet(core_, keys_, deadline_, std::move(record_));
  MutexLock lock(&mu_);
  inner_ = std::move(inner);
  if (cancelled_) inner_->Cancel();
}

absl::Status ShmGet::WaitForManifest() {
  PKV_RETURN_IF_ERROR(Begin());
  if (inner_ == nullptr) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(inner_->WaitForManifest());
  if (has_inner_headers_) return absl::OkStatus();
  PKV_RETURN_IF_ERROR(KeepHeaders());
  has_inner_headers_ = true;
  return absl::OkStatus();
}

absl::Status ShmGet::WaitForLayer(int layer) {
  for (;;) {
    PKV_RETURN_IF_ERROR(WaitForManifest());
    if (inner_ != nullptr) return inner_->WaitForLayer(layer);
    if (layer < 0 || layer >= num_layers_) {
      return absl::InvalidArgumentError(
          absl::StrCat("layer ", layer, " not in [0, ", num_layers_, ")"));
    }
    const absl::Status verified = VerifyLayer(layer);
    const absl::Status held = link_->CheckHeld();
    if (held.ok() && verified.ok()) {
      verified_layers_[layer] = has_shown_frames_ = true;
      if (std::find(verified_layers_.begin(), verified_layers_.end(), false) ==
          verified_layers_.end()) {
        record_.End(absl::StatusCode::kOk);
      }
      return absl::OkStatus();
    }
    if (held.ok() || has_shown_frames_) return Fail(held.ok() ? verified : held);
    // Nobody has seen a byte of it: as if it had not begun.
    LetGo();
    PKV_RETURN_IF_ERROR(RecoverFrom(held));
  }
}

absl::Status ShmGet::WaitForAll() {
  PKV_RETURN_IF_ERROR(WaitForManifest());
  // The stream may go over to gRPC with the first layer, but not later.
  for (int layer = 0; inner_ == nullptr && layer < num_layers_; ++layer) {
    PKV_RETURN_IF_ERROR(WaitForLayer(layer));
  }
  PKV_RETURN_IF_ERROR(WaitForManifest());
  return inner_ != nullptr ? inner_->WaitForAll() : VerifyTables();
}

absl::Status ShmGet::VerifyLayer(int layer) {
  if (verified_layers_[layer]) return absl::OkStatus();
  std::vector<LayerFrame> frames;
  for (int i = 0; i < num_objects(); ++i) {
    const ObjectHead& head = objects_[i].head;
    if (layer < head.header.num_layers) frames.push_back({&head, i, frame(i, layer)});
  }
  int damaged = 0;
  const absl::Status status = CheckLayerFrames(frames, layer, core_->check_pool.get(), &damaged);
  if (!status.ok()) pin_->ReportDamage(damaged);
  return status;
}

absl::Status ShmGet::VerifyTables() {
  if (verified_tables_) return absl::OkStatus();
  for (int i = 0; i < num_objects(); ++i) {
    const ObjectHeader& header = objects_[i].head.header;
    const absl::Status status =
        CheckTableContent(header, i, objects_[i].bytes.subspan(FramesOffset(header.num_layers)));
    if (!status.ok()) return Fail(status);
  }
  PKV_RETURN_IF_ERROR(CheckHeld());
  verified_tables_ = true;
  return absl::OkStatus();
}

const ObjectHeader& ShmGet::header(int object_index) const {
  PKV_CHECK(object_index >= 0 && object_index < static_cast<int>(headers_.size()), object_index,
            " of ", headers_.size());
  return headers_[object_index];
}

std::span<const std::byte> ShmGet::frame(int object_index, int layer) const {
  if (inner_ != nullptr) return inner_->frame(object_index, layer);
  const ObjectHeader& of = header(object_index);
  PKV_CHECK(layer >= 0 && layer < of.num_layers, layer, " of ", of.num_layers);
  return objects_[object_index].bytes.subspan(
      FramesOffset(of.num_layers) + static_cast<uint64_t>(layer) * of.frame_bytes, of.frame_bytes);
}

AlignedBuffer ShmGet::TakeObject(int object_index) {
  if (inner_ != nullptr) return inner_->TakeObject(object_index);
  PKV_CHECK(object_index >= 0 && object_index < static_cast<int>(objects_.size()), object_index,
            " of ", objects_.size());
  const std::span<const std::byte> bytes = objects_[object_index].bytes;
  AlignedBuffer copy(bytes.size());
  std::memcpy(copy.data(), bytes.data(), bytes.size());
  return copy;
}

absl::Status ShmGet::CheckHeld() {
  if (inner_ != nullptr) return inner_->CheckHeld();
  if (!failure_.ok()) return failure_;
  if (pin_ == nullptr) return absl::OkStatus();
  const absl::Status held = link_->CheckHeld();
  return held.ok() ? held : Fail(held);
}

uint64_t ShmGet::received_bytes() const {
  if (inner_ != nullptr) return inner_->received_bytes();
  return objects_.empty() ? 0 : payload_bytes_;
}

void ShmGet::Cancel() {
  cancelled_ = true;
  MutexLock lock(&mu_);
  if (link_ != nullptr) link_->Wake();
  if (inner_ != nullptr) inner_->Cancel();
}

}  // namespace pkv
