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

namespace pkv {
namespace {

sigset_t TerminationSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  return signals;
}

void WaitForTerminationSignal() {
  const sigset_t signals = TerminationSignals();
  int received = 0;
  sigwait(&signals, &received);
  Log(LogLevel::kInfo, "signal", {{"number", received}});
}

absl::Status WritePortFile(const std::string& path, int port, int metrics_port) {
  // Written beside and renamed, so that a reader never sees half of it.
  const std::string partial = path + ".partial";
  std::ofstream file(partial);
  file << port << " " << metrics_port << "\n";
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
  const sigset_t signals = TerminationSignals();
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

absl::Status ServeUntilSignal(const ServerHostOptions& options,
                              const std::vector<grpc::Service*>& services,
                              const std::shared_ptr<prometheus::Collectable>& metrics) {
  PKV_RETURN_IF_ERROR(CheckListenAddress(options.listen, options.allow_insecure));
  std::optional<prometheus::Exposer> exposer;
  auto process = std::make_shared<ProcessCollector>();
  int metrics_port = 0;
  if (!options.metrics_listen.empty()) {
    if (absl::StartsWith(options.metrics_listen, "unix:")) {
      return absl::InvalidArgumentError(
          absl::StrCat("metrics address '", options.metrics_listen, "' is not host:port"));
    }
    PKV_RETURN_IF_ERROR(CheckListenAddress(options.metrics_listen, options.allow_insecure));
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
  int port = 0;
  builder.AddListeningPort(options.listen, grpc::InsecureServerCredentials(), &port);
  // Two servers on one port must fail loudly; the default lets both bind.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  for (grpc::Service* service : services) builder.RegisterService(service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr)
    return absl::UnavailableError(absl::StrCat("cannot listen on ", options.listen));
  server->GetHealthCheckService()->SetServingStatus(true);
  Log(LogLevel::kInfo, "serving",
      {{"listen", options.listen}, {"port", port}, {"metrics_port", metrics_port}});
  if (!options.port_file.empty())
    PKV_RETURN_IF_ERROR(WritePortFile(options.port_file, port, metrics_port));

  WaitForTerminationSignal();
  server->GetHealthCheckService()->SetServingStatus(false);
  std::thread([] {
    WaitForTerminationSignal();
    _exit(1);
  }).detach();
  if (options.on_drain) options.on_drain();
  server->Shutdown(absl::ToChronoTime(absl::Now() + options.drain_timeout));
  server->Wait();
  Log(LogLevel::kInfo, "stopped");
  return options.fault == nullptr ? absl::OkStatus() : options.fault->status();
}

}  // namespace pkv
