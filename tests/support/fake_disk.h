#ifndef PKV_TESTS_SUPPORT_FAKE_DISK_H_
#define PKV_TESTS_SUPPORT_FAKE_DISK_H_

// A disk in memory that fails, fills up, crashes and rots when told to.

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kvstore/disk/disk.h"
#include "proto/base/log.h"
#include "proto/base/sync.h"

namespace pkv {

// What has been written and not synced may be there after a crash, or not, or half of a unit; files
// made, cut off and removed since SyncFolder() likewise.
//
// Thread-safe.
class FakeDisk : public Disk {
 public:
  enum class Call { kWrite, kRead, kSync, kAllocate, kTruncate, kCreate, kRemove, kSyncFolder };

  // Asked before each call: an error is its result, and it does nothing, but for a write: half of
  // its units are written.
  void SetFault(std::function<absl::Status(Call)> fault) {
    MutexLock lock(&mu_);
    fault_ = std::move(fault);
  }
  void SetTotalBytes(uint64_t bytes) {
    MutexLock lock(&mu_);
    total_bytes_ = bytes;
  }
  uint64_t used_bytes() const {
    MutexLock lock(&mu_);
    return UsedLocked();
  }
  // Largest used_bytes() there ever was.
  uint64_t most_used_bytes() const {
    MutexLock lock(&mu_);
    return most_used_bytes_;
  }

  // What a machine finds that lost its power now.
  std::unique_ptr<FakeDisk> Crash(uint32_t seed) const {
    std::mt19937 random(seed);
    auto after = std::make_unique<FakeDisk>();
    MutexLock lock(&mu_);
    for (const auto& [name, content] : folder_) {
      const bool is_durable = durable_folder_.contains(name);
      if (!is_durable && random() % 2 == 0) continue;
      after->AddFile(name, content->AfterCrash(random));
    }
    for (const auto& [name, content] : durable_folder_) {
      if (!folder_.contains(name) && random() % 2 == 0) {
        after->AddFile(name, content->AfterCrash(random));
      }
    }
    return after;
  }

  // From now on, reads that touch this unit of a file fail; or all is well with it again.
  void SpoilUnit(const std::string& name, uint64_t unit) {
    MutexLock lock(&mu_);
    folder_.at(name)->bad_units.insert(unit);
  }
  void MendUnits(const std::string& name) {
    MutexLock lock(&mu_);
    folder_.at(name)->bad_units.clear();
  }

  std::vector<std::string> names() const { return List().value(); }
  // The bytes of a file, to be read and changed.
  std::vector<std::byte>& bytes(const std::string& name) {
    MutexLock lock(&mu_);
    return folder_.at(name)->bytes;
  }
  void AddFile(const std::string& name, std::vector<std::byte> bytes) {
    auto content = std::make_shared<Content>();
    content->bytes = content->durable = std::move(bytes);
    MutexLock lock(&mu_);
    folder_[name] = durable_folder_[name] = std::move(content);
  }

  absl::StatusOr<std::vector<std::string>> List() const override {
    MutexLock lock(&mu_);
    std::vector<std::string> names;
    for (const auto& [name, content] : folder_) names.push_back(name);
    return names;
  }
  absl::StatusOr<std::unique_ptr<DiskFile>> Create(const std::string& name) override {
    if (const absl::Status fault = Fault(Call::kCreate); !fault.ok()) return fault;
    MutexLock lock(&mu_);
    const auto [at, inserted] = folder_.emplace(name, std::make_shared<Content>());
    if (!inserted) return absl::UnavailableError(absl::StrCat(name, " is there"));
    return std::make_unique<File>(this, at->second);
  }
  absl::StatusOr<std::unique_ptr<DiskFile>> Open(const std::string& name) override {
    MutexLock lock(&mu_);
    const auto found = folder_.find(name);
    if (found == folder_.end()) return absl::UnavailableError(absl::StrCat("no ", name));
    return std::make_unique<File>(this, found->second);
  }
  absl::Status Remove(const std::string& name) override {
    if (const absl::Status fault = Fault(Call::kRemove); !fault.ok()) return fault;
    MutexLock lock(&mu_);
    return folder_.erase(name) == 1 ? absl::OkStatus() : absl::UnavailableError("no such file");
  }
  absl::Status SyncFolder() override {
    if (const absl::Status fault = Fault(Call::kSyncFolder); !fault.ok()) return fault;
    MutexLock lock(&mu_);
    durable_folder_ = folder_;
    return absl::OkStatus();
  }
  absl::StatusOr<uint64_t> TotalBytes() const override {
    MutexLock lock(&mu_);
    return total_bytes_;
  }

 private:
  struct Content {
    std::vector<std::byte> bytes, durable;
    std::set<uint64_t> bad_units;

