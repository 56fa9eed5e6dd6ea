#include "client/nccl_dialer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/transport/nccl/nccl_offer.h"

namespace pkv {
namespace {

constexpr absl::Duration kAskTimeout = absl::Seconds(1);
// NCCL takes 0.2 to 0.9 s.
constexpr absl::Duration kOpenTimeout = absl::Seconds(5);

}  // namespace

NcclDialer::~NcclDialer() {
  std::thread thread;
  {
    MutexLock lock(&mu_);
    thread = std::move(thread_);
  }
  if (thread.joinable()) thread.join();
}

absl::StatusOr<std::shared_ptr<NcclLink>> NcclDialer::Link(absl::Time deadline) {
  std::shared_ptr<NcclLink> broken;  // outlives the lock: aborting takes a moment
  MutexLock lock(&mu_);
  for (;;) {
    if (link_ != nullptr && !link_->broken()) return link_;
    const absl::Time now = clock_->MonotonicNow();
    if (!dialling_) {
      if (link_ != nullptr) broken = Take();
      if (now < error_until_) return last_error_;
      StartDialling();
    }
    if (now >= deadline) return absl::DeadlineExceededError("nccl: the pair is being made");
    dialled_.WaitWithTimeout(&mu_, deadline - now);
  }
}

std::shared_ptr<NcclLink> NcclDialer::TakeBroken() {
  MutexLock lock(&mu_);
  return link_ != nullptr && link_->broken() ? Take() : nullptr;
}

std::shared_ptr<NcclLink> NcclDialer::Take() {
  if (clock_->MonotonicNow() - made_at_ < kNcclFailureLastsMax) {
    NoteError(absl::UnavailableError("nccl: the last pair broke soon after it was made"));
  } else {
    failure_lasts_ = kNcclFailureLasts;
  }
  return std::exchange(link_, nullptr);
}

void NcclDialer::StartDialling() {
  if (thread_.joinable()) thread_.join();  // it has ended
  dialling_ = true;
  thread_ = std::thread([this] { Keep(Dial()); });
}

void NcclDialer::Keep(const absl::StatusOr<std::shared_ptr<NcclLink>>& link) {
  MutexLock lock(&mu_);
  dialling_ = false;
  dialled_.SignalAll();
  if (link.ok()) {
    link_ = *link;
    made_at_ = clock_->MonotonicNow();
    last_refusal_.clear();
    return;
  }
  const absl::Status& error = link.status();
  NoteError(error);
  if (!absl::IsFailedPrecondition(error)) {
    Log(LogLevel::kWarning, "nccl: no pair was made", {{"reason", error.ToString()}});
  } else if (error.message() != last_refusal_) {  // it is repeated as long as both ends stay
    last_refusal_ = std::string(error.message());
    Log(LogLevel::kInfo, "nccl: not used", {{"reason", last_refusal_}});
  }
}

void NcclDialer::NoteError(const absl::Status& error) {
  last_error_ = error;
  absl::Duration lasts = kNcclRefusalLasts;
  if (!absl::IsFailedPrecondition(error)) {
    lasts = failure_lasts_;
    failure_lasts_ = std::min(2 * failure_lasts_, kNcclFailureLastsMax);
  }
  error_until_ = clock_->MonotonicNow() + lasts;
}

absl::StatusOr<std::shared_ptr<NcclLink>> NcclDialer::Dial() {
  v1::HandoffOpenRequest request;
  *request.mutable_nccl() = ToProto(port_.capability);
  v1::HandoffOpenResponse response;
  const absl::Status asked = connection_->OpenHandoff(request, kAskTimeout, response);
  if (absl::IsUnimplemented(asked)) {
    return absl::FailedPreconditionError("nccl: the server does not know it");
  }
  PKV_RETURN_IF_ERROR(asked);
  if (!response.has_nccl()) {
    return absl::FailedPreconditionError(
        absl::StrCat("nccl: not offered: ", response.nccl_reason()));
  }
  return NcclLink::Open(connection_, port_, kOpenTimeout, clock_);
}

}  // namespace pkv
