#ifndef PKV_WORKER_EVAL_EVALUATION_H_
#define PKV_WORKER_EVAL_EVALUATION_H_

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/eval/evaluation_row.h"
#include "worker/eval/passage_score.h"
#include "worker/eval/passages.h"

namespace pkv {

// What compression costs: each row's cache against the uncompressed fp16 cache, on the same
// passages.
struct EvaluationOptions {
  ScoringOptions scoring;
  std::vector<EvaluationRow> rows;
  int num_threads = 1;  // passages and rows run side by side; results do not depend on it
};

struct RowReport {
  EvaluationRow row;
  RowScore overall;
  std::vector<RowScore> texts;  // in the order of PassageSet::texts
};

struct EvaluationReport {
  double baseline_perplexity = 0;
  std::vector<double> text_baseline_perplexity;
  std::vector<RowReport> rows;
};

// Tokens of a passage for these options, without BOS. InvalidArgument when they are out of their
// ranges or do not fit the model's context.
absl::StatusOr<int> PassageTokens(const ModelConfig& config, const ScoringOptions& options);

// `progress(done, total)` is called after each step, by whatever thread took it: several may be in
// it at once. InvalidArgument when a passage is not as CutPassages makes it for these options.
// Errors of the model.
absl::StatusOr<EvaluationReport> Evaluate(const ModelHost& host, const PassageSet& set,
                                          const EvaluationOptions& options,
                                          const std::function<void(int, int)>& progress);

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_EVALUATION_H_
