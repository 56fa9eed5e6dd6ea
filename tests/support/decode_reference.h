#ifndef PKV_TESTS_SUPPORT_DECODE_REFERENCE_H_
#define PKV_TESTS_SUPPORT_DECODE_REFERENCE_H_

// Decode attention in fp64 from the bytes, and how far a kernel of a given arithmetic may be from
// it.
//
// Score s of a token t is a sum whose terms have magnitude M_t; it errs by eps_t, from roundings of
// operands and of sums, and the exponential by a little that is counted in eps_t too. Relative to
// the heaviest token m, a weight w_t then changes by a factor within exp(+-(eps_t + eps_m)), so the
// output, a mean of rows v_t, by at most
//
//     sum over t != m of w_t (exp(eps_t + eps_m) - 1) |v_t - out|
//         / (w_m + sum over t != m of w_t exp(-(eps_t + eps_m)))
//
// and never by more than max |v_t - out|: weights stay weights. Weights and operands are rounded
// again on their way to V, which adds roundings of the terms of the sum, of their sum and of the
// sum of weights. In a rotated page those errors stand in rotated channels: rotating back, an
// element gets sum |error_j| / sqrt(d) at most, while the 2-norm stays as it is; both are given.
//
// A kernel that makes integers of vectors that meet codes moves their elements by a step that the
// largest one decides (CodeStep()), so it is added up apart: of q * scale, times a token's codes,
// to the error of its score; of weight * scale, times a channel's codes, to that of an output. A
// small element can move by all of itself.
//
// Those bounds add up magnitudes. What independent errors add up to is given as the standard
// deviation of a row's error: of every token's score and weight for itself. Weights times scales
// that are less than half a step are the exception: all of them become 0, and codes are not
// negative, so these errors add up as they are. Of q * scale the signs are q's.

#include <algorithm>
#include <cmath>
#include <limits>
#include <span>
#include <vector>

#include "kernels/codec/codec_math.h"
#include "kernels/codec/head_frame.h"
#include "pkv/kernels/decode_attention.h"
#include "proto/base/thread_pool.h"
#include "tests/support/error_bound.h"
#include "tests/support/rotation_reference.h"

namespace pkv {

struct DecodeBounds {
  std::vector<double> out;            // [batch, num_qo_heads, head_dim], of each element
  std::vector<double> out_norm;       // [batch, num_qo_heads], of a row in the 2-norm
  std::vector<double> out_deviation;  // the same, standard deviation
  std::vector<double> lse;            // [batch, num_qo_heads]
};

struct DecodeReference {
  std::vector<double> out, lse;      // lse -infinity, and out 0, without tokens
  std::vector<DecodeBounds> bounds;  // one for each arithmetic asked for
};

namespace decode_reference_internal {

// A value of a row: what it is, and the magnitudes of what is added up to it.
struct TokenRows {
  // [token][channel] of a tile. `code`: of step * code; `other`: of zero point, pattern, or row.
  std::vector<double> value, code, other;
  // The group's scale, as stored, and what its product with a vector is multiplied with: a code, or
  // of a fine one a third, less 1 for the start of its grid. 0 where there is no code.
  std::vector<double> scale, factor;
  std::vector<double> sum_codes, sum_others;  // [token] sums of codes, and of `other`
  int count = 0;

  void Reset(int tokens, int head_dim) {
    count = tokens;
    const size_t size = static_cast<size_t>(tokens) * head_dim;
    value.assign(size, 0.0);
    code.assign(size, 0.0);
    other.assign(size, 0.0);
    scale.assign(size, 0.0);
    factor.assign(size, 0.0);
    sum_codes.assign(tokens, 0.0);
    sum_others.assign(tokens, 0.0);
  }
};

// Tokens that follow each other: a page, its sinks among them, or dense rows.
struct TokenTile {
  const std::byte* page_head = nullptr;                 // of this kv head; null for dense rows
  const uint16_t *k_rows = nullptr, *v_rows = nullptr;  // dense rows, or a page's sinks
  int num_rows = 0;
  bool is_rotated = false;

