#include "proto/serving/listener.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

constexpr int kBacklog = 1024;
constexpr int kBackoffMinMs = 10;
constexpr int kBackoffMaxMs = 1000;

absl::Status SystemError(absl::string_view what, const std::string& address) {
  return absl::UnavailableError(absl::StrCat(what, " ", address, ": ", std::strerror(errno)));
}

absl::StatusOr<std::pair<std::string, std::string>> SplitHostPort(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("address \"", address, "\" is neither host:port nor unix:/path"));
  }
  std::string host = address.substr(0, colon), port = address.substr(colon + 1);
  if (host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  } else if (host.find(':') != std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("address \"", address, "\": put an IPv6 host in brackets"));
  }
  int number = -1;
  if (!absl::SimpleAtoi(port, &number) || number < 0 || number > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("address \"", address, "\": port \"", port, "\" not in [0, 65535]"));
  }
  return std::pair{host, port};
}

bool IsLoopback(const sockaddr* address) {
  if (address->sa_family == AF_INET) {
    const auto* v4 = reinterpret_cast<const sockaddr_in*>(address);
    return (ntohl(v4->sin_addr.s_addr) >> 24) == 127;
  }
  const auto* v6 = reinterpret_cast<const sockaddr_in6*>(address);
  return address->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
}

struct BoundSocket {
  int fd = -1;
  int port = 0;
  bool is_local = false;
};

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

absl::StatusOr<Addresses> Resolve(const std::string& address) {
  PKV_ASSIGN_OR_RETURN(const auto host_port, SplitHostPort(address));
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int error =
          getaddrinfo(host_port.first.c_str(), host_port.second.c_str(), &hints, &found);
      error != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("host \"", host_port.first, "\": ", gai_strerror(error)));
  }
  return Addresses(found, &freeaddrinfo);
}

absl::StatusOr<BoundSocket> BindTcp(const std::string& address) {
  PKV_ASSIGN_OR_RETURN(const Addresses found, Resolve(address));
  BoundSocket bound{.is_local = IsLoopback(found->ai_addr)};
  bound.fd = socket(found->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (bound.fd < 0) return SystemError("socket for", address);
  const int on = 1;
  setsockopt(bound.fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  sockaddr_storage name{};
  socklen_t name_bytes = sizeof(name);
  if (bind(bound.fd, found->ai_addr, found->ai_addrlen) != 0 || listen(bound.fd, kBacklog) != 0 ||
      getsockname(bound.fd, reinterpret_cast<sockaddr*>(&name), &name_bytes) != 0) {
    const absl::Status status = SystemError("listen on", address);
    close(bound.fd);
    return status;
  }
  bound.port = ntohs(name.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&name)->sin6_port
                                                : reinterpret_cast<sockaddr_in*>(&name)->sin_port);
  return bound;
}

// A socket file nobody listens on is left over from a process that was killed.
void RemoveStaleSocket(const sockaddr_un& name) {
  struct stat info;
  if (lstat(name.sun_path, &info) != 0 || !S_ISSOCK(info.st_mode)) return;
  const int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (probe < 0) return;
  if (connect(probe, reinterpret_cast<const sockaddr*>(&name), sizeof(name)) != 0 &&
      errno == ECONNREFUSED) {
    unlink(name.sun_path);
  }
  close(probe);
}

absl::StatusOr<sockaddr_un> UnixName(const std::string& path) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(name.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat("unix socket path of ", path.size(),
                                                   " bytes, not in [1, ", sizeof(name.sun_path) - 1,
                                                   "]"));
  }
  std::copy(path.begin(), path.end(), name.sun_path);
  return name;
}

