// pkvd: the cache service. Options, log and signals; everything else is CacheServer.

#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kvstore/service/cache_server.h"
#include "kvstore/store/slab_arena.h"
#include "proto/base/log.h"
#include "proto/config/configuration.h"
#include "proto/config/service_options.h"
#include "proto/config/value_text.h"
#include "proto/metrics/build_info.h"
#include "proto/metrics/reload_metrics.h"
#include "proto/transport/nccl/nccl_port.h"

namespace pkv {
namespace {

struct Settings {
  CacheServerOptions server;
  absl::Duration drain_timeout = absl::Seconds(30);
  int nccl_device = -1;
  std::string port_file;
  LogSettings log;
};

void DeclareShm(OptionTable& table, CacheServerOptions& server) {
  table.AddPath({.name = "shm-socket",
                 .help = "unix socket on which clients of this host get at the memory itself, "
                         "or at memory that puts are copied from; empty: none"},
                server.shm_socket);
  table.AddSwitch({.name = "shm-any-user",
                   .help = "let clients of other users use it, not only our own user and root"},
                  server.shm_any_user);
  table.AddSize({.name = "shm-max-pinned",
                 .help = "memory that one of its connections may pin; 0: half the capacity"},
                server.shm_pinned_bytes, {});
  table.AddDuration({.name = "shm-silence",
                     .help = "a client that gives no sign of life for this long loses its pins, or "
                             "its stage"},
                    server.shm_silence, {.min = absl::Milliseconds(100)});
  table.AddDuration({.name = "shm-pin-age",
                     .help = "longest time that anything may stay pinned; at least --shm-silence"},
                    server.shm_pin_age, {.min = absl::Milliseconds(100)});
}

void DeclareSsd(OptionTable& table, CacheServerOptions& server) {
  table.AddPath({.name = "ssd-dir",
                 .help = "folder for objects that memory has no room for, of this pkvd alone; "
                         "empty: none"},
                server.ssd_dir);
  table.AddSize({.name = "ssd-capacity", .help = "disk space for them; goes with --ssd-dir"},
                server.ssd_capacity_bytes, {});
  table.AddChoice<bool>({.name = "ssd-admit",
                         .help = "what is written there: all blocks, or those got twice since "
                                 "they were put"},
                        server.ssd_reused_only, {{"all", false}, {"reused", true}});
  table.AddDuration({.name = "ssd-read-timeout",
                     .help = "longest that a get waits for the disk; what has not come by then is "
                             "a miss; below --stall-timeout"},
                    server.ssd_read_timeout, {.min = absl::Milliseconds(10)});
}

void DeclareNccl(OptionTable& table, Settings& settings) {
  table.AddInteger({.name = "nccl-device",
                    .help = "CUDA device that sends blocks to decode workers' GPUs over NCCL; pins "
                            "all of the capacity; -1: none"},
                   settings.nccl_device, {.min = -1, .max = 1024});
}

void Declare(OptionTable& table, Settings& settings) {
  CacheServerOptions& server = settings.server;
  table.AddText({.name = "listen", .help = "host:port (port 0: any) or unix:/path"}, server.listen);
  table.AddText({.name = "metrics-listen", .help = "host:port of /metrics; empty: none"},
                server.metrics_listen);
  table.AddText({.name = "health-listen",
                 .help = "host:port or unix:/path of gRPC health checks alone, without encryption; "
                         "empty: none but on --listen"},
                server.health_listen);
  table.AddSize({.name = "capacity", .help = "memory for objects"}, server.capacity_bytes,
                {.min = kArenaUnitBytes, .max = kArenaBytesMax});
  table.AddDuration({.name = "stall-timeout",
                     .help = "a stream on which nothing moves for this long is cancelled"},
                    server.stall_timeout, {.min = absl::Milliseconds(100)});
  AddDrainTimeout(table, settings.drain_timeout);
  AddLogOptions(table, settings.log);
  table.AddSwitch({.name = "reflection", .help = "answer gRPC server reflection"},
                  server.reflection);
  table.AddPath(
      {.name = "port-file",
       .help = "write \"port metrics_port\", and the health port if any, to this file once "
               "serving"},
      settings.port_file);
  table.AddSwitch({.name = "i-understand-insecure",
                   .help = "listen where other hosts can reach it, without encryption or "
                           "authentication"},
                  server.allow_insecure_remote);
  DeclareShm(table, server);
  DeclareSsd(table, server);
  DeclareNccl(table, settings);
}

absl::Status Check(const Settings& settings) { return CacheServer::Check(settings.server); }

void LogSettings(const Settings& settings, const CacheServer& server) {
  Log(LogLevel::kInfo, "serving",
      {{"version", BuildVersion()},
       {"listen", settings.server.listen},
       {"port", server.port()},
       {"metrics_listen", settings.server.metrics_listen},
       {"metrics_port", server.metrics_port()},
       {"health_listen", settings.server.health_listen},
       {"capacity_bytes", settings.server.capacity_bytes},
       {"stall_timeout", DurationText(settings.server.stall_timeout)},
       {"drain_timeout", DurationText(settings.drain_timeout)},
       {"shm_socket", settings.server.shm_socket},
       {"shm_any_user", settings.server.shm_any_user ? "yes" : "no"},
       {"shm_max_pinned", settings.server.shm_pinned_bytes},
       {"shm_silence", DurationText(settings.server.shm_silence)},
       {"shm_pin_age", DurationText(settings.server.shm_pin_age)},
       {"ssd_dir", settings.server.ssd_dir},
       {"ssd_capacity_bytes", settings.server.ssd_capacity_bytes},
       {"ssd_admit", settings.server.ssd_reused_only ? "reused" : "all"},
       {"ssd_read_timeout", DurationText(settings.server.ssd_read_timeout)},
       {"nccl_device", settings.nccl_device},
       {"reflection", settings.server.reflection ? "on" : "off"},
       {"insecure_remote", settings.server.allow_insecure_remote ? "allowed" : "refused"}});
}

// Complete when it appears: written beside and renamed.
absl::Status WritePortFile(const std::string& path, const CacheServer& server) {
  const std::string partial = path + ".partial";
  {
    std::ofstream out(partial);
    out << server.port() << " " << server.metrics_port();
    if (server.health_port() != 0) out << " " << server.health_port();
    out << "\n";
    if (!out.flush()) return absl::UnavailableError(absl::StrCat("cannot write ", partial));
  }
  if (std::rename(partial.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot rename ", partial, " to ", path));
  }
  return absl::OkStatus();
}

// Ends the process at SIGTERM or SIGINT while the server starts, which takes minutes when memory is
// pinned: nothing is stored yet. REQUIRES: both are blocked.
class EndWhileStarting {
 public:
  EndWhileStarting() : thread_([this] { Run(); }) {}
  ~EndWhileStarting() {
    started_ = true;
    thread_.join();
  }

 private:
  void Run() const {
    sigset_t ends;
    sigemptyset(&ends);
    for (const int signal : {SIGTERM, SIGINT}) sigaddset(&ends, signal);
    constexpr timespec kPatience = {.tv_sec = 0, .tv_nsec = 20'000'000};
    while (!started_) {
      const int signal = sigtimedwait(&ends, nullptr, &kPatience);
      if (signal < 0) continue;
      Log(LogLevel::kInfo, "stopped before it served", {{"signal", signal}});
      _exit(0);
    }
  }

  std::atomic<bool> started_{false};
  std::thread thread_;
};

// Takes the next signal that ends the process, and loads the configuration at each SIGHUP before.
int AwaitEnd(CacheServer& server, Configuration<Settings>& config, const sigset_t& signals) {
  for (int signal = 0;;) {
    sigwait(&signals, &signal);
    if (signal != SIGHUP) return signal;
    const ReloadResult result = config.Reload();
    server.reload_metrics().SetHash(config.Hash());
    server.reload_metrics().Count(result);
    SetLogLevel(config.settings().log.level);
  }
}

// Waits for SIGTERM or SIGINT, drains, and ends early when a second signal comes.
int ServeUntilSignal(CacheServer& server, Configuration<Settings>& config,
                     const sigset_t& signals) {
  int signal = AwaitEnd(server, config, signals);
  Log(LogLevel::kInfo, "stopping", {{"signal", signal}});
  server.Drain();
  std::atomic<bool> done{false};
  std::thread shutdown([&, grace = config.settings().drain_timeout] {
    server.Shutdown(grace);
    done = true;
    kill(getpid(), SIGTERM);  // ends the wait below
  });
  // A configuration loaded now would have nothing to act on.
  do sigwait(&signals, &signal);
  while (signal == SIGHUP);
  if (!done) {
    Log(LogLevel::kWarning, "second signal: stopping now", {{"signal", signal}});
    _exit(1);
  }
  shutdown.join();
  Log(LogLevel::kInfo, "stopped");
  return 0;
}

int Main(int argc, char** argv) {
  Configuration<Settings> config(Declare, Check);
  const Program program = {
      .name = "pkvd",
      .description = "pkvd keeps quantized KV cache blocks in memory and serves them over gRPC.",
      .version = absl::StrCat("pkvd ", BuildVersion()),
      .footer =
          "SIGHUP loads the configuration again, SIGTERM drains and ends.\n"
          "Exit codes: 0 ok, 1 failure, 2 usage or configuration.\n"};
  if (const std::optional<int> exit_code = config.Start(program, argc, argv, environ)) {
    return *exit_code;
  }
  const Settings& settings = config.settings();
  ConfigureLog(settings.log.level, settings.log.format);
  config.LogStart();

  // Before any thread starts, so that none of them takes the signals.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);

  CacheServerOptions options = settings.server;
  if (settings.nccl_device >= 0) {
    absl::StatusOr<NcclPort> port = OpenNcclPort(settings.nccl_device);
    if (!port.ok()) {
      std::cerr << "pkvd: --nccl-device: " << port.status().message() << "\n";
      return kExitUsage;
    }
    options.nccl = std::make_shared<const NcclPort>(*std::move(port));
  }
  std::optional<EndWhileStarting> starting(std::in_place);
  absl::StatusOr<std::unique_ptr<CacheServer>> server = CacheServer::Start(options);
  starting.reset();
  if (!server.ok()) {
    std::cerr << "pkvd: " << server.status().message() << "\n";
    return absl::IsInvalidArgument(server.status()) ? kExitUsage : 1;
  }
  (*server)->reload_metrics().SetHash(config.Hash());
  LogSettings(settings, **server);
  if (!settings.port_file.empty()) {
    if (const absl::Status status = WritePortFile(settings.port_file, **server); !status.ok()) {
      std::cerr << "pkvd: --port-file: " << status.message() << "\n";
      return 1;
    }
  }
  return ServeUntilSignal(**server, config, signals);
}

}  // namespace
}  // namespace pkv

int main(int argc, char** argv) { return pkv::Main(argc, argv); }
