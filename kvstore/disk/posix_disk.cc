#include "kvstore/disk/posix_disk.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

constexpr const char* kLockName = "LOCK";

absl::Status IoError(absl::string_view call, absl::string_view name) {
  const std::string message = absl::StrCat(call, " ", name, ": ", std::strerror(errno));
  if (errno == ENOSPC || errno == EDQUOT) return absl::ResourceExhaustedError(message);
  return absl::UnavailableError(message);
}

// Owns a descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(Descriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Descriptor& operator=(Descriptor&&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

class PosixFile : public DiskFile {
 public:
  PosixFile(Descriptor fd, std::string name, bool is_direct)
      : fd_(std::move(fd)), name_(std::move(name)), is_direct_(is_direct) {}

  absl::Status Write(uint64_t offset, std::span<const std::span<const std::byte>> pieces) override {
    std::vector<iovec> left;
    for (const std::span<const std::byte>& piece : pieces) {
      left.push_back({const_cast<std::byte*>(piece.data()), piece.size()});
    }
    for (size_t first = 0; first < left.size();) {
      const int count = static_cast<int>(std::min<size_t>(left.size() - first, 64));
      const ssize_t written =
          pwritev(fd_.get(), left.data() + first, count, static_cast<off_t>(offset));
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) return IoError("write", name_);
      if (written == 0) return absl::UnavailableError(absl::StrCat("write ", name_, ": nothing"));
      offset += static_cast<uint64_t>(written);
      auto done = static_cast<size_t>(written);
      while (first < left.size() && done >= left[first].iov_len) done -= left[first++].iov_len;
      if (done > 0) {
        left[first].iov_base = static_cast<std::byte*>(left[first].iov_base) + done;
        left[first].iov_len -= done;
      }
    }
    return absl::OkStatus();
  }

  absl::Status Read(uint64_t offset, std::span<std::byte> out) const override {
    while (!out.empty()) {
      const ssize_t got = pread(fd_.get(), out.data(), out.size(), static_cast<off_t>(offset));
      if (got < 0 && errno == EINTR) continue;
      if (got < 0) return IoError("read", name_);
      if (got == 0) return absl::OutOfRangeError(absl::StrCat(name_, " ends at ", offset));
      offset += static_cast<uint64_t>(got);
      out = out.subspan(static_cast<size_t>(got));
    }
    return absl::OkStatus();
  }

  absl::Status Sync() override {
    if (fdatasync(fd_.get()) != 0) return IoError("fdatasync", name_);
    // What is clean now need not stay in the page cache.
    if (!is_direct_) posix_fadvise(fd_.get(), 0, 0, POSIX_FADV_DONTNEED);
    return absl::OkStatus();
  }

  absl::Status Allocate(uint64_t bytes) override {
    int failed;
    do failed = posix_fallocate(fd_.get(), 0, static_cast<off_t>(bytes));
    while (failed == EINTR);
    errno = failed;
    return failed == 0 ? absl::OkStatus() : IoError("fallocate", name_);
  }

  absl::Status Truncate(uint64_t bytes) override {
    if (ftruncate(fd_.get(), static_cast<off_t>(bytes)) == 0) return absl::OkStatus();
    return IoError("ftruncate", name_);
  }

  absl::StatusOr<uint64_t> Size() const override {
    struct stat info;
    if (fstat(fd_.get(), &info) != 0) return IoError("fstat", name_);
    return static_cast<uint64_t>(info.st_size);
  }

 private:
  const Descriptor fd_;
  const std::string name_;
  const bool is_direct_;
};

class PosixDisk : public Disk {
 public:
  PosixDisk(std::string path, Descriptor folder, Descriptor lock)
      : path_(std::move(path)), folder_(std::move(folder)), lock_(std::move(lock)) {}

  absl::StatusOr<std::vector<std::string>> List() const override {
    std::vector<std::string> names;
    std::error_code error;
    for (std::filesystem::directory_iterator at(path_, error), end; !error && at != end;
         at.increment(error)) {
      std::string name = at->path().filename().string();
      if (name != kLockName) names.push_back(std::move(name));
    }
    if (error) return absl::UnavailableError(absl::StrCat("list ", path_, ": ", error.message()));
    return names;
  }

  absl::StatusOr<std::unique_ptr<DiskFile>> Create(const std::string& name) override {
    return OpenFile(name, O_CREAT | O_EXCL);
  }
  absl::StatusOr<std::unique_ptr<DiskFile>> Open(const std::string& name) override {
    return OpenFile(name, 0);
  }

  absl::Status Remove(const std::string& name) override {
    if (unlinkat(folder_.get(), name.c_str(), 0) == 0) return absl::OkStatus();
    return IoError("unlink", absl::StrCat(path_, "/", name));
  }

  absl::Status SyncFolder() override {
    return fsync(folder_.get()) == 0 ? absl::OkStatus() : IoError("fsync", path_);
  }

  absl::StatusOr<uint64_t> TotalBytes() const override {
    struct statvfs info;
    if (fstatvfs(folder_.get(), &info) != 0) return IoError("statvfs", path_);
    return static_cast<uint64_t>(info.f_blocks) * info.f_frsize;
  }

 private:
  absl::StatusOr<std::unique_ptr<DiskFile>> OpenFile(const std::string& name, int flags) {
    flags |= O_RDWR | O_CLOEXEC | O_NOFOLLOW;
    for (const bool is_direct : {true, false}) {
      Descriptor fd(openat(folder_.get(), name.c_str(), flags | (is_direct ? O_DIRECT : 0), 0600));
      if (fd.get() >= 0) return std::make_unique<PosixFile>(std::move(fd), name, is_direct);
      if (errno != EINVAL) break;
      // The file system has no O_DIRECT, but may have made the file before it said so.
      flags &= ~O_EXCL;
    }
    return IoError("open", absl::StrCat(path_, "/", name));
  }

  const std::string path_;
  const Descriptor folder_;
  const Descriptor lock_;
};

absl::Status Refused(const std::string& path, absl::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what, ": ", std::strerror(errno)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<Disk>> OpenPosixDisk(const std::string& path) {
  if (mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return Refused(path, "cannot be made");
  Descriptor folder(open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (folder.get() < 0) return Refused(path, "cannot be opened as a folder");
  Descriptor lock(openat(folder.get(), kLockName, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (lock.get() < 0) return Refused(path, "cannot be written");
  if (flock(lock.get(), LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(path, " is in use by another process: each needs a folder of its own"));
  }
  return std::make_unique<PosixDisk>(path, std::move(folder), std::move(lock));
}

}  // namespace pkv
