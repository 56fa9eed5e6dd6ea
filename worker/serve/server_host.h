#ifndef PKV_WORKER_SERVE_SERVER_HOST_H_
#define PKV_WORKER_SERVE_SERVER_HOST_H_

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/base/sync.h"

namespace grpc {
class Service;
}
namespace prometheus {
class Collectable;
}

namespace pkv {

class HealthServer;

// Ends serving from within the process, as a signal does from outside. Thread-safe.
class ServingFault {
 public:
  // What serves is broken: health checks answer NOT_SERVING, running calls get drain_timeout, then
  // ServeUntilSignal returns `status`. The first call counts.
  // REQUIRES: BlockTerminationSignals() was called before the process started other threads.
  void Report(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  // OK before Report().
  absl::Status status() const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  mutable Mutex mu_;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

struct ServerHostOptions {
  std::string listen = "127.0.0.1:7441";  // host:port (port 0 picks one) or unix:/path
  std::string metrics_listen;             // host:port; empty: no metrics
  // Written as "port metrics_port\n", with the port of `health` third if there is one, once
  // serving; empty: none.
  std::string port_file;
  bool allow_insecure = false;  // listen beyond loopback without TLS
  absl::Duration drain_timeout = absl::Seconds(10);
  std::function<void()> on_drain;  // called when draining begins; may be null
  // Called at each SIGHUP before draining, returns the drain_timeout from then on; may be null.
  std::function<absl::Duration()> on_hangup;
  const ServingFault* fault = nullptr;  // may be null; outlives the call
  // Health checks on a port of their own, ready while this serves; may be null; outlives the call.
  HealthServer* health = nullptr;
};

// Serves `services` with gRPC health checks (health_server.h) and reflection until SIGTERM or
// SIGINT, then drains: NOT_SERVING, running calls get drain_timeout, then they are cancelled; a
// second signal ends the process at once with exit code 1. Call once per process. REQUIRES:
// BlockTerminationSignals() was called before the process started other threads.
//   InvalidArgument  an address is malformed, or is not loopback while allow_insecure is false
//   Unavailable      an address cannot be bound
//   and what was reported to options.fault
absl::Status ServeUntilSignal(const ServerHostOptions& options,
                              const std::vector<grpc::Service*>& services,
                              const std::shared_ptr<prometheus::Collectable>& metrics);

// Checks both addresses as ServeUntilSignal does.
absl::Status CheckListenAddresses(const ServerHostOptions& options);

// Blocks SIGTERM, SIGINT and SIGHUP in this thread and those it starts later, so that
// ServeUntilSignal can wait for them.
void BlockTerminationSignals();

// Whether nobody can be told to connect to an address that may be listened on: its host stands for
// all of this machine's, or its port for any, or it is a unix socket. InvalidArgument: it is none.
absl::StatusOr<bool> IsWildcard(const std::string& address);

// InvalidArgument unless `address` is host:port or unix:/path; not loopback needs `allow_insecure`.
absl::Status CheckListenAddress(const std::string& address, bool allow_insecure);

}  // namespace pkv

#endif  // PKV_WORKER_SERVE_SERVER_HOST_H_
