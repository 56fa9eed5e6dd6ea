#ifndef PKV_TESTS_SUPPORT_ATTENTION_REFERENCE_H_
#define PKV_TESTS_SUPPORT_ATTENTION_REFERENCE_H_

// Attention in fp64 over dequantized tokens, and how far an fp32 kernel may be from it.

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "kernels/codec/codec_math.h"
#include "kernels/codec/head_frame.h"
#include "pkv/kernels/block_codec.h"
#include "pkv/kernels/paged_attention.h"
#include "tests/support/error_bound.h"

namespace pkv {

struct AttentionReference {
  std::vector<double> out, lse;              // shaped as in AttentionArgs
  std::vector<double> out_bound, lse_bound;  // allowed error of each
};

namespace attention_reference_internal {

// All tokens of one kv head: value, and the sum of the magnitudes the fused algebra adds up to it.
struct HeadTokens {
  std::vector<double> k, v, k_magnitude, v_magnitude;  // [token][head_dim]
};

// |scale| max_code + |zero| + |pattern| of every value of a coded page.
inline std::vector<double> Magnitudes(const BlockPage& page, int head, bool is_k) {
  const PayloadLayout layout = PayloadLayout::Of(*page.header);
  const HeadFrame<const std::byte> frame(*page.header, layout, page.frame.data(), head);
  const int d = layout.head_dim;
  const Encoding& e = layout.encoding;
  std::vector<double> out(static_cast<size_t>(kBlockTokens) * d);
  for (int t = 0; t < kBlockTokens; ++t) {
    for (int j = 0; j < d; ++j) {
      double& magnitude = out[static_cast<size_t>(t) * d + j];
      if (t < frame.num_rows) {
        magnitude = std::abs(Float16ToFloat((is_k ? frame.k_rows : frame.v_rows)[t * d + j]));
        continue;
      }
      const int k_at = is_k ? t / e.k_group_tokens * d + ColumnPosition(j, d) : 0;
      const int v_at = is_k ? 0 : j / e.v_group_channels * kBlockTokens;
      const Float16Bits scale =
          is_k ? frame.k_scales[k_at] : frame.v_scales[v_at + RowPosition(t, kBlockTokens)];
      const Float16Bits zero =
          is_k ? frame.k_zeros[k_at] : frame.v_zeros[v_at + ColumnPosition(t, kBlockTokens)];
      magnitude = Float16ToFloat(scale) * double{MaxCode(is_k ? e.bits_k : e.bits_v)} +
                  std::abs(Float16ToFloat(zero));
      if (!e.has_patterns) continue;
      const int id = is_k ? frame.k_ids[RowPosition(t, kBlockTokens)]
                          : frame.v_ids[ColumnPosition(t, kBlockTokens)];
      if (id == kRawPatternId) continue;
      const auto patterns = is_k ? page.codebook->k(head) : page.codebook->v(head);
      magnitude += std::abs(Float16ToFloat(patterns[static_cast<size_t>(id) * d + j]));
    }
  }
  return out;
}

inline void Append(const std::vector<double>& from, std::vector<double>& to) {
  to.insert(to.end(), from.begin(), from.end());
}

inline HeadTokens Collect(const AttentionArgs& args, int head) {
  HeadTokens tokens;
  const int d = args.window.head_dim;
  std::vector<float> tile(static_cast<size_t>(kBlockTokens) * d);
  const Codebook none;
  for (const BlockPage& page : args.pages) {
    const Codebook& codebook = page.codebook == nullptr ? none : *page.codebook;
    DequantizeKTile(*page.header, page.frame, codebook, head, tile.data());
    Append({tile.begin(), tile.end()}, tokens.k);
    DequantizeVTile(*page.header, page.frame, codebook, head, tile.data());
    Append({tile.begin(), tile.end()}, tokens.v);
    Append(Magnitudes(page, head, true), tokens.k_magnitude);
    Append(Magnitudes(page, head, false), tokens.v_magnitude);
  }
  for (int t = 0; t < args.window.num_tokens; ++t) {
    for (int j = 0; j < d; ++j) {
      tokens.k.push_back(Float16ToFloat(args.window.k_row(head, t)[j]));
      tokens.v.push_back(Float16ToFloat(args.window.v_row(head, t)[j]));
      tokens.k_magnitude.push_back(std::abs(tokens.k.back()));
      tokens.v_magnitude.push_back(std::abs(tokens.v.back()));
    }
  }
  return tokens;
}

}  // namespace attention_reference_internal

// Every score is a sum of at most 3 head_dim + 8 rounded terms (codes, zero points, pattern), so it
// errs by eps = SumBound(..) of the magnitudes; a weight then by e^(2 eps) - 1, by the exponential
// (8 units), the subtraction of the maximum (up to 88, where weights end) and the rescaling of
// every page (10 units each). The output is a weighted mean: twice that, times the largest value,
// plus the rounding of its own sum over tokens, patterns and groups.
inline AttentionReference ComputeAttentionReference(const AttentionArgs& args) {
  using attention_reference_internal::HeadTokens;
  const int d = args.window.head_dim, heads = args.num_qo_heads;
  const int heads_per_kv = heads / args.window.num_kv_heads;
  AttentionReference r;
  r.out.assign(static_cast<size_t>(args.num_queries) * heads * d, 0.0);
  r.out_bound = r.out;
  r.lse.assign(static_cast<size_t>(args.num_queries) * heads,
               -std::numeric_limits<double>::infinity());
  r.lse_bound.assign(r.lse.size(), 0.0);
  for (int head = 0; head < args.window.num_kv_heads; ++head) {
    const HeadTokens tokens = attention_reference_internal::Collect(args, head);
    const int total = static_cast<int>(tokens.k.size()) / d;
    for (int query = 0; query < args.num_queries; ++query) {
      const int hidden = args.window.num_tokens == 0 ? 0 : args.num_queries - 1 - query;
      const int visible = total - hidden;
      if (visible == 0) continue;
      for (int g = 0; g < heads_per_kv; ++g) {
        const size_t at = static_cast<size_t>(query) * heads + head * heads_per_kv + g;
        const float* q = args.q + at * d;
        std::vector<double> score(visible);
        double eps = 0;
        for (int t = 0; t < visible; ++t) {
          double magnitude = 0;
          for (int j = 0; j < d; ++j) {
            score[t] += double{q[j]} * tokens.k[static_cast<size_t>(t) * d + j];
            magnitude += std::abs(q[j]) * tokens.k_magnitude[static_cast<size_t>(t) * d + j];
          }
          score[t] *= args.sm_scale;
          eps = std::max(eps, SumBound(3 * d + 8, magnitude * args.sm_scale));
        }
        const double max = *std::max_element(score.begin(), score.end());
        double sum = 0;
        for (const double s : score) sum += std::exp(s - max);
        r.lse[at] = max + std::log(sum);
        const int pages = static_cast<int>(args.pages.size()) + args.window.num_tokens / 128 + 2;
        const double delta = std::expm1(2 * eps) + (96 + 10 * pages) * kFloatUnit;
        double largest = 0;
        for (int t = 0; t < visible; ++t) {
          const double weight = std::exp(score[t] - max) / sum;
          for (int j = 0; j < d; ++j) {
            const size_t from = static_cast<size_t>(t) * d + j;
            r.out[at * d + j] += weight * tokens.v[from];
            largest = std::max(largest, tokens.v_magnitude[from]);
          }
        }
        const double sums = SumBound(2 * visible + 512 + 4 * pages, 1);
        for (int j = 0; j < d; ++j) {
          r.out_bound[at * d + j] = (2 * delta / (1 - delta) + 2 * sums) * largest;
        }
        r.lse_bound[at] = eps + delta + sums + 4 * kFloatUnit * (1 + std::abs(r.lse[at]));
      }
    }
  }
  return r;
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_ATTENTION_REFERENCE_H_
