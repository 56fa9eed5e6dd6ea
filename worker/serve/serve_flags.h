#ifndef PKV_WORKER_SERVE_SERVE_FLAGS_H_
#define PKV_WORKER_SERVE_SERVE_FLAGS_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "worker/serve/server_host.h"
#include "worker/serve/worker_services.h"

namespace CLI {
class App;
}

namespace pkv {

class CacheClient;
class ModelHost;

// What both worker binaries are started with.
struct ServeFlags {
  std::string model;
  std::string cache = "127.0.0.1:7440";
  std::string transport = "auto";  // ParseTransport()
  int threads = 0;                 // 0: one per CPU
  std::string log_format = "text";
  std::string log_level = "info";
  ServerHostOptions server;
  double drain_timeout_s = 10;
  double put_deadline_s = 120;  // of one prompt's upload, which lasts as long as its prefill
  QueueOptions queue;
};

// Adds the options to a subcommand; each may also be given as environment variable PKV_<OPTION>.
void AddServeFlags(CLI::App& command, ServeFlags& flags);

// Loads model and cache client, makes the service, serves until a signal. Returns the process's
// exit code: 0, 1 on failure, 2 on bad usage.
using MakeService = std::unique_ptr<grpc::Service> (*)(ModelHost&, CacheClient&, WorkerMetrics&,
                                                       const QueueOptions&);
int RunWorker(const char* role, const ServeFlags& flags, MakeService make_service);

// The whole main() of a worker binary: parses `serve` and runs it.
int WorkerMain(int argc, char** argv, const char* role, const char* description,
               const char* default_listen, MakeService make_service);

}  // namespace pkv

#endif  // PKV_WORKER_SERVE_SERVE_FLAGS_H_
