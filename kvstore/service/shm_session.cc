#include "kvstore/service/shm_session.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kvstore/service/logical_bytes.h"
#include "proto/base/status_macros.h"
#include "proto/transport/convert.h"
#include "proto/transport/data_frame.h"
#include "proto/transport/shm_frame.h"

namespace pkv {

ShmSession::ShmSession(ShmShared* shared)
    : shared_(shared), renewed_(shared->clock->MonotonicNow()) {}

ShmSession::~ShmSession() {
  for (const auto& [id, pin] : pins_) Release(pin);
  for (const auto& [id, waiting] : waiting_) shared_->pinned_bytes -= waiting.bytes;
  if (stage_.stage != nullptr) shared_->stages->TakeBack(stage_.token);
}

absl::StatusOr<std::optional<v1::ShmMessage>> ShmSession::OnMessage(const v1::ShmMessage& message) {
  if (!welcomed_ && !message.has_hello()) {
    return absl::InvalidArgumentError("the first message is no hello");
  }
  switch (message.kind_case()) {
    case v1::ShmMessage::kHello:
      return OnHello(message.hello());
    case v1::ShmMessage::kPin:
      return OnPin(message.pin());
    case v1::ShmMessage::kUnpin:
      PKV_RETURN_IF_ERROR(OnUnpin(message.unpin()));
      return std::nullopt;
    case v1::ShmMessage::kDamaged:
      PKV_RETURN_IF_ERROR(OnDamaged(message.damaged()));
      return std::nullopt;
    case v1::ShmMessage::kRenew: {
      renewed_ = shared_->clock->MonotonicNow();
      v1::ShmMessage answer;
      answer.mutable_renewed();
      return answer;
    }
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("a client does not send kind ", static_cast<int>(message.kind_case())));
  }
}

absl::StatusOr<v1::ShmMessage> ShmSession::OnHello(const v1::ShmHello& hello) {
  if (welcomed_) return absl::InvalidArgumentError("second hello");
  if (hello.token() != shared_->token) {
    return absl::PermissionDeniedError("the token is of another server");
  }
  if (hello.version() != kShmVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("version ", hello.version(), ", spoken is ", kShmVersion));
  }
  v1::ShmMessage answer;
  v1::ShmWelcome* welcome = answer.mutable_welcome();
  if (hello.for_puts()) {
    PKV_ASSIGN_OR_RETURN(stage_, shared_->stages->Lend());
    welcome->set_stage_bytes(stage_.stage->bytes());
    welcome->set_stage_token(stage_.token);
  } else {
    welcome->set_arena_bytes(shared_->store->stats().capacity_bytes);
  }
  welcome->set_silence_ms(
      static_cast<uint32_t>(absl::ToInt64Milliseconds(shared_->limits.silence)));
  welcomed_ = true;
  renewed_ = shared_->clock->MonotonicNow();
  return answer;
}

absl::StatusOr<std::vector<ObjectKey>> ShmSession::Admit(const v1::ShmPin& request) const {
  if (pins_.size() + waiting_.size() >= kMaxShmPins ||
      num_objects_ + request.objects_size() > kMaxShmObjects) {
    return absl::ResourceExhaustedError(absl::StrCat("this connection holds ", pins_.size(),
                                                     " pins, and waits for ", waiting_.size(),
                                                     ", of ", num_objects_, " objects"));
  }
  std::vector<ObjectKey> keys;
  for (const v1::ObjectKey& proto : request.objects()) {
    PKV_ASSIGN_OR_RETURN(ObjectKey key, FromProto(proto));
    keys.push_back(std::move(key));
  }
  return keys;
}

