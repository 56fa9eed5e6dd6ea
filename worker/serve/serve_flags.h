#ifndef PKV_WORKER_SERVE_SERVE_FLAGS_H_
#define PKV_WORKER_SERVE_SERVE_FLAGS_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "worker/serve/server_host.h"
#include "worker/serve/worker_model.h"
#include "worker/serve/worker_services.h"

namespace CLI {
class App;
}

namespace pkv {

class CacheClient;

// What the worker binaries are started with.
struct ServeFlags {
  ModelFlags model;
  std::string cache = "127.0.0.1:7440";
  std::string transport = "auto";  // ParseTransport()
  std::string log_format = "text";
  std::string log_level = "info";
  ServerHostOptions server;
  double drain_timeout_s = 10;
  double put_deadline_s = 120;  // of one prompt's upload, which lasts as long as its prefill
  QueueOptions queue;           // max_running: prefill alone
  // Of a decode worker: sequences of one step, and blocks that the page pool holds.
  int max_batch = 8;
  int num_pages = 0;  // 0: as many as fit
  bool layer_streaming = true;
};

// Add options to a subcommand, those of both roles and those of one; each may also be given as
// environment variable PKV_<OPTION>.
void AddServeFlags(CLI::App& command, ServeFlags& flags);
void AddPrefillFlags(CLI::App& command, ServeFlags& flags);
void AddDecodeFlags(CLI::App& command, ServeFlags& flags);

// What a role's worker is made of. All outlive it.
struct WorkerParts {
  WorkerModel& model;
  CacheClient& cache;
  WorkerMetrics& metrics;
  const ServeFlags& flags;
  // To be called when the worker can serve no more: the process drains and exits with 1.
  std::function<void(const absl::Status&)> on_failure;
};

// A worker behind its service. Destroyed from the last member to the first.
struct ServedWorker {
  std::shared_ptr<void> worker;  // of whatever type: only kept alive
  std::unique_ptr<grpc::Service> service;
  std::function<void()> drain;  // stops admitting; may be null
};

struct WorkerRole {
  const char* name;
  const char* description;
  const char* default_listen;
  void (*add_flags)(CLI::App&, ServeFlags&);  // those of the role
  absl::StatusOr<ServedWorker> (*make_worker)(const WorkerParts&);
  bool takes_device_frames = false;  // from the cache, on --device cuda
};

// Loads model and cache client, makes the worker, serves until a signal. Returns the process's exit
// code: 0, 1 on failure, 2 on bad usage.
int RunWorker(const WorkerRole& role, const ServeFlags& flags);

// The whole main() of a worker binary: parses `serve` and runs it.
int WorkerMain(int argc, char** argv, const WorkerRole& role);

}  // namespace pkv

#endif  // PKV_WORKER_SERVE_SERVE_FLAGS_H_
