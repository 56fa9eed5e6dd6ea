#ifndef PKV_PROTO_SERVING_HEALTH_SERVER_H_
#define PKV_PROTO_SERVING_HEALTH_SERVER_H_

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/server.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "proto/serving/grpc_acceptor.h"
#include "proto/serving/listener.h"

namespace pkv {

// Services of grpc.health.v1 that every server of the project answers for, besides "" for all of
// it.
inline constexpr char kReadinessService[] = "pkv-readiness";  // calls are welcome; so is ""
inline constexpr char kLivenessService[] = "pkv-liveness";    // the process is alive

// What `server` answers from now on: "" and pkv-readiness as `ready` says, pkv-liveness SERVING.
// REQUIRES: gRPC's default health check service was on when the server was built.
void SetHealth(grpc::Server& server, bool ready);

// Answers health checks on a port of its own, in plain text, and nothing else: any other call is
// UNIMPLEMENTED. A kubelet's gRPC probe knows no TLS, so that the port of the services can ask for
// it. Tells strangers nothing but whether calls are welcome.
//
// REQUIRES: started before gRPC's reflection plugin is initialised, which every later server gets.
//
// Open from the first moment of a process: pkv-liveness is SERVING at once, "" and pkv-readiness
// are NOT_SERVING until SetReady(true).
//
// Thread-safe.
class HealthServer {
 public:
  // Serves when it returns. As Listener::Bind:
  //   InvalidArgument  `address` is not host:port or unix:/path
  //   Unavailable      it cannot be bound
  static absl::StatusOr<std::unique_ptr<HealthServer>> Start(const std::string& address);
  ~HealthServer();

  int port() const { return listener_->port(); }
  void SetReady(bool ready) { SetHealth(*server_, ready); }

 private:
  explicit HealthServer(std::unique_ptr<Listener> listener) : listener_(std::move(listener)) {}

  // Constant after Start(), in the order of need.
  const std::unique_ptr<Listener> listener_;
  grpc::CallbackGenericService everything_else_;
  std::unique_ptr<GrpcAcceptor> acceptor_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace pkv

#endif  // PKV_PROTO_SERVING_HEALTH_SERVER_H_
