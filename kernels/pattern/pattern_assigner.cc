#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "kernels/codec/float16_rows.h"
#include "kernels/codec/group_fit_simd.h"
#include "kernels/codec/group_quantizer.h"
#include "kernels/pattern/nearest_pattern.h"
#include "kernels/pattern/pattern_backends.h"
#include "kernels/pattern/pattern_math.h"
#include "pkv/kernels/pattern_miner.h"
#include "proto/base/status_macros.h"
#include "proto/base/thread_pool.h"

namespace pkv {
namespace {

// The z with P(Z > z) = alpha for a standard normal Z, by bisection: 80 halvings of [0, 40] reach
// the last bit of a double.
double UpperQuantile(double alpha) {
  double low = 0, high = 40;
  for (int i = 0; i < 80; ++i) {
    const double middle = (low + high) / 2;
    (0.5 * std::erfc(middle / std::sqrt(2.0)) > alpha ? low : high) = middle;
  }
  return low;
}

std::vector<float> ToFloat(const uint16_t* rows, size_t count) {
  std::vector<float> out(count);
  ConvertToFloat(rows, static_cast<int>(count), out.data());
  return out;
}

// Whether the decoded error of `row` is smaller with `pattern` subtracted.
bool ExactMseAccepts(const float* row, std::span<const uint16_t> pattern, const CodecParams& params,
                     std::vector<float>& flat) {
  const int head_dim = static_cast<int>(pattern.size());
  const int group = params.encoding.v_group_channels;
  const GroupRule rule = {.bits = params.encoding.bits_v,
                          .num_ratios = params.clip_v == Clip::kNone ? 1 : kNumShrinkRatios,
                          .with_error = true};
  flat.resize(head_dim);
  for (int j = 0; j < head_dim; ++j) flat[j] = row[j] - Float16ToFloat(pattern[j]);
  return RowError(flat.data(), head_dim, group, rule) < RowError(row, head_dim, group, rule);
}

// The rows have one id each.
void AssignHead(const uint16_t* head_rows, std::span<const uint16_t> patterns, AssignMetric metric,
                int head_dim, std::span<uint8_t> ids) {
  const std::vector<float> rows = ToFloat(head_rows, ids.size() * head_dim);
  const PatternMatrix matrix(patterns, head_dim);
  const int count = static_cast<int>(ids.size());
  if (metric == AssignMetric::kL2) {
    NearestL2(matrix, rows.data(), count, ids.data());
  } else {
    std::vector<float> ranges(count);
    NearestMinMax(matrix, rows.data(), count, ids.data(), ranges.data());
  }
}

std::vector<uint16_t> Centre(const uint16_t* rows, int first_token, int head_dim) {
  const size_t num_rows = static_cast<size_t>(kBlockTokens - first_token);
  const std::vector<float> values =
      ToFloat(rows + static_cast<size_t>(first_token) * head_dim, num_rows * head_dim);
  std::vector<float> min(values.begin(), values.begin() + head_dim), max = min;
  for (size_t at = head_dim; at < values.size(); at += head_dim) {
    WidenRanges(values.data() + at, head_dim, min.data(), max.data());
  }
  std::vector<uint16_t> centre(head_dim);
  for (int j = 0; j < head_dim; ++j) centre[j] = ChebyshevCentre(min[j], max[j]);
  return centre;
}

}  // namespace

double GateThreshold(int head_dim, double alpha) {
  const double z = UpperQuantile(alpha);
  const double a = 1.0 - 4.0 * z * z / (5.0 * head_dim);
  if (a <= 0) return 0;  // so strict that even a range of zero is no evidence
  return std::sqrt((1.0 - std::sqrt(1.0 - a * a)) / a);
}

AssignMetric AssignMetricFor(bool is_k, const CodecParams& params, Phase phase) {
  if (phase == Phase::kPrefill) return is_k ? params.assign_k_prefill : params.assign_v_prefill;
  return is_k ? params.assign_k_decode : params.assign_v_decode;
}

PatternAssignment RawAssignment(int num_kv_heads) {
  const size_t num_ids = static_cast<size_t>(num_kv_heads) * kBlockTokens;
  PatternAssignment assignment;
  assignment.k.assign(num_ids, kRawPatternId);
  assignment.v.assign(num_ids, kRawPatternId);
  return assignment;
}

void GateHead(const uint16_t* head_rows, std::span<const uint16_t> patterns, int head_dim,
              const CodecParams& params, std::span<uint8_t> ids) {
  if (params.gate_v == Gate::kNone) return;
  const std::vector<float> rows = ToFloat(head_rows, ids.size() * head_dim);
  const auto threshold = static_cast<float>(GateThreshold(head_dim, params.gate_alpha));
  std::vector<float> flat(head_dim);
  for (size_t r = 0; r < ids.size(); ++r) {
    const float* row = rows.data() + r * head_dim;
    const auto pattern = patterns.subspan(static_cast<size_t>(ids[r]) * head_dim, head_dim);
    bool accepted;
    if (params.gate_v == Gate::kExactMse) {
      accepted = ExactMseAccepts(row, pattern, params, flat);
    } else {
      for (int j = 0; j < head_dim; ++j) flat[j] = row[j] - Float16ToFloat(pattern[j]);
      const Range flat_range = RangeOf(flat.data(), head_dim), raw_range = RangeOf(row, head_dim);
      accepted =
          ZTestAccepts(flat_range.max - flat_range.min, raw_range.max - raw_range.min, threshold);
    }
    if (!accepted) ids[r] = kRawPatternId;
  }
}

absl::StatusOr<PatternAssignment> AssignPatterns(const KvTensorView& kv, int first_token,
                                                 const CodecParams& params,
                                                 const Codebook& codebook, Phase phase,
                                                 const ComputeContext& ctx) {
  if (ctx.device == Device::kCuda) {
    return AssignPatternsCuda(kv, first_token, params, codebook, phase, ctx);
  }
  PatternAssignment assignment = RawAssignment(kv.num_kv_heads);
  if (codebook.num_kv_heads() != kv.num_kv_heads || first_token >= kBlockTokens) return assignment;
  ParallelFor(ctx.pool, 2 * kv.num_kv_heads, [&](int i) {
    const int head = i % kv.num_kv_heads;
    const bool is_k = i < kv.num_kv_heads;
    const uint16_t* rows = is_k ? kv.k_row(head, first_token) : kv.v_row(head, first_token);
    const auto patterns = is_k ? codebook.k(head) : codebook.v(head);
    if (patterns.empty()) return;
    const int at = head * kBlockTokens + first_token;
    const auto ids = std::span(is_k ? assignment.k : assignment.v)
                         .subspan(at, static_cast<size_t>(kBlockTokens - first_token));
    AssignHead(rows, patterns, AssignMetricFor(is_k, params, phase), kv.head_dim, ids);
    if (!is_k) GateHead(rows, patterns, kv.head_dim, params, ids);
  });
  return assignment;
}

absl::StatusOr<uint8_t> AppendCentres(const KvTensorView& kv, int first_token,
                                      const CodecParams& params, Codebook& codebook,
                                      const ComputeContext& ctx) {
  if (first_token >= kBlockTokens) return uint8_t{0};
  const bool append_k = params.append_k && codebook.num_k() < kMaxPatterns;
  const bool append_v = params.append_v && codebook.num_v() < kMaxPatterns;
  if (ctx.device == Device::kCuda) {
    PKV_RETURN_IF_ERROR(AppendCentresCuda(kv, first_token, append_k, append_v, codebook, ctx));
  } else {
    for (int head = 0; head < kv.num_kv_heads; ++head) {
      if (append_k) codebook.AppendK(head, Centre(kv.k_row(head, 0), first_token, kv.head_dim));
      if (append_v) codebook.AppendV(head, Centre(kv.v_row(head, 0), first_token, kv.head_dim));
    }
  }
  return static_cast<uint8_t>((append_k ? kFlagAppendsK : 0) | (append_v ? kFlagAppendsV : 0));
}

}  // namespace pkv
