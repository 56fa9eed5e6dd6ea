#ifndef PKV_WORKER_EVAL_REFERENCE_RUN_H_
#define PKV_WORKER_EVAL_REFERENCE_RUN_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "worker/eval/captured_queries.h"
#include "worker/eval/logit_metrics.h"
#include "worker/sequence/fp16_window.h"
#include "worker/sequence/query_record.h"
#include "worker/serve/model_host.h"

namespace pkv {

// How the tokens after the prefix are scored.
//   kPrefix  in one forward pass over the prefix's blocks and window; nothing leaves the window
//   kDecode  as decoding goes: in steps of `step_tokens`, after each of which the window is flushed
//            by the preset's rule, as the decode worker does
enum class Protocol { kPrefix, kDecode };

struct ScoringOptions {
  Protocol protocol = Protocol::kPrefix;
  int prefix_tokens = 3072;  // prefilled exactly, then compressed
  int score_tokens = 1023;   // teacher-forced after them
  int step_tokens = 16;      // kDecode: 1..128; 1 is what a worker does
};

// Every how many scored tokens attention outputs are compared.
inline constexpr int kAttentionStride = 16;

// The uncompressed model on one passage: fp16 cache, the same protocol.
struct ReferenceRun {
  explicit ReferenceRun(const KvShape& shape) : kv(shape) {}

  Fp16Window kv;  // all tokens
  CapturedQueries prefix_queries, scored_queries;
  std::optional<QueryRecord> queries;  // of the prefix; set by RunReference
  ReferenceLogits logits;              // of the scored tokens
  // [layer][kv_head]: mean of q q^T over the scored queries, [head_dim][head_dim].
  std::vector<std::vector<std::vector<float>>> query_moments;
  // Of scored tokens 0, 16, 32, ..: query and attention output, [layer][sample * num_qo_heads *
  // head_dim] fp32.
  std::vector<std::vector<float>> sampled_q, sampled_out;
};

// Takes K and V, and what else is asked for, of a forward pass on its way to a sequence.
class CapturingSink final : public AttentionSink {
 public:
  // Each but `sink` may be null; `kv` and `queries` are appended to.
  struct Capture {
    Fp16Window* kv = nullptr;
    CapturedQueries* queries = nullptr;
    ReferenceRun* samples = nullptr;  // sampled_q and sampled_out
    int64_t first_scored = 0;         // position of the first scored token
  };
  CapturingSink(AttentionSink& sink, const Capture& capture, int num_qo_heads, int head_dim)
      : sink_(sink), capture_(capture), row_elements_(num_qo_heads * head_dim) {}

  absl::Status Attend(const LayerQkv& qkv, float* out) override;

 private:
  AttentionSink& sink_;
  const Capture capture_;
  const int row_elements_;
};

// Brings the prefix, whose exact K and V stand in `kv`, into an empty sequence the way a worker's
// prefill does: blocks by the preset's rule, the rest in the window. `queries`: of the queries that
// read the prefix while it was prefilled.
absl::Status CompressPrefix(const Fp16Window& kv, const QueryRecord& queries,
                            std::span<const int32_t> prefix, KvSequence& sequence);

// What ScoreTokens leaves beside the state of the sequence.
struct ScoredTokens {
  std::vector<float> logits;    // [score_tokens, vocab_size]
  std::vector<int> num_blocks;  // that stood when scored token i was computed
};

// Teacher-forces the scored tokens of a passage through `sink`, which leads to `sequence`, in which
// the prefix stands.
absl::StatusOr<ScoredTokens> ScoreTokens(LlamaModel& model, std::span<const int32_t> passage,
                                         const ScoringOptions& options, AttentionSink& sink,
                                         KvSequence& sequence);

// Prefills the prefix exactly, then scores with an fp16 cache. `model` is a replica of the host's.
absl::StatusOr<std::unique_ptr<ReferenceRun>> RunReference(const ModelHost& host, LlamaModel& model,
                                                           std::span<const int32_t> passage,
                                                           const ScoringOptions& options);

}  // namespace pkv

#endif  // PKV_WORKER_EVAL_REFERENCE_RUN_H_
