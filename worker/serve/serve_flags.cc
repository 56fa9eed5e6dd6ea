#include "worker/serve/serve_flags.h"

#include <grpcpp/impl/codegen/service_type.h>

#include <unistd.h>

#include <cstdio>
#include <optional>

#include "absl/strings/str_cat.h"
#include "pkv/client/cache_client.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/config/configuration.h"
#include "proto/metrics/metric_registry.h"
#include "proto/metrics/reload_metrics.h"
#include "proto/serving/health_server.h"
#include "proto/transport/nccl/nccl_port.h"
#include "worker/serve/client_collector.h"
#include "worker/serve/member_collector.h"

namespace pkv {
namespace {

int ExitCode(const absl::Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  return absl::IsInvalidArgument(status) ? 2 : 1;
}

bool TakesDeviceFrames(const WorkerRole& role, const ServeFlags& flags) {
  return role.takes_device_frames && flags.model.device == "cuda";
}

const std::string& AdvertisedAddress(const ServeFlags& flags) {
  return flags.direct_advertise.empty() ? flags.server.listen : flags.direct_advertise;
}

// The GPU that frames may come to, of a worker that takes them there; none where NCCL is missing
// and not asked for. REQUIRES: `flags` are checked.
absl::StatusOr<std::optional<NcclPort>> OpenGpu(const WorkerRole& role, const ServeFlags& flags,
                                                Transport transport) {
  const bool is_wanted = transport == Transport::kNccl;
  if (!TakesDeviceFrames(role, flags)) return std::nullopt;
  if (transport != Transport::kAuto && !is_wanted) return std::nullopt;
  absl::StatusOr<NcclPort> port = OpenNcclPort(kModelDevice);
  if (port.ok() || is_wanted) return port;
  Log(LogLevel::kInfo, "nccl: not used", {{"reason", port.status().ToString()}});
  return std::nullopt;
}

}  // namespace

std::string ServeFlags::direct_address() const {
  absl::StatusOr<std::string> spelled = SpellDirectAddress(AdvertisedAddress(*this));
  PKV_CHECK(spelled.ok(), spelled.status().ToString());
  return *std::move(spelled);
}

void DeclareServeOptions(OptionTable& table, ServeFlags& flags) {
  table.AddPath({.name = "model", .help = "Hugging Face directory of a Llama-family model"},
                flags.model.model);
  table.AddWord({.name = "device", .help = "where the model runs"}, flags.model.device,
                {"cpu", "cuda"});
  table.AddText({.name = "shape",
                 .help = "cuda: random weights of this shape in place of --model: llama-3.1-8b, "
                         "llama-3.2-1b or qwen2.5-7b"},
                flags.model.shape);
  table.AddText({.name = "preset",
                 .help = "cuda: the preset of all sequences; on the CPU every request names its "
                         "own"},
                flags.model.preset);
  table.AddInteger(
      {.name = "max-prompt-tokens",
       .help = "cuda: the longest prompt that is computed; takes device memory in proportion"},
      flags.model.max_prompt_tokens, {.min = 128, .max = 1 << 20});
  table.AddText(
      {.name = "cache",
       .help = "pkvd to use, host:port or unix:/path; or several, a,b,c, the same at all workers"},
      flags.cache);
  table.AddWord(
      {.name = "transport",
       .help = "how blocks come from the cache: in place when it is on this host and offers that "
               "(shm), over the network (grpc), from its GPU to that of a decode worker (nccl), or "
               "as it is possible (auto); shm, grpc and auto also say how they go there"},
      flags.transport, {"auto", "grpc", "shm", "nccl"});
  table.AddText({.name = "listen",
                 .help = "address to serve on, host:port (port 0: any) or "
                         "unix:/path"},
                flags.server.listen);
  table.AddText({.name = "metrics-listen", .help = "host:port of /metrics; empty: none"},
                flags.server.metrics_listen);
  table.AddText(
      {.name = "health-listen",
       .help = "address of health checks alone, open before the model is read; empty: none"},
      flags.health_listen);
  table.AddPath(
      {.name = "port-file",
       .help = "write \"port metrics_port\", and the health port if any, to this file once "
               "serving"},
      flags.server.port_file);
  table.AddInteger(
      {.name = "threads", .help = "threads for attention and encoding; 0: one per CPU"},
      flags.model.threads, {.min = 0, .max = 1024});
  table.AddInteger({.name = "max-waiting",
                    .help = "requests waiting before further ones are refused",
                    .reloadable = true},
                   flags.queue.max_waiting, {.min = 0, .max = 65536});
  AddDrainTimeout(table, flags.server.drain_timeout);
  table.AddDuration({.name = "put-deadline",
                     .help = "for one prompt's upload, which lasts as long as its prefill"},
                    flags.put_deadline, {.min = absl::Milliseconds(100), .max = absl::Hours(24)});
  AddLogOptions(table, flags.log);
  table.AddSwitch({.name = "i-understand-insecure",
                   .help = "listen beyond loopback although connections are not encrypted"},
                  flags.server.allow_insecure);
}

void DeclarePrefillOptions(OptionTable& table, ServeFlags& flags) {
  table.AddInteger({.name = "max-running", .help = "requests running at once"},
                   flags.queue.max_running, {.min = 1, .max = 1024});
  table.AddInteger(
      {.name = "compression-sms",
       .help = "cuda: multiprocessors that compress long prompts while the model's products take "
               "the others, even, at most a 32nd of the GPU; 0: all do both"},
      flags.model.compression_sms, {.min = 0, .max = 64});
  table.AddSize({.name = "direct-memory",
                 .help = "cuda: device memory for the newest prompts, which decode workers then "
                         "fetch from this GPU over NCCL; 0: none"},
                flags.direct_memory, {.min = 0, .max = uint64_t{1} << 40});
  table.AddText(
      {.name = "direct-advertise",
       .help = "host:port by which decode workers reach this one for that, IPv6 in brackets; "
               "empty: --listen"},
      flags.direct_advertise);
}

void DeclareDecodeOptions(OptionTable& table, ServeFlags& flags) {
  table.AddInteger({.name = "max-batch", .help = "sequences decoded together"}, flags.max_batch,
                   {.min = 1, .max = 1024});
  table.AddInteger({.name = "pages",
                    .help = "blocks of 128 tokens that all sequences may hold together; 0: as many "
                            "as fit on the GPU, 4096 on the CPU"},
                   flags.num_pages, {.min = 0, .max = 1 << 24});
  table.AddNumber({.name = "memory-share",
                   .help = "cuda, without --pages: share of the free device memory that pages "
                           "take"},
                  flags.model.memory_share, {.min = 0.01, .max = 1.0});
  table.AddSwitch({.name = "layer-streaming",
                   .help = "compute a layer as soon as its part of the prefix is here, rather than "
                           "when all layers are"},
                  flags.layer_streaming);
  table.AddText(
      {.name = "direct-from",
       .help = "cuda, --transport auto: prefill workers, name:port,..., whose GPUs may be "
               "asked for a prompt before the cache is; a name stands for all that it resolves to; "
               "empty: none"},
      flags.direct_from);
}

namespace {

absl::Status CheckDirectMemory(const ServeFlags& flags) {
  if (flags.direct_memory == 0) {
    if (flags.direct_advertise.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("--direct-advertise ", flags.direct_advertise, " needs --direct-memory"));
  }
  if (flags.model.device != "cuda") {
    return absl::InvalidArgumentError(absl::StrCat("--direct-memory ", flags.direct_memory,
                                                   ": a worker on --device ", flags.model.device,
                                                   " has no prompts in a GPU's memory"));
  }
  const std::string& address = AdvertisedAddress(flags);
  // Checked as --direct-from is, with which it is compared.
  const absl::StatusOr<std::string> spelled = SpellDirectAddress(address);
  const absl::StatusOr<bool> is_wildcard = IsWildcard(spelled.ok() ? *spelled : address);
  if (spelled.ok() && is_wildcard.ok() && !*is_wildcard) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "--direct-memory: decode workers cannot reach '", address,
      "': give a host and port of this worker with --direct-advertise, IPv6 in brackets"));
}

