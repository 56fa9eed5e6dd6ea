#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <memory>
#include <thread>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "proto/base/sync.h"
#include "worker/ctl/commands.h"
#include "worker/ctl/output.h"
#include "worker/eval/eval_report.h"
#include "worker/eval/shared_table.h"
#include "worker/eval/tensor_dump.h"

namespace pkv {
namespace {

constexpr int kPrefixTokens = 3072, kScoreTokens = 1023;
constexpr int kTableStride = 2;  // tokens of its texts that a shared table is mined from

struct EvalFlags {
  std::string model;
  std::vector<std::string> texts;
  std::vector<std::string> presets = {"kivi2",   "kivi2-g64", "kivi2-g32", "pkv2",
                                      "default", "kivi4",     "pkv4",      "default4"};
  std::vector<std::string> preset_rows;  // of --preset
  bool presets_given = false;
  std::string protocol = "prefix";
  ScoringOptions scoring{.prefix_tokens = kPrefixTokens, .score_tokens = kScoreTokens};
  PassageOptions passages;
  int threads = 0;
  bool per_text = false;
  std::string report;
  std::vector<std::string> table_texts;
  int table_passages = 6;
  std::string dump;
  int dump_passage = 0;
};

void PrintRows(const std::vector<RowReport>& rows, int text) {
  size_t width = 10;
  for (const RowReport& row : rows) width = std::max(width, row.row.label.size());
  const int label = static_cast<int>(width);
  std::printf("%-*s %7s %7s %7s %8s %6s %9s %8s %8s %7s %7s %8s %8s %8s %8s %6s\n", label, "preset",
              "bits", "all-in", "at 32k", "dPPL %", "+-", "KL", "+-", "KL p99", "top-1 %",
              "top-5 %", "K err", "K seen", "V err", "attn err", "gate");
  for (const RowReport& row : rows) {
    const RowScore& s = text < 0 ? row.overall : row.texts[text];
    const double perplexity_error =
        100 * (1 + s.perplexity_change) * s.nll_difference_standard_error;
    std::printf(
        "%-*s %7.3f %7.3f %7.3f %+8.3f %6.3f %9.5f %8.5f %8.4f %7.2f %7.2f %8.4f %8.5f %8.4f "
        "%8.5f %6.3f\n",
        label, row.row.label.c_str(), s.bits_per_element, s.bits_all_in, s.bits_all_in_long,
        100 * s.perplexity_change, perplexity_error, s.logits.kl, s.kl_standard_error,
        s.logits.kl_p99, 100 * s.logits.top1_agreement, 100 * s.logits.top5_agreement, s.k_error,
        s.k_seen_error, s.v_error, s.attention_error, s.gate_accepted);
  }
}

// KL and perplexity change by quarter of the scored tokens: does the difference grow?
void PrintQuarters(const std::vector<RowReport>& rows) {
  std::printf("\nby quarter of the scored tokens: KL, dPPL %%\n");
  for (const RowReport& row : rows) {
    std::printf("%-10s", row.row.label.c_str());
    for (const LogitSummary& quarter : row.overall.quarters) {
      std::printf("  %9.5f %+8.3f", quarter.kl,
                  100 * std::expm1(quarter.nll - quarter.reference_nll));
    }
    std::printf("\n");
  }
}

void PrintTables(const EvaluationSetting& setting, const EvaluationReport& report, bool per_text) {
  std::printf("%s protocol, uncompressed perplexity %.3f\n\n",
              ProtocolName(setting.scoring.protocol), report.baseline_perplexity);
  PrintRows(report.rows, -1);
  if (setting.scoring.protocol == Protocol::kDecode) PrintQuarters(report.rows);
  for (size_t text = 0; per_text && text < setting.set.texts.size(); ++text) {
    std::printf("\n%s, uncompressed perplexity %.3f\n\n", setting.set.texts[text].path.c_str(),
                report.text_baseline_perplexity[text]);
    PrintRows(report.rows, static_cast<int>(text));
  }
}

absl::Status WriteFile(const std::string& path, const std::string& content) {
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << content;
  file.close();
  return file.good() ? absl::OkStatus() : absl::InternalError(absl::StrCat("cannot write ", path));
}

absl::Status Dump(const EvalFlags& flags, const ModelHost& host, const EvaluationSetting& setting) {
  const std::vector<Passage>& passages = setting.set.passages;
  if (flags.dump_passage >= static_cast<int>(passages.size())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--dump-passage ", flags.dump_passage, " not below the ", passages.size(), " passages"));
  }
  const Passage& passage = passages[flags.dump_passage];
  const PassageText& text = setting.set.texts[passage.text_index];
  const std::unique_ptr<LlamaModel> model = host.MakeReplica();
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<ReferenceRun> run,
                       RunReference(host, *model, passage.tokens, setting.scoring));
  return DumpTensors(*run, host.config().kv_shape(),
                     {{"model", setting.model},
                      {"profile", setting.profile},
                      {"text", text.path},
                      {"text_sha256", text.sha256},
                      {"text_first_token", absl::StrCat(passage.first_token)},
                      {"prefix_tokens", absl::StrCat(setting.scoring.prefix_tokens)},
                      {"score_tokens", absl::StrCat(setting.scoring.score_tokens)},
                      {"rope_theta", absl::StrCat(host.config().rope_theta)},
                      {"rope_factor", absl::StrCat(host.config().rope_factor)}},
                     flags.dump);
}

absl::StatusOr<std::vector<EvaluationRow>> ParseRows(const EvalFlags& flags, const KvShape& shape) {
  std::vector<std::string> texts;
  if (flags.presets_given || flags.preset_rows.empty()) texts = flags.presets;
  texts.insert(texts.end(), flags.preset_rows.begin(), flags.preset_rows.end());
  std::vector<EvaluationRow> rows;
  for (const std::string& text : texts) {
    PKV_ASSIGN_OR_RETURN(rows.emplace_back(), ParseEvaluationRow(text, shape));
  }
  return rows;
}

// Gives every row with patterns a table mined from --table-text.
absl::Status ShareTables(const EvalFlags& flags, ModelHost& host, const PassageOptions& passages,
                         std::vector<EvaluationRow>& rows) {
  if (flags.table_texts.empty()) return absl::OkStatus();
  PassageOptions calibration = passages;
  calibration.num_passages = flags.table_passages;
  PKV_ASSIGN_OR_RETURN(const PassageSet set, CutPassages(host, flags.table_texts, calibration));
  PKV_ASSIGN_OR_RETURN(
      const CalibrationKv kv,
      ComputeCalibrationKv(host, set.passages, flags.scoring.prefix_tokens, kTableStride));
  for (EvaluationRow& row : rows) {
    if (!row.params.encoding.has_patterns) continue;
    PKV_ASSIGN_OR_RETURN(row.shared_patterns,
                         MineSharedTable(kv, host.config().num_layers, row.params, host.pool()));
    row.label += " (shared table)";
  }
  return absl::OkStatus();
}

absl::Status Run(const EvalFlags& flags, const GlobalFlags& global) {
  const int threads = flags.threads > 0
                          ? flags.threads
                          : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<ModelHost> host,
                       ModelHost::Load(flags.model, threads));
  EvaluationOptions options;
  options.scoring = flags.scoring;
  options.num_threads = threads;
  if (flags.protocol == "decode") options.scoring.protocol = Protocol::kDecode;
  PKV_ASSIGN_OR_RETURN(options.rows, ParseRows(flags, host->config().kv_shape()));

