#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <thread>

#include "proto/base/status_macros.h"
#include "worker/ctl/commands.h"
#include "worker/ctl/output.h"
#include "worker/eval/evaluation.h"

namespace pkv {
namespace {

struct EvalFlags {
  std::string model;
  std::vector<std::string> texts;
  EvaluationOptions options;
  int threads = 0;
};

nlohmann::ordered_json ToJson(const PresetScore& score) {
  return {{"preset", score.preset},
          {"bits_per_element", score.bits_per_element},
          {"bits_all_in", score.bits_all_in},
          {"perplexity", score.perplexity},
          {"perplexity_change", score.perplexity_change},
          {"kl_mean", score.kl_mean},
          {"kl_p99", score.kl_p99},
          {"top1_agreement", score.top1_agreement},
          {"k_error", score.k_error},
          {"v_error", score.v_error},
          {"gate_accepted", score.gate_accepted},
          {"scored_tokens", score.scored_tokens}};
}

void PrintTable(const EvaluationReport& report) {
  std::printf("uncompressed perplexity %.3f\n\n", report.baseline_perplexity);
  std::printf("%-10s %8s %8s %9s %9s %9s %7s %8s %8s %8s\n", "preset", "bits", "all-in", "dPPL %",
              "KL", "KL p99", "top-1 %", "K err", "V err", "gate");
  for (const PresetScore& s : report.scores) {
    std::printf("%-10s %8.3f %8.3f %+9.3f %9.5f %9.4f %7.2f %8.4f %8.4f %8.3f\n", s.preset.c_str(),
                s.bits_per_element, s.bits_all_in, 100 * s.perplexity_change, s.kl_mean, s.kl_p99,
                100 * s.top1_agreement, s.k_error, s.v_error, s.gate_accepted);
  }
}

absl::Status Run(const EvalFlags& flags, const GlobalFlags& global) {
  const int threads =
      flags.threads > 0 ? flags.threads : std::max(1u, std::thread::hardware_concurrency());
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<ModelHost> host,
                       ModelHost::Load(flags.model, threads));
  PKV_ASSIGN_OR_RETURN(const auto passages, CutPassages(*host, flags.texts, flags.options));
  EvaluationReport report;
  {
    ProgressLine progress("evaluating", !global.no_progress);
    PKV_ASSIGN_OR_RETURN(report, Evaluate(*host, passages, flags.options, [&](int done, int total) {
                           progress.Update(done, total);
                         }));
  }
  if (!global.json()) {
    PrintTable(report);
    return absl::OkStatus();
  }
  nlohmann::ordered_json scores = nlohmann::ordered_json::array();
  for (const PresetScore& score : report.scores) scores.push_back(ToJson(score));
  PrintJson({{"model", flags.model},
             {"texts", flags.texts},
             {"prefix_tokens", flags.options.prefix_tokens},
             {"score_tokens", flags.options.score_tokens},
             {"passages", flags.options.num_passages},
             {"baseline_perplexity", report.baseline_perplexity},
             {"presets", scores}});
  return absl::OkStatus();
}

}  // namespace

void AddEvalCommand(CLI::App& app, const GlobalFlags& global, int& exit_code) {
  auto flags = std::make_shared<EvalFlags>();
  flags->options.presets = {"kivi2", "kivi2-g64", "kivi2-g32", "pkv2", "default", "kivi4", "pkv4"};
  CLI::App* command =
      app.add_subcommand("eval", "what compression costs: presets against the uncompressed model");
  command->add_option("--model", flags->model, "model directory")->required();
  command->add_option("--text", flags->texts, "text files")->required();
  command->add_option("--presets", flags->options.presets, "comma-separated")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--passages", flags->options.num_passages, "passages, spread over the texts")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--prefix", flags->options.prefix_tokens, "tokens whose cache is compressed")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--score", flags->options.score_tokens, "tokens predicted from it")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--threads", flags->threads, "0: one per CPU")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->callback([flags, &global, &exit_code] {
    const absl::Status status = Run(*flags, global);
    if (!status.ok()) exit_code = Fail(status);
  });
}

}  // namespace pkv