absl::Status CheckDirectFromFlag(const WorkerRole& role, const ServeFlags& flags) {
  if (flags.direct_from.empty()) return absl::OkStatus();
  const absl::Status named = CheckDirectFrom(flags.direct_from);
  if (!named.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--direct-from: ", named.message()));
  }
  // With nccl what a prefill worker's GPU began and did not finish would fail: only gRPC brings a
  // prefix from its first missing layer on.
  if (TakesDeviceFrames(role, flags) && flags.transport == "auto") return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--direct-from needs --device cuda and --transport auto, not --device ",
                   flags.model.device, " and --transport ", flags.transport));
}

}  // namespace

absl::Status CheckServeFlags(const WorkerRole& role, const ServeFlags& flags) {
  PKV_RETURN_IF_ERROR(WorkerModel::Check(flags.model));
  if (flags.transport == "nccl" && !TakesDeviceFrames(role, flags)) {
    return absl::InvalidArgumentError(absl::StrCat("--transport nccl: a ", role.name,
                                                   " worker on --device ", flags.model.device,
                                                   " takes no frames in device memory"));
  }
  PKV_RETURN_IF_ERROR(CheckListenAddresses(flags.server));
  PKV_RETURN_IF_ERROR(CheckDirectMemory(flags));
  return CheckDirectFromFlag(role, flags);
}