absl::Status ShmSession::AdmitBytes(uint64_t bytes) const {
  const ShmLimits& limits = shared_->limits;
  if (bytes > limits.connection_pinned_bytes - pinned_bytes_ ||
      bytes > limits.total_pinned_bytes - shared_->pinned_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        bytes, " bytes to pin, pinned: ", pinned_bytes_, " of ", limits.connection_pinned_bytes,
        " here, ", shared_->pinned_bytes, " of ", limits.total_pinned_bytes, " in all"));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::optional<v1::ShmMessage>> ShmSession::OnPin(const v1::ShmPin& request) {
  if (stage_.stage != nullptr) return absl::InvalidArgumentError("a pin where a stage was lent");
  if (request.objects_size() < 1 || request.objects_size() > kMaxObjectsPerCall) {
    return absl::InvalidArgumentError(absl::StrCat("pin of ", request.objects_size(),
                                                   " objects, not in 1..", kMaxObjectsPerCall));
  }
  const uint64_t pin_id = request.pin_id();
  if (pins_.contains(pin_id) || waiting_.contains(pin_id)) {
    return absl::InvalidArgumentError(absl::StrCat("pin id ", pin_id, " is in use"));
  }
  absl::StatusOr<std::vector<ObjectKey>> keys = Admit(request);
  if (!keys.ok()) return Refuse(pin_id, keys.status());
  if (!shared_->disk.IsNeeded(*keys)) return Answer(pin_id, *keys, 0);
  // Before anything is brought in that could not be pinned, and others pushed out for it.
  const uint64_t bytes = shared_->store->StoredBytes(*keys);
  if (const absl::Status refused = AdmitBytes(bytes); !refused.ok()) return Refuse(pin_id, refused);
  AwaitDisk(pin_id, *std::move(keys), bytes);
  return std::nullopt;
}

void ShmSession::AwaitDisk(uint64_t pin_id, std::vector<ObjectKey> keys, uint64_t bytes) {
  const auto paged_in = std::make_shared<PagedIn>();
  num_objects_ += keys.size();
  pinned_bytes_ += bytes;
  shared_->pinned_bytes += bytes;
  shared_->disk.pager->Fetch(keys, shared_->disk.patience,
                             [paged_in, wake = shared_->wake](Pager::Result result) {
                               {
                                 MutexLock lock(&paged_in->mu);
                                 paged_in->result = std::move(result);
                                 paged_in->is_there = true;
                               }
                               wake();
                             });
  waiting_.emplace(pin_id, Waiting{std::move(keys), bytes, paged_in});
}

std::vector<v1::ShmMessage> ShmSession::TakeReady() {
  std::vector<v1::ShmMessage> answers;
  for (auto at = waiting_.begin(); at != waiting_.end();) {
    const auto current = at++;
    Pager::Result result;
    {
      MutexLock lock(&current->second.paged_in->mu);
      if (!current->second.paged_in->is_there) continue;
      result = std::move(current->second.paged_in->result);
    }
    const uint64_t pin_id = current->first;
    const std::vector<ObjectKey> keys = std::move(current->second.keys);
    const uint64_t bytes = current->second.bytes;
    waiting_.erase(current);
    num_objects_ -= keys.size();
    pinned_bytes_ -= bytes;
    shared_->pinned_bytes -= bytes;
    answers.push_back(Answer(pin_id, keys, result.num_paged_in));
  }
  return answers;
}

v1::ShmMessage ShmSession::Refuse(uint64_t pin_id, const absl::Status& status) {
  shared_->metrics->Rejected(RejectReason::kTooLarge);
  v1::ShmMessage answer;
  answer.mutable_pinned()->set_pin_id(pin_id);
  answer.mutable_pinned()->set_code(static_cast<int>(status.code()));
  answer.mutable_pinned()->set_message(std::string(status.message()));
  return answer;
}

v1::ShmMessage ShmSession::Answer(uint64_t pin_id, std::span<const ObjectKey> keys,
                                  int num_paged_in) {
  Pin pin;
  pin.leases = shared_->store->FindAll(keys);
  int num_found = 0;
  for (const Lease& lease : pin.leases) {
    if (!lease) continue;
    ++num_found;
    pin.bytes += lease.bytes().size();
  }
  if (const absl::Status refused = AdmitBytes(pin.bytes); !refused.ok())
    return Refuse(pin_id, refused);
  shared_->metrics->TierHits(num_found, num_paged_in);
  v1::ShmMessage answer;
  answer.mutable_pinned()->set_pin_id(pin_id);
  for (Lease& lease : pin.leases) {
    *answer.mutable_pinned()->add_extents() = Describe(lease);
  }
  pin.reported.resize(pin.leases.size());
  pin.since = shared_->clock->MonotonicNow();
  num_objects_ += pin.leases.size();
  pinned_bytes_ += pin.bytes;
  shared_->pinned_bytes += pin.bytes;
  pins_.emplace(pin_id, std::move(pin));
  return answer;
}

