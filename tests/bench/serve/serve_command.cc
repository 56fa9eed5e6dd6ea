#include <sys/resource.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <memory>
#include <sstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "proto/config/command_line.h"
#include "tests/bench/commands.h"
#include "tests/bench/serve/load_runner.h"
#include "tests/bench/serve/metrics_watch.h"
#include "tests/bench/serve/serve_report.h"
#include "tests/bench/serve/serve_setup.h"
#include "tests/bench/serve/workload.h"

namespace pkv {
namespace {

// Warm-up requests of an open loop that are under way at once.
constexpr int kWarmUpConcurrency = 8;

struct ServingFlags {
  std::vector<std::string> prefill, decode;
  std::vector<std::string> metrics_prefill, metrics_decode, metrics_cache;
  // Memory, bytes by transport, requests resident in a decode worker and its pages.
  std::vector<std::string> wanted_metrics = {"process_resident_memory_bytes",
                                             "pkv_payload_bytes_total", "pkv_decode_sequences",
                                             "pkv_decode_pages"};
  double metrics_interval_s = 1;

  int concurrency = 0;  // 0: not given
  double rate_per_s = 0;
  std::string trace;
  double trace_speed = 1;
  int64_t num_requests = 0;
  double duration_s = 0;
  int64_t num_warm_up = 0;
  uint64_t seed = 1;

  std::string prompt_tokens = "fixed:1024", output_tokens = "fixed:128";
  int max_prompt_tokens = kMaxRequestTokens;
  double shared_prefix = 0;
  int num_prefixes = 1;
  bool align_prefix = false;
  int vocab = 8192;
  std::string text;
  size_t text_bytes = 65536;

  std::string variant = "default";
  bool ignore_cache = false, decode_only = false, ignore_eos = false;
  bool refuse_recompute = false, put_back = false;
  int64_t num_distinct_prompts = 0;
  double temperature = 0, top_p = 1;

  int num_retries_max = 0;
  double deadline_s = 600;
  int num_channels = 4;
  double slo_ttft_s = 0, slo_tpot_s = 0;  // 0: none
  std::string output = "text", out;

