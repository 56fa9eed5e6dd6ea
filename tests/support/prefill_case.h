#ifndef PKV_TESTS_SUPPORT_PREFILL_CASE_H_
#define PKV_TESTS_SUPPORT_PREFILL_CASE_H_

// A chunk of queries over its keys, on the device, beside fp64 attention over the same numbers.

#include <bit>
#include <cmath>
#include <ostream>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "pkv/kernels/prefill_attention.h"
#include "proto/base/float16.h"
#include "proto/base/log.h"
#include "tests/support/cuda_tensor.h"
#include "tests/support/error_bound.h"
#include "tests/support/tensor_gen.h"

namespace pkv {

inline uint16_t ToBits(double value, QueryType type) {
  const float rounded = static_cast<float>(value);
  if (type == QueryType::kFloat16) return FloatToFloat16(rounded);
  const uint32_t bits = std::bit_cast<uint32_t>(rounded);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
inline double FromBits(uint16_t bits, QueryType type) {
  if (type == QueryType::kFloat16) return Float16ToFloat(bits);
  return std::bit_cast<float>(uint32_t{bits} << 16);
}

struct PrefillSpec {
  PrefillAttentionShape shape;
  int num_queries = 0, first_token = 0;
  double query_size = 1;  // standard deviation of a query's elements
  uint64_t seed = 1;

  int group() const { return shape.num_qo_heads / shape.num_kv_heads; }
  int num_tokens() const { return first_token + num_queries; }
  int row() const { return shape.num_qo_heads * shape.head_dim; }
};

inline std::ostream& operator<<(std::ostream& os, const PrefillSpec& s) {
  const auto name = [](QueryType t) { return t == QueryType::kFloat16 ? "fp16" : "bf16"; };
  return os << s.num_queries << " queries at " << s.first_token << ", " << s.shape.num_qo_heads
            << " heads over " << s.shape.num_kv_heads << " of " << s.shape.head_dim << ", "
            << name(s.shape.query_type) << " to " << name(s.shape.output_type) << ", seed "
            << s.seed;
}

// Numbers on the host. Queries are parts of wider rows; K and V have room behind their last token.
// All that is no query and no token is NaN.
class PrefillCase {
 public:
  static constexpr uint16_t kNan = 0x7fff;  // in fp16 and in bf16
  static constexpr int kQueryPadding = 24, kOutPadding = 8, kSpareTokens = 200;

  explicit PrefillCase(const PrefillSpec& spec)
      : spec_(spec),
        kv_(spec.shape.num_kv_heads, spec.num_tokens() + kSpareTokens, spec.shape.head_dim),
        q_(size_t(spec.num_queries) * q_stride(), kNan) {
    TestRandom random(spec.seed);
    for (int i = 0; i < spec.num_queries; ++i) {
      for (int j = 0; j < spec.row(); ++j) {
        q_[i * q_stride() + j] = ToBits(spec.query_size * random.Normal(), spec.shape.query_type);
      }
    }
    kv_.k.assign(kv_.k.size(), kNan);
    kv_.v.assign(kv_.v.size(), kNan);
    const MutableKvTensorView all = kv_.view();
    for (int head = 0; head < spec.shape.num_kv_heads; ++head) {
      const int64_t at = head * all.head_stride;
      FillHead(random, spec.num_tokens(), spec.shape.head_dim, 2.0, all.k + at);
      FillHead(random, spec.num_tokens(), spec.shape.head_dim, 1.0, all.v + at);
    }
  }

  const PrefillSpec& spec() const { return spec_; }
  int64_t q_stride() const { return spec_.row() + kQueryPadding; }
  int64_t out_stride() const { return spec_.row() + kOutPadding; }
  std::vector<uint16_t>& q() { return q_; }
  const std::vector<uint16_t>& q() const { return q_; }
  TestTensor& kv() { return kv_; }
  const TestTensor& kv() const { return kv_; }
  double q_at(int query, int head, int channel) const {
    return FromBits(q_[query * q_stride() + int64_t{head} * spec_.shape.head_dim + channel],
                    spec_.shape.query_type);
  }

 private:
  PrefillSpec spec_;
  TestTensor kv_;
  std::vector<uint16_t> q_;
};

struct PrefillOutput {
  std::vector<uint16_t> out;  // out_stride apart
  std::vector<float> lse;
};

// Queries [begin, end) of the case as one chunk.
inline PrefillOutput RunPrefill(const PrefillCase& of, const PrefillAttention& attention,
                                const ComputeContext& ctx, int begin, int end,
                                float sm_scale_factor = 1) {
  const PrefillSpec& spec = of.spec();
  PrefillOutput result;
  result.out.assign(size_t(end - begin) * of.out_stride(), PrefillCase::kNan);
  result.lse.assign(size_t(end - begin) * spec.shape.num_qo_heads, std::nanf(""));
  DeviceBuffer q = OnDevice(of.q(), ctx.stream), out = OnDevice(result.out, ctx.stream),
               lse = OnDevice(result.lse, ctx.stream);
  CudaTensor tokens(of.kv(), ctx.stream);
  const KvTensorView all = tokens.view();
  const absl::Status status =
      attention.Run({.num_queries = end - begin,
                     .sm_scale = sm_scale_factor / std::sqrt(float(spec.shape.head_dim)),
                     .q = q.As<uint16_t>() + begin * of.q_stride(),
                     .q_stride = of.q_stride(),
                     .kv = all.Tokens(0, spec.first_token + end),
                     .out = out.data(),
                     .out_stride = of.out_stride(),
                     .lse = lse.As<float>()},
                    ctx);
  PKV_CHECK(status.ok(), status.ToString());
  PKV_CHECK(out.CopyToHost(std::as_writable_bytes(std::span(result.out))).ok());
  PKV_CHECK(lse.CopyToHost(std::as_writable_bytes(std::span(result.lse))).ok());
  return result;
}
inline PrefillOutput RunPrefill(const PrefillCase& of, const PrefillAttention& attention,
                                const ComputeContext& ctx) {
  return RunPrefill(of, attention, ctx, 0, of.spec().num_queries);
}

// Holds one output to fp64 attention.
class PrefillCheck {
 public:
  PrefillCheck(const PrefillCase& of, const PrefillOutput& got) : case_(of), got_(got) {}

  // What is wrong, or nothing.
  std::string Problem() {
    const PrefillSpec& spec = case_.spec();
    for (int query = 0; query < spec.num_queries; ++query) {
      for (int head = 0; head < spec.shape.num_qo_heads; ++head) {
        const std::string problem = RowProblem(query, head);
        if (!problem.empty()) return absl::StrCat("query ", query, " head ", head, ": ", problem);
      }
      for (int64_t j = spec.row(); j < case_.out_stride(); ++j) {
        if (got_.out[query * case_.out_stride() + j] != PrefillCase::kNan) {
          return absl::StrCat("query ", query, " wrote past its row");
        }
      }
    }
    const double frobenius = std::sqrt(error_square_ / std::max(square_, 1e-300));
    if (spec.shape.output_type == QueryType::kFloat16 && !(frobenius <= kPrefillFrobenius)) {
      return absl::StrCat("relative error ", frobenius);
    }
    return "";
  }
  double largest_of_bound() const { return largest_of_bound_; }
  double frobenius() const { return std::sqrt(error_square_ / square_); }

 private:
  struct Scores {
    std::vector<double> score;
    double error = 0, largest = 0;  // of any of them
  };

  Scores ScoresOf(int query, int head, int visible) const {
    const PrefillSpec& spec = case_.spec();
    const int d = spec.shape.head_dim;
    const KvTensorView kv = case_.kv().view();
    std::vector<double> q(d);
    double largest_q = 0;
    for (int j = 0; j < d; ++j) {
      q[j] = case_.q_at(query, head, j) / std::sqrt(static_cast<double>(d));
      largest_q = std::max(largest_q, std::abs(q[j]));
    }
    const bool is_bfloat16 = spec.shape.query_type == QueryType::kBfloat16;
    const double q_error = is_bfloat16 ? PrefillArithmetic::kBfloat16Query * largest_q : 0;
    Scores scores;
    scores.score.resize(visible);
    for (int t = 0; t < visible; ++t) {
      const uint16_t* k = kv.k_row(head / spec.group(), t);
      double magnitude = 0, size = 0;
      for (int j = 0; j < d; ++j) {
        const double value = Float16ToFloat(k[j]);
        scores.score[t] += q[j] * value;
        magnitude += std::abs(q[j] * value);
        size += std::abs(value);
      }
      scores.error =
          std::max(scores.error, PrefillArithmetic::Score(d, magnitude) + q_error * size);
      scores.largest = std::max(scores.largest, std::abs(scores.score[t]));
    }
    return scores;
  }

  std::string RowProblem(int query, int head) {
    const PrefillSpec& spec = case_.spec();
    const int d = spec.shape.head_dim, visible = spec.first_token + query + 1;
    const KvTensorView kv = case_.kv().view();
    const Scores scores = ScoresOf(query, head, visible);
    const double most = *std::max_element(scores.score.begin(), scores.score.end());
    double sum = 0;
    for (const double s : scores.score) sum += std::exp(s - most);
    std::vector<double> out(d), magnitude(d), size(d);
    for (int t = 0; t < visible; ++t) {
      const uint16_t* v = kv.v_row(head / spec.group(), t);
      const double weight = std::exp(scores.score[t] - most) / sum;
      for (int j = 0; j < d; ++j) {
        const double value = Float16ToFloat(v[j]);
        out[j] += weight * value;
        magnitude[j] += weight * std::abs(value);
        size[j] += std::abs(value) / sum;
      }
    }
    const int tiles = visible / PrefillArithmetic::kTileTokens + 2;
    const double weight = PrefillArithmetic::Weight(scores.error, scores.largest, tiles);
    const double sums = SumBound(visible + 4 * tiles + 8, 1);
    const double relative = 2 * weight + PrefillArithmetic::kWeight + 2 * sums +
                            DecodeSumBound(kTensorCoreArithmetic, visible, 4 * tiles);
    for (int j = 0; j < d; ++j) {
      const double got = FromBits(got_.out[query * case_.out_stride() + int64_t{head} * d + j],
                                  spec.shape.output_type);
      double bound = relative * magnitude[j] + PrefillArithmetic::kWeightFloor * size[j];
      bound +=
          OutputBound(std::abs(out[j]) + bound, spec.shape.output_type == QueryType::kBfloat16);
      const double error = std::abs(got - out[j]);
      if (!(error <= bound)) {
        return absl::StrCat("channel ", j, " is ", got, ", not ", out[j], " within ", bound);
      }
      largest_of_bound_ = std::max(largest_of_bound_, error / bound);
      error_square_ += error * error;
      square_ += out[j] * out[j];
    }
    const double lse = most + std::log(sum), got = got_.lse[query * spec.shape.num_qo_heads + head];
    const double bound =
        weight + sums + scores.error + 8 * kFloatUnit * (std::abs(lse) + scores.largest + 32);
    if (std::abs(got - lse) <= bound) return "";
    return absl::StrCat("lse is ", got, ", not ", lse, " within ", bound);
  }

  const PrefillCase& case_;
  const PrefillOutput& got_;
  double largest_of_bound_ = 0, error_square_ = 0, square_ = 0;
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_PREFILL_CASE_H_
