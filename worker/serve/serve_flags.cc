#include "worker/serve/serve_flags.h"

#include <grpcpp/impl/codegen/service_type.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "pkv/client/cache_client.h"
#include "proto/base/log.h"
#include "worker/serve/model_host.h"

namespace pkv {
namespace {

int ExitCode(const absl::Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

}  // namespace

void AddServeFlags(CLI::App& command, ServeFlags& flags) {
  command.add_option("--model", flags.model, "Hugging Face directory of a Llama-family model")
      ->required();
  command.add_option("--cache", flags.cache, "pkvd to use, host:port or unix:/path")
      ->capture_default_str();
  command
      .add_option(
          "--transport", flags.transport,
          "how blocks come from the cache: in place when it is on this host and offers that "
          "(shm), over the network (grpc), or as it is possible (auto)")
      ->check(CLI::IsMember({"auto", "grpc", "shm"}))
      ->capture_default_str();
  command.add_option("--listen", flags.server.listen, "address to serve on; port 0 picks one")
      ->capture_default_str();
  command
      .add_option("--metrics-listen", flags.server.metrics_listen,
                  "address of /metrics; empty for none")
      ->capture_default_str();
  command.add_option("--port-file", flags.server.port_file,
                     "write 'port metrics_port' there once serving");
  command
      .add_option("--threads", flags.threads, "threads for attention and encoding; 0: one per CPU")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command.add_option("--max-running", flags.queue.max_running, "requests running at once")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command
      .add_option("--max-waiting", flags.queue.max_waiting,
                  "requests waiting before new ones are refused")
      ->check(CLI::Range(0, 65536))
      ->capture_default_str();
  command
      .add_option("--drain-timeout", flags.drain_timeout_s,
                  "seconds that running requests get after SIGTERM")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  command
      .add_option("--put-deadline", flags.put_deadline_s,
                  "seconds for one prompt's upload, which lasts as long as its prefill")
      ->check(CLI::Range(0.1, 86400.0))
      ->capture_default_str();
  command.add_option("--log-format", flags.log_format)
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  command.add_option("--log-level", flags.log_level)
      ->check(CLI::IsMember({"debug", "info", "warning", "error"}))
      ->capture_default_str();
  command.add_flag("--i-understand-insecure", flags.server.allow_insecure,
                   "listen beyond loopback although connections are not encrypted");
  for (CLI::Option* option : command.get_options()) {
    const std::string& name = option->get_lnames().empty() ? "" : option->get_lnames().front();
    if (name.empty() || name == "help") continue;
    option->envname("PKV_" + absl::AsciiStrToUpper(absl::StrReplaceAll(name, {{"-", "_"}})));
  }
}

int RunWorker(const char* role, const ServeFlags& flags, MakeService make_service) {
  const LogLevel level = flags.log_level == "debug"     ? LogLevel::kDebug
                         : flags.log_level == "warning" ? LogLevel::kWarning
                         : flags.log_level == "error"   ? LogLevel::kError
                                                        : LogLevel::kInfo;
  ConfigureLog(level, flags.log_format == "json" ? LogFormat::kJson : LogFormat::kText);
  BlockTerminationSignals();
  const int threads =
      flags.threads > 0 ? flags.threads : std::max(1u, std::thread::hardware_concurrency());
  Log(LogLevel::kInfo, "starting",
      {{"role", role},
       {"model", flags.model},
       {"cache", flags.cache},
       {"transport", flags.transport},
       {"threads", threads}});
  absl::StatusOr<std::unique_ptr<ModelHost>> host = ModelHost::Load(flags.model, threads);
  if (!host.ok()) return ExitCode(host.status());
  ClientOptions client_options;
  client_options.address = flags.cache;
  const absl::StatusOr<Transport> transport = ParseTransport(flags.transport);
  if (!transport.ok()) return ExitCode(transport.status());
  client_options.transport = *transport;
  client_options.put_deadline = absl::Seconds(flags.put_deadline_s);
  absl::StatusOr<std::unique_ptr<CacheClient>> cache = CacheClient::Create(client_options);
  if (!cache.ok()) return ExitCode(cache.status());
  Log(LogLevel::kInfo, "model loaded",
      {{"profile", (*host)->profile().ToShortHex()}, {"layers", (*host)->config().num_layers}});
  WorkerMetrics metrics(role);
  const std::unique_ptr<grpc::Service> service =
      make_service(**host, **cache, metrics, flags.queue);
  ServerHostOptions server = flags.server;
  server.drain_timeout = absl::Seconds(flags.drain_timeout_s);
  return ExitCode(ServeUntilSignal(server, {service.get()}, metrics.registry()));
}

int WorkerMain(int argc, char** argv, const char* role, const char* description,
               const char* default_listen, MakeService make_service) {
  CLI::App app(description);
  app.require_subcommand(1);
  app.set_version_flag("--version", PKV_VERSION);
  ServeFlags flags;
  flags.server.listen = default_listen;
  CLI::App* serve = app.add_subcommand("serve", "load the model and serve until SIGTERM");
  AddServeFlags(*serve, flags);
  app.footer(absl::StrCat("Example:\n  pkv-", role,
                          " serve --model deploy/models/novella-14m --cache 127.0.0.1:7440\n"));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return RunWorker(role, flags, make_service);
}

}  // namespace pkv
