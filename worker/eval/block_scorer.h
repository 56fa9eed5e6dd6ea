#ifndef PKV_WORKER_EVAL_BLOCK_SCORER_H_
#define PKV_WORKER_EVAL_BLOCK_SCORER_H_

#include <array>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "pkv/kernels/paged_attention.h"
#include "worker/eval/reference_run.h"

namespace pkv {

// Squares summed over values.
struct SquaredError {
  double error = 0, norm = 0;
  double relative() const { return norm > 0 ? error / norm : 0; }
  void Add(const SquaredError& other);
};

// How often each of 16 codes and each of 256 pattern ids stands in the blocks of one kv head, K or
// V. Sinks are left out, and fine K codes, which are of another width.
struct CodeCounts {
  std::array<int64_t, 16> codes{};
  std::array<int64_t, 256> ids{};  // 255: raw
  int num_patterns = 0;            // that the head's bank holds in the end
};

// One tensor of one layer, added up over kv heads and passages.
struct PatternUse {
  std::array<int64_t, 16> codes{};
  int64_t used = 0, available = 0;  // patterns
  double usage_bits = 0;            // sum over `num_banks` of the entropy of the ids, raw left out
  int64_t num_banks = 0;
  void Add(const CodeCounts& counts);
  void Add(const PatternUse& other);
  // Bits a code: entropy of the codes' frequencies. 0 without codes.
  double code_bits() const;
};

struct HeadScore {
  SquaredError k, v;
  SquaredError k_seen;  // e^T H e over k^T H k: as the scored queries see K
};

// One layer over the blocks of one passage, or of several.
struct LayerTotals {
  std::vector<HeadScore> heads;
  SquaredError attention;
  int64_t gated = 0, accepted = 0;  // V vectors of blocks with patterns; with their pattern taken
  PatternUse k_patterns, v_patterns;
  void Add(const LayerTotals& other);
};

// Entropy in bits of the distribution that `counts` are of; 0 when all are 0.
double EntropyBits(std::span<const int64_t> counts);

// Compares what all blocks of a sequence decode to, in one layer, with what they were encoded from.
//   kv  all tokens of the sequence, at least up to the last block's end
absl::StatusOr<LayerTotals> ScoreBlocks(const KvTensorView& kv, int layer,
                                        const std::vector<std::vector<float>>& query_moments,
                                        KvSequence& sequence);

// The error of the sampled queries' attention outputs over `sequence`'s blocks, as far as they
// stood when the query was computed, followed by the reference's K and V.
absl::StatusOr<SquaredError> ScoreAttention(const ReferenceRun& reference, int layer,
                                            const ScoringOptions& options,
                                            const std::vector<int>& num_blocks,
                                            KvSequence& sequence);

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_BLOCK_SCORER_H_
