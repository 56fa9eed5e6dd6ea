#include "worker/eval/passage_score.h"

#include <cmath>
#include <memory>
#include <utility>

#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

int64_t TokenElements(const KvShape& shape) {
  return int64_t{2} * shape.num_layers * shape.num_kv_heads * shape.head_dim;
}

// The pattern table that a sequence's first block refers to; a shared one costs a request nothing.
absl::StatusOr<uint64_t> TableBytes(const KvSequence& sequence) {
  if (sequence.num_blocks() == 0 || sequence.config().shared_patterns != nullptr) return 0;
  const ObjectHeader& block = sequence.block_headers().front();
  if ((block.flags & kFlagHasPatterns) == 0) return 0;
  ObjectHeader table;
  table.kind = ObjectKind::kTable;
  table.num_layers = block.num_layers;
  table.num_kv_heads = block.num_kv_heads;
  table.head_dim = block.head_dim;
  table.num_patterns_k = block.num_patterns_k;
  table.num_patterns_v = block.num_patterns_v;
  PKV_RETURN_IF_ERROR(SetVariant(sequence.config().params.variant(), table));
  PKV_ASSIGN_OR_RETURN(const ObjectSizes sizes, ComputeObjectSizes(table));
  return sizes.object_bytes;
}

// Table, blocks and window of a sequence as it stands.
absl::StatusOr<uint64_t> CacheBytes(const KvSequence& sequence) {
  PKV_ASSIGN_OR_RETURN(uint64_t bytes, TableBytes(sequence));
  bytes += sequence.window_tokens() * TokenElements(sequence.config().shape) * sizeof(uint16_t);
  for (const ObjectHeader& header : sequence.block_headers()) bytes += header.object_bytes;
  return bytes;
}

// Table, blocks and window after a prefill of kLongTokens, by the first block of `sequence`.
absl::StatusOr<uint64_t> LongCacheBytes(const KvSequence& sequence) {
  PKV_ASSIGN_OR_RETURN(const uint64_t table_bytes, TableBytes(sequence));
  const KvSequence::Config& config = sequence.config();
  const int in_blocks = BlockTokensAfterPrefill(config.params, kLongTokens);
  ObjectHeader later = sequence.block_headers().front();
  later.flags &= ~(kFlagAppendsK | kFlagAppendsV);
  PKV_ASSIGN_OR_RETURN(const ObjectSizes first_sizes, ComputeObjectSizes(later));
  later.num_sinks = 0;
  PKV_ASSIGN_OR_RETURN(const ObjectSizes sizes, ComputeObjectSizes(later));
  const uint64_t window_bytes =
      (kLongTokens - in_blocks) * TokenElements(config.shape) * sizeof(uint16_t);
  return table_bytes + first_sizes.object_bytes +
         (in_blocks / kBlockTokens - 1) * sizes.object_bytes + window_bytes;
}

// Standard error of the mean of `values`.
double StandardError(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  if (values.size() < 2) return 0;
  double mean = 0, squares = 0;
  for (const double value : values) mean += value / count;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / (count - 1) / count);
}

void SummariseLogits(std::span<const PassageScore* const> passages, RowScore& score) {
  std::vector<TokenComparison> all, quarters[kNumQuarters];
  std::vector<double> kl, nll_difference;
  for (const PassageScore* passage : passages) {
    const std::vector<TokenComparison>& tokens = passage->tokens;
    all.insert(all.end(), tokens.begin(), tokens.end());
    for (int quarter = 0; quarter < kNumQuarters; ++quarter) {
      const auto begin = tokens.begin() + tokens.size() * quarter / kNumQuarters;
      const auto end = tokens.begin() + tokens.size() * (quarter + 1) / kNumQuarters;
      quarters[quarter].insert(quarters[quarter].end(), begin, end);
    }
    const LogitSummary own = Summarise(tokens);
    kl.push_back(own.kl);
    nll_difference.push_back(own.nll - own.reference_nll);
  }
  score.logits = Summarise(all);
  for (int quarter = 0; quarter < kNumQuarters; ++quarter) {
    score.quarters[quarter] = Summarise(quarters[quarter]);
  }
  score.scored_tokens = static_cast<int64_t>(all.size());
  score.perplexity = std::exp(score.logits.nll);
  score.perplexity_change = std::exp(score.logits.nll - score.logits.reference_nll) - 1;
  score.kl_standard_error = StandardError(kl);
  score.nll_difference_standard_error = StandardError(nll_difference);
}

}  // namespace