  bool open_loop() const { return concurrency == 0 && (rate_per_s > 0 || !trace.empty()); }
  int slots() const { return open_loop() ? kMaxConcurrency : std::max(1, concurrency); }
};

absl::Status CheckFlags(const ServingFlags& flags) {
  if (flags.concurrency > 0 && flags.rate_per_s > 0) {
    return absl::InvalidArgumentError(
        "--concurrency is a closed loop and --rate an open one: one of them");
  }
  if (flags.decode_only && flags.ignore_cache) {
    return absl::InvalidArgumentError("--decode-only has no prefill that could --ignore-cache");
  }
  return absl::OkStatus();
}

WorkloadOptions ToWorkloadOptions(const ServingFlags& flags, const LengthDistribution& prompt,
                                  const LengthDistribution& output) {
  WorkloadOptions options = {.prompt_tokens = prompt, .output_tokens = output};
  options.shared_prefix = flags.shared_prefix;
  options.num_prefixes = flags.num_prefixes;
  options.align_prefix = flags.align_prefix;
  options.max_prompt_tokens = flags.max_prompt_tokens;
  if (flags.decode_only) {
    options.num_distinct_prompts = flags.num_distinct_prompts > 0 ? flags.num_distinct_prompts
                                   : flags.open_loop()            ? 16
                                                                  : flags.slots();
  }
  if (flags.open_loop()) {
    options.arrivals = flags.rate_per_s > 0 ? Arrivals::kPoisson : Arrivals::kTrace;
  }
  options.rate_per_s = flags.rate_per_s;
  options.trace_speed = flags.trace_speed;
  options.seed = flags.seed;
  return options;
}

absl::StatusOr<TokenSource> MakeTokenSource(const ServingFlags& flags, WorkerCalls& calls) {
  if (flags.text.empty()) return TokenSource::Random(flags.vocab);
  std::ifstream file(flags.text, std::ios::binary);
  std::string text(flags.text_bytes, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(file.gcount());
  if (text.empty()) {
    return absl::NotFoundError(absl::StrCat("cannot read text ", flags.text, ", or it is empty"));
  }
  return TokenizeText(calls, text, flags.variant);
}

// A serving benchmark from its flags to its report.
class Serving {
 public:
  Serving(const ServingFlags& flags, WorkerCalls& calls) : flags_(flags), calls_(calls) {}

  absl::StatusOr<ServeReport> Run();

 private:
  absl::Status Prepare();
  void WarmUp();
  LoadItem MakeItem(const PlannedRequest& request, const PlannedPrompt* prompt) const;
  std::optional<LoadItem> NextItem();
  LoadResult RunMeasured();

  const ServingFlags& flags_;
  WorkerCalls& calls_;
  std::optional<Workload> workload_;
  std::vector<v1::HandoffTicket> tickets_;
  int64_t num_planned_ = 0;
  ServeReport report_;
};

absl::Status Serving::Prepare() {
  PKV_ASSIGN_OR_RETURN(const LengthDistribution prompt,
                       LengthDistribution::Parse(flags_.prompt_tokens));
  PKV_ASSIGN_OR_RETURN(const LengthDistribution output,
                       LengthDistribution::Parse(flags_.output_tokens));
  std::vector<TraceRequest> trace;
  if (!flags_.trace.empty()) {
    PKV_ASSIGN_OR_RETURN(trace, ReadTrace(flags_.trace));
  }
  const WorkloadOptions options = ToWorkloadOptions(flags_, prompt, output);
  PKV_RETURN_IF_ERROR(Workload::Make(options, TokenSource::Random(1), trace).status());
  PKV_ASSIGN_OR_RETURN(TokenSource source, MakeTokenSource(flags_, calls_));
  PKV_ASSIGN_OR_RETURN(workload_, Workload::Make(options, std::move(source), std::move(trace)));
  if (!flags_.decode_only) return absl::OkStatus();
  PKV_ASSIGN_OR_RETURN(
      Tickets made, MakeTickets(calls_, *workload_, options.num_distinct_prompts, flags_.variant));
  tickets_ = std::move(made.tickets);
  report_.tickets = made.setup;
  return absl::OkStatus();
}

LoadItem Serving::MakeItem(const PlannedRequest& request, const PlannedPrompt* prompt) const {
  LoadItem item = {.index = request.index, .arrival_s = request.arrival_s};
  v1::Sampling& sampling = *item.decode.mutable_sampling();
  sampling.set_max_tokens(request.output_tokens);
  sampling.set_temperature(static_cast<float>(flags_.temperature));
  sampling.set_top_p(static_cast<float>(flags_.top_p));
  sampling.set_seed(request.sampling_seed);
  sampling.set_ignore_eos(flags_.ignore_eos);
  item.decode.set_refuse_recompute(flags_.refuse_recompute);
  item.decode.set_put_back(flags_.put_back);
  if (prompt == nullptr) {
    *item.decode.mutable_ticket() = tickets_[request.prompt_index % tickets_.size()];
    return item;
  }
  item.prompt_cut = prompt->cut;
  item.num_shared_tokens = prompt->num_shared_tokens;
  item.prefill.emplace();
  item.prefill->set_preset(flags_.variant);
  item.prefill->set_ignore_cache(flags_.ignore_cache);
  item.prefill->mutable_prompt()->mutable_token_ids()->Add(prompt->token_ids.begin(),
                                                           prompt->token_ids.end());
  return item;
}

void Serving::WarmUp() {
  if (flags_.num_warm_up == 0) return;
  const LoadOptions options = {
      .concurrency = flags_.open_loop() ? kWarmUpConcurrency : flags_.slots(),
      .num_retries_max = flags_.num_retries_max};
  int64_t i = 0;
  const LoadResult load = RunLoad(options, calls_, [&]() -> std::optional<LoadItem> {
    if (i == flags_.num_warm_up) return std::nullopt;
    const PlannedRequest request = workload_->WarmUp(i++);
    if (flags_.decode_only) return MakeItem(request, nullptr);
    const PlannedPrompt prompt = workload_->WarmUpPrompt(request.prompt_index);
    return MakeItem(request, &prompt);
  });
  for (const RequestRecord& record : load.records) {
    if (record.status.ok()) continue;
    std::fprintf(stderr, "pkv-bench: a warm-up request failed: %s\n",
                 record.status.ToString().c_str());
    return;
  }
}

std::optional<LoadItem> Serving::NextItem() {
  if (flags_.num_requests > 0 && num_planned_ == flags_.num_requests) return std::nullopt;
  const std::optional<PlannedRequest> request = workload_->Next();
  if (!request.has_value()) return std::nullopt;
  ++num_planned_;
  if (flags_.decode_only) return MakeItem(*request, nullptr);
  const PlannedPrompt prompt = workload_->Prompt(request->prompt_index);
  return MakeItem(*request, &prompt);
}

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

LoadResult Serving::RunMeasured() {
  const LoadOptions options = {.open_loop = flags_.open_loop(),
                               .concurrency = flags_.slots(),
                               .duration = flags_.duration_s > 0 ? absl::Seconds(flags_.duration_s)
                                                                 : absl::InfiniteDuration(),
                               .num_retries_max = flags_.num_retries_max};
  const double cpu_s = CpuSeconds();
  LoadResult load = RunLoad(options, calls_, [this] { return NextItem(); });
  report_.client_cpu_s = CpuSeconds() - cpu_s;
  return load;
}

absl::StatusOr<ServeReport> Serving::Run() {
  PKV_RETURN_IF_ERROR(Prepare());
  WarmUp();
  std::vector<std::pair<std::string, std::string>> urls;
  for (const auto& [role, of_role] :
       {std::pair("prefill", &flags_.metrics_prefill), std::pair("decode", &flags_.metrics_decode),
        std::pair("cache", &flags_.metrics_cache)}) {
    for (const std::string& url : *of_role) urls.emplace_back(role, url);
  }
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<MetricsWatch> watch,
                       MetricsWatch::Start(urls, absl::Seconds(flags_.metrics_interval_s)));
  const LoadResult load = RunMeasured();
  report_.pages = watch->Stop();
  report_.wanted_metrics = flags_.wanted_metrics;
  report_.num_cpus = static_cast<int>(std::thread::hardware_concurrency());
  report_.options = {.open_loop = flags_.open_loop(), .concurrency = flags_.slots()};
  if (flags_.slo_ttft_s > 0) report_.options.slo_ttft_s = flags_.slo_ttft_s;
  if (flags_.slo_tpot_s > 0) report_.options.slo_tpot_s = flags_.slo_tpot_s;
  report_.summary = Summarize(load, report_.options);
  return std::move(report_);
}

nlohmann::ordered_json DescribeLoad(const ServingFlags& flags) {
  nlohmann::ordered_json load = {{"loop", flags.open_loop() ? "open" : "closed"},
                                 {"concurrency", flags.slots()},
                                 {"variant", flags.variant},
                                 {"prompt_tokens", flags.prompt_tokens},
                                 {"output_tokens", flags.output_tokens},
                                 {"shared_prefix", flags.shared_prefix},
                                 {"num_prefixes", flags.num_prefixes},
                                 {"align_prefix", flags.align_prefix},
                                 {"tokens", flags.text.empty() ? "random" : "text"},
                                 {"decode_only", flags.decode_only},
                                 {"ignore_eos", flags.ignore_eos},
                                 {"temperature", flags.temperature},
                                 {"top_p", flags.top_p},
                                 {"retries", flags.num_retries_max},
                                 {"warm_up_requests", flags.num_warm_up},
                                 {"seed", flags.seed},
                                 {"prefill_workers", flags.prefill.size()},
                                 {"decode_workers", flags.decode.size()}};
  if (flags.rate_per_s > 0) load["rate_per_s"] = flags.rate_per_s;
  if (!flags.trace.empty()) load["trace_speed"] = flags.trace_speed;
  return load;
}

absl::Status RunServe(ServingFlags flags, const std::string& command_line, int& exit_code) {
  PKV_RETURN_IF_ERROR(CheckFlags(flags));
  if (flags.num_requests == 0 && flags.duration_s == 0 && flags.trace.empty()) {
    flags.num_requests = 100;
  }
  WorkerCalls calls({.prefill = flags.prefill,
                     .decode = flags.decode,
                     .num_channels = flags.num_channels,
                     .deadline = absl::Seconds(flags.deadline_s)});
  PKV_ASSIGN_OR_RETURN(ServeReport report, Serving(flags, calls).Run());
  report.command_line = command_line;
  report.load = DescribeLoad(flags);
  // Messages of workers are text of other machines: what is no UTF-8 becomes U+FFFD.
  const std::string json =
      ToJson(report).dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
  std::printf("%s\n", flags.output == "json" ? json.c_str() : ToText(report).c_str());
  exit_code = ServeExitCode(report.summary);
  if (flags.out.empty()) return absl::OkStatus();
  std::ofstream file(flags.out, std::ios::trunc);
  file << json << "\n";
  file.close();
  return file.good() ? absl::OkStatus()
                     : absl::InternalError(absl::StrCat("cannot write ", flags.out));
}

void AddWorkerOptions(CLI::App& command, ServingFlags& flags) {
  command.add_option("--prefill", flags.prefill, "prefill workers; requests take turns")
      ->delimiter(',')
      ->required();
  command.add_option("--decode", flags.decode, "decode workers; requests take turns")
      ->delimiter(',')
      ->required();
  command.add_option("--metrics-prefill", flags.metrics_prefill, "http://HOST:PORT/metrics")
      ->delimiter(',');
  command.add_option("--metrics-decode", flags.metrics_decode, "likewise")->delimiter(',');
  command.add_option("--metrics-cache", flags.metrics_cache, "likewise")->delimiter(',');
  command
      .add_option("--metric", flags.wanted_metrics,
                  "beside what begins with pkv_: reported, as absent when no page has it")
      ->delimiter(',')
      ->capture_default_str();
  AddSecondsFlag(command, "metrics-interval", flags.metrics_interval_s, "between scrapes",
                 {.min = absl::Milliseconds(10), .max = absl::Hours(1)});
  AddSecondsFlag(command, "deadline", flags.deadline_s, "for each call",
                 {.min = absl::Milliseconds(1), .max = absl::Hours(24)});
  command.add_option("--channels", flags.num_channels, "connections to each worker")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
}

void AddLoadOptions(CLI::App& command, ServingFlags& flags) {
  command
      .add_option("--concurrency", flags.concurrency,
                  "closed loop: so many requests under way; 1 unless --rate or --trace")
      ->check(CLI::Range(1, kMaxConcurrency));
  command.add_option("--rate", flags.rate_per_s, "open loop: Poisson arrivals a second")
      ->check(CLI::Range(1e-6, 1e6));
  command.add_option("--trace", flags.trace,
                     "JSONL of timestamp, input_length, output_length, hash_ids; open loop at its "
                     "times unless --concurrency or --rate");
  command.add_option("--trace-speed", flags.trace_speed, "its time passes so many times as fast")
      ->check(CLI::Range(1e-6, 1e6))
      ->capture_default_str();
  command
      .add_option("--num-requests", flags.num_requests,
                  "measured; 100 when neither --duration nor --trace is given")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  AddSecondsFlag(command, "duration", flags.duration_s, "then no more are sent",
                 {.min = absl::Milliseconds(1), .max = absl::Hours(240)});
  command.add_option("--warmup", flags.num_warm_up, "requests before, not measured")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
      ->capture_default_str();
  command
      .add_option("--retry", flags.num_retries_max, "times that a refused request is sent again")
      ->check(CLI::Range(0, 1000))
      ->capture_default_str();
  command.add_option("--seed", flags.seed, "of lengths, tokens, arrivals and sampling")
      ->capture_default_str();
}

void AddPromptOptions(CLI::App& command, ServingFlags& flags) {
  const char* lengths = "fixed:N, uniform:A:B, lognormal:MEDIAN:SIGMA or trace";
  command.add_option("--prompt-tokens", flags.prompt_tokens, lengths)->capture_default_str();
  command.add_option("--output-tokens", flags.output_tokens, lengths)->capture_default_str();
  command.add_option("--max-prompt-tokens", flags.max_prompt_tokens, "longer prompts are cut")
      ->check(CLI::Range(1, kMaxRequestTokens));
  command.add_option("--shared-prefix", flags.shared_prefix, "share of a prompt's tokens")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command.add_option("--num-prefixes", flags.num_prefixes, "common prefixes to choose from")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command.add_flag("--align-prefix", flags.align_prefix, "cut what is shared to whole blocks");
  command.add_option("--vocab", flags.vocab, "random token ids are below")
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command.add_option("--text", flags.text, "a file whose passages are the prompts");
  command.add_option("--text-bytes", flags.text_bytes, "of its beginning, prefilled for their ids")
      ->check(CLI::Range(size_t{16}, size_t{1} << 30))
      ->capture_default_str();
}

void AddRequestOptions(CLI::App& command, ServingFlags& flags) {
  command.add_option("--variant", flags.variant, "preset")->capture_default_str();
  command.add_flag("--ignore-cache", flags.ignore_cache, "prefill computes everything");
  command.add_flag("--decode-only", flags.decode_only,
                   "prefill each distinct prompt once, then send its ticket only");
  command
      .add_option("--distinct-prompts", flags.num_distinct_prompts,
                  "of --decode-only; as many as --concurrency, 16 in an open loop")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  command.add_flag("--refuse-recompute", flags.refuse_recompute,
                   "a decode that the cache does not serve fails");
  command.add_flag("--put-back", flags.put_back, "store blocks of generated tokens");
  command.add_flag("--ignore-eos", flags.ignore_eos, "generate all tokens asked for");
  command.add_option("--temperature", flags.temperature, "0: greedy")->capture_default_str();
  command.add_option("--top-p", flags.top_p, "1: off")->capture_default_str();
  AddSecondsFlag(command, "slo-ttft", flags.slo_ttft_s, "goodput counts what keeps within",
                 {.min = absl::Nanoseconds(1)});
  AddSecondsFlag(command, "slo-tpot", flags.slo_tpot_s, "likewise, for an output token",
                 {.min = absl::Nanoseconds(1)});
  command.add_option("--output", flags.output, "on stdout: text, or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  command.add_option("--out", flags.out, "write the JSON there too");
}

}  // namespace

void AddServeCommand(CLI::App& app, const std::string& command_line, int& exit_code) {
  auto flags = std::make_shared<ServingFlags>();
  CLI::App* command = app.add_subcommand("serve", "latency and throughput of running workers");
  AddWorkerOptions(*command, *flags);
  AddLoadOptions(*command, *flags);
  AddPromptOptions(*command, *flags);
  AddRequestOptions(*command, *flags);
  command->callback([flags, command_line, &exit_code] {
    const absl::Status status = RunServe(*flags, command_line, exit_code);
    if (status.ok()) return;
    std::fprintf(stderr, "pkv-bench: %s\n", status.ToString().c_str());
    exit_code = absl::IsInvalidArgument(status) || absl::IsNotFound(status) ? 2 : 1;
  });
}

}  // namespace pkv
