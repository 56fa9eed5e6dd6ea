#include "worker/eval/evaluation.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "proto/base/float16.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"
#include "worker/eval/logit_metrics.h"

namespace pkv {
namespace {

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  if (!file || !(text << file.rdbuf())) {
    return absl::NotFoundError(absl::StrCat("cannot read text file ", path, ", or it is empty"));
  }
  return text.str();
}

// Sums over the passages of one preset.
struct Totals {
  LogitComparison logits;
  double k_error = 0, k_norm = 0, v_error = 0, v_norm = 0;
  int64_t gated = 0, accepted = 0;
  uint64_t cache_bytes = 0;
  int64_t cached_elements = 0;
};

void AddSquares(std::span<const uint16_t> exact, std::span<const uint16_t> restored, double& error,
                double& norm) {
  for (size_t i = 0; i < exact.size(); ++i) {
    const double x = Float16ToFloat(exact[i]), y = Float16ToFloat(restored[i]);
    error += (x - y) * (x - y);
    norm += x * x;
  }
}

// Compares what the blocks of one layer decode to with what was encoded, and counts accepted gates.
absl::Status AddLayerErrors(const KvTensorView& exact, int layer, const CodecParams& params,
                            KvSequence& sequence, Totals& totals) {
  const KvShape shape{1, exact.num_kv_heads, exact.head_dim};
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<BlockCodec> codec,
                       MakeBlockCodec(shape, params, Device::kCpu));
  const KvSequence::MadeObjects objects = sequence.made_objects();
  const size_t block_elements = size_t(kBlockTokens) * exact.head_dim;
  std::vector<uint16_t> k(block_elements * exact.num_kv_heads), v(k.size());
  const MutableKvTensorView restored{k.data(),           v.data(),
                                     exact.num_kv_heads, kBlockTokens,
                                     exact.head_dim,     static_cast<int64_t>(block_elements)};
  const Codebook no_patterns(exact.num_kv_heads, exact.head_dim);
  for (size_t b = 0; b < objects.blocks.size(); ++b) {
    const ObjectHeader& header = objects.blocks[b]->header();
    const std::span<const std::byte> frame = objects.blocks[b]->frame(layer);
    const Codebook* codebook = sequence.codebook(static_cast<int>(b), layer);
    PKV_RETURN_IF_ERROR(
        codec->Decode(header, frame, codebook == nullptr ? no_patterns : *codebook, {}, restored));
    const KvTensorView block = exact.Tokens(static_cast<int>(b) * kBlockTokens, kBlockTokens);
    const PayloadLayout layout = PayloadLayout::Of(header);
    for (int h = 0; h < exact.num_kv_heads; ++h) {
      AddSquares({block.k_row(h, 0), block_elements},
                 std::span(k).subspan(h * block_elements, block_elements), totals.k_error,
                 totals.k_norm);
      AddSquares({block.v_row(h, 0), block_elements},
                 std::span(v).subspan(h * block_elements, block_elements), totals.v_error,
                 totals.v_norm);
      if (!params.encoding.has_patterns) continue;
      const auto* ids =
          reinterpret_cast<const uint8_t*>(frame.data() + h * layout.head_bytes + layout.v_ids);
      totals.gated += kBlockTokens - header.num_sinks;
      totals.accepted +=
          std::count_if(ids, ids + kBlockTokens, [](uint8_t id) { return id != kRawPatternId; });
    }
  }
  return absl::OkStatus();
}

