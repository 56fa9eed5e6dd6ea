#include "client/put_stage.h"

#include <algorithm>
#include <utility>

#include "client/shm_dialer.h"
#include "proto/base/status_macros.h"
#include "proto/transport/data_frame.h"

namespace pkv {
namespace {

// For a negotiation, where gRPC could be used instead: the model waits for it.
constexpr absl::Duration kDialPatience = absl::Milliseconds(500);
constexpr uint64_t kSlotBytes = kShmWindowBytes / PutStage::kNumSlots;
static_assert(kSlotBytes <= kMaxStagedBytes);

}  // namespace

absl::StatusOr<std::unique_ptr<PutStage>> PutStage::Open(ClientCore& core, absl::Time deadline) {
  absl::Duration patience = core.options.progress_timeout;
  if (core.options.transport == Transport::kAuto) patience = std::min(patience, kDialPatience);
  PKV_ASSIGN_OR_RETURN(
      std::shared_ptr<ShmLink> link,
      core.shm_puts->Link(std::min(core.clock->MonotonicNow() + patience, deadline)));
  PKV_ASSIGN_OR_RETURN(std::unique_ptr<ShmLink::Window> window, link->TakeWindow());
  return std::unique_ptr<PutStage>(new PutStage(std::move(link), std::move(window)));
}

std::span<std::byte> PutStage::slot() const {
  return window_->bytes().subspan(slot_index_ * kSlotBytes, kSlotBytes);
}

uint64_t PutStage::slot_offset() const { return window_->offset() + slot_index_ * kSlotBytes; }

}  // namespace pkv
