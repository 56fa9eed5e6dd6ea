#ifndef PKV_PROTO_SERVING_GRPC_ACCEPTOR_H_
#define PKV_PROTO_SERVING_GRPC_ACCEPTOR_H_

#include <grpcpp/server_builder.h>

#include <functional>
#include <memory>
#include <utility>

#include "proto/serving/listener.h"

namespace pkv {

// Hands the connections of a Listener to a gRPC server: ServerBuilder::AddListeningPort without
// gRPC's own accept loop.
//
// Thread-compatible.
class GrpcAcceptor {
 public:
  // Before builder.BuildAndStart(). Stays valid as long as the server built.
  explicit GrpcAcceptor(grpc::ServerBuilder& builder,
                        std::shared_ptr<grpc::ServerCredentials> credentials)
      : acceptor_(builder.experimental().AddExternalConnectionAcceptor(
            grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
            std::move(credentials))) {}

  // After it; once. Until listener.Stop(), which must come before the server's end. `on_error` as
  // in Listener::Start.
  void Start(Listener& listener, std::function<void()> on_error) {
    listener.Start(
        [this, listener_fd = listener.fd()](int fd) {
          grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters connection;
          connection.listener_fd = listener_fd;
          connection.fd = fd;
          acceptor_->HandleNewConnection(&connection);
        },
        std::move(on_error));
  }

 private:
  const std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> acceptor_;
};

}  // namespace pkv

#endif  // PKV_PROTO_SERVING_GRPC_ACCEPTOR_H_