// Scores one preset on one passage whose exact prefix stands in `exact` (fp16, nothing flushed).
absl::Status ScorePreset(ModelHost& host, std::span<const int32_t> passage,
                         const EvaluationOptions& options, const CodecParams& params,
                         const KvSequence& exact, std::span<const float> exact_logits,
                         Totals& totals) {
  const ModelConfig& config = host.config();
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<KvSequence> sequence, host.MakeSequence(params));
  const std::span<const int32_t> prefix = passage.first(options.prefix_tokens);
  const int num_blocks = BlockTokensAfterPrefill(params, options.prefix_tokens) / kBlockTokens;
  PKV_RETURN_IF_ERROR(
      sequence->StartBlocks(num_blocks, Phase::kPrefill, prefix, /*with_window=*/false));
  for (int layer = 0; layer < config.num_layers; ++layer) {
    sequence->AppendKv(layer, exact.window(layer).Tokens(0, options.prefix_tokens));
    PKV_RETURN_IF_ERROR(sequence->EncodeLayer(layer));
  }
  PKV_RETURN_IF_ERROR(sequence->FinishBlocks());
  for (int layer = 0; layer < config.num_layers; ++layer) {
    PKV_RETURN_IF_ERROR(AddLayerErrors(exact.window(layer), layer, params, *sequence, totals));
  }
  const KvSequence::MadeObjects objects = sequence->made_objects();
  const int64_t token_elements =
      int64_t{2} * config.num_layers * config.num_kv_heads * config.head_dim;
  totals.cached_elements += token_elements * options.prefix_tokens;
  totals.cache_bytes += sequence->window_tokens() * token_elements * sizeof(uint16_t);
  if (objects.table != nullptr) totals.cache_bytes += objects.table->bytes().size();
  for (const ObjectHeader& header : sequence->block_headers())
    totals.cache_bytes += header.object_bytes;

  const std::span<const int32_t> scored =
      passage.subspan(options.prefix_tokens, options.score_tokens);
  std::vector<float> logits(scored.size() * config.vocab_size);
  PKV_RETURN_IF_ERROR(host.Forward(scored, options.prefix_tokens, *sequence, 0, logits.data()));
  totals.logits.Add(exact_logits, logits,
                    passage.subspan(options.prefix_tokens + 1, options.score_tokens));
  return absl::OkStatus();
}

absl::Status CheckPassage(const ModelConfig& config, std::span<const int32_t> passage,
                          const EvaluationOptions& options) {
  const int64_t length = int64_t{options.prefix_tokens} + options.score_tokens + 1;
  if (options.prefix_tokens < 1 || options.score_tokens < 1 ||
      static_cast<int64_t>(passage.size()) != length) {
    return absl::InvalidArgumentError(
        absl::StrCat("a passage of ", passage.size(), " tokens for a prefix of ",
                     options.prefix_tokens, ", ", options.score_tokens, " scored and one more"));
  }
  for (const int32_t token : passage) {
    if (token < 0 || token >= config.vocab_size) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", token, " not in [0, ", config.vocab_size, ")"));
    }
  }
  return absl::OkStatus();
}

PresetScore Summarise(const CodecParams& params, const KvShape& shape, double baseline_nll,
                      Totals& totals) {
  PresetScore score;
  score.preset = params.name;
  const PayloadLayout layout = PayloadLayout::OfBlock(shape, params.encoding);
  score.bits_per_element = 8.0 * static_cast<double>(layout.page_bytes) /
                           (2.0 * kBlockTokens * shape.num_kv_heads * shape.head_dim);
  score.bits_all_in =
      8.0 * static_cast<double>(totals.cache_bytes) / static_cast<double>(totals.cached_elements);
  score.perplexity = std::exp(totals.logits.mean_nll());
  score.perplexity_change = std::exp(totals.logits.mean_nll() - baseline_nll) - 1;
  score.kl_mean = totals.logits.mean_kl();
  score.kl_p99 = totals.logits.KlPercentile(0.99);
  score.top1_agreement = totals.logits.top1_agreement();
  score.k_error = totals.k_norm > 0 ? totals.k_error / totals.k_norm : 0;
  score.v_error = totals.v_norm > 0 ? totals.v_error / totals.v_norm : 0;
  score.gate_accepted = totals.gated > 0 ? double(totals.accepted) / double(totals.gated) : 0;
  score.scored_tokens = totals.logits.num_tokens();
  return score;
}

}  // namespace

