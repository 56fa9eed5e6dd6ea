#include "proto/serving/health_server.h"

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/security/server_credentials.h>
#include <grpcpp/server_builder.h>

#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// A health check has some 20 bytes; Watch is a stream for as long as the caller likes.
constexpr int kMaxMessageBytes = 4 << 10;
constexpr int kMaxStreams = 16;

}  // namespace

void SetHealth(grpc::Server& server, bool ready) {
  grpc::HealthCheckServiceInterface* health = server.GetHealthCheckService();
  health->SetServingStatus("", ready);
  health->SetServingStatus(kReadinessService, ready);
  health->SetServingStatus(kLivenessService, true);
}

absl::StatusOr<std::unique_ptr<HealthServer>> HealthServer::Start(const std::string& address) {
  PKV_ASSIGN_OR_RETURN(std::unique_ptr<Listener> listener, Listener::Bind(address));
  std::unique_ptr<HealthServer> health(new HealthServer(std::move(listener)));
  grpc::EnableDefaultHealthCheckService(true);
  grpc::ServerBuilder builder;
  builder.SetMaxReceiveMessageSize(kMaxMessageBytes);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, kMaxStreams);
  // gRPC does not start a server that has no service but its own health checks. This one answers
  // whatever else is called with UNIMPLEMENTED.
  builder.RegisterCallbackGenericService(&health->everything_else_);
  health->acceptor_ = std::make_unique<GrpcAcceptor>(builder, grpc::InsecureServerCredentials());
  health->server_ = builder.BuildAndStart();
  if (health->server_ == nullptr) {
    return absl::InternalError(absl::StrCat("gRPC did not start health checks on ", address));
  }
  health->SetReady(false);
  health->acceptor_->Start(*health->listener_, [] {});
  return health;
}

HealthServer::~HealthServer() {
  listener_->Stop();
  if (server_ == nullptr) return;
  // Watchers would hold it up.
  server_->Shutdown(std::chrono::system_clock::now());
  server_->Wait();
}

}  // namespace pkv