v1::ShmExtent ShmSession::Describe(Lease& lease) {
  v1::ShmExtent extent;
  if (!lease) {
    shared_->metrics->GetEnded(GetOutcomeKind::kMiss);
    extent.set_code(static_cast<int>(absl::StatusCode::kNotFound));
    return extent;
  }
  const absl::StatusOr<ObjectHeader> header = lease.VerifyHead();
  if (!header.ok()) {
    shared_->store->Quarantine(lease);
    shared_->metrics->GetEnded(GetOutcomeKind::kCorrupt);
    extent.set_code(static_cast<int>(absl::StatusCode::kDataLoss));
    return extent;
  }
  shared_->metrics->GetEnded(GetOutcomeKind::kHit);
  shared_->metrics->Moved(Direction::kOut, lease.frame_bytes() * lease.num_layers(),
                          LogicalFrameBytes(*header) * header->num_layers, PayloadTransport::kShm);
  extent.set_offset(lease.arena_offset());
  extent.set_bytes(lease.bytes().size());
  return extent;
}

absl::Status ShmSession::OnUnpin(const v1::ShmUnpin& request) {
  const auto found = pins_.find(request.pin_id());
  if (found == pins_.end()) {
    return absl::InvalidArgumentError(absl::StrCat("unpin of ", request.pin_id(), ": no such pin"));
  }
  Release(found->second);
  pins_.erase(found);
  return absl::OkStatus();
}

void ShmSession::Release(const Pin& pin) {
  num_objects_ -= pin.leases.size();
  pinned_bytes_ -= pin.bytes;
  shared_->pinned_bytes -= pin.bytes;
}

absl::Status ShmSession::OnDamaged(const v1::ShmDamaged& report) {
  const auto found = pins_.find(report.pin_id());
  if (found == pins_.end() || report.object_index() >= found->second.leases.size()) {
    return absl::InvalidArgumentError(absl::StrCat("damage of object ", report.object_index(),
                                                   " of pin ", report.pin_id(), ": no such"));
  }
  Pin& pin = found->second;
  const Lease& lease = pin.leases[report.object_index()];
  // Looking is work: once for each object of a pin.
  if (!lease || pin.reported[report.object_index()]) {
    return absl::InvalidArgumentError("damage reported twice, or of what was not pinned");
  }
  pin.reported[report.object_index()] = true;
  absl::Status intact = lease.VerifyHead().status();
  for (int layer = 0; intact.ok() && layer < lease.num_layers(); ++layer) {
    intact = lease.VerifyFrame(layer);
  }
  if (intact.ok()) return absl::OkStatus();
  shared_->store->Quarantine(lease);
  shared_->metrics->GetEnded(GetOutcomeKind::kCorrupt);
  return absl::OkStatus();
}

ShmSession::Expiry ShmSession::expiry() const {
  const absl::Duration patience = welcomed_ ? shared_->limits.silence : kShmHelloTimeout;
  Expiry expiry{renewed_ + patience, ShmEnd::kSilent};
  for (const auto& [id, pin] : pins_) {
    if (const absl::Time end = pin.since + shared_->limits.pin_age; end < expiry.time) {
      expiry = {end, ShmEnd::kHeld};
    }
  }
  if (stage_.stage != nullptr) {
    const absl::Time end = shared_->stages->LastUsed(stage_.token) + kShmStageIdle;
    if (end < expiry.time) expiry = {end, ShmEnd::kIdle};
  }
  return expiry;
}

}  // namespace pkv
