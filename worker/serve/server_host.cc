#include "worker/serve/server_host.h"

#include <arpa/inet.h>
#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <prometheus/exposer.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <optional>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/metrics/process_collector.h"
#include "proto/serving/grpc_acceptor.h"
#include "proto/serving/health_server.h"
#include "proto/serving/keepalive.h"
#include "proto/serving/listener.h"

namespace pkv {
namespace {

sigset_t HandledSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  return signals;
}

// `on_hangup` is called at each SIGHUP until then; may be null.
void WaitForTerminationSignal(const std::function<void()>& on_hangup) {
  const sigset_t signals = HandledSignals();
  int received = 0;
  for (;;) {
    sigwait(&signals, &received);
    if (received != SIGHUP) break;
    if (on_hangup) on_hangup();
  }
  Log(LogLevel::kInfo, "signal", {{"number", received}});
}

absl::Status WritePortFile(const std::string& path, int port, int metrics_port,
                           const HealthServer* health) {
  // Written beside and renamed, so that a reader never sees half of it.
  const std::string partial = path + ".partial";
  std::ofstream file(partial);
  file << port << " " << metrics_port;
  if (health != nullptr && health->port() != 0) file << " " << health->port();
  file << "\n";
  file.close();
  if (!file || std::rename(partial.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot write port file ", path));
  }
  return absl::OkStatus();
}

// A name that starts like a loopback address may resolve to any other.
bool IsLoopback(const std::string& host) {
  in_addr ipv4;
  if (inet_pton(AF_INET, host.c_str(), &ipv4) == 1) return (ntohl(ipv4.s_addr) >> 24) == 127;
  return host == "localhost" || host == "[::1]";
}

}  // namespace

void BlockTerminationSignals() {
  const sigset_t signals = HandledSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
}

void ServingFault::Report(const absl::Status& status) {
  {
    MutexLock lock(&mu_);
    if (!status_.ok()) return;
    status_ = status;
  }
  Log(LogLevel::kError, "cannot serve any more", {{"reason", status.ToString()}});
  ::kill(::getpid(), SIGTERM);
}

absl::Status ServingFault::status() const {
  MutexLock lock(&mu_);
  return status_;
}

absl::Status CheckListenAddress(const std::string& address, bool allow_insecure) {
  if (absl::StartsWith(address, "unix:/")) return absl::OkStatus();
  const size_t colon = address.rfind(':');
  int port = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &port) || port < 0 || port > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("address '", address, "' is not host:port or unix:/path"));
  }
  const std::string host = address.substr(0, colon);
  if (!IsLoopback(host) && !allow_insecure) {
    return absl::InvalidArgumentError(
        absl::StrCat("address '", address,
                     "' is not loopback and connections are not encrypted; pass "
                     "--i-understand-insecure to listen there all the same"));
  }
  return absl::OkStatus();
}

absl::StatusOr<bool> IsWildcard(const std::string& address) {
  PKV_RETURN_IF_ERROR(CheckListenAddress(address, /*allow_insecure=*/true));
  if (absl::StartsWith(address, "unix:")) return true;
  const size_t colon = address.rfind(':');
  const std::string host = address.substr(0, colon);
  int port = 0;
  return host == "0.0.0.0" || host == "[::]" || host == "*" ||
         !absl::SimpleAtoi(address.substr(colon + 1), &port) || port == 0;
}

absl::Status CheckListenAddresses(const ServerHostOptions& options) {
  PKV_RETURN_IF_ERROR(CheckListenAddress(options.listen, options.allow_insecure));
  if (options.metrics_listen.empty()) return absl::OkStatus();
  if (absl::StartsWith(options.metrics_listen, "unix:")) {
    return absl::InvalidArgumentError(
        absl::StrCat("metrics address '", options.metrics_listen, "' is not host:port"));
  }
  return CheckListenAddress(options.metrics_listen, options.allow_insecure);
}

absl::Status ServeUntilSignal(const ServerHostOptions& options,
                              const std::vector<grpc::Service*>& services,
                              const std::shared_ptr<prometheus::Collectable>& metrics) {
  PKV_RETURN_IF_ERROR(CheckListenAddresses(options));
  std::optional<prometheus::Exposer> exposer;
  auto process = std::make_shared<ProcessCollector>();
  int metrics_port = 0;
  if (!options.metrics_listen.empty()) {
    try {
      exposer.emplace(options.metrics_listen);
    } catch (const std::exception& error) {
      return absl::UnavailableError(
          absl::StrCat("cannot serve metrics on ", options.metrics_listen, ": ", error.what()));
    }
    exposer->RegisterCollectable(metrics);
    exposer->RegisterCollectable(process);
    metrics_port = exposer->GetListeningPorts().front();
  }

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  SetKeepalive(builder);
  GrpcAcceptor acceptor(builder, grpc::InsecureServerCredentials());
  for (grpc::Service* service : services) builder.RegisterService(service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr)
    return absl::InternalError(absl::StrCat("gRPC did not start on ", options.listen));
  const absl::StatusOr<std::unique_ptr<Listener>> listener = Listener::Bind(options.listen);
  if (!listener.ok()) {
    return absl::Status(listener.status().code(), absl::StrCat("cannot listen on ", options.listen,
                                                               ": ", listener.status().message()));
  }
  const int port = (*listener)->port();
  acceptor.Start(**listener, [] {});
  const auto set_ready = [&](bool ready) {
    SetHealth(*server, ready);
    if (options.health != nullptr) options.health->SetReady(ready);
  };
  set_ready(true);
  Log(LogLevel::kInfo, "serving",
      {{"listen", options.listen}, {"port", port}, {"metrics_port", metrics_port}});
  if (!options.port_file.empty())
    PKV_RETURN_IF_ERROR(WritePortFile(options.port_file, port, metrics_port, options.health));

  absl::Duration drain_timeout = options.drain_timeout;
  WaitForTerminationSignal([&] {
    if (options.on_hangup) drain_timeout = options.on_hangup();
  });
  set_ready(false);
  std::thread([] {
    WaitForTerminationSignal(nullptr);
    _exit(1);
  }).detach();
  if (options.on_drain) options.on_drain();
  (*listener)->Stop();
  server->Shutdown(absl::ToChronoTime(absl::Now() + drain_timeout));
  server->Wait();
  Log(LogLevel::kInfo, "stopped");
  return options.fault == nullptr ? absl::OkStatus() : options.fault->status();
}

}  // namespace pkv
