#include "worker/serve/serve_flags.h"

#include <grpcpp/impl/codegen/service_type.h>

#include <CLI/CLI.hpp>
#include <cstdio>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "pkv/client/cache_client.h"
#include "proto/base/log.h"
#include "proto/metrics/metric_registry.h"
#include "worker/serve/client_collector.h"

namespace pkv {
namespace {

int ExitCode(const absl::Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

void NameInEnvironment(CLI::App& command) {
  for (CLI::Option* option : command.get_options()) {
    const std::string& name = option->get_lnames().empty() ? "" : option->get_lnames().front();
    if (name.empty() || name == "help") continue;
    option->envname("PKV_" + absl::AsciiStrToUpper(absl::StrReplaceAll(name, {{"-", "_"}})));
  }
}

}  // namespace

void AddServeFlags(CLI::App& command, ServeFlags& flags) {
  command.add_option("--model", flags.model.model,
                     "Hugging Face directory of a Llama-family model");
  command.add_option("--device", flags.model.device, "where the model runs")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command.add_option("--shape", flags.model.shape,
                     "cuda: random weights of this shape in place of --model: llama-3.1-8b, "
                     "llama-3.2-1b or qwen2.5-7b");
  command
      .add_option("--preset", flags.model.preset,
                  "cuda: the preset of all sequences; on the CPU every request names its own")
      ->capture_default_str();
  command
      .add_option("--max-prompt-tokens", flags.model.max_prompt_tokens,
                  "cuda: the longest prompt that is computed; takes device memory in proportion")
      ->check(CLI::Range(128, 1 << 20))
      ->capture_default_str();
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
      .add_option("--threads", flags.model.threads,
                  "threads for attention and encoding; 0: one per CPU")
      ->check(CLI::Range(0, 1024))
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
  NameInEnvironment(command);
}

void AddPrefillFlags(CLI::App& command, ServeFlags& flags) {
  command.add_option("--max-running", flags.queue.max_running, "requests running at once")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  NameInEnvironment(command);
}

void AddDecodeFlags(CLI::App& command, ServeFlags& flags) {
  command.add_option("--max-batch", flags.max_batch, "sequences decoded together")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command
      .add_option("--pages", flags.num_pages,
                  "blocks of 128 tokens that all sequences may hold together; 0: as many as fit "
                  "on the GPU, 4096 on the CPU")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  command
      .add_option("--memory-share", flags.model.memory_share,
                  "cuda, without --pages: share of the free device memory that pages take")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  command
      .add_option("--layer-streaming", flags.layer_streaming,
                  "compute a layer as soon as its part of the prefix is here, rather than when all "
                  "layers are")
      ->capture_default_str();
  NameInEnvironment(command);
}

int RunWorker(const WorkerRole& role, const ServeFlags& flags) {
  const LogLevel level = flags.log_level == "debug"     ? LogLevel::kDebug
                         : flags.log_level == "warning" ? LogLevel::kWarning
                         : flags.log_level == "error"   ? LogLevel::kError
                                                        : LogLevel::kInfo;
  ConfigureLog(level, flags.log_format == "json" ? LogFormat::kJson : LogFormat::kText);
  BlockTerminationSignals();
  Log(LogLevel::kInfo, "starting",
      {{"role", role.name},
       {"model", flags.model.shape.empty() ? flags.model.model : flags.model.shape},
       {"device", flags.model.device},
       {"cache", flags.cache},
       {"transport", flags.transport}});
  absl::StatusOr<std::unique_ptr<WorkerModel>> model = WorkerModel::Load(flags.model);
  if (!model.ok()) return ExitCode(model.status());
  const ModelHost& host = (*model)->host();
  ClientOptions client_options;
  client_options.address = flags.cache;
  const absl::StatusOr<Transport> transport = ParseTransport(flags.transport);
  if (!transport.ok()) return ExitCode(transport.status());
  client_options.transport = *transport;
  client_options.statistics = std::make_shared<CallStatistics>();
  client_options.put_deadline = absl::Seconds(flags.put_deadline_s);
  absl::StatusOr<std::unique_ptr<CacheClient>> cache = CacheClient::Create(client_options);
  if (!cache.ok()) return ExitCode(cache.status());
  Log(LogLevel::kInfo, "model loaded",
      {{"profile", host.profile().ToShortHex()}, {"layers", host.config().num_layers}});
  WorkerMetrics metrics(role.name);
  metrics.registry()->AddCollectable(
      std::make_shared<ClientCollector>(role.name, cache->get(), client_options.statistics));
  ServingFault fault;
  const absl::StatusOr<ServedWorker> served =
      role.make_worker({**model, **cache, metrics, flags,
                        [&fault](const absl::Status& status) { fault.Report(status); }});
  if (!served.ok()) return ExitCode(served.status());
  ServerHostOptions server = flags.server;
  server.drain_timeout = absl::Seconds(flags.drain_timeout_s);
  server.on_drain = served->drain;
  server.fault = &fault;
  return ExitCode(ServeUntilSignal(server, {served->service.get()}, metrics.registry()));
}

int WorkerMain(int argc, char** argv, const WorkerRole& role) {
  CLI::App app(role.description);
  app.require_subcommand(1);
  app.set_version_flag("--version", PKV_VERSION);
  ServeFlags flags;
  flags.server.listen = role.default_listen;
  CLI::App* serve = app.add_subcommand("serve", "load the model and serve until SIGTERM");
  AddServeFlags(*serve, flags);
  role.add_flags(*serve, flags);
  app.footer(absl::StrCat("Example:\n  pkv-", role.name,
                          " serve --model deploy/models/novella-14m --cache 127.0.0.1:7440\n"));
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  return RunWorker(role, flags);
}

}  // namespace pkv
