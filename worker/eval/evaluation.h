#ifndef PKV_WORKER_EVAL_EVALUATION_H_
#define PKV_WORKER_EVAL_EVALUATION_H_

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "pkv/kernels/codec_params.h"
#include "worker/serve/model_host.h"

namespace pkv {

// The first prefix_tokens of a passage are prefilled exactly, their cache
// is compressed, the next score_tokens are predicted from it and compared with the predictions from
// the uncompressed fp16 cache.
struct EvaluationOptions {
  int prefix_tokens = 3072;
  int score_tokens = 1023;
  int num_passages = 12;
  std::vector<std::string> presets;
};

// One preset, over all passages.
struct PresetScore {
  std::string preset;
  double bits_per_element = 0;  // codes, scales, zero points, ids of the blocks; K and V averaged
  double bits_all_in = 0;  // blocks with headers, pattern tables and fp16 windows, over the prefix
  double perplexity = 0;
  double perplexity_change = 0;     // relative to the uncompressed model: 0.01 is one percent
  double kl_mean = 0, kl_p99 = 0;   // KL(uncompressed || compressed) of the next token, nats
  double top1_agreement = 0;        // 0..1
  double k_error = 0, v_error = 0;  // squared error over squared norm, of the tokens in blocks
  double gate_accepted =
      0;  // V vectors whose pattern was subtracted, of those in blocks; 0 without patterns
  int64_t scored_tokens = 0;
};

struct EvaluationReport {
  double baseline_perplexity = 0;
  std::vector<PresetScore> scores;
};

// Cuts `num_passages` passages of BOS + (prefix_tokens + score_tokens) tokens from the texts,
// taking turns among them, at equal strides within each. InvalidArgument when a text is too short
// (names it), the options are out of their ranges, or prefix and scored tokens do not fit the
// model's context; NotFound when a text cannot be read.
absl::StatusOr<std::vector<std::vector<int32_t>>> CutPassages(
    const ModelHost& host, std::span<const std::string> text_files,
    const EvaluationOptions& options);

// `progress(done, total)` is called after each step. `passages` are as CutPassages makes them with
// the same options: else InvalidArgument. Errors of the model; NotFound for an unknown preset.
absl::StatusOr<EvaluationReport> Evaluate(ModelHost& host,
                                          std::span<const std::vector<int32_t>> passages,
                                          const EvaluationOptions& options,
                                          const std::function<void(int, int)>& progress);

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_EVALUATION_H_