absl::StatusOr<BoundSocket> BindUnix(const std::string& path, mode_t mode) {
  PKV_ASSIGN_OR_RETURN(sockaddr_un name, UnixName(path));
  RemoveStaleSocket(name);
  BoundSocket bound{.is_local = true};
  bound.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (bound.fd < 0) return SystemError("socket for", path);
  // A socket's own mode, less the umask, is what bind() gives its file: nobody gets in before.
  // Afterwards only what the umask took away is given back.
  if ((mode != 0 && fchmod(bound.fd, mode) != 0) ||
      bind(bound.fd, reinterpret_cast<sockaddr*>(&name), sizeof(name)) != 0 ||
      (mode != 0 && chmod(name.sun_path, mode) != 0) || listen(bound.fd, kBacklog) != 0) {
    const absl::Status status = SystemError("listen on", path);
    close(bound.fd);
    return status;
  }
  return bound;
}

}  // namespace

absl::StatusOr<bool> Listener::IsLocal(const std::string& address) {
  absl::string_view unix_path = address;
  if (absl::ConsumePrefix(&unix_path, "unix:")) {
    PKV_RETURN_IF_ERROR(UnixName(std::string(unix_path)).status());
    return true;
  }
  PKV_ASSIGN_OR_RETURN(const Addresses found, Resolve(address));
  return IsLoopback(found->ai_addr);
}

absl::StatusOr<std::unique_ptr<Listener>> Listener::Bind(const std::string& address,
                                                         mode_t unix_mode) {
  absl::string_view unix_path = address;
  const bool is_unix = absl::ConsumePrefix(&unix_path, "unix:");
  const std::string path = is_unix ? std::string(unix_path) : "";
  PKV_ASSIGN_OR_RETURN(const BoundSocket bound,
                       is_unix ? BindUnix(path, unix_mode) : BindTcp(address));
  const int stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (stop_fd < 0) {
    const absl::Status status = SystemError("eventfd for", address);
    close(bound.fd);
    return status;
  }
  return std::unique_ptr<Listener>(
      new Listener(bound.fd, stop_fd, bound.port, bound.is_local, path));
}

Listener::Listener(int fd, int stop_fd, int port, bool is_local, std::string unix_path)
    : fd_(fd),
      stop_fd_(stop_fd),
      port_(port),
      is_local_(is_local),
      unix_path_(std::move(unix_path)) {}

Listener::~Listener() {
  Stop();
  close(stop_fd_);
}

void Listener::Start(std::function<void(int fd)> on_connection, std::function<void()> on_error) {
  PKV_CHECK(!thread_.joinable() && fd_ >= 0, "started twice or stopped");
  on_connection_ = std::move(on_connection);
  on_error_ = std::move(on_error);
  thread_ = std::thread([this] { Run(); });
}

void Listener::Stop() {
  if (fd_ < 0) return;
  const uint64_t one = 1;
  PKV_CHECK(write(stop_fd_, &one, sizeof(one)) == sizeof(one), "errno ", errno);
  if (thread_.joinable()) thread_.join();
  close(std::exchange(fd_, -1));
  if (!unix_path_.empty()) unlink(unix_path_.c_str());
}

void Listener::Run() {
  int backoff_ms = 0;
  for (;;) {
    std::array<pollfd, 2> waited = {{{stop_fd_, POLLIN, 0}, {fd_, POLLIN, 0}}};
    // While backing off, only the request to stop is waited for.
    poll(waited.data(), backoff_ms > 0 ? 1 : 2, backoff_ms > 0 ? backoff_ms : -1);
    if (waited[0].revents != 0) return;
    const int connection = accept4(fd_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (connection >= 0) {
      backoff_ms = 0;
      const int on = 1;
      // Fails on a unix socket, which never delays.
      setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
      on_connection_(connection);
      continue;
    }
    if (errno == EAGAIN || errno == EINTR || errno == ECONNABORTED) {
      backoff_ms = 0;
      continue;
    }
    // Out of descriptors or memory: the connection stays in the backlog until there are some.
    const int error = errno;
    on_error_();
    if (backoff_ms == 0) {
      Log(LogLevel::kError, "accept failed, will try again", {{"error", std::strerror(error)}});
    }
    backoff_ms = std::clamp(2 * backoff_ms, kBackoffMinMs, kBackoffMaxMs);
  }
}

}  // namespace pkv
