#include "worker/eval/reference_run.h"

#include <algorithm>
#include <utility>

#include "proto/base/status_macros.h"
#include "worker/sequence/window_flush.h"

namespace pkv {

absl::Status CapturingSink::Attend(const LayerQkv& qkv, float* out) {
  PKV_RETURN_IF_ERROR(sink_.Attend(qkv, out));
  if (capture_.kv != nullptr) {
    PKV_RETURN_IF_ERROR(capture_.kv->Append(qkv.layer, qkv.num_tokens, qkv.k, qkv.v));
  }
  if (capture_.queries != nullptr) capture_.queries->Append(qkv.layer, qkv.num_tokens, qkv.q);
  if (capture_.samples == nullptr) return absl::OkStatus();
  for (int i = 0; i < qkv.num_tokens; ++i) {
    const int64_t scored = qkv.first_token + i - capture_.first_scored;
    if (scored < 0 || scored % kAttentionStride != 0) continue;
    const auto append = [&](const float* rows, std::vector<float>& to) {
      const float* row = rows + int64_t{i} * row_elements_;
      to.insert(to.end(), row, row + row_elements_);
    };
    append(qkv.q, capture_.samples->sampled_q[qkv.layer]);
    append(out, capture_.samples->sampled_out[qkv.layer]);
  }
  return absl::OkStatus();
}

absl::Status CompressPrefix(const Fp16Window& kv, const QueryRecord& queries,
                            std::span<const int32_t> prefix, KvSequence& sequence) {
  const int num_tokens = static_cast<int>(prefix.size());
  const KvSequence::Config& config = sequence.config();
  sequence.AdoptQueries(queries);
  for (int layer = 0; layer < config.shape.num_layers; ++layer) {
    sequence.AppendKv(layer, kv.layer(layer).Tokens(0, num_tokens));
  }
  const int num_blocks = BlockTokensAfterPrefill(config.params, num_tokens) / kBlockTokens;
  return EncodeBlocks(num_blocks, Phase::kPrefill, prefix, sequence);
}

absl::StatusOr<ScoredTokens> ScoreTokens(LlamaModel& model, std::span<const int32_t> passage,
                                         const ScoringOptions& options, AttentionSink& sink,
                                         KvSequence& sequence) {
  const bool decodes = options.protocol == Protocol::kDecode;
  const int step = decodes ? options.step_tokens : options.score_tokens;
  const int64_t vocab_size = model.config().vocab_size;
  ScoredTokens scored;
  scored.logits.resize(options.score_tokens * vocab_size);
  for (int done = 0; done < options.score_tokens; done += step) {
    const int count = std::min(step, options.score_tokens - done);
    const int first_token = options.prefix_tokens + done;
    scored.num_blocks.insert(scored.num_blocks.end(), count, sequence.num_blocks());
    PKV_RETURN_IF_ERROR(model.Forward(passage.subspan(first_token, count), first_token, sink, 0,
                                      scored.logits.data() + done * vocab_size));
    if (!decodes) continue;
    PKV_RETURN_IF_ERROR(FlushWindow(passage.first(first_token + count), sequence).status());
  }
  return scored;
}

absl::StatusOr<std::unique_ptr<ReferenceRun>> RunReference(const ModelHost& host, LlamaModel& model,
                                                           std::span<const int32_t> passage,
                                                           const ScoringOptions& options) {
  const ModelConfig& config = host.config();
  const KvShape shape = config.kv_shape();
  auto run = std::make_unique<ReferenceRun>(shape);
  run->prefix_queries = CapturedQueries(shape.num_layers, config.num_qo_heads, shape.head_dim);
  run->scored_queries = run->prefix_queries;
  run->sampled_q.resize(shape.num_layers);
  run->sampled_out.resize(shape.num_layers);

  PKV_ASSIGN_OR_RETURN(const CodecParams fp16, PresetByName("fp16", shape));
  PKV_ASSIGN_OR_RETURN(std::unique_ptr<KvSequence> sequence, host.MakeReplicaSequence(fp16));
  const std::span<const int32_t> prefix = passage.first(options.prefix_tokens);
  sequence->RecordQueries();
  CapturingSink prefill(*sequence, {.kv = &run->kv, .queries = &run->prefix_queries},
                        config.num_qo_heads, shape.head_dim);
  PKV_RETURN_IF_ERROR(model.Forward(prefix, 0, prefill, static_cast<int>(prefix.size()), nullptr));
  run->queries = *sequence->queries();
  if (options.protocol == Protocol::kDecode) {
    // Blocks of fp16 in place of the window: an fp16 row must find the very same cache.
    PKV_ASSIGN_OR_RETURN(sequence, host.MakeReplicaSequence(fp16));
    PKV_RETURN_IF_ERROR(CompressPrefix(run->kv, *run->queries, prefix, *sequence));
  }
  CapturingSink scoring(*sequence,
                        {.kv = &run->kv,
                         .queries = &run->scored_queries,
                         .samples = run.get(),
                         .first_scored = options.prefix_tokens},
                        config.num_qo_heads, shape.head_dim);
  PKV_ASSIGN_OR_RETURN(ScoredTokens scored,
                       ScoreTokens(model, passage, options, scoring, *sequence));
  run->logits = ReferenceLogits(std::move(scored.logits), config.vocab_size);
  run->query_moments.resize(shape.num_layers);
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    for (int head = 0; head < shape.num_kv_heads; ++head) {
      run->query_moments[layer].push_back(
          run->scored_queries.SecondMoment(layer, head, shape.num_kv_heads));
    }
  }
  return run;
}

}  // namespace pkv
