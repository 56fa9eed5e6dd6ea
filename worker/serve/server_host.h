#ifndef PKV_WORKER_SERVE_SERVER_HOST_H_
#define PKV_WORKER_SERVE_SERVER_HOST_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace grpc {
class Service;
}
namespace prometheus {
class Registry;
}

namespace pkv {

struct ServerHostOptions {
  std::string listen = "127.0.0.1:7441";  // host:port (port 0 picks one) or unix:/path
  std::string metrics_listen;             // host:port; empty: no metrics
  std::string port_file;        // written as "port metrics_port\n" once serving; empty: none
  bool allow_insecure = false;  // listen beyond loopback without TLS
  absl::Duration drain_timeout = absl::Seconds(10);
};

// Serves `services` with gRPC health checks and reflection until SIGTERM or SIGINT, then drains:
// NOT_SERVING, running calls get drain_timeout, then they are cancelled; a second signal ends the
// process at once with exit code 1. Call once per process.
// REQUIRES: BlockTerminationSignals() was called before the process started other threads.
//   InvalidArgument  an address is malformed, or is not loopback while allow_insecure is false
//   Unavailable      an address cannot be bound
absl::Status ServeUntilSignal(const ServerHostOptions& options,
                              const std::vector<grpc::Service*>& services,
                              const std::shared_ptr<prometheus::Registry>& registry);

// Blocks SIGTERM and SIGINT in this thread and those it starts later, so that ServeUntilSignal can
// wait for them.
void BlockTerminationSignals();

// InvalidArgument unless `address` is host:port or unix:/path; not loopback needs `allow_insecure`.
absl::Status CheckListenAddress(const std::string& address, bool allow_insecure);

}  // namespace pkv

#endif  // PKV_WORKER_SERVE_SERVER_HOST_H_
