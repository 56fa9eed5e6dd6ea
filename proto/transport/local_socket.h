#ifndef PKV_PROTO_TRANSPORT_LOCAL_SOCKET_H_
#define PKV_PROTO_TRANSPORT_LOCAL_SOCKET_H_

// Unix stream sockets and the descriptors that travel over them, as Status.

#include <sys/types.h>

#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace pkv {

// Owns a file descriptor. Thread-compatible.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() { Close(); }
  FileDescriptor(FileDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept {
    if (this != &other) {
      Close();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }

  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void Close();

 private:
  int fd_ = -1;
};

// Who holds the other end, as the kernel recorded it when the connection was made.
struct PeerCredentials {
  pid_t pid = 0;  // 0: of a pid namespace that we cannot see into
  uid_t uid = 0;
};
absl::StatusOr<PeerCredentials> PeerOf(int socket);

// A connected stream socket, closed on exec. It blocks, each send and receive for `timeout` at
// most.
//   InvalidArgument  `path` is empty or longer than a socket's name may be
//   Unavailable      nobody listens there, or we may not connect
absl::StatusOr<FileDescriptor> ConnectLocal(const std::string& path, absl::Duration timeout);

// Sends what fits without waiting and returns how much that was; `passed_fd`, when not negative,
// goes with the first byte. Unavailable: the peer is gone.
absl::StatusOr<size_t> SendSome(int socket, std::span<const std::byte> bytes, int passed_fd = -1);

struct ReceivedBytes {
  size_t num_bytes = 0;      // 0: the peer has closed
  bool would_block = false;  // nothing is there now; only with `wait` off, or after the timeout
  FileDescriptor passed_fd;  // that came with them
};
// Receives what is there, at least one byte; with `wait` on waits for it. At most one descriptor is
// taken along, and none unless `takes_fd`: the kernel closes all others.
//   Unavailable  the connection broke
absl::StatusOr<ReceivedBytes> ReceiveSome(int socket, std::span<std::byte> buffer, bool wait,
                                          bool takes_fd);

// Whether the peer has closed its end or shut the connection down, be there bytes of it left to
// read or not. Its kernel answers: what the peer did afterwards, it did after this was false.
bool IsHungUp(int socket);

}  // namespace pkv

#endif  // PKV_PROTO_TRANSPORT_LOCAL_SOCKET_H_
