#ifndef PKV_WORKER_EVAL_PASSAGE_SCORE_H_
#define PKV_WORKER_EVAL_PASSAGE_SCORE_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/eval/block_scorer.h"
#include "worker/eval/evaluation_row.h"
#include "worker/eval/logit_metrics.h"
#include "worker/eval/reference_run.h"

namespace pkv {

inline constexpr int kNumQuarters = 4;
// Where a cache's size is extrapolated to, the pattern table once.
inline constexpr int kLongTokens = 32768;

// What one row was found to do on one passage. Plain sums: passages add up.
struct PassageScore {
  std::vector<TokenComparison> tokens;  // in order
  std::vector<LayerTotals> layers;
  uint64_t cache_bytes = 0, long_cache_bytes = 0;  // see RowScore
  int64_t cached_elements = 0, long_cached_elements = 0;
};

// Runs one row on the passage that `reference` was run on. `model` is a replica of the host's.
absl::StatusOr<PassageScore> ScorePassage(const ModelHost& host, LlamaModel& model,
                                          std::span<const int32_t> passage,
                                          const ScoringOptions& options, const EvaluationRow& row,
                                          const ReferenceRun& reference);

// One row over some passages. Relative errors are squared error over squared norm.
struct RowScore {
  double bits_per_element = 0;  // codes, scales, zero points, ids of the blocks; K and V averaged
  // Blocks with headers, pattern tables and fp16 windows, over all cached tokens: those of the
  // prefix, or for Protocol::kDecode all at the end.
  double bits_all_in = 0;
  // The same after a prefill of 32,768 tokens. 0 when the passages made no block.
  double bits_all_in_long = 0;
  LogitSummary logits;
  double perplexity = 0;
  double perplexity_change = 0;  // relative to the uncompressed model: 0.01 is one percent
  // Of the means of the passages, from their spread; 0 with fewer than two.
  double kl_standard_error = 0, nll_difference_standard_error = 0;
  int64_t scored_tokens = 0;
  int num_passages = 0;
  // Of the tokens in blocks, over all layers; by layer and kv head in `layers`.
  double k_error = 0, v_error = 0, k_seen_error = 0;
  double attention_error = 0;  // over all layers
  // V vectors whose pattern was subtracted, of those in blocks; 0 without patterns.
  double gate_accepted = 0;
  LogitSummary quarters[kNumQuarters];  // of each passage's scored tokens, in order
  std::vector<LayerTotals> layers;
};

RowScore Summarise(const CodecParams& params, const KvShape& shape,
                   std::span<const PassageScore* const> passages);

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_PASSAGE_SCORE_H_
