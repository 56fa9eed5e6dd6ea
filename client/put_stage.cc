#include "client/put_stage.h"

#include <algorithm>
#include <utility>

#include "client/shm_dialer.h"
#include "proto/base/status_macros.h"
#include "proto/transport/data_frame.h"

namespace pkv {
namespace {

// For a negotiation, where gRPC could be used instead.
constexpr absl::Duration kDialPatience = absl::Seconds(2);
constexpr uint64_t kSlotBytes = kShmWindowBytes / PutStage::kNumSlots;
static_assert(kSlotBytes <= kMaxStagedBytes);

}  // namespace

absl::StatusOr<std::unique_ptr<PutStage>> PutStage::Open(ClientCore& core, absl::Time deadline) {
  const Transport transport = core.options.transport;
  const bool may_fall_back = transport == Transport::kAuto;
  if ((!may_fall_back && transport != Transport::kShm) ||
      (may_fall_back && !core.shm_puts->IsWorthATry())) {
    return nullptr;
  }
  absl::Duration patience = core.options.progress_timeout;
  if (may_fall_back) patience = std::min(patience, kDialPatience);
  absl::StatusOr<std::shared_ptr<ShmLink>> link =
      core.shm_puts->Link(std::min(core.clock->MonotonicNow() + patience, deadline));
  absl::Status status = link.status();
  if (link.ok()) {
    absl::StatusOr<std::unique_ptr<ShmLink::Window>> window = (*link)->TakeWindow();
    if (window.ok()) {
      return std::unique_ptr<PutStage>(new PutStage(*std::move(link), *std::move(window)));
    }
    status = window.status();
  }
  if (!may_fall_back) return status;
  // A server without shm is no failure of it.
  if (!absl::IsFailedPrecondition(status)) ++core.counters.shm_put_fallbacks;
  return nullptr;
}

std::span<std::byte> PutStage::slot() const {
  return window_->bytes().subspan(slot_index_ * kSlotBytes, kSlotBytes);
}

uint64_t PutStage::slot_offset() const { return window_->offset() + slot_index_ * kSlotBytes; }

}  // namespace pkv
