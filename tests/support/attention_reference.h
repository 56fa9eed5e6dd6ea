#ifndef PKV_TESTS_SUPPORT_ATTENTION_REFERENCE_H_
#define PKV_TESTS_SUPPORT_ATTENTION_REFERENCE_H_

// Attention in fp64 over dequantized tokens, and how far an fp32 kernel may be from it.

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "kernels/attention/attention_backends.h"
#include "pkv/kernels/block_codec.h"
#include "pkv/kernels/paged_attention.h"
#include "tests/support/coded_head.h"
#include "tests/support/error_bound.h"
#include "tests/support/rotation_reference.h"

namespace pkv {

struct AttentionReference {
  std::vector<double> out, lse;              // shaped as in AttentionArgs
  std::vector<double> out_bound, lse_bound;  // allowed error of each
};

// All tokens of one kv head.
struct ReferenceTokens {
  int head_dim = 0;
  bool any_rotated = false;
  std::vector<bool> is_rotated;     // token: stands in a rotated page
  std::vector<double> k, v;         // [token][head_dim], rotated back
  std::vector<double> k_magnitude;  // [token][head_dim] as stored: what the fused algebra adds up
  // Tokens [0, num_coded) meet queries and weights that were rounded to 16 bits.
  // [token][head_dim] code and its step; 0 where there is none.
  int num_coded = 0;
  std::vector<float> k_code, k_step, v_code, v_step;
  // [token]: the largest magnitude an element of V is added up from. What is added up in rotated
  // form spreads over all elements when it is rotated back: then the magnitudes' 2-norm.
  std::vector<double> v_largest;

