#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/codec/float16_rows.h"
#include "kernels/codec/group_fit_simd.h"
#include "kernels/codec/group_quantizer.h"
#include "kernels/pattern/nearest_pattern.h"
#include "kernels/pattern/pattern_math.h"
#include "pkv/kernels/pattern_miner.h"
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

// K or V of one kv head of a block, in fp32 from `first_token` on.
std::vector<float> Rows(const uint16_t* rows, int first_token, int head_dim) {
  std::vector<float> out(static_cast<size_t>(kBlockTokens - first_token) * head_dim);
  ConvertToFloat(rows + static_cast<size_t>(first_token) * head_dim, static_cast<int>(out.size()),
                 out.data());
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

// What AssignHead needs to know of one tensor of one kv head.
struct AssignTask {
  const uint16_t* rows;  // [128][head_dim]
  std::span<const uint16_t> patterns;
  AssignMetric metric;
  Gate gate;
  uint8_t* ids;  // [128], 255 everywhere
};

void AssignHead(const AssignTask& task, int first_token, int head_dim, const CodecParams& params) {
  const int count = kBlockTokens - first_token;
  if (task.patterns.empty() || count <= 0) return;
  const std::vector<float> rows = Rows(task.rows, first_token, head_dim);
  const PatternMatrix matrix(task.patterns, head_dim);
  uint8_t* ids = task.ids + first_token;
  std::vector<float> ranges(count);
  if (task.metric == AssignMetric::kL2) {
    NearestL2(matrix, rows.data(), count, ids);
  } else {
    NearestMinMax(matrix, rows.data(), count, ids, ranges.data());
  }
  if (task.gate == Gate::kNone) return;
  const auto threshold = static_cast<float>(GateThreshold(head_dim, params.gate_alpha));
  std::vector<float> flat(head_dim);
  for (int r = 0; r < count; ++r) {
    const float* row = rows.data() + static_cast<size_t>(r) * head_dim;
    const auto pattern = task.patterns.subspan(static_cast<size_t>(ids[r]) * head_dim, head_dim);
    bool accepted;
    if (task.gate == Gate::kExactMse) {
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

std::vector<uint16_t> Centre(const uint16_t* rows, int first_token, int head_dim) {
  const std::vector<float> values = Rows(rows, first_token, head_dim);
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

PatternAssignment AssignPatterns(const KvTensorView& kv, int first_token, const CodecParams& params,
                                 const Codebook& codebook, Phase phase, const ComputeContext& ctx) {
  const size_t num_ids = static_cast<size_t>(kv.num_kv_heads) * kBlockTokens;
  PatternAssignment assignment;
  assignment.k.assign(num_ids, kRawPatternId);
  assignment.v.assign(num_ids, kRawPatternId);
  if (codebook.num_kv_heads() != kv.num_kv_heads) return assignment;
  const bool prefill = phase == Phase::kPrefill;
  ParallelFor(ctx.pool, 2 * kv.num_kv_heads, [&](int i) {
    const int head = i % kv.num_kv_heads;
    const size_t at = static_cast<size_t>(head) * kBlockTokens;
    const bool is_k = i < kv.num_kv_heads;
    AssignTask task;
    if (is_k) {
      task = {kv.k_row(head, 0), codebook.k(head),
              prefill ? params.assign_k_prefill : params.assign_k_decode, Gate::kNone,
              assignment.k.data() + at};
    } else {
      task = {kv.v_row(head, 0), codebook.v(head),
              prefill ? params.assign_v_prefill : params.assign_v_decode, params.gate_v,
              assignment.v.data() + at};
    }
    AssignHead(task, first_token, kv.head_dim, params);
  });
  return assignment;
}

uint8_t AppendCentres(const KvTensorView& kv, int first_token, const CodecParams& params,
                      Codebook& codebook) {
  if (first_token >= kBlockTokens) return 0;
  const bool append_k = params.append_k && codebook.num_k() < kMaxPatterns;
  const bool append_v = params.append_v && codebook.num_v() < kMaxPatterns;
  for (int head = 0; head < kv.num_kv_heads; ++head) {
    if (append_k) codebook.AppendK(head, Centre(kv.k_row(head, 0), first_token, kv.head_dim));
    if (append_v) codebook.AppendV(head, Centre(kv.v_row(head, 0), first_token, kv.head_dim));
  }
  return static_cast<uint8_t>((append_k ? kFlagAppendsK : 0) | (append_v ? kFlagAppendsV : 0));
}

}  // namespace pkv