absl::StatusOr<std::vector<std::vector<int32_t>>> CutPassages(
    const ModelHost& host, std::span<const std::string> text_files,
    const EvaluationOptions& options) {
  const int64_t length = int64_t{options.prefix_tokens} + options.score_tokens + 1;
  if (options.prefix_tokens < kBlockTokens || options.score_tokens < 1 ||
      options.num_passages < 1 || text_files.empty() ||
      length - 1 > host.config().max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat(
        "prefix of ", options.prefix_tokens, " tokens (at least ", kBlockTokens, "), ",
        options.score_tokens, " scored, ", options.num_passages, " passages of ", text_files.size(),
        " texts: each must be positive and the sum fit "
        "the model's ",
        host.config().max_position_embeddings, " positions"));
  }
  const int num_texts = static_cast<int>(text_files.size());
  std::vector<std::vector<int32_t>> passages(options.num_passages);
  for (int text = 0; text < num_texts && text < options.num_passages; ++text) {
    PKV_ASSIGN_OR_RETURN(const std::string content, ReadFile(text_files[text]));
    PKV_ASSIGN_OR_RETURN(const std::vector<int32_t> tokens,
                         host.tokenizer().Encode(content, /*add_bos=*/false));
    const int count = (options.num_passages - text + num_texts - 1) / num_texts;
    const int64_t room = static_cast<int64_t>(tokens.size()) - (length - 1);
    if (room < 0) {
      return absl::InvalidArgumentError(absl::StrCat(text_files[text], " has ", tokens.size(),
                                                     " tokens; a passage needs ", length - 1));
    }
    for (int i = 0; i < count; ++i) {
      const int64_t begin = room * (2 * i + 1) / (2 * count);
      std::vector<int32_t>& passage = passages[text + i * num_texts];
      passage.push_back(host.config().bos_token_id);
      passage.insert(passage.end(), tokens.begin() + begin, tokens.begin() + begin + length - 1);
    }
  }
  return passages;
}

absl::StatusOr<EvaluationReport> Evaluate(ModelHost& host,
                                          std::span<const std::vector<int32_t>> passages,
                                          const EvaluationOptions& options,
                                          const std::function<void(int, int)>& progress) {
  for (const std::vector<int32_t>& passage : passages) {
    PKV_RETURN_IF_ERROR(CheckPassage(host.config(), passage, options));
  }
  const KvShape shape = host.config().kv_shape();
  std::vector<CodecParams> presets;
  for (const std::string& name : options.presets) {
    PKV_ASSIGN_OR_RETURN(presets.emplace_back(), PresetByName(name, shape));
  }
  PKV_ASSIGN_OR_RETURN(const CodecParams fp16, PresetByName("fp16", shape));
  std::vector<Totals> totals(presets.size());
  LogitComparison baseline;
  const int total_steps = static_cast<int>(passages.size() * (presets.size() + 1));
  int step = 0;
  for (const std::vector<int32_t>& passage : passages) {
    PKV_ASSIGN_OR_RETURN(const std::unique_ptr<KvSequence> exact, host.MakeSequence(fp16));
    const std::span<const int32_t> tokens(passage);
    PKV_RETURN_IF_ERROR(ComputePrefill(host, *exact, tokens.first(options.prefix_tokens), nullptr));
    std::vector<float> logits(size_t(options.score_tokens) * host.config().vocab_size);
    PKV_RETURN_IF_ERROR(host.Forward(tokens.subspan(options.prefix_tokens, options.score_tokens),
                                     options.prefix_tokens, *exact, 0, logits.data()));
    baseline.Add(logits, logits, tokens.subspan(options.prefix_tokens + 1, options.score_tokens));
    progress(++step, total_steps);
    for (size_t p = 0; p < presets.size(); ++p) {
      PKV_RETURN_IF_ERROR(
          ScorePreset(host, tokens, options, presets[p], *exact, logits, totals[p]));
      progress(++step, total_steps);
    }
  }
  EvaluationReport report;
  report.baseline_perplexity = std::exp(baseline.mean_nll());
  for (size_t p = 0; p < presets.size(); ++p) {
    report.scores.push_back(Summarise(presets[p], shape, baseline.mean_nll(), totals[p]));
  }
  return report;
}

}  // namespace pkv