  int count(const PayloadLayout& layout) const {
    return page_head != nullptr && !layout.encoding.is_fp16() ? kBlockTokens : num_rows;
  }
};

class HeadReader {
 public:
  HeadReader(const DecodeAttentionShape& shape, const DecodeAttentionArgs& args, int request,
             int kv_head)
      : layout_(PayloadLayout::OfBlock({1, shape.num_kv_heads, shape.head_dim}, shape.encoding)),
        k_map_(kBlockTokens, shape.head_dim, std::min(shape.encoding.bits_k, kFineBits)),
        fine_map_(kFineTokens, shape.head_dim, kFineBits),
        v_map_(shape.head_dim, kBlockTokens, std::min(shape.encoding.bits_v, kFineBits)) {
    CollectPages(shape, args, request, kv_head);
    CollectWindow(shape, args, request, kv_head);
  }

  const std::vector<TokenTile>& tiles() const { return tiles_; }
  const PayloadLayout& layout() const { return layout_; }
  double largest_scale() const { return largest_scale_; }

  void ReadK(const TokenTile& tile, TokenRows& rows) {
    const int d = layout_.head_dim;
    rows.Reset(tile.count(layout_), d);
    largest_scale_ = 0;
    ReadRows(tile.k_rows, tile.num_rows, rows);
    if (tile.page_head == nullptr || layout_.encoding.is_fp16()) return;
    const Encoding& e = layout_.encoding;
    const int coarse = kBlockTokens - e.k_fine_tokens;
    for (int slot = tile.num_rows; slot < kBlockTokens; ++slot) {
      const bool is_fine = slot >= coarse;
      const CodeMap& map = is_fine ? fine_map_ : k_map_;
      const int row = is_fine ? slot - coarse : slot, bits = is_fine ? kFineBits : e.bits_k;
      const auto* words = At<uint32_t>(tile, is_fine ? layout_.k_fine_codes : layout_.k_codes);
      const uint16_t* pattern =
          Pattern(tile, layout_.k_ids + RowPosition(slot, kBlockTokens), k_bank_);
      for (int j = 0; j < d; ++j) {
        const int at = slot / e.k_group_tokens * d + ColumnPosition(j, d);
        const double scale = Half(tile, layout_.k_scales, at);
        const double zero = Half(tile, layout_.k_zeros, at);
        const StoredCode value = {Code(words, map, row, j, bits), scale, zero, is_fine};
        Put(value, pattern, slot, j, rows);
      }
    }
  }

  void ReadV(const TokenTile& tile, TokenRows& rows) {
    const int d = layout_.head_dim;
    rows.Reset(tile.count(layout_), d);
    largest_scale_ = 0;
    ReadRows(tile.v_rows, tile.num_rows, rows);
    if (tile.page_head == nullptr || layout_.encoding.is_fp16()) return;
    const Encoding& e = layout_.encoding;
    const auto* words = At<uint32_t>(tile, layout_.v_codes);
    for (int slot = tile.num_rows; slot < kBlockTokens; ++slot) {
      const int column = ColumnPosition(slot, kBlockTokens);
      const uint16_t* pattern = Pattern(tile, layout_.v_ids + column, v_bank_);
      for (int j = 0; j < d; ++j) {
        const int group = j / e.v_group_channels * kBlockTokens;
        const double scale = Half(tile, layout_.v_scales, group + RowPosition(slot, kBlockTokens));
        const double zero = Half(tile, layout_.v_zeros, group + column);
        Put({Code(words, v_map_, j, slot, e.bits_v), scale, zero}, pattern, slot, j, rows);
      }
    }
  }