namespace {

// Loads model and cache client, makes the worker and serves until a signal.
int RunWorker(const WorkerRole& role, Configuration<ServeFlags>& config) {
  const ServeFlags& flags = config.settings();
  ConfigureLog(flags.log.level, flags.log.format);
  BlockTerminationSignals();
  config.LogStart();
  Log(LogLevel::kInfo, "starting",
      {{"role", role.name},
       {"model", flags.model.shape.empty() ? flags.model.model : flags.model.shape},
       {"device", flags.model.device},
       {"cache", flags.cache},
       {"transport", flags.transport}});
  // Before the model: whoever asks meanwhile learns that this process lives but is not ready.
  absl::StatusOr<std::unique_ptr<HealthServer>> health = nullptr;
  if (!flags.health_listen.empty()) health = HealthServer::Start(flags.health_listen);
  if (!health.ok()) return ExitCode(health.status());
  absl::StatusOr<std::unique_ptr<WorkerModel>> model = WorkerModel::Load(flags.model);
  if (!model.ok()) return ExitCode(model.status());
  const ModelHost& host = (*model)->host();
  ClientOptions client_options;
  client_options.address = flags.cache;
  const absl::StatusOr<Transport> transport = ParseTransport(flags.transport);
  if (!transport.ok()) return ExitCode(transport.status());
  client_options.transport = *transport;
  client_options.statistics = std::make_shared<CallStatistics>();
  client_options.put_deadline = flags.put_deadline;
  client_options.direct_from = flags.direct_from;
  const absl::StatusOr<std::optional<NcclPort>> gpu = OpenGpu(role, flags, *transport);
  if (!gpu.ok()) return ExitCode(gpu.status());
  absl::StatusOr<std::unique_ptr<CacheCluster>> cluster =
      CacheCluster::Create(client_options, gpu->has_value() ? &**gpu : nullptr);
  if (!cluster.ok()) return ExitCode(cluster.status());
  Log(LogLevel::kInfo, "model loaded",
      {{"profile", host.profile().ToShortHex()}, {"layers", host.config().num_layers}});
  WorkerMetrics metrics(role.name);
  metrics.registry()->AddCollectable(
      std::make_shared<ClientCollector>(role.name, cluster->get(), client_options.statistics));
  metrics.registry()->AddCollectable(std::make_shared<MemberCollector>(role.name, cluster->get()));
  ServingFault fault;
  const absl::StatusOr<ServedWorker> served =
      role.make_worker({**model, **cluster, metrics, flags,
                        [&fault](const absl::Status& status) { fault.Report(status); }});
  if (!served.ok()) return ExitCode(served.status());
  ServerHostOptions server = flags.server;
  server.on_drain = served->drain;
  ReloadMetrics reloads(*metrics.registry());
  reloads.SetHash(config.Hash());
  server.on_hangup = [&] {
    const ReloadResult result = config.Reload();
    reloads.SetHash(config.Hash());
    reloads.Count(result);
    SetLogLevel(flags.log.level);
    served->set_max_waiting(flags.queue.max_waiting);
    return flags.server.drain_timeout;
  };
  server.fault = &fault;
  server.health = health->get();
  std::vector<grpc::Service*> services = {served->service.get()};
  if (served->handoff != nullptr) services.push_back(served->handoff);
  return ExitCode(ServeUntilSignal(server, services, metrics.registry()));
}

}  // namespace

int WorkerMain(int argc, char** argv, const WorkerRole& role) {
  Configuration<ServeFlags> config(
      [&role](OptionTable& table, ServeFlags& flags) {
        flags.server.listen = role.default_listen;
        DeclareServeOptions(table, flags);
        role.declare(table, flags);
      },
      [&role](const ServeFlags& flags) { return CheckServeFlags(role, flags); });
  const std::string name = absl::StrCat("pkv-", role.name);
  const Program program = {
      .name = name,
      .description = role.description,
      .version = PKV_VERSION,
      .subcommand = "serve",
      .subcommand_help = "load the model and serve until SIGTERM",
      .footer = absl::StrCat("Example:\n  ", name,
                             " serve --model deploy/models/novella-14m --cache 127.0.0.1:7440\n"
                             "SIGHUP loads the configuration again, SIGTERM drains and ends.\n"
                             "Exit codes: 0 ok, 1 failure, 2 usage or configuration.\n")};
  if (const std::optional<int> exit_code = config.Start(program, argc, argv, environ)) {
    return *exit_code;
  }
  return RunWorker(role, config);
}

}  // namespace pkv