  int count() const { return static_cast<int>(v_largest.size()); }
  std::span<const double> k_row(int t) const { return std::span(k).subspan(At(t), head_dim); }
  std::span<const double> v_row(int t) const { return std::span(v).subspan(At(t), head_dim); }
  std::span<const double> k_magnitude_row(int t) const {
    return std::span(k_magnitude).subspan(At(t), head_dim);
  }
  size_t At(int t) const { return static_cast<size_t>(t) * head_dim; }
};

namespace attention_reference_internal {

inline void AppendTile(const std::vector<float>& tile, int d, bool rotated,
                       std::vector<double>& to) {
  const size_t begin = to.size();
  to.insert(to.end(), tile.begin(), tile.end());
  if (!rotated) return;
  for (size_t at = begin; at < to.size(); at += d) RotateReference(std::span(to).subspan(at, d));
}

inline void AppendPage(const BlockPage& page, int head, ReferenceTokens& tokens) {
  const int d = tokens.head_dim;
  const bool rotated = page.header->encoding().rotated;
  const Codebook none;
  const Codebook& codebook = page.codebook == nullptr ? none : *page.codebook;
  std::vector<float> tile(static_cast<size_t>(kBlockTokens) * d);
  DequantizeKTile(*page.header, page.frame, codebook, head, tile.data());
  AppendTile(tile, d, rotated, tokens.k);
  DequantizeVTile(*page.header, page.frame, codebook, head, tile.data());
  AppendTile(tile, d, rotated, tokens.v);
  const CodedHead coded(*page.header, page.frame, &codebook, head);
  std::vector<double> v(d);
  for (int t = 0; t < kBlockTokens; ++t) {
    for (int j = 0; j < d; ++j) {
      const CodedValue k = coded.K(t, j), value = coded.V(t, j);
      tokens.k_magnitude.push_back(k.Magnitude());
      v[j] = value.Magnitude();
      tokens.k_code.push_back(k.code);
      tokens.k_step.push_back(k.step());
      tokens.v_code.push_back(value.code);
      tokens.v_step.push_back(value.step());
    }
    tokens.v_largest.push_back(rotated ? Norm(v) : *std::max_element(v.begin(), v.end()));
    tokens.is_rotated.push_back(rotated);
  }
  tokens.any_rotated |= rotated;
}

// One query head: its scores, and how far each of them may err.
struct Scores {
  std::vector<double> score;
  double largest_error = 0;
};

inline Scores ScoresOf(const float* q, const ReferenceTokens& tokens, int visible,
                       double sm_scale) {
  const int d = tokens.head_dim;
  const std::vector<double> plain(q, q + d);
  std::vector<double> rotated = plain;
  RotateReference(rotated);
  Scores scores;
  scores.score.resize(visible);
  const double rotation = tokens.any_rotated ? RotationBound(d, Norm(plain)) : 0;
  for (int t = 0; t < visible; ++t) {
    const std::vector<double>& met = tokens.is_rotated[t] ? rotated : plain;
    double magnitude = 0, largest = 0, sum_of_codes = 0;
    for (int j = 0; j < d; ++j) {
      scores.score[t] += plain[j] * tokens.k_row(t)[j];
      magnitude += std::abs(met[j]) * tokens.k_magnitude_row(t)[j];
      if (t >= tokens.num_coded) continue;
      largest = std::max(largest, (std::abs(met[j]) + rotation) * tokens.k_step[tokens.At(t) + j]);
      sum_of_codes += tokens.k_code[tokens.At(t) + j];
    }
    scores.score[t] *= sm_scale;
    double error = SumBound(3 * d + 8, magnitude * sm_scale) +
                   IntegerProductBound(largest * sm_scale, sum_of_codes);
    if (tokens.any_rotated) {
      error += 2 * RotationBound(d, Norm(plain) * Norm(tokens.k_row(t)) * sm_scale);
    }
    scores.largest_error = std::max(scores.largest_error, error);
  }
  return scores;
}

// What rounding the weights of every page moves the outputs by; what comes of a rotated page
// spreads over all of them.
inline std::vector<double> ValueRounding(const ReferenceTokens& tokens,
                                         const std::vector<double>& weights) {
  const int d = tokens.head_dim;
  std::vector<double> sum(d), of_page(d);
  for (int first = 0; first < tokens.num_coded; first += kBlockTokens) {
    for (int j = 0; j < d; ++j) {
      double largest = 0, sum_of_codes = 0;
      for (int t = first; t < first + kBlockTokens; ++t) {
        largest = std::max(largest, weights[t] * tokens.v_step[tokens.At(t) + j]);
        sum_of_codes += tokens.v_code[tokens.At(t) + j];
      }
      of_page[j] = IntegerProductBound(largest, sum_of_codes);
    }
    const double norm = Norm(of_page);
    for (int j = 0; j < d; ++j) sum[j] += tokens.is_rotated[first] ? norm : of_page[j];
  }
  return sum;
}

inline void Attend(const AttentionArgs& args, const ReferenceTokens& tokens, int visible, size_t at,
                   AttentionReference& r) {
  const int d = tokens.head_dim;
  const Scores scores = ScoresOf(args.q + at * d, tokens, visible, args.sm_scale);
  const double eps = scores.largest_error;
  const double max = *std::max_element(scores.score.begin(), scores.score.end());
  double sum = 0;
  for (const double s : scores.score) sum += std::exp(s - max);
  r.lse[at] = max + std::log(sum);
  const int pages = static_cast<int>(args.pages.size()) + args.window.num_tokens / 128 + 2;
  const double delta = std::expm1(2 * eps) + (96 + 10 * pages) * kFloatUnit;
  double largest = 0, longest = 0;
  std::vector<double> weights(visible);
  for (int t = 0; t < visible; ++t) {
    weights[t] = std::exp(scores.score[t] - max) / sum;
    for (int j = 0; j < d; ++j) r.out[at * d + j] += weights[t] * tokens.v_row(t)[j];
    largest = std::max(largest, tokens.v_largest[t]);
    longest = std::max(longest, Norm(tokens.v_row(t)));
  }
  const double sums = SumBound(2 * visible + 512 + 4 * pages, 1);
  const double rotation = tokens.any_rotated ? 2 * RotationBound(d, longest) : 0;
  const std::vector<double> rounding = ValueRounding(tokens, weights);
  for (int j = 0; j < d; ++j) {
    r.out_bound[at * d + j] = (2 * delta / (1 - delta) + 2 * sums) * largest + rotation +
                              (1 + delta) / (1 - delta) * rounding[j];
  }
  r.lse_bound[at] = eps + delta + sums + 4 * kFloatUnit * (1 + std::abs(r.lse[at]));
}

}  // namespace attention_reference_internal

// Pages, then the window.
inline ReferenceTokens CollectTokens(const AttentionArgs& args, int head) {
  ReferenceTokens tokens;
  const int d = args.window.head_dim;
  tokens.head_dim = d;
  for (const BlockPage& page : args.pages) {
    attention_reference_internal::AppendPage(page, head, tokens);
  }
  for (int t = 0; t < args.window.num_tokens; ++t) {
    double largest = 0;
    for (int j = 0; j < d; ++j) {
      tokens.k.push_back(Float16ToFloat(args.window.k_row(head, t)[j]));
      tokens.v.push_back(Float16ToFloat(args.window.v_row(head, t)[j]));
      tokens.k_magnitude.push_back(std::abs(tokens.k.back()));
      largest = std::max(largest, std::abs(tokens.v.back()));
    }
    tokens.v_largest.push_back(largest);
    tokens.is_rotated.push_back(false);
  }
  return tokens;
}

// Every score is a sum of at most 3 head_dim + 8 rounded terms (codes, zero points, pattern), of
// rotated numbers in a rotated page. q itself is rotated there, and rotated back for the window:
// each time it moves by RotationBound(|q|), and a score by |k| times that. So a score errs by eps,
// the sum of these; a weight then by e^(2 eps) - 1, by the exponential (8 units), the subtraction
// of the maximum (up to 88, where weights end) and the rescaling of every page (10 units each). The
// output is a weighted mean: twice that, times the largest value, plus the rounding of its own sum
// over tokens, patterns and groups. Rotating it there and back moves each of its elements by
// RotationBound(|v|) at most, twice.
//
// In integers, IntegerProductBound() comes on top: of q times the steps of the token's codes in a
// score's error, and of the weights, as exact as they are, times the steps of a page in an output.
inline AttentionReference ComputeAttentionReference(
    const AttentionArgs& args, CodeArithmetic arithmetic = CodeArithmetic::kInteger) {
  const int d = args.window.head_dim, heads = args.num_qo_heads;
  const int heads_per_kv = heads / args.window.num_kv_heads;
  AttentionReference r;
  r.out.assign(static_cast<size_t>(args.num_queries) * heads * d, 0.0);
  r.out_bound = r.out;
  r.lse.assign(static_cast<size_t>(args.num_queries) * heads,
               -std::numeric_limits<double>::infinity());
  r.lse_bound.assign(r.lse.size(), 0.0);
  for (int head = 0; head < args.window.num_kv_heads; ++head) {
    ReferenceTokens tokens = CollectTokens(args, head);
    if (arithmetic == CodeArithmetic::kInteger) {
      tokens.num_coded = static_cast<int>(args.pages.size()) * kBlockTokens;
    }
    for (int query = 0; query < args.num_queries; ++query) {
      const int hidden = args.window.num_tokens == 0 ? 0 : args.num_queries - 1 - query;
      const int visible = tokens.count() - hidden;
      if (visible == 0) continue;
      for (int g = 0; g < heads_per_kv; ++g) {
        const size_t at = static_cast<size_t>(query) * heads + head * heads_per_kv + g;
        attention_reference_internal::Attend(args, tokens, visible, at, r);
      }
    }
  }
  return r;
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_ATTENTION_REFERENCE_H_