 private:
  void CollectPages(const DecodeAttentionShape& shape, const DecodeAttentionArgs& args, int request,
                    int kv_head) {
    const int64_t d = shape.head_dim, capacity = args.bank_capacity;
    if (args.num_blocks[request] == 0) return;
    if (shape.encoding.has_patterns) {
      k_bank_ = args.banks + args.bank_ids[request] * args.bank_stride + kv_head * capacity * d;
      v_bank_ = k_bank_ + shape.num_kv_heads * capacity * d;
    }
    for (int block = 0; block < args.num_blocks[request]; ++block) {
      const int64_t page = args.block_table[int64_t{request} * args.block_table_stride + block];
      TokenTile tile;
      tile.page_head = args.pages + page * args.page_stride + kv_head * layout_.head_bytes;
      tile.is_rotated = shape.encoding.rotated;
      if (shape.encoding.is_fp16()) {
        tile.k_rows = reinterpret_cast<const uint16_t*>(tile.page_head);
        tile.v_rows = tile.k_rows + kBlockTokens * d;
        tile.num_rows = kBlockTokens;
      } else if (block == 0 && shape.num_sinks > 0) {
        tile.k_rows = args.sinks + args.sink_ids[request] * args.sink_stride +
                      2 * kv_head * shape.num_sinks * d;
        tile.v_rows = tile.k_rows + shape.num_sinks * d;
        tile.num_rows = shape.num_sinks;
      }
      tiles_.push_back(tile);
    }
  }

  void CollectWindow(const DecodeAttentionShape& shape, const DecodeAttentionArgs& args,
                     int request, int kv_head) {
    const int64_t d = shape.head_dim, rows = args.window_capacity * d;
    const uint16_t* k =
        args.windows + args.window_ids[request] * args.window_stride + kv_head * rows;
    TokenTile tile;
    tile.k_rows = k;
    tile.v_rows = k + shape.num_kv_heads * rows;
    tile.num_rows = args.num_window_tokens[request];
    if (tile.num_rows > 0) tiles_.push_back(tile);
    if (args.token_k == nullptr) return;
    const int64_t at = (int64_t{request} * shape.num_kv_heads + kv_head) * d;
    tile.k_rows = args.token_k + at;
    tile.v_rows = args.token_v + at;
    tile.num_rows = 1;
    tiles_.push_back(tile);
  }

  template <typename T>
  static const T* At(const TokenTile& tile, int64_t offset) {
    return reinterpret_cast<const T*>(tile.page_head + offset);
  }
  static double Half(const TokenTile& tile, int64_t section, int index) {
    return Float16ToFloat(At<uint16_t>(tile, section)[index]);
  }
  static double Code(const uint32_t* words, const CodeMap& map, int row, int column, int bits) {
    const uint32_t word = words[map.row_word[row] + map.column_word[column]];
    return (word >> map.column_shift[column]) & ((1u << bits) - 1);
  }
  // Null for none.
  const uint16_t* Pattern(const TokenTile& tile, int64_t id_at, const uint16_t* bank) const {
    if (!layout_.encoding.has_patterns) return nullptr;
    const int id = std::to_integer<int>(tile.page_head[id_at]);
    return id == kRawPatternId ? nullptr : bank + int64_t{id} * layout_.head_dim;
  }

  struct StoredCode {
    double code, scale, zero;  // of the group, as stored
    bool is_fine = false;
  };
  void Put(const StoredCode& of, const uint16_t* pattern, int token, int channel, TokenRows& rows) {
    const size_t at = static_cast<size_t>(token) * layout_.head_dim + channel;
    const double base = pattern == nullptr ? 0.0 : double{Float16ToFloat(pattern[channel])};
    const double step = of.is_fine ? of.scale / 3 : of.scale;
    const double zero = of.is_fine ? of.zero - of.scale : of.zero;
    rows.value[at] = step * of.code + zero + base;
    rows.code[at] = step * of.code;
    rows.other[at] = std::abs(zero) + std::abs(base);
    rows.scale[at] = of.scale;
    rows.factor[at] = of.is_fine ? std::abs(of.code / 3 - 1) : of.code;
    rows.sum_codes[token] += of.code;
    rows.sum_others[token] += rows.other[at];
    largest_scale_ = std::max(largest_scale_, of.scale);
  }

  void ReadRows(const uint16_t* from, int count, TokenRows& rows) const {
    const int d = layout_.head_dim;
    for (int i = 0; i < count * d; ++i) {
      rows.value[i] = Float16ToFloat(from[i]);
      rows.other[i] = std::abs(rows.value[i]);
      rows.sum_others[i / d] += rows.other[i];
    }
  }

