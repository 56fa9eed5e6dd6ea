#include "kvstore/service/shm_stage.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/transport/shm_frame.h"

namespace pkv {
namespace {

absl::Status StageError(absl::string_view what, uint64_t bytes) {
  return absl::ResourceExhaustedError(
      absl::StrCat(what, " of a stage of ", bytes, " bytes failed: ", std::strerror(errno)));
}

}  // namespace

absl::StatusOr<std::string> DrawShmToken() {
  std::string token(kShmTokenBytes, '\0');
  if (getrandom(token.data(), token.size(), 0) != static_cast<ssize_t>(token.size())) {
    return absl::UnavailableError(absl::StrCat("getrandom: ", std::strerror(errno)));
  }
  return token;
}

absl::StatusOr<std::unique_ptr<ShmStage>> ShmStage::Create(uint64_t bytes) {
  FileDescriptor file(memfd_create("pkv-stage", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file) return StageError("memfd_create", bytes);
  if (ftruncate(file.get(), static_cast<off_t>(bytes)) != 0) return StageError("ftruncate", bytes);
  if (fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return StageError("sealing", bytes);
  }
  return std::unique_ptr<ShmStage>(new ShmStage(std::move(file), bytes));
}

absl::Status ShmStage::Read(uint64_t offset, std::span<std::byte> out) const {
  if (out.size() > bytes_ || offset > bytes_ - out.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat(out.size(), " bytes at ", offset, " of a stage of ", bytes_));
  }
  while (!out.empty()) {
    const ssize_t num_read = pread(fd_.get(), out.data(), out.size(), static_cast<off_t>(offset));
    if (num_read < 0 && errno == EINTR) continue;
    if (num_read <= 0) return StageError("pread", bytes_);
    out = out.subspan(num_read);
    offset += num_read;
  }
  return absl::OkStatus();
}

absl::StatusOr<ShmStages::Lent> ShmStages::Lend() {
  if (num_stages_ >= kMaxShmStages) {
    return absl::ResourceExhaustedError(
        absl::StrCat(kMaxShmStages, " stages are in use, as many as there may be"));
  }
  PKV_ASSIGN_OR_RETURN(std::unique_ptr<ShmStage> stage, ShmStage::Create(kShmStageBytes));
  PKV_ASSIGN_OR_RETURN(std::string token, DrawShmToken());
  ++num_stages_;
  Lent lent{std::move(token),
            std::shared_ptr<const ShmStage>(stage.release(), [this](const ShmStage* last) {
              delete last;
              --num_stages_;
            })};
  const absl::Time now = clock_->MonotonicNow();
  MutexLock lock(&mu_);
  by_token_.emplace(lent.token, Entry{lent.stage, now});
  return lent;
}

void ShmStages::TakeBack(const std::string& token) {
  std::shared_ptr<const ShmStage> stage;  // to close without the lock
  MutexLock lock(&mu_);
  const auto found = by_token_.find(token);
  PKV_CHECK(found != by_token_.end(), "a stage that is not lent");
  stage = std::move(found->second.stage);
  by_token_.erase(found);
}

std::shared_ptr<const ShmStage> ShmStages::Find(const std::string& token) {
  const absl::Time now = clock_->MonotonicNow();
  MutexLock lock(&mu_);
  const auto found = by_token_.find(token);
  if (found == by_token_.end()) return nullptr;
  found->second.used = now;
  return found->second.stage;
}

absl::Time ShmStages::LastUsed(const std::string& token) const {
  MutexLock lock(&mu_);
  const auto found = by_token_.find(token);
  PKV_CHECK(found != by_token_.end(), "a stage that is not lent");
  return found->second.used;
}

}  // namespace pkv