absl::StatusOr<PassageScore> ScorePassage(const ModelHost& host, LlamaModel& model,
                                          std::span<const int32_t> passage,
                                          const ScoringOptions& options, const EvaluationRow& row,
                                          const ReferenceRun& reference) {
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<KvSequence> sequence,
                       host.MakeReplicaSequence(row.params, row.shared_patterns));
  const KvShape& shape = sequence->config().shape;
  const std::span<const int32_t> prefix = passage.first(options.prefix_tokens);
  PKV_RETURN_IF_ERROR(CompressPrefix(reference.kv, *reference.queries, prefix, *sequence));

  PassageScore score;
  const int64_t prefix_tokens = sequence->num_tokens();
  PKV_ASSIGN_OR_RETURN(const uint64_t prefix_bytes, CacheBytes(*sequence));

  // What this run's blocks are encoded from: the exact prefix, then its own K and V.
  Fp16Window kv(shape);
  for (int layer = 0; layer < shape.num_layers; ++layer) {
    kv.AppendKv(layer, reference.kv.layer(layer).Tokens(0, options.prefix_tokens));
  }
  CapturingSink sink(*sequence, {.kv = &kv}, host.config().num_qo_heads, shape.head_dim);
  PKV_ASSIGN_OR_RETURN(const ScoredTokens scored,
                       ScoreTokens(model, passage, options, sink, *sequence));
  score.tokens = CompareLogits(reference.logits, scored.logits,
                               passage.subspan(options.prefix_tokens + 1, options.score_tokens));

  for (int layer = 0; layer < shape.num_layers; ++layer) {
    PKV_ASSIGN_OR_RETURN(
        LayerTotals totals,
        ScoreBlocks(kv.layer(layer), layer, reference.query_moments[layer], *sequence));
    PKV_ASSIGN_OR_RETURN(totals.attention,
                         ScoreAttention(reference, layer, options, scored.num_blocks, *sequence));
    score.layers.push_back(std::move(totals));
  }

  score.cached_elements = TokenElements(shape) * prefix_tokens;
  score.cache_bytes = prefix_bytes;
  if (options.protocol == Protocol::kDecode) {
    score.cached_elements = TokenElements(shape) * sequence->num_tokens();
    PKV_ASSIGN_OR_RETURN(score.cache_bytes, CacheBytes(*sequence));
  }
  if (sequence->num_blocks() > 0) {
    PKV_ASSIGN_OR_RETURN(score.long_cache_bytes, LongCacheBytes(*sequence));
    score.long_cached_elements = TokenElements(shape) * kLongTokens;
  }
  return score;
}

RowScore Summarise(const CodecParams& params, const KvShape& shape,
                   std::span<const PassageScore* const> passages) {
  RowScore score;
  score.num_passages = static_cast<int>(passages.size());
  const PayloadLayout layout = PayloadLayout::OfBlock(shape, params.encoding);
  score.bits_per_element = 8.0 * static_cast<double>(layout.page_bytes) /
                           (2.0 * kBlockTokens * shape.num_kv_heads * shape.head_dim);
  uint64_t bytes = 0, long_bytes = 0;
  int64_t elements = 0, long_elements = 0;
  score.layers.resize(shape.num_layers);
  for (const PassageScore* passage : passages) {
    bytes += passage->cache_bytes;
    elements += passage->cached_elements;
    long_bytes += passage->long_cache_bytes;
    long_elements += passage->long_cached_elements;
    for (size_t layer = 0; layer < passage->layers.size(); ++layer) {
      score.layers[layer].Add(passage->layers[layer]);
    }
  }
  const auto bits = [](uint64_t of_bytes, int64_t per_elements) {
    return per_elements == 0
               ? 0
               : 8.0 * static_cast<double>(of_bytes) / static_cast<double>(per_elements);
  };
  score.bits_all_in = bits(bytes, elements);
  score.bits_all_in_long = bits(long_bytes, long_elements);
  SquaredError k, v, k_seen, attention;
  int64_t gated = 0, accepted = 0;
  for (const LayerTotals& layer : score.layers) {
    for (const HeadScore& head : layer.heads) {
      k.Add(head.k);
      v.Add(head.v);
      k_seen.Add(head.k_seen);
    }
    attention.Add(layer.attention);
    gated += layer.gated;
    accepted += layer.accepted;
  }
  score.k_error = k.relative();
  score.v_error = v.relative();
  score.k_seen_error = k_seen.relative();
  score.attention_error = attention.relative();
  score.gate_accepted = gated > 0 ? double(accepted) / double(gated) : 0;
  SummariseLogits(passages, score);
  return score;
}

}  // namespace pkv
