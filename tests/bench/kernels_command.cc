#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <map>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "proto/base/thread_pool.h"
#include "tests/bench/commands.h"
#include "tests/bench/cpu_section.h"
#include "tests/bench/report.h"
#include "tests/bench/sample_kv.h"

#ifdef PKV_WITH_CUDA
#include "kernels/device/stream.h"
#include "tests/bench/attention_section.h"
#include "tests/bench/compression_section.h"
#include "tests/bench/gpu_timing.h"
#include "tests/bench/prefill_section.h"
#endif

namespace pkv {
namespace {

constexpr const char* kRandomData = "random";

struct KernelsFlags {
  bool cpu = false, quick = false, extra = false, plan = false, no_overlap = false;
  std::vector<std::string> cases;
  std::vector<std::string> presets = {"fp16", "kivi2",   "kivi4",   "pkv2",
                                      "pkv4", "default", "default4"};
  std::vector<std::string> data = {kRandomData};
  std::vector<std::string> sections = {"ceilings", "attention", "compression"};
  std::string kernel = "tensor-core", query_type = "fp16";
  int window_tokens = kBlockTokens;
  int blocks = 256;
  int repetitions = 20;
  int threads = 0;
  std::string json, peers;

  bool Runs(const std::string& section) const {
    return std::find(sections.begin(), sections.end(), section) != sections.end();
  }
};

absl::StatusOr<std::vector<AttentionCase>> CasesOf(const KernelsFlags& flags) {
  std::vector<AttentionCase> cases;
  for (const std::string& text : flags.cases) {
    PKV_ASSIGN_OR_RETURN(cases.emplace_back(), ParseAttentionCase(text));
  }
  if (!cases.empty()) return cases;
  if (flags.quick) return std::vector{AttentionCase{.batch = 2, .context_tokens = 1024}};
  cases = DefaultAttentionCases();
  if (!flags.extra) return cases;
  const std::vector<AttentionCase> extra = ExtraAttentionCases();
  cases.insert(cases.end(), extra.begin(), extra.end());
  return cases;
}

absl::StatusOr<SampleKv> MakeSample(const std::string& data, const AttentionCase& shape,
                                    const KernelsFlags& flags, ThreadPool& pool) {
  if (data != kRandomData) return DumpedSampleKv(data, shape);
  return RandomSampleKv(shape, flags.quick ? 4 : flags.blocks, &pool);
}

// Calls visit(data, sample, encoded, cases) for each data, head shape of the cases and preset.
template <typename Visit>
absl::Status ForEachSample(const KernelsFlags& flags, const std::vector<AttentionCase>& cases,
                           ThreadPool& pool, BenchReport& report, const Visit& visit) {
  std::map<std::tuple<int, int, int>, std::vector<AttentionCase>> by_heads;
  for (const AttentionCase& c : cases) {
    by_heads[{-c.head_dim, c.num_qo_heads, c.num_kv_heads}].push_back(c);
  }
  for (const std::string& data : flags.data) {
    const std::string label = data == kRandomData ? kRandomData : "real";
    for (const auto& [heads, group] : by_heads) {
      PKV_ASSIGN_OR_RETURN(const SampleKv sample, MakeSample(data, group[0], flags, pool));
      report.data.push_back(absl::StrCat(label, ": ", sample.description));
      for (const std::string& preset : flags.presets) {
        PKV_ASSIGN_OR_RETURN(const EncodedSample encoded, EncodeSample(sample, preset, &pool));
        PKV_RETURN_IF_ERROR(visit(label, sample, encoded, group));
      }
    }
  }
  std::sort(report.data.begin(), report.data.end());
  report.data.erase(std::unique(report.data.begin(), report.data.end()), report.data.end());
  return absl::OkStatus();
}

absl::Status RunCpu(const KernelsFlags& flags, const std::vector<AttentionCase>& cases,
                    ThreadPool& pool, BenchReport& report) {
  const CpuTiming timing = {.repetitions = flags.quick ? 1 : flags.repetitions,
                            .window_tokens = flags.window_tokens};
  const auto visit = [&](const std::string& data, const SampleKv& sample,
                         const EncodedSample& encoded, const auto&) -> absl::Status {
    PKV_ASSIGN_OR_RETURN(std::vector<CpuRow> rows, TimeCpu(sample, encoded, timing));
    for (CpuRow& row : rows) {
      row.data = data;
      report.cpu.push_back(std::move(row));
    }
    return absl::OkStatus();
  };
  return ForEachSample(flags, {cases[0]}, pool, report, visit);
}

#ifdef PKV_WITH_CUDA
void LeftOut(const std::string& what, const EncodedSample& encoded, const absl::Status& why) {
  std::fprintf(stderr, "pkv-bench: left out %s %s: %s\n", what.c_str(), encoded.params.name.c_str(),
               why.ToString().c_str());
}

absl::Status RunAttention(const KernelsFlags& flags, const std::vector<AttentionCase>& cases,
                          const Stream& stream, ThreadPool& pool, BenchReport& report) {
  AttentionTiming timing = {.window_tokens = flags.window_tokens,
                            .repetitions = flags.repetitions,
                            .l2_bytes = report.device->l2_bytes};
  if (flags.query_type == "bf16") timing.query_type = QueryType::kBfloat16;
  if (flags.kernel == "cuda-core") timing.kernel = DecodeKernel::kCudaCore;
  timing.overlaps_previous = !flags.no_overlap;
  return ForEachSample(
      flags, cases, pool, report,
      [&](const std::string& data, const SampleKv& sample, const EncodedSample& encoded,
          const std::vector<AttentionCase>& group) -> absl::Status {
        for (const AttentionCase& c : group) {
          absl::StatusOr<AttentionRow> row =
              TimeAttention(c, sample, encoded, timing, stream.handle(), &pool);
          if (absl::IsUnimplemented(row.status())) {
            LeftOut(c.Name(), encoded, row.status());
            continue;
          }
          PKV_RETURN_IF_ERROR(row.status());
          row->data = data;
          report.attention.push_back(*std::move(row));
        }
        return absl::OkStatus();
      });
}

// Of the first case's heads; fp16 blocks are only copied, and left out.
absl::Status RunCompression(const KernelsFlags& flags, const std::vector<AttentionCase>& cases,
                            const Stream& stream, ThreadPool& pool, BenchReport& report) {
  const CompressionTiming timing = {.repetitions = flags.repetitions,
                                    .l2_bytes = report.device->l2_bytes};
  KernelsFlags coded = flags;
  std::erase(coded.presets, "fp16");
  const auto visit = [&](const std::string& data, const SampleKv& sample,
                         const EncodedSample& encoded, const auto&) -> absl::Status {
    absl::StatusOr<std::vector<CompressionRow>> rows =
        TimeCompression(sample, encoded, timing, stream.handle());
    if (absl::IsUnimplemented(rows.status())) {
      LeftOut("compression", encoded, rows.status());
      return absl::OkStatus();
    }
    PKV_RETURN_IF_ERROR(rows.status());
    for (CompressionRow& row : *rows) {
      row.data = data;
      report.compression.push_back(std::move(row));
    }
    return absl::OkStatus();
  };
  return ForEachSample(coded, {cases[0]}, pool, report, visit);
}

absl::Status RunGpu(const KernelsFlags& flags, const std::vector<AttentionCase>& cases,
                    ThreadPool& pool, BenchReport& report) {
  absl::StatusOr<Stream> made = Stream::Make();
  if (!made.ok()) {
    return absl::Status(made.status().code(),
                        absl::StrCat(made.status().message(), "; without a GPU only --cpu runs"));
  }
  const Stream stream = *std::move(made);
  PKV_ASSIGN_OR_RETURN(report.device, DescribeDevice());
  if (flags.Runs("ceilings")) {
    PKV_ASSIGN_OR_RETURN(report.ceilings, MeasureCeilings(stream.handle(), flags.repetitions));
  }
  if (flags.Runs("attention")) {
    PKV_RETURN_IF_ERROR(RunAttention(flags, cases, stream, pool, report));
  }
  if (flags.Runs("compression")) {
    PKV_RETURN_IF_ERROR(RunCompression(flags, cases, stream, pool, report));
  }
  if (flags.Runs("prefill")) {
    PKV_ASSIGN_OR_RETURN(report.prefill, TimePrefill(flags.repetitions, stream.handle()));
  }
  return absl::OkStatus();
}
#else
absl::Status RunGpu(const KernelsFlags&, const std::vector<AttentionCase>&, ThreadPool&,
                    BenchReport&) {
  return absl::UnimplementedError("this build has no CUDA: only --cpu runs");
}
#endif

absl::Status WriteJson(const std::string& path, const nlohmann::ordered_json& json) {
  std::ofstream file(path, std::ios::trunc);
  file << json.dump(1) << "\n";
  file.close();
  return file.good() ? absl::OkStatus() : absl::InternalError(absl::StrCat("cannot write ", path));
}

// What a driver that times other libraries must know beforehand: the cases, by name.
void PrintPlan(const std::vector<AttentionCase>& cases) {
  nlohmann::ordered_json plan = nlohmann::ordered_json::object();
  for (const AttentionCase& c : cases) plan[c.Name()] = ToJson(c);
  std::printf("%s\n", plan.dump(1).c_str());
}

absl::Status RunKernels(const KernelsFlags& flags, const std::string& command_line) {
  PKV_ASSIGN_OR_RETURN(const std::vector<AttentionCase> cases, CasesOf(flags));
  if (flags.plan) {
    PrintPlan(cases);
    return absl::OkStatus();
  }
  BenchReport report;
  report.command_line = command_line;
  if (!flags.peers.empty()) {
    PKV_ASSIGN_OR_RETURN(report.peers, ReadPeers(flags.peers));
  }
  ThreadPool pool(flags.threads > 0
                      ? flags.threads
                      : static_cast<int>(std::max(1u, std::thread::hardware_concurrency())));
  const absl::Status run =
      flags.cpu ? RunCpu(flags, cases, pool, report) : RunGpu(flags, cases, pool, report);
  // What was measured before something failed is worth reading too.
  std::printf("%s", ToText(report).c_str());
  if (!flags.json.empty()) PKV_RETURN_IF_ERROR(WriteJson(flags.json, ToJson(report)));
  PKV_RETURN_IF_ERROR(run);
  return report.CheckPlausible();
}

void AddOptions(CLI::App& command, KernelsFlags& flags) {
  command.add_flag("--cpu", flags.cpu, "one core of the processor instead of the GPU");
  command.add_flag("--quick", flags.quick, "a little of everything: does it run?");
  command.add_flag("--extra", flags.extra, "also 64 query heads, head_dim 64 and mixed lengths");
  command.add_flag("--no-overlap", flags.no_overlap,
                   "every launch of attention begins when the one before has ended");
  command.add_flag("--plan", flags.plan, "print the cases as JSON and end");
  command.add_option("--case", flags.cases,
                     "BATCHxCONTEXT[,q=HEADS][,kv=HEADS][,d=HEAD_DIM][,mixed]: in place of the "
                     "usual table");
  command.add_option("--preset", flags.presets, "presets")->capture_default_str();
  command
      .add_option("--data", flags.data,
                  "random, or a file of pkvctl eval --dump; more than one is possible")
      ->capture_default_str();
  command.add_option("--section", flags.sections, "what to time on the GPU")
      ->check(CLI::IsMember({"ceilings", "attention", "compression", "prefill"}))
      ->capture_default_str();
  command.add_option("--kernel", flags.kernel, "decode attention")
      ->check(CLI::IsMember({"tensor-core", "cuda-core"}))
      ->capture_default_str();
  command.add_option("--query-type", flags.query_type, "of queries and output")
      ->check(CLI::IsMember({"fp16", "bf16"}))
      ->capture_default_str();
  command.add_option("--window", flags.window_tokens, "fp16 tokens of a request, the newest too")
      ->check(CLI::Range(1, kMaxWindowTokens))
      ->capture_default_str();
  command.add_option("--blocks", flags.blocks, "distinct blocks of random data")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command.add_option("--repetitions", flags.repetitions, "timed repetitions")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command.add_option("--threads", flags.threads, "for preparing data; 0: one a core")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command.add_option("--peers", flags.peers, "JSON of other libraries' times, by case");
  command.add_option("--json", flags.json, "write everything there");
}

}  // namespace

void AddKernelsCommand(CLI::App& app, const std::string& command_line, int& exit_code) {
  auto flags = std::make_shared<KernelsFlags>();
  CLI::App* command = app.add_subcommand("kernels", "codec and attention, without a model");
  AddOptions(*command, *flags);
  command->callback([flags, command_line, &exit_code] {
    const absl::Status status = RunKernels(*flags, command_line);
    if (status.ok()) return;
    std::fprintf(stderr, "pkv-bench: %s\n", status.ToString().c_str());
    exit_code = absl::IsInvalidArgument(status) || absl::IsNotFound(status) ? 2 : 1;
  });
}

}  // namespace pkv