  EvaluationSetting setting;
  setting.model = flags.model;
  setting.profile = host->profile().ToHex();
  setting.passage_options = flags.passages;
  setting.scoring = options.scoring;
  setting.table_texts = flags.table_texts;
  if (!flags.table_texts.empty()) setting.table_passages = flags.table_passages;
  PKV_ASSIGN_OR_RETURN(setting.passage_options.num_tokens,
                       PassageTokens(host->config(), options.scoring));
  PKV_ASSIGN_OR_RETURN(setting.set, CutPassages(*host, flags.texts, setting.passage_options));
  if (!flags.dump.empty()) return Dump(flags, *host, setting);
  PKV_RETURN_IF_ERROR(ShareTables(flags, *host, setting.passage_options, options.rows));

  EvaluationReport report;
  {
    ProgressLine line("evaluating", global.progress);
    Mutex mu;
    int furthest = 0;
    PKV_ASSIGN_OR_RETURN(report, Evaluate(*host, setting.set, options, [&](int done, int total) {
                           MutexLock lock(&mu);
                           furthest = std::max(furthest, done);
                           line.Update(furthest, total);
                         }));
  }
  // First what cannot fail: a report that cannot be written loses no numbers.
  if (global.json()) {
    PrintJson(ToJson(setting, report));
  } else {
    PrintTables(setting, report, flags.per_text);
  }
  if (flags.report.empty()) return absl::OkStatus();
  return WriteFile(flags.report, HtmlReport(setting, report));
}

