#include "client/device_scratch.h"

#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"

namespace pkv {
namespace {

// Powers of two from here on, so that a piece serves gets of about its size.
constexpr uint64_t kMinPieceBytes = uint64_t{1} << 20;

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
  const uint64_t wanted = std::max(std::bit_ceil(bytes), kMinPieceBytes);
  {
    MutexLock lock(&mu_);
    const auto found = std::find_if(idle_.begin(), idle_.end(),
                                    [&](const Memory& memory) { return memory.bytes == wanted; });
    if (found != idle_.end()) {
      const Memory memory = *found;
      idle_.erase(found);
      return std::make_unique<Piece>(this, memory.data, memory.bytes);
    }
    if (wanted > max_bytes_ - allocated_bytes_) return too_large;
    allocated_bytes_ += wanted;
  }
  const absl::StatusOr<std::byte*> data = calls_->AllocateDevice(wanted);
  if (data.ok()) return std::make_unique<Piece>(this, *data, wanted);
  MutexLock lock(&mu_);
  allocated_bytes_ -= wanted;
  return data.status();
}

void DeviceScratch::GiveBack(const Memory& memory) {
  MutexLock lock(&mu_);
  idle_.push_back(memory);
}

}  // namespace pkv
