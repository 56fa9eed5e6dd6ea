// pkvd: the cache service. Options, logging and signals; everything else is CacheServer.

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <ctime>
#include <fstream>
#include <memory>
#include <string>
#include <thread>

#include "kvstore/service/cache_server.h"
#include "proto/base/log.h"
#include "proto/metrics/build_info.h"
#include "proto/transport/nccl/nccl_port.h"

namespace pkv {
namespace {

constexpr int kExitUsage = 2;

struct Settings {
  CacheServerOptions server;
  absl::Duration drain_timeout = absl::Seconds(30);
  int nccl_device = -1;
  std::string port_file;
  LogLevel log_level = LogLevel::kInfo;
  LogFormat log_format = LogFormat::kText;
};

// Texts as they stand on the command line, until they are checked.
struct RawSettings {
  std::string stall_timeout = "10s";
  std::string drain_timeout = "30s";
  std::string shm_silence = "30s";
  std::string shm_pin_age = "1h";
};

void AddShmOptions(CLI::App& app, CacheServerOptions& server, RawSettings& raw) {
  app.add_option("--shm-socket", server.shm_socket,
                 "unix socket on which readers of this host get at the memory itself; empty: none")
      ->envname("PKV_SHM_SOCKET");
  app.add_flag("--shm-any-user", server.shm_any_user,
               "let readers of other users use it; default: our own user and root")
      ->envname("PKV_SHM_ANY_USER");
  app.add_option("--shm-max-pinned", server.shm_pinned_bytes,
                 "memory that one of its connections may pin; 0: half the capacity")
      ->envname("PKV_SHM_MAX_PINNED")
      ->transform(CLI::AsSizeValue(false))
      ->default_str("0");
  app.add_option("--shm-silence", raw.shm_silence,
                 "a reader that gives no sign of life for this long loses its pins")
      ->envname("PKV_SHM_SILENCE")
      ->capture_default_str();
  app.add_option("--shm-pin-age", raw.shm_pin_age, "longest time that anything may stay pinned")
      ->envname("PKV_SHM_PIN_AGE")
      ->capture_default_str();
}

void AddNcclOptions(CLI::App& app, Settings& settings) {
  app.add_option("--nccl-device", settings.nccl_device,
                 "CUDA device that sends blocks to decode workers' GPUs over NCCL; pins all of the "
                 "capacity; -1: none")
      ->envname("PKV_NCCL_DEVICE")
      ->check(CLI::Range(-1, 1024))
      ->capture_default_str();
}

void AddOptions(CLI::App& app, Settings& settings, RawSettings& raw) {
  CacheServerOptions& server = settings.server;
  app.set_version_flag("--version", std::string("pkvd ") + BuildVersion());
  app.add_option("--listen", server.listen, "host:port (port 0: any) or unix:/path")
      ->envname("PKV_LISTEN")
      ->capture_default_str();
  app.add_option("--metrics-listen", server.metrics_listen, "host:port of /metrics; empty: none")
      ->envname("PKV_METRICS_LISTEN")
      ->capture_default_str();
  app.add_option("--capacity", server.capacity_bytes, "memory for objects, as in 512MiB or 4GiB")
      ->envname("PKV_CAPACITY")
      ->transform(CLI::AsSizeValue(false))
      ->default_str("4GiB");
  app.add_option("--stall-timeout", raw.stall_timeout,
                 "a stream on which nothing moves for this long is cancelled")
      ->envname("PKV_STALL_TIMEOUT")
      ->capture_default_str();
  app.add_option("--drain-timeout", raw.drain_timeout,
                 "after SIGTERM, calls in flight get this long to end")
      ->envname("PKV_DRAIN_TIMEOUT")
      ->capture_default_str();
  app.add_option("--log-level", settings.log_level, "debug, info, warning or error")
      ->envname("PKV_LOG_LEVEL")
      ->transform(
          CLI::CheckedTransformer(std::map<std::string, LogLevel>{{"debug", LogLevel::kDebug},
                                                                  {"info", LogLevel::kInfo},
                                                                  {"warning", LogLevel::kWarning},
                                                                  {"error", LogLevel::kError}}))
      ->default_str("info");
  app.add_option("--log-format", settings.log_format, "text or json")
      ->envname("PKV_LOG_FORMAT")
      ->transform(CLI::CheckedTransformer(
          std::map<std::string, LogFormat>{{"text", LogFormat::kText}, {"json", LogFormat::kJson}}))
      ->default_str("text");
  app.add_flag("--reflection,!--no-reflection", server.reflection,
               "answer gRPC server reflection; default: on")
      ->envname("PKV_REFLECTION");
  app.add_option("--port-file", settings.port_file,
                 "write \"port metrics_port\" to this file once serving")
      ->envname("PKV_PORT_FILE");
  app.add_flag("--i-understand-insecure", server.allow_insecure_remote,
               "listen where other hosts can reach it, without encryption or authentication")
      ->envname("PKV_I_UNDERSTAND_INSECURE");
}

absl::Status ParseTimeout(const char* option, const std::string& text, absl::Duration minimum,
                          absl::Duration& out) {
  if (!absl::ParseDuration(text, &out) || out < minimum || out == absl::InfiniteDuration()) {
    return absl::InvalidArgumentError(
        absl::StrCat(option, " \"", text, "\" is no duration of at least ",
                     absl::FormatDuration(minimum), ", as in 10s or 500ms"));
  }
  return absl::OkStatus();
}

absl::Status Check(const RawSettings& raw, Settings& settings) {
  const absl::Status stall = ParseTimeout("--stall-timeout", raw.stall_timeout,
                                          absl::Milliseconds(100), settings.server.stall_timeout);
  if (!stall.ok()) return stall;
  const absl::Status silence = ParseTimeout("--shm-silence", raw.shm_silence,
                                            absl::Milliseconds(100), settings.server.shm_silence);
  if (!silence.ok()) return silence;
  const absl::Status age = ParseTimeout("--shm-pin-age", raw.shm_pin_age,
                                        settings.server.shm_silence, settings.server.shm_pin_age);
  if (!age.ok()) return age;
  return ParseTimeout("--drain-timeout", raw.drain_timeout, absl::ZeroDuration(),
                      settings.drain_timeout);
}

void LogSettings(const Settings& settings, const CacheServer& server) {
  Log(LogLevel::kInfo, "serving",
      {{"version", BuildVersion()},
       {"listen", settings.server.listen},
       {"port", server.port()},
       {"metrics_listen", settings.server.metrics_listen},
       {"metrics_port", server.metrics_port()},
       {"capacity_bytes", settings.server.capacity_bytes},
       {"stall_timeout", absl::FormatDuration(settings.server.stall_timeout)},
       {"drain_timeout", absl::FormatDuration(settings.drain_timeout)},
       {"shm_socket", settings.server.shm_socket},
       {"shm_any_user", settings.server.shm_any_user ? "yes" : "no"},
       {"shm_max_pinned", settings.server.shm_pinned_bytes},
       {"shm_silence", absl::FormatDuration(settings.server.shm_silence)},
       {"shm_pin_age", absl::FormatDuration(settings.server.shm_pin_age)},
       {"nccl_device", settings.nccl_device},
       {"reflection", settings.server.reflection ? "on" : "off"},
       {"insecure_remote", settings.server.allow_insecure_remote ? "allowed" : "refused"}});
}

// Complete when it appears: written beside and renamed.
absl::Status WritePortFile(const std::string& path, const CacheServer& server) {
  const std::string partial = path + ".partial";
  {
    std::ofstream out(partial);
    out << server.port() << " " << server.metrics_port() << "\n";
    if (!out.flush()) return absl::UnavailableError(absl::StrCat("cannot write ", partial));
  }
  if (std::rename(partial.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat("cannot rename ", partial, " to ", path));
  }
  return absl::OkStatus();
}

// Waits for SIGTERM or SIGINT, drains, and ends early when a second signal comes.
int ServeUntilSignal(CacheServer& server, const Settings& settings, const sigset_t& signals) {
  int signal = 0;
  sigwait(&signals, &signal);
  Log(LogLevel::kInfo, "stopping", {{"signal", signal}});
  server.Drain();
  std::atomic<bool> done{false};
  std::thread shutdown([&] {
    server.Shutdown(settings.drain_timeout);
    done = true;
    kill(getpid(), SIGTERM);  // ends the wait below
  });
  sigwait(&signals, &signal);
  if (!done) {
    Log(LogLevel::kWarning, "second signal: stopping now", {{"signal", signal}});
    _exit(1);
  }
  shutdown.join();
  Log(LogLevel::kInfo, "stopped");
  return 0;
}

int Main(int argc, char** argv) {
  Settings settings;
  RawSettings raw;
  CLI::App app("pkvd keeps quantized KV cache blocks in memory and serves them over gRPC.", "pkvd");
  AddOptions(app, settings, raw);
  AddShmOptions(app, settings.server, raw);
  AddNcclOptions(app, settings);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kExitUsage;
  }
  if (const absl::Status status = Check(raw, settings); !status.ok()) {
    std::cerr << "pkvd: " << status.message() << "\n";
    return kExitUsage;
  }
  ConfigureLog(settings.log_level, settings.log_format);

  // Before any thread starts, so that none of them takes the signals.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);

  if (settings.nccl_device >= 0) {
    absl::StatusOr<NcclPort> port = OpenNcclPort(settings.nccl_device);
    if (!port.ok()) {
      std::cerr << "pkvd: --nccl-device: " << port.status().message() << "\n";
      return kExitUsage;
    }
    settings.server.nccl = std::make_shared<const NcclPort>(*std::move(port));
  }
  absl::StatusOr<std::unique_ptr<CacheServer>> server = CacheServer::Start(settings.server);
  if (!server.ok()) {
    std::cerr << "pkvd: " << server.status().message() << "\n";
    return absl::IsInvalidArgument(server.status()) ? kExitUsage : 1;
  }
  LogSettings(settings, **server);
  if (!settings.port_file.empty()) {
    if (const absl::Status status = WritePortFile(settings.port_file, **server); !status.ok()) {
      std::cerr << "pkvd: --port-file: " << status.message() << "\n";
      return 1;
    }
  }
  return ServeUntilSignal(**server, settings, signals);
}

}  // namespace
}  // namespace pkv

int main(int argc, char** argv) { return pkv::Main(argc, argv); }
