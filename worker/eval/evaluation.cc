#include "worker/eval/evaluation.h"

#include <atomic>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "proto/base/sync.h"
#include "proto/base/thread_pool.h"

namespace pkv {
namespace {

// Models over one set of weights, as many as were ever in use at once. Thread-safe.
class Replicas {
 public:
  explicit Replicas(const ModelHost& host) : host_(host) {}

  std::unique_ptr<LlamaModel> Take() ABSL_LOCKS_EXCLUDED(mu_) {
    {
      MutexLock lock(&mu_);
      if (!idle_.empty()) {
        std::unique_ptr<LlamaModel> model = std::move(idle_.back());
        idle_.pop_back();
        return model;
      }
    }
    return host_.MakeReplica();
  }
  void Return(std::unique_ptr<LlamaModel> model) ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(&mu_);
    idle_.push_back(std::move(model));
  }

 private:
  const ModelHost& host_;
  Mutex mu_;
  std::vector<std::unique_ptr<LlamaModel>> idle_ ABSL_GUARDED_BY(mu_);
};

absl::Status CheckPassage(const ModelConfig& config, const PassageSet& set, const Passage& passage,
                          int num_tokens) {
  if (static_cast<int64_t>(passage.tokens.size()) != int64_t{num_tokens} + 1 ||
      passage.text_index < 0 || passage.text_index >= static_cast<int>(set.texts.size())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a passage of ", passage.tokens.size(), " tokens from text ", passage.text_index, " of ",
        set.texts.size(), "; ", num_tokens + 1, " are to be prefilled, scored and predicted"));
  }
  for (const int32_t token : passage.tokens) {
    if (token < 0 || token >= config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", token, " not in [0, ", config.vocab_size, ")"));
    }
  }
  return absl::OkStatus();
}

// Everything that the threads fill, each at its own place.
struct Results {
  std::vector<absl::Status> statuses;             // [passage]
  std::vector<std::vector<PassageScore>> scores;  // [passage][row]
};

absl::Status EvaluatePassage(const ModelHost& host, const Passage& passage,
                             const EvaluationOptions& options, ThreadPool* pool, Replicas& replicas,
                             const std::function<void()>& step, std::vector<PassageScore>& scores) {
  std::unique_ptr<LlamaModel> model = replicas.Take();
  absl::StatusOr<std::unique_ptr<ReferenceRun>> reference =
      RunReference(host, *model, passage.tokens, options.scoring);
  replicas.Return(std::move(model));
  PKV_RETURN_IF_ERROR(reference.status());
  step();
  const int num_rows = static_cast<int>(options.rows.size());
  std::vector<absl::Status> statuses(num_rows);
  scores.resize(num_rows);
  ParallelFor(pool, num_rows, [&](int row) {
    std::unique_ptr<LlamaModel> own_model = replicas.Take();
    absl::StatusOr<PassageScore> score = ScorePassage(
        host, *own_model, passage.tokens, options.scoring, options.rows[row], **reference);
    replicas.Return(std::move(own_model));
    statuses[row] = score.status();
    if (score.ok()) scores[row] = *std::move(score);
    step();
  });
  for (int row = 0; row < num_rows; ++row) {
    if (statuses[row].ok()) continue;
    return absl::Status(statuses[row].code(),
                        absl::StrCat(options.rows[row].label, ": ", statuses[row].message()));
  }
  return absl::OkStatus();
}

// The scores of one row on the passages of one text, or of all (text -1), in passage order.
std::vector<const PassageScore*> Select(const PassageSet& set, const Results& results, size_t row,
                                        int text) {
  std::vector<const PassageScore*> selected;
  for (size_t i = 0; i < set.passages.size(); ++i) {
    if (text >= 0 && set.passages[i].text_index != text) continue;
    selected.push_back(&results.scores[i][row]);
  }
  return selected;
}

}  // namespace

absl::StatusOr<int> PassageTokens(const ModelConfig& config, const ScoringOptions& options) {
  const int64_t length = int64_t{options.prefix_tokens} + options.score_tokens;
  if (options.prefix_tokens < kBlockTokens || options.score_tokens < 1 ||
      length > config.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrCat("prefix of ", options.prefix_tokens, " tokens (at least ", kBlockTokens,
                     ") and ", options.score_tokens, " scored (at least 1) must fit the model's ",
                     config.max_position_embeddings, " positions"));
  }
  if (options.protocol == Protocol::kDecode &&
      (options.step_tokens < 1 || options.step_tokens > kBlockTokens)) {
    return absl::InvalidArgumentError(
        absl::StrCat("step of ", options.step_tokens, " tokens not in 1..", kBlockTokens));
  }
  return static_cast<int>(length);
}

absl::StatusOr<EvaluationReport> Evaluate(const ModelHost& host, const PassageSet& set,
                                          const EvaluationOptions& options,
                                          const std::function<void(int, int)>& progress) {
  PKV_ASSIGN_OR_RETURN(const int num_tokens, PassageTokens(host.config(), options.scoring));
  for (const Passage& passage : set.passages) {
    PKV_RETURN_IF_ERROR(CheckPassage(host.config(), set, passage, num_tokens));
  }
  // The calling thread takes part.
  std::unique_ptr<ThreadPool> pool;
  if (options.num_threads > 1) pool = std::make_unique<ThreadPool>(options.num_threads - 1);
  const int num_passages = static_cast<int>(set.passages.size());
  const int total_steps = num_passages * (static_cast<int>(options.rows.size()) + 1);
  std::atomic<int> steps_done = 0;
  Replicas replicas(host);
  Results results;
  results.statuses.resize(num_passages);
  results.scores.resize(num_passages);
  ParallelFor(pool.get(), num_passages, [&](int i) {
    results.statuses[i] = EvaluatePassage(
        host, set.passages[i], options, pool.get(), replicas,
        [&] { progress(++steps_done, total_steps); }, results.scores[i]);
  });
  for (const absl::Status& status : results.statuses) PKV_RETURN_IF_ERROR(status);

  EvaluationReport report;
  const KvShape shape = host.config().kv_shape();
  report.text_baseline_perplexity.resize(set.texts.size());
  for (size_t row = 0; row < options.rows.size(); ++row) {
    RowReport& to = report.rows.emplace_back();
    to.row = options.rows[row];
    to.overall = Summarise(to.row.params, shape, Select(set, results, row, -1));
    report.baseline_perplexity = std::exp(to.overall.logits.reference_nll);
    for (size_t text = 0; text < set.texts.size(); ++text) {
      to.texts.push_back(
          Summarise(to.row.params, shape, Select(set, results, row, static_cast<int>(text))));
      report.text_baseline_perplexity[text] = std::exp(to.texts.back().logits.reference_nll);
    }
  }
  return report;
}

}  // namespace pkv
