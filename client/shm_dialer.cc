#include "client/shm_dialer.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/transport/host_identity.h"

namespace pkv {
namespace {

constexpr absl::Duration kDialTimeout = absl::Seconds(1);

}  // namespace

absl::StatusOr<std::shared_ptr<ShmLink>> ShmDialer::Link(absl::Time deadline) {
  {
    MutexLock lock(&mu_);
    for (;;) {
      if (link_ != nullptr && link_->usable()) return link_;
      if (link_ != nullptr && !link_->broken()) {
        return absl::UnavailableError("shm: the server is late with an answer");
      }
      const absl::Time now = clock_->MonotonicNow();
      // What was true of a server before its link broke need not be true of the next.
      if (link_ == nullptr && now < error_until_) return last_error_;
      if (!dialling_) break;
      if (now >= deadline) return absl::DeadlineExceededError("shm: negotiation is under way");
      dialled_.WaitWithTimeout(&mu_, deadline - now);
    }
    dialling_ = true;
    link_ = nullptr;
  }
  const absl::Duration timeout = std::min(kDialTimeout, deadline - clock_->MonotonicNow());
  absl::StatusOr<std::shared_ptr<ShmLink>> link = Dial(timeout);
  MutexLock lock(&mu_);
  dialling_ = false;
  dialled_.SignalAll();
  if (link.ok()) {
    link_ = *link;
  } else {
    last_error_ = link.status();
    error_until_ =
        clock_->MonotonicNow() +
        (absl::IsFailedPrecondition(link.status()) ? kShmRefusalLasts : kShmFailureLasts);
  }
  return link;
}

bool ShmDialer::IsWorthATry() {
  MutexLock lock(&mu_);
  if (link_ != nullptr) return link_->usable() || link_->broken();
  return dialling_ || clock_->MonotonicNow() >= error_until_;
}

absl::StatusOr<std::shared_ptr<ShmLink>> ShmDialer::Dial(absl::Duration timeout) {
  v1::HandoffOpenRequest request;
  request.set_shm_version(kShmVersion);
  request.set_host_id(HostIdentity());
  v1::HandoffOpenResponse response;
  const absl::Status asked = connection_->OpenHandoff(request, timeout, response);
  if (absl::IsUnimplemented(asked)) {
    return absl::FailedPreconditionError("shm: the server does not know it");
  }
  PKV_RETURN_IF_ERROR(asked);
  if (!response.has_shm()) {
    return absl::FailedPreconditionError(absl::StrCat("shm: not offered: ", response.reason()));
  }
  if (response.shm().host_id() != request.host_id() || request.host_id().empty() ||
      response.shm().version() != kShmVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("shm: offered for another host, or version ", response.shm().version()));
  }
  absl::StatusOr<std::shared_ptr<ShmLink>> link =
      ShmLink::Connect(response.shm(), use_, timeout, clock_);
  if (!link.ok()) LogOnce(link.status());
  return link;
}

void ShmDialer::LogOnce(const absl::Status& status) {
  {
    MutexLock lock(&mu_);
    if (std::exchange(logged_, true)) return;
  }
  Log(LogLevel::kWarning, "shm was offered but does not work", {{"reason", status.ToString()}});
}

}  // namespace pkv
