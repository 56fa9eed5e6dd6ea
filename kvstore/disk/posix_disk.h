#ifndef PKV_KVSTORE_DISK_POSIX_DISK_H_
#define PKV_KVSTORE_DISK_POSIX_DISK_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kvstore/disk/disk.h"

namespace pkv {

// The folder `path`, made if its parent exists, as a Disk. Its file LOCK is held (flock) as long as
// the disk lives, so that two processes never share a folder.
//
// Files are opened with O_DIRECT where the file system takes it: bytes go straight between the
// caller's memory and the device and take no page cache, which a container's memory limit would
// count. Elsewhere (tmpfs before Linux 6.6, some overlays) they are buffered, and let go of once
// synced. Plain pread and pwrite: the seccomp profiles of container runtimes block io_uring.
//
//   FailedPrecondition  another process holds the folder
//   InvalidArgument     `path` is no folder, or cannot be made or written; names the reason
absl::StatusOr<std::unique_ptr<Disk>> OpenPosixDisk(const std::string& path);

}  // namespace pkv

#endif  // PKV_KVSTORE_DISK_POSIX_DISK_H_
