#ifndef PKV_WORKER_SERVE_SERVE_FLAGS_H_
#define PKV_WORKER_SERVE_SERVE_FLAGS_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "proto/config/option_table.h"
#include "proto/config/service_options.h"
#include "worker/serve/server_host.h"
#include "worker/serve/worker_model.h"
#include "worker/serve/worker_services.h"

namespace pkv {

class CacheCluster;

// CUDA's current device, which nothing here changes.
inline constexpr int kModelDevice = 0;

// What the worker binaries are started with.
struct ServeFlags {
  ModelFlags model;
  std::string cache = "127.0.0.1:7440";
  std::string transport = "auto";  // ParseTransport()
  std::string health_listen;       // host:port or unix:/path of health checks alone; empty: none
  LogSettings log;
  ServerHostOptions server;
  // Of one prompt's upload, which lasts as long as its prefill.
  absl::Duration put_deadline = absl::Minutes(2);
  QueueOptions queue;  // max_running: prefill alone
  // Of a decode worker: sequences of one step, and blocks that the page pool holds.
  int max_batch = 8;
  int num_pages = 0;  // 0: as many as fit
  bool layer_streaming = true;
  // Of a decode worker: ClientOptions::direct_from.
  std::string direct_from;
  // Of a prefill worker: device memory for prompts that decode workers fetch from there, and the
  // address by which they do; empty: `server.listen`.
  uint64_t direct_memory = 0;  // 0: none
  std::string direct_advertise;

  // For tickets, SpellDirectAddress(). REQUIRES: direct_memory, and the flags are checked.
  std::string direct_address() const;
};

// Declare options, those of both roles and those of one.
void DeclareServeOptions(OptionTable& table, ServeFlags& flags);
void DeclarePrefillOptions(OptionTable& table, ServeFlags& flags);
void DeclareDecodeOptions(OptionTable& table, ServeFlags& flags);

// What a role's worker is made of. All outlive it.
struct WorkerParts {
  WorkerModel& model;
  CacheCluster& cluster;
  WorkerMetrics& metrics;
  const ServeFlags& flags;
  // To be called when the worker can serve no more: the process drains and exits with 1.
  std::function<void(const absl::Status&)> on_failure;
};

// A worker behind its service. Destroyed from the last member to the first.
struct ServedWorker {
  std::shared_ptr<void> worker;  // of whatever type: only kept alive
  std::unique_ptr<grpc::Service> service;
  grpc::Service* handoff = nullptr;  // of the worker; null: none
  std::function<void()> drain;       // stops admitting; may be null
  // Takes another --max-waiting.
  std::function<void(int)> set_max_waiting;
};

struct WorkerRole {
  const char* name = nullptr;
  const char* description = nullptr;
  const char* default_listen = nullptr;
  void (*declare)(OptionTable&, ServeFlags&) = nullptr;  // options of the role
  absl::StatusOr<ServedWorker> (*make_worker)(const WorkerParts&) = nullptr;
  bool takes_device_frames = false;  // from the cache, on --device cuda
};

// What no option shows alone, before anything is loaded: which model and where, the addresses,
// whether frames can come by --transport, or from a GPU or to one directly.
//   InvalidArgument, Unimplemented  name the options
absl::Status CheckServeFlags(const WorkerRole& role, const ServeFlags& flags);

// The whole main() of a worker binary. `serve` loads model and cache client, makes the worker and
// serves until a signal; SIGHUP loads the configuration again. Returns the process's exit code: 0,
// 1 on failure, 2 on bad usage or configuration.
int WorkerMain(int argc, char** argv, const WorkerRole& role);

}  // namespace pkv

#endif  // PKV_WORKER_SERVE_SERVE_FLAGS_H_
