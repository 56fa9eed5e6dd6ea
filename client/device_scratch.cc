#include "client/device_scratch.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"

namespace pkv {
namespace {

// Powers of two from here on, so that a piece serves gets of about its size.
constexpr uint64_t kMinPieceBytes = uint64_t{1} << 20;
// How many times what is wanted an idle piece may have: the rest of it is nobody's meanwhile.
constexpr uint64_t kMaxExcess = 4;

}  // namespace

DeviceScratch::~DeviceScratch() {
  MutexLock lock(&mu_);
  for (const Memory& memory : idle_) {
    allocated_bytes_ -= memory.bytes;
    calls_->FreeDevice(memory.data);
  }
  PKV_CHECK(allocated_bytes_ == 0, allocated_bytes_);
}

absl::StatusOr<std::unique_ptr<DeviceScratch::Piece>> DeviceScratch::Take(uint64_t bytes) {
  const absl::Status too_large = absl::ResourceExhaustedError(absl::StrCat(
      bytes, " bytes of device memory for frames of one get, limit of all ", max_bytes_));
  if (bytes > max_bytes_) return too_large;
  const uint64_t wanted = std::min(std::max(std::bit_ceil(bytes), kMinPieceBytes), max_bytes_);
  std::vector<Memory> freed;
  {
    MutexLock lock(&mu_);
    if (const auto found = FindIdle(wanted); found != idle_.end()) {
      const Memory memory = *found;
      idle_.erase(found);
      return std::make_unique<Piece>(this, memory.data, memory.bytes);
    }
    if (wanted > max_bytes_ - allocated_bytes_) {
      // No idle piece is of use: with all of them gone there may be room.
      freed = std::exchange(idle_, {});
      for (const Memory& memory : freed) allocated_bytes_ -= memory.bytes;
    }
    if (wanted > max_bytes_ - allocated_bytes_) {
      for (const Memory& memory : freed) allocated_bytes_ += memory.bytes;
      idle_ = std::move(freed);
      return too_large;
    }
    allocated_bytes_ += wanted;
  }
  for (const Memory& memory : freed) calls_->FreeDevice(memory.data);
  const absl::StatusOr<std::byte*> data = calls_->AllocateDevice(wanted);
  if (data.ok()) return std::make_unique<Piece>(this, *data, wanted);
  MutexLock lock(&mu_);
  allocated_bytes_ -= wanted;
  return data.status();
}

std::vector<DeviceScratch::Memory>::iterator DeviceScratch::FindIdle(uint64_t bytes) {
  auto best = idle_.end();
  for (auto it = idle_.begin(); it != idle_.end(); ++it) {
    if (it->bytes < bytes || it->bytes / bytes > kMaxExcess) continue;
    if (best == idle_.end() || it->bytes < best->bytes) best = it;
  }
  return best;
}

void DeviceScratch::GiveBack(const Memory& memory) {
  MutexLock lock(&mu_);
  idle_.push_back(memory);
}

}  // namespace pkv