    std::vector<std::byte> AfterCrash(std::mt19937& random) const {
      std::vector<std::byte> left = durable;
      left.resize(random() % 2 == 0 ? bytes.size() : durable.size());
      for (uint64_t at = 0; at < left.size(); at += kDiskUnitBytes) {
        const uint64_t there = at < bytes.size() ? bytes.size() - at : 0;
        uint64_t kept = std::min({kDiskUnitBytes, left.size() - at, there});
        const uint32_t fate = random() % 4;
        if (fate == 0) kept = 0;                                  // lost
        if (fate == 1) kept = std::min(kept, kept / 1024 * 512);  // torn at a sector
        std::copy_n(bytes.begin() + static_cast<int64_t>(at), kept,
                    left.begin() + static_cast<int64_t>(at));
      }
      return left;
    }
  };

  class File : public DiskFile {
   public:
    File(FakeDisk* disk, std::shared_ptr<Content> content)
        : disk_(disk), content_(std::move(content)) {}

    absl::Status Write(uint64_t offset,
                       std::span<const std::span<const std::byte>> pieces) override {
      const absl::Status fault = disk_->Fault(Call::kWrite);
      std::vector<std::byte> all;
      for (const auto& piece : pieces) {
        PKV_CHECK(reinterpret_cast<uintptr_t>(piece.data()) % kDiskUnitBytes == 0);
        all.insert(all.end(), piece.begin(), piece.end());
      }
      PKV_CHECK(offset % kDiskUnitBytes == 0 && all.size() % kDiskUnitBytes == 0);
      if (!fault.ok()) all.resize(all.size() / kDiskUnitBytes / 2 * kDiskUnitBytes);
      MutexLock lock(&disk_->mu_);
      content_->bytes.resize(std::max<uint64_t>(content_->bytes.size(), offset + all.size()));
      std::ranges::copy(all, content_->bytes.begin() + static_cast<int64_t>(offset));
      disk_->NoteUseLocked();
      return fault;
    }
    absl::Status Read(uint64_t offset, std::span<std::byte> out) const override {
      if (const absl::Status fault = disk_->Fault(Call::kRead); !fault.ok()) return fault;
      PKV_CHECK(reinterpret_cast<uintptr_t>(out.data()) % kDiskUnitBytes == 0);
      PKV_CHECK(offset % kDiskUnitBytes == 0 && out.size() % kDiskUnitBytes == 0);
      MutexLock lock(&disk_->mu_);
      if (offset + out.size() > content_->bytes.size()) return absl::OutOfRangeError("the end");
      const auto bad = content_->bad_units.lower_bound(offset / kDiskUnitBytes);
      if (bad != content_->bad_units.end() && *bad * kDiskUnitBytes < offset + out.size()) {
        return absl::UnavailableError("a bad sector");
      }
      std::copy_n(content_->bytes.begin() + static_cast<int64_t>(offset), out.size(), out.begin());
      return absl::OkStatus();
    }
    absl::Status Sync() override {
      if (const absl::Status fault = disk_->Fault(Call::kSync); !fault.ok()) return fault;
      MutexLock lock(&disk_->mu_);
      content_->durable = content_->bytes;
      return absl::OkStatus();
    }
    absl::Status Allocate(uint64_t bytes) override {
      if (const absl::Status fault = disk_->Fault(Call::kAllocate); !fault.ok()) return fault;
      MutexLock lock(&disk_->mu_);
      if (disk_->UsedLocked() + bytes > disk_->total_bytes_ + content_->bytes.size()) {
        return absl::ResourceExhaustedError("no space left");
      }
      content_->bytes.resize(bytes);
      disk_->NoteUseLocked();
      return absl::OkStatus();
    }
    absl::Status Truncate(uint64_t bytes) override {
      if (const absl::Status fault = disk_->Fault(Call::kTruncate); !fault.ok()) return fault;
      MutexLock lock(&disk_->mu_);
      content_->bytes.resize(bytes);
      return absl::OkStatus();
    }
    absl::StatusOr<uint64_t> Size() const override {
      MutexLock lock(&disk_->mu_);
      return content_->bytes.size();
    }

   private:
    FakeDisk* const disk_;
    const std::shared_ptr<Content> content_;
  };

  absl::Status Fault(Call call) const {
    std::function<absl::Status(Call)> fault;
    {
      MutexLock lock(&mu_);
      fault = fault_;
    }
    return fault ? fault(call) : absl::OkStatus();
  }
  uint64_t UsedLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    uint64_t bytes = 0;
    for (const auto& [name, content] : folder_) bytes += content->bytes.size();
    return bytes;
  }
  void NoteUseLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) {
    most_used_bytes_ = std::max(most_used_bytes_, UsedLocked());
  }

  mutable Mutex mu_;
  std::function<absl::Status(Call)> fault_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::shared_ptr<Content>> folder_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::shared_ptr<Content>> durable_folder_ ABSL_GUARDED_BY(mu_);
  uint64_t total_bytes_ ABSL_GUARDED_BY(mu_) = std::numeric_limits<int64_t>::max();
  uint64_t most_used_bytes_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_FAKE_DISK_H_