void AddPassageOptions(CLI::App& command, EvalFlags& flags) {
  command.add_option("--model", flags.model, "model directory")->required();
  command.add_option("--text", flags.texts, "text files")->required();
  command.add_option("--passages", flags.passages.num_passages, "passages, spread over the texts")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command
      .add_option("--seed", flags.passages.seed,
                  "0: passages at equal strides; else at places that the seed decides")
      ->capture_default_str();
  command.add_option("--prefix", flags.scoring.prefix_tokens, "tokens whose cache is compressed")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command.add_option("--score", flags.scoring.score_tokens, "tokens predicted from it")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command
      .add_option("--protocol", flags.protocol,
                  "prefix: the scored tokens in one pass, the cache as prefill left it. decode: "
                  "in steps, the window flushed after each as a decode worker does")
      ->check(CLI::IsMember({"prefix", "decode"}))
      ->capture_default_str();
  command
      .add_option("--step", flags.scoring.step_tokens,
                  "decode: tokens a step; 1 is exactly what a worker does")
      ->check(CLI::Range(1, kBlockTokens))
      ->capture_default_str();
}

}  // namespace

void AddEvalCommand(CLI::App& app, const GlobalFlags& global, int& exit_code) {
  auto flags = std::make_shared<EvalFlags>();
  CLI::App* command =
      app.add_subcommand("eval", "what compression costs: presets against the uncompressed model");
  AddPassageOptions(*command, *flags);
  CLI::Option* presets =
      command
          ->add_option("--presets", flags->presets,
                       "comma-separated; fields changed as NAME:key=value;key=value")
          ->delimiter(',')
          ->capture_default_str();
  command
      ->add_option("--preset", flags->preset_rows,
                   "one more row, NAME or NAME:key=value,key=value,.. with fields of the preset "
                   "changed, say default:clip_v=none,num_patterns_k=64; may be repeated. Without "
                   "--presets these are the only rows. A key that is none lists all")
      ->expected(1)
      ->take_all();
  command->add_option("--threads", flags->threads, "0: one per CPU")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_flag("--per-text", flags->per_text, "a table for each text too");
  command->add_option("--report", flags->report, "writes tables and plots to this HTML file");
  command->add_option("--table-text", flags->table_texts,
                      "rows with patterns share one table, mined from these texts before; without, "
                      "each passage mines its own");
  command->add_option("--table-passages", flags->table_passages, "passages to mine it from")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--dump", flags->dump,
                      "evaluates nothing; writes K, V and queries of one passage to this "
                      "safetensors file");
  command->add_option("--dump-passage", flags->dump_passage, "which passage, from 0")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->callback([flags, presets, &global, &exit_code] {
    flags->presets_given = presets->count() > 0;
    const absl::Status status = Run(*flags, global);
    if (!status.ok()) exit_code = Fail(status);
  });
}

}  // namespace pkv
