#include "proto/transport/local_socket.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace pkv {
namespace {

absl::Status SystemError(absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

// Room for one descriptor, aligned as the kernel's macros want it.
union ControlBuffer {
  char bytes[CMSG_SPACE(sizeof(int))];
  cmsghdr align;
};

}  // namespace

void FileDescriptor::Close() {
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

absl::StatusOr<PeerCredentials> PeerOf(int socket) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    return SystemError("SO_PEERCRED");
  }
  return PeerCredentials{credentials.pid, credentials.uid};
}

absl::StatusOr<FileDescriptor> ConnectLocal(const std::string& path, absl::Duration timeout) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(name.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "socket path of ", path.size(), " bytes, not in [1, ", sizeof(name.sun_path) - 1, "]"));
  }
  std::copy(path.begin(), path.end(), name.sun_path);
  FileDescriptor socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket) return SystemError("socket");
  // Zero would mean for ever.
  const timeval bound = absl::ToTimeval(std::max(timeout, absl::Milliseconds(1)));
  if (setsockopt(socket.get(), SOL_SOCKET, SO_SNDTIMEO, &bound, sizeof(bound)) != 0 ||
      setsockopt(socket.get(), SOL_SOCKET, SO_RCVTIMEO, &bound, sizeof(bound)) != 0) {
    return SystemError("set the timeout of a socket");
  }
  if (connect(socket.get(), reinterpret_cast<const sockaddr*>(&name), sizeof(name)) != 0) {
    return SystemError(absl::StrCat("connect to ", path));
  }
  return socket;
}

absl::StatusOr<size_t> SendSome(int socket, std::span<const std::byte> bytes, int passed_fd) {
  iovec vector{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  ControlBuffer control{};
  if (passed_fd >= 0) {
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof(control.bytes);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &passed_fd, sizeof(int));
  }
  for (;;) {
    const ssize_t sent = sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent >= 0) return static_cast<size_t>(sent);
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK) return 0;
    return SystemError("send");
  }
}

absl::StatusOr<ReceivedBytes> ReceiveSome(int socket, std::span<std::byte> buffer, bool wait,
                                          bool takes_fd) {
  iovec vector{buffer.data(), buffer.size()};
  msghdr message{};
  message.msg_iov = &vector;
  message.msg_iovlen = 1;
  ControlBuffer control{};
  // Without room for them the kernel drops descriptors: a peer cannot fill our table.
  if (takes_fd) {
    message.msg_control = control.bytes;
    message.msg_controllen = sizeof(control.bytes);
  }
  ReceivedBytes received;
  for (;;) {
    const ssize_t got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | (wait ? 0 : MSG_DONTWAIT));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
      received.would_block = true;
      return received;
    }
    if (got < 0) return SystemError("receive");
    received.num_bytes = static_cast<size_t>(got);
    break;
  }
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    int fd = -1;
    std::memcpy(&fd, CMSG_DATA(header), sizeof(int));
    received.passed_fd = FileDescriptor(fd);
  }
  return received;
}

bool IsHungUp(int socket) {
  pollfd polled{socket, POLLRDHUP, 0};
  // An error of poll() itself says nothing about the peer: on the safe side.
  return ::poll(&polled, 1, 0) != 0;
}

}  // namespace pkv
