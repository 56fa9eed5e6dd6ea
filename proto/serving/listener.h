#ifndef PKV_PROTO_SERVING_LISTENER_H_
#define PKV_PROTO_SERVING_LISTENER_H_

#include <sys/types.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/status/statusor.h"

namespace pkv {

// Our own listening socket and accept loop.
//
// gRPC 1.51's stops for good after one accept() that failed, as when descriptors run out
// (CVE-2023-4785). This one waits, from 10 ms up to 1 s, and tries again. SO_REUSEPORT stays off:
// two servers on one port are an error, not a surprise.
//
// Thread-compatible.
class Listener {
 public:
  // Binds and listens; connections wait in the kernel until Start().
  //   `address`    "host:port", "[v6]:port" (port 0: any) or "unix:/path"
  //   `unix_mode`  permissions of a unix socket, from its first moment; 0: as the umask has it
  //   InvalidArgument  not such an address
  //   Unavailable      the kernel refuses it: in use, not ours, not permitted
  static absl::StatusOr<std::unique_ptr<Listener>> Bind(const std::string& address,
                                                        mode_t unix_mode = 0);
  // Whether only processes of this host could connect to what Bind would bind there; it is not
  // tried.
  //   InvalidArgument  as Bind
  static absl::StatusOr<bool> IsLocal(const std::string& address);
  ~Listener();
  Listener(const Listener&) = delete;
  Listener& operator=(const Listener&) = delete;

  // 0 for a unix socket.
  int port() const { return port_; }
  // Only processes of this host can connect.
  bool is_local() const { return is_local_; }
  int fd() const { return fd_; }

  // Calls `on_connection` with each accepted descriptor, which it owns then, and `on_error` when
  // accept() fails, both from one thread. Call once.
  void Start(std::function<void(int fd)> on_connection, std::function<void()> on_error);
  // Ends the loop and closes the socket. Idempotent.
  void Stop();

 private:
  Listener(int fd, int stop_fd, int port, bool is_local, std::string unix_path);
  void Run();

  int fd_;
  const int stop_fd_;  // an eventfd: readable once Stop() was called
  const int port_;
  const bool is_local_;
  const std::string unix_path_;  // removed at the end; empty for TCP
  std::function<void(int)> on_connection_;
  std::function<void()> on_error_;
  std::thread thread_;
};

}  // namespace pkv

#endif  // PKV_PROTO_SERVING_LISTENER_H_
