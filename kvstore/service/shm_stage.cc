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
  void* mapped = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, file.get(), 0);
  if (mapped == MAP_FAILED) return StageError("mmap", bytes);
  return std::unique_ptr<ShmStage>(
      new ShmStage(std::move(file), {static_cast<const std::byte*>(mapped), bytes}));
}

ShmStage::~ShmStage() { munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size()); }

absl::StatusOr<std::span<const std::byte>> ShmStage::Part(uint64_t offset, uint64_t bytes) const {
  if (bytes > bytes_.size() || offset > bytes_.size() - bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(bytes, " bytes at ", offset, " of a stage of ", bytes_.size()));
  }
  return bytes_.subspan(offset, bytes);
}

absl::StatusOr<ShmStages::Lent> ShmStages::Lend() {
  // Counted first: two that come together are never one too many.
  if (num_stages_.fetch_add(1) >= kMaxShmStages) {
    --num_stages_;
    return absl::ResourceExhaustedError(
        absl::StrCat(kMaxShmStages, " stages are in use, as many as there may be"));
  }
  absl::StatusOr<std::unique_ptr<ShmStage>> stage = ShmStage::Create(kShmStageBytes);
  absl::StatusOr<std::string> token = DrawShmToken();
  if (!stage.ok() || !token.ok()) {
    --num_stages_;
    return stage.ok() ? token.status() : stage.status();
  }
  Lent lent{*std::move(token),
            std::shared_ptr<const ShmStage>(stage->release(), [this](const ShmStage* last) {
              delete last;
              --num_stages_;
            })};
  MutexLock lock(&mu_);
  by_token_.emplace(lent.token, lent.stage);
  return lent;
}

void ShmStages::TakeBack(const std::string& token) {
  std::shared_ptr<const ShmStage> stage;  // to unmap without the lock
  MutexLock lock(&mu_);
  const auto found = by_token_.find(token);
  PKV_CHECK(found != by_token_.end(), "a stage that is not lent");
  stage = std::move(found->second);
  by_token_.erase(found);
}

std::shared_ptr<const ShmStage> ShmStages::Find(const std::string& token) const {
  MutexLock lock(&mu_);
  const auto found = by_token_.find(token);
  return found == by_token_.end() ? nullptr : found->second;
}

}  // namespace pkv
