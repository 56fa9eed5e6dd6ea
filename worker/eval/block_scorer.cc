#include "worker/eval/block_scorer.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "proto/base/float16.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"
#include "worker/engine/gemm.h"

namespace pkv {
namespace {

using Codes = std::array<int64_t, 16>;

// rows^T H rows, summed over rows [num_rows][dim].
absl::StatusOr<double> Quadratic(const std::vector<float>& rows, const std::vector<float>& moment,
                                 int dim) {
  std::vector<float> product(rows.size());
  PKV_RETURN_IF_ERROR(Gemm({.m = static_cast<int>(rows.size()) / dim,
                            .n = dim,
                            .k = dim,
                            .a = rows.data(),
                            .b = moment.data(),
                            .c = product.data(),
                            .a_stride = dim,
                            .b_stride = dim,
                            .c_stride = dim},
                           nullptr));
  double sum = 0;
  for (size_t i = 0; i < rows.size(); ++i) sum += double{rows[i]} * product[i];
  return sum;
}

// Differences and originals of one block's rows of one head.
struct Rows {
  std::vector<float> error, exact;
  SquaredError squares;

  Rows(const uint16_t* from, const uint16_t* decoded, size_t size) : error(size), exact(size) {
    for (size_t i = 0; i < size; ++i) {
      const double x = Float16ToFloat(from[i]), y = Float16ToFloat(decoded[i]);
      exact[i] = static_cast<float>(x);
      error[i] = static_cast<float>(x - y);
      squares.error += (x - y) * (x - y);
      squares.norm += x * x;
    }
  }
};

// Adds the codes of one section, of which `num_sink_codes` are zeros that stand for no value.
void CountCodes(const std::byte* section, int64_t num_codes, int bits, int64_t num_sink_codes,
                Codes& counts) {
  const int per_byte = 8 / bits;
  const unsigned mask = (1u << bits) - 1;
  std::array<int64_t, 256> bytes{};
  for (int64_t i = 0; i < num_codes / per_byte; ++i) ++bytes[std::to_integer<uint8_t>(section[i])];
  for (unsigned byte = 0; byte < 256; ++byte) {
    for (int i = 0; i < per_byte; ++i) counts[(byte >> (i * bits)) & mask] += bytes[byte];
  }
  counts[0] -= num_sink_codes;
}

struct HeadCounts {
  CodeCounts k, v;
};

void CountHead(const ObjectHeader& header, const PayloadLayout& layout, const std::byte* head,
               HeadCounts& counts) {
  if (layout.encoding.is_fp16()) return;
  const int64_t num_codes = int64_t{kBlockTokens} * header.head_dim;
  const int64_t num_coarse = int64_t{kBlockTokens - header.k_fine_tokens} * header.head_dim;
  const int64_t sinks = int64_t{header.num_sinks} * header.head_dim;
  CountCodes(head + layout.k_codes, num_coarse, layout.encoding.bits_k, sinks, counts.k.codes);
  CountCodes(head + layout.v_codes, num_codes, layout.encoding.bits_v, sinks, counts.v.codes);
  if (!layout.encoding.has_patterns) return;
  const auto count_ids = [&](int64_t offset, CodeCounts& into) {
    const auto* ids = reinterpret_cast<const uint8_t*>(head + offset);
    for (int t = 0; t < kBlockTokens; ++t) ++into.ids[ids[t]];
    into.ids[kRawPatternId] -= header.num_sinks;
  };
  count_ids(layout.k_ids, counts.k);
  count_ids(layout.v_ids, counts.v);
}

}  // namespace

void SquaredError::Add(const SquaredError& other) {
  error += other.error;
  norm += other.norm;
}

void PatternUse::Add(const CodeCounts& counts) {
  for (size_t i = 0; i < codes.size(); ++i) codes[i] += counts.codes[i];
  if (counts.num_patterns == 0) return;
  const std::span ids(counts.ids.data(), kRawPatternId);
  used += std::count_if(ids.begin(), ids.end(), [](int64_t count) { return count > 0; });
  available += counts.num_patterns;
  usage_bits += EntropyBits(ids);
  ++num_banks;
}

void PatternUse::Add(const PatternUse& other) {
  for (size_t i = 0; i < codes.size(); ++i) codes[i] += other.codes[i];
  used += other.used;
  available += other.available;
  usage_bits += other.usage_bits;
  num_banks += other.num_banks;
}

double PatternUse::code_bits() const { return EntropyBits(codes); }

void LayerTotals::Add(const LayerTotals& other) {
  heads.resize(std::max(heads.size(), other.heads.size()));
  for (size_t h = 0; h < other.heads.size(); ++h) {
    heads[h].k.Add(other.heads[h].k);
    heads[h].v.Add(other.heads[h].v);
    heads[h].k_seen.Add(other.heads[h].k_seen);
  }
  attention.Add(other.attention);
  gated += other.gated;
  accepted += other.accepted;
  k_patterns.Add(other.k_patterns);
  v_patterns.Add(other.v_patterns);
}

double EntropyBits(std::span<const int64_t> counts) {
  double total = 0, bits = 0;
  for (const int64_t count : counts) total += static_cast<double>(count);
  for (const int64_t count : counts) {
    if (count <= 0) continue;
    const double share = static_cast<double>(count) / total;
    bits -= share * std::log2(share);
  }
  return bits;
}

absl::StatusOr<LayerTotals> ScoreBlocks(const KvTensorView& kv, int layer,
                                        const std::vector<std::vector<float>>& query_moments,
                                        KvSequence& sequence) {
  const size_t block_elements = size_t(kBlockTokens) * kv.head_dim;
  std::vector<uint16_t> k(block_elements * kv.num_kv_heads), v(k.size());
  const MutableKvTensorView decoded{k.data(),     v.data(),    kv.num_kv_heads,
                                    kBlockTokens, kv.head_dim, int64_t(block_elements)};
  const Codebook no_patterns(kv.num_kv_heads, kv.head_dim);
  LayerTotals totals;
  totals.heads.resize(kv.num_kv_heads);
  std::vector<HeadCounts> counts(kv.num_kv_heads);
  int index = 0;
  for (const BlockPage& page : sequence.pages(layer)) {
    const Codebook& codebook = page.codebook == nullptr ? no_patterns : *page.codebook;
    PKV_RETURN_IF_ERROR(sequence.DecodeBlock(index, layer, decoded));
    const KvTensorView block = kv.Tokens(index * kBlockTokens, kBlockTokens);
    ++index;
    const PayloadLayout layout = PayloadLayout::Of(*page.header);
    for (int h = 0; h < kv.num_kv_heads; ++h) {
      const Rows k_rows(block.k_row(h, 0), k.data() + h * block_elements, block_elements);
      const Rows v_rows(block.v_row(h, 0), v.data() + h * block_elements, block_elements);
      totals.heads[h].k.Add(k_rows.squares);
      totals.heads[h].v.Add(v_rows.squares);
      SquaredError seen;
      PKV_ASSIGN_OR_RETURN(seen.error, Quadratic(k_rows.error, query_moments[h], kv.head_dim));
      PKV_ASSIGN_OR_RETURN(seen.norm, Quadratic(k_rows.exact, query_moments[h], kv.head_dim));
      totals.heads[h].k_seen.Add(seen);
      CountHead(*page.header, layout, page.frame.data() + h * layout.head_bytes, counts[h]);
      counts[h].k.num_patterns = codebook.num_k();
      counts[h].v.num_patterns = codebook.num_v();
    }
  }
  for (const HeadCounts& head : counts) {
    totals.k_patterns.Add(head.k);
    totals.v_patterns.Add(head.v);
    for (int id = 0; id < 256; ++id) {
      totals.gated += head.v.ids[id];
      if (id != kRawPatternId) totals.accepted += head.v.ids[id];
    }
  }
  return totals;
}

absl::StatusOr<SquaredError> ScoreAttention(const ReferenceRun& reference, int layer,
                                            const ScoringOptions& options,
                                            const std::vector<int>& num_blocks,
                                            KvSequence& sequence) {
  const KvSequence::Config& config = sequence.config();
  const KvTensorView kv = reference.kv.layer(layer);
  const std::vector<BlockPage> pages = sequence.pages(layer);
  const size_t row = size_t(config.num_qo_heads) * kv.head_dim;
  const std::vector<float>& q = reference.sampled_q[layer];
  const std::vector<float>& exact = reference.sampled_out[layer];
  std::vector<float> out(row);
  SquaredError sum;
  for (size_t sample = 0; sample * row < q.size(); ++sample) {
    const int scored = static_cast<int>(sample) * kAttentionStride;
    const int in_blocks = num_blocks[scored] * kBlockTokens;
    AttentionArgs args;
    args.q = q.data() + sample * row;
    args.num_qo_heads = config.num_qo_heads;
    args.sm_scale = 1.0f / std::sqrt(static_cast<float>(kv.head_dim));
    args.pages = std::span(pages).first(num_blocks[scored]);
    args.window = kv.Tokens(in_blocks, options.prefix_tokens + scored + 1 - in_blocks);
    args.out = out.data();
    PKV_RETURN_IF_ERROR(PagedAttention(args, {}));
    for (size_t i = 0; i < row; ++i) {
      const double x = exact[sample * row + i], error = x - out[i];
      sum.error += error * error;
      sum.norm += x * x;
    }
  }
  return sum;
}

}  // namespace pkv