  const PayloadLayout layout_;
  const CodeMap k_map_, fine_map_, v_map_;
  const uint16_t *k_bank_ = nullptr, *v_bank_ = nullptr;
  std::vector<TokenTile> tiles_;
  double largest_scale_ = 0;  // of the codes read last
};

inline double Dot(const double* a, const double* b, int n) {
  double sums[8] = {};
  for (int i = 0; i < n; i += 8) {
    for (int j = 0; j < 8; ++j) sums[j] += a[i + j] * b[i + j];
  }
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// One query head against all tokens: scores of all tiles, Normalize(), values of all tiles,
// AddDistances().
class QueryHead {
 public:
  QueryHead(std::span<const uint16_t> bits, const DecodeAttentionShape& shape, double sm_scale,
            std::span<const DecodeArithmetic> arithmetics)
      : d_(shape.head_dim),
        sm_scale_(std::abs(sm_scale)),
        sign_(sm_scale < 0 ? -1.0 : 1.0),
        arithmetics_(arithmetics),
        encoding_(shape.encoding),
        score_errors_(arithmetics.size()),
        score_variances_(arithmetics.size()),
        coded_(d_),
        dense_(d_),
        steps_(arithmetics.size(), StepTerms(d_)),
        out_(d_) {
    for (const uint16_t x : bits) {
      plain_.push_back(shape.query_type == QueryType::kFloat16
                           ? Float16ToFloat(x)
                           : std::bit_cast<float>(static_cast<uint32_t>(x) << 16));
    }
    rotated_ = plain_;
    RotateReference(rotated_);
    for (const double x : plain_) plain_abs_.push_back(std::abs(x));
    for (const double x : rotated_) rotated_abs_.push_back(std::abs(x));
  }

  void AddScores(const TokenTile& tile, const TokenRows& k, double largest_scale) {
    const std::vector<double>& q = tile.is_rotated ? rotated_ : plain_;
    const std::vector<double>& q_abs = tile.is_rotated ? rotated_abs_ : plain_abs_;
    const double largest_q = *std::max_element(q_abs.begin(), q_abs.end());
    for (int t = 0; t < k.count; ++t) {
      const size_t at = static_cast<size_t>(t) * d_;
      scores_.push_back(sign_ * sm_scale_ * Dot(q.data(), &k.value[at], d_));
      double magnitude = 0, square = 0;
      for (int j = 0; j < d_; ++j) {
        const double term = q_abs[j] * (k.code[at + j] + k.other[at + j]);
        magnitude += term;
        square += term * term;
      }
      const double small =
          largest_q * (std::max(1.0, largest_scale) * k.sum_codes[t] + k.sum_others[t]);
      double rotation = 0;
      if (encoding_.rotated) {
        const double norm = std::sqrt(Dot(&k.value[at], &k.value[at], d_));
        rotation = 2 * RotationBound(d_, Norm(plain_) * norm);
      }
      for (size_t a = 0; a < arithmetics_.size(); ++a) {
        const DecodeArithmetic& r = arithmetics_[a];
        const double relative = kDecodeOperandRoundings * r.operand + DecodeSumBound(r, 3 * d_, 16);
        score_errors_[a].push_back(sm_scale_ *
                                   (relative * magnitude + r.operand_floor * small + rotation));
        const double operands = DecodeOperandDeviation(r);
        const double sums = DecodeSumDeviation(r, 3 * d_, 16) * magnitude +
                            r.operand_floor * small / std::sqrt(d_) + rotation / std::sqrt(d_);
        score_variances_[a].push_back(sm_scale_ * sm_scale_ *
                                      (operands * operands * square + sums * sums));
      }
    }
    for (size_t a = 0; a < arithmetics_.size(); ++a) {
      if (arithmetics_[a].code_step > 0) AddScoreSteps(a, tile, k, q_abs, largest_scale);
    }
  }

  // After the last score. What the exponential adds to a score's error: the scale to another base,
  // its own 8 units, the subtraction of the maximum, and the rescaling of every tile.
  void Normalize(int num_tiles) {
    largest_ = static_cast<int>(std::max_element(scores_.begin(), scores_.end()) - scores_.begin());
    double sum = 0;
    for (const double s : scores_) sum += std::exp(s - scores_[largest_]);
    weight_sum_ = sum;
    lse_ = scores_[largest_] + std::log(sum);
    for (const double s : scores_) weights_.push_back(std::exp(s - lse_));
    for (size_t a = 0; a < arithmetics_.size(); ++a) {
      const double unit = std::max(kFloatUnit, arithmetics_[a].step);
      for (size_t t = 0; t < scores_.size(); ++t) {
        const double below = std::min(100.0, scores_[largest_] - scores_[t]);
        const double error = (16 + 4 * below + 6 * num_tiles) * unit;
        score_errors_[a][t] += error;
        score_variances_[a][t] += error * error;
      }
    }
  }

  // The tile's first token is number `first`. `values`: V as it is outside of the pages' rotation.
  void AddValues(const TokenTile& tile, int first, const TokenRows& v, const double* values,
                 double largest_scale) {
    // The largest code, times the unit that an operand's smallest step belongs to.
    const double code_step = MaxCode(kFineBits) * std::max(1.0, largest_scale);
    Terms& terms = tile.is_rotated ? coded_ : dense_;
    for (int t = 0; t < v.count; ++t) {
      const double weight = weights_[first + t];
      const size_t at = static_cast<size_t>(t) * d_;
      double square = 0;
      for (int j = 0; j < d_; ++j) {
        const double magnitude = v.code[at + j] + v.other[at + j];
        out_[j] += weight * values[at + j];
        terms.magnitude[j] += weight * magnitude;
        terms.small[j] += (v.code[at + j] > 0 ? code_step : 0.0) + v.other[at + j];
        square += magnitude * magnitude;
      }
      squares_ += weight * weight * square;
    }
    for (size_t a = 0; a < arithmetics_.size(); ++a) {
      if (arithmetics_[a].code_step > 0) AddValueSteps(a, tile, first, v, largest_scale);
    }
  }

  // Second pass over all values, once out_ is known.
  void AddDistances(const double* values, double longest) {
    const size_t n = arithmetics_.size(), count = scores_.size();
    std::vector<double> hull(d_), distance(d_);
    std::vector<std::vector<double>> moved(n, std::vector<double>(d_));
    std::vector<double> moved_norm(n), remaining(n, weights_[largest_]), variance(n);
    double hull_norm = 0;
    for (size_t t = 0; t < count; ++t) {
      for (int j = 0; j < d_; ++j) {
        distance[j] = std::abs(values[t * d_ + j] - out_[j]);
        hull[j] = std::max(hull[j], distance[j]);
      }
      const double norm = std::sqrt(Dot(distance.data(), distance.data(), d_));
      hull_norm = std::max(hull_norm, norm);
      for (size_t a = 0; a < n; ++a) {
        variance[a] += weights_[t] * weights_[t] * score_variances_[a][t] * norm * norm;
      }
      if (static_cast<int>(t) == largest_) continue;
      for (size_t a = 0; a < n; ++a) {
        const double error = score_errors_[a][t] + score_errors_[a][largest_];
        // A factor above e^300 says no more than that the hull decides.
        const double excess = scores_[t] - lse_ + error > 300
                                  ? std::exp(300.0)
                                  : weights_[t] * std::expm1(std::min(error, 600.0));
        remaining[a] += weights_[t] * std::exp(-error);
        for (int j = 0; j < d_; ++j) moved[a][j] += excess * distance[j];
        moved_norm[a] += excess * norm;
      }
    }
    for (size_t a = 0; a < n; ++a) {
      for (int j = 0; j < d_; ++j) moved[a][j] = std::min(moved[a][j] / remaining[a], hull[j]);
      moved_norm[a] = std::min(moved_norm[a] / remaining[a], hull_norm);
    }
    Combine(moved, moved_norm, variance, encoding_.rotated ? 2 * RotationBound(d_, longest) : 0.0);
  }

  const std::vector<double>& out() const { return out_; }
  double lse() const { return lse_; }
  double bound(size_t a, int channel) const { return bounds_[a][channel]; }
  double norm_bound(size_t a) const { return norm_bounds_[a]; }
  double deviation(size_t a) const { return deviations_[a]; }
  double lse_bound(size_t a) const {
    double larger = 0;
    for (size_t t = 0; t < scores_.size(); ++t) {
      larger += weights_[t] * std::exp(std::min(600.0, score_errors_[a][t]));
    }
    const double unit = std::max(kFloatUnit, arithmetics_[a].step);
    return std::log(larger) + SumOfWeightsError(arithmetics_[a]) + 16 * unit * (1 + std::abs(lse_));
  }

 private:
  // Sums over what stands in pages of one frame, [channel].
  struct Terms {
    explicit Terms(int d) : magnitude(d), small(d) {}
    std::vector<double> magnitude;  // weights times magnitudes
    std::vector<double> small;      // what operand_floor is multiplied with
  };

  // What the steps of integers add to an output, [channel]. Weights have their sum.
  struct StepTerms {
    explicit StepTerms(int d) : bound(d), lost(d) {}
    std::vector<double> bound;
    std::vector<double> lost;  // what becomes 0
    double variance = 0;       // of the row
  };

  // To the errors of the tile's scores, which are the last ones.
  void AddScoreSteps(size_t a, const TokenTile& tile, const TokenRows& k,
                     const std::vector<double>& q_abs, double largest_scale) {
    const DecodeArithmetic& r = arithmetics_[a];
    const double largest_q = *std::max_element(q_abs.begin(), q_abs.end());
    // What an element is rounded by before.
    const double rounding = 1 + kDecodeOperandRoundings * r.operand;
    const size_t first = score_errors_[a].size() - k.count;
    std::vector<double> bound(d_), variance(d_);  // of the group's elements
    for (int t = tile.num_rows; t < k.count; ++t) {
      const size_t at = static_cast<size_t>(t) * d_;
      if (t == tile.num_rows || t % encoding_.k_group_tokens == 0) {
        double largest = 0;
        for (int j = 0; j < d_; ++j) largest = std::max(largest, q_abs[j] * k.scale[at + j]);
        const double unit = CodeStep(r, largest * rounding, largest_q, largest_scale);
        for (int j = 0; j < d_; ++j) {
          const double element = q_abs[j] * k.scale[at + j];
          const double step = unit * CodeStepUnits(encoding_.bits_k, j);
          bound[j] = CodeStepBound(step, element * rounding);
          variance[j] = std::min(CodeStepVariance(step), element * element);
        }
      }
      double sum = 0, square = 0;
      for (int j = 0; j < d_; ++j) {
        const double factor = k.factor[at + j];
        sum += bound[j] * factor;
        square += variance[j] * factor * factor;
      }
      score_errors_[a][first + t] += sm_scale_ * sum;
      score_variances_[a][first + t] += sm_scale_ * sm_scale_ * square;
    }
  }

  void AddValueSteps(size_t a, const TokenTile& tile, int first, const TokenRows& v,
                     double largest_scale) {
    StepTerms& terms = steps_[a];
    double heaviest = 0;
    for (int t = tile.num_rows; t < v.count; ++t) {
      heaviest = std::max(heaviest, weights_[first + t]);
    }
    // No codes, no groups.
    const int group_channels = tile.num_rows < v.count ? encoding_.v_group_channels : d_;
    for (int group = 0; group < d_; group += group_channels) {
      const auto element = [&](int t) {
        return weights_[first + t] * v.scale[static_cast<size_t>(t) * d_ + group];
      };
      double largest = 0;
      for (int t = tile.num_rows; t < v.count; ++t) largest = std::max(largest, element(t));
      const double unit = CodeStep(arithmetics_[a], largest, heaviest, largest_scale);
      for (int t = tile.num_rows; t < v.count; ++t) {
        const double step = unit * CodeStepUnits(encoding_.bits_v, t);
        const double bound = CodeStepBound(step, element(t));
        const bool is_lost = element(t) < step / 2;
        const double lost = is_lost ? element(t) : 0.0;
        double square = 0;
        for (int j = group; j < group + group_channels; ++j) {
          const double factor = v.factor[static_cast<size_t>(t) * d_ + j];
          terms.bound[j] += bound * factor;
          terms.lost[j] += lost * factor;
          square += factor * factor;
        }
        if (!is_lost) terms.variance += CodeStepVariance(step) * square;
      }
    }
  }

  int num_tokens() const { return static_cast<int>(scores_.size()); }
  // Sums over a tile's tokens or, of one that goes on, over all; over tiles, and over the parts
  // that are merged.
  int products(const DecodeArithmetic& r) const {
    return r.products_per_step == 1 ? kBlockTokens : 3 * num_tokens();
  }
  int merges() const { return 8 * (num_tokens() / kBlockTokens + 2) + 64; }
  double RelativeSumError(const DecodeArithmetic& r) const {
    return kDecodeOperandRoundings * r.operand + DecodeSumBound(r, products(r), merges());
  }
  // Weights may be summed as rounded for V, or before.
  double SumOfWeightsError(const DecodeArithmetic& r) const {
    return RelativeSumError(r) + r.operand_floor * num_tokens() / weight_sum_;
  }

  void Combine(const std::vector<std::vector<double>>& moved, const std::vector<double>& moved_norm,
               const std::vector<double>& variance, double rotation) {
    // Products of the errors with each other.
    constexpr double kSecondOrder = 1 + 0x1.0p-6;
    const double root = std::sqrt(static_cast<double>(d_));
    for (size_t a = 0; a < arithmetics_.size(); ++a) {
      const DecodeArithmetic& r = arithmetics_[a];
      const double weights = SumOfWeightsError(r), relative = RelativeSumError(r);
      const double floor = r.operand_floor / weight_sum_;
      const StepTerms& steps = steps_[a];
      std::vector<double> bound(d_);
      double spread = 0, square = 0, small = 0, magnitude = 0;
      for (int j = 0; j < d_; ++j) {
        double coded = relative * coded_.magnitude[j] + floor * coded_.small[j];
        double dense = relative * dense_.magnitude[j] + floor * dense_.small[j];
        (encoding_.rotated ? coded : dense) += steps.bound[j];
        spread += coded / root;
        bound[j] = dense;
        square += (coded + dense) * (coded + dense);
        small = std::hypot(small, coded_.small[j] + dense_.small[j]);
        magnitude = std::hypot(magnitude, coded_.magnitude[j] + dense_.magnitude[j]);
      }
      for (int j = 0; j < d_; ++j) {
        bound[j] = kSecondOrder *
                   (moved[a][j] + spread + bound[j] + weights * std::abs(out_[j]) + rotation);
      }
      bounds_.push_back(std::move(bound));
      norm_bounds_.push_back(kSecondOrder * (moved_norm[a] + std::sqrt(square) +
                                             weights * Norm(out_) + rotation * root));
      const double operands = DecodeOperandDeviation(r) * std::sqrt(squares_);
      const double sums = DecodeSumDeviation(r, products(r), merges()) * magnitude + floor * small;
      const double lost = Norm(steps.lost);
      deviations_.push_back(std::sqrt(variance[a] + operands * operands + sums * sums +
                                      rotation * rotation + steps.variance + lost * lost));
    }
  }

  const int d_;
  const double sm_scale_, sign_;
  const std::span<const DecodeArithmetic> arithmetics_;
  const Encoding encoding_;
  std::vector<double> plain_, rotated_, plain_abs_, rotated_abs_;
  std::vector<double> scores_, weights_;
  std::vector<std::vector<double>> score_errors_, score_variances_;  // [arithmetic][token]
  Terms coded_, dense_;           // of rotated pages, and of all else
  std::vector<StepTerms> steps_;  // [arithmetic]
  std::vector<double> out_;
  double squares_ = 0;  // sum over tokens and channels of (weight times magnitude)^2
  std::vector<std::vector<double>> bounds_;
  std::vector<double> norm_bounds_, deviations_;
  int largest_ = 0;
  double weight_sum_ = 0, lse_ = 0;
};

inline void AttendKvHead(const DecodeAttentionShape& shape, const DecodeAttentionArgs& args,
                         std::span<const DecodeArithmetic> arithmetics, int request, int kv_head,
                         DecodeReference& result) {
  const int d = shape.head_dim, heads_per_kv = shape.num_qo_heads / shape.num_kv_heads;
  const int64_t first_row = int64_t{request} * shape.num_qo_heads + kv_head * heads_per_kv;
  HeadReader reader(shape, args, request, kv_head);
  if (reader.tiles().empty()) return;
  std::vector<QueryHead> heads;
  for (int g = 0; g < heads_per_kv; ++g) {
    const auto* q = static_cast<const uint16_t*>(args.q) + (first_row + g) * d;
    heads.emplace_back(std::span(q, d), shape, args.sm_scale, arithmetics);
  }
  TokenRows rows;
  for (const TokenTile& tile : reader.tiles()) {
    reader.ReadK(tile, rows);
    for (QueryHead& head : heads) head.AddScores(tile, rows, reader.largest_scale());
  }
  int num_tokens = 0;
  for (const TokenTile& tile : reader.tiles()) num_tokens += tile.count(reader.layout());
  for (QueryHead& head : heads) head.Normalize(num_tokens / kBlockTokens + 3);
  std::vector<double> values;
  double longest = 0;
  for (const TokenTile& tile : reader.tiles()) {
    reader.ReadV(tile, rows);
    const size_t at = values.size();
    values.insert(values.end(), rows.value.begin(), rows.value.end());
    for (size_t row = at; row < values.size(); row += d) {
      longest = std::max(longest, Norm(std::span(values).subspan(row, d)));
      if (tile.is_rotated) RotateReference(std::span(values).subspan(row, d));
    }
    for (QueryHead& head : heads) {
      head.AddValues(tile, static_cast<int>(at / d), rows, &values[at], reader.largest_scale());
    }
  }
  for (int g = 0; g < heads_per_kv; ++g) {
    heads[g].AddDistances(values.data(), longest);
    const size_t row = static_cast<size_t>(first_row + g);
    result.lse[row] = heads[g].lse();
    std::copy_n(heads[g].out().begin(), d, result.out.begin() + row * d);
    for (size_t a = 0; a < arithmetics.size(); ++a) {
      DecodeBounds& bounds = result.bounds[a];
      bounds.lse[row] = heads[g].lse_bound(a);
      bounds.out_norm[row] = heads[g].norm_bound(a);
      bounds.out_deviation[row] = heads[g].deviation(a);
      for (int j = 0; j < d; ++j) bounds.out[row * d + j] = heads[g].bound(a, j);
    }
  }
}

}  // namespace decode_reference_internal

// `args` point into host memory. Bounds do not contain the rounding of the stored output
// (OutputBound).
inline DecodeReference ComputeDecodeReference(const DecodeAttentionShape& shape,
                                              const DecodeAttentionArgs& args,
                                              std::span<const DecodeArithmetic> arithmetics,
                                              ThreadPool* pool = nullptr) {
  DecodeReference result;
  const size_t rows = static_cast<size_t>(args.batch) * shape.num_qo_heads;
  result.out.assign(rows * shape.head_dim, 0.0);
  result.lse.assign(rows, -std::numeric_limits<double>::infinity());
  const std::vector<double> row_zeros(rows), zeros(result.out.size());
  result.bounds.assign(arithmetics.size(), {zeros, row_zeros, row_zeros, row_zeros});
  ParallelFor(pool, args.batch * shape.num_kv_heads, [&](int task) {
    decode_reference_internal::AttendKvHead(shape, args, arithmetics, task / shape.num_kv_heads,
                                            task % shape.num_kv_heads, result);
  });
  return result;
}

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_DECODE_REFERENCE_H_
