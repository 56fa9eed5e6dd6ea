#include "worker/batch/pool_layout.h"

#include <algorithm>

#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

// Patterns that a bank takes beside the mined ones: one a flushed block, 4,096 generated tokens.
constexpr int kAppendedPatterns = 32;
constexpr int64_t kPageAlignment = 128;

}  // namespace

PoolLayout PoolLayout::Of(const KvShape& shape, const CodecParams& params) {
  const int64_t row_values = 2 * int64_t{shape.num_kv_heads} * shape.head_dim;
  PoolLayout layout;
  layout.page_stride =
      (PayloadLayout::OfBlock(shape, params.encoding).page_bytes + kPageAlignment - 1) /
      kPageAlignment * kPageAlignment;
  layout.window_capacity =
      kBlockTokens + (params.window_rule == WindowRule::kRolling ? params.recent_tokens : 0);
  layout.window_values = row_values * layout.window_capacity;
  layout.sink_values = row_values * params.num_sinks;
  if (params.encoding.has_patterns) {
    const int mined = std::max(params.num_patterns_k, params.num_patterns_v);
    const bool appends = params.append_k || params.append_v;
    layout.bank_capacity = std::min(mined + (appends ? kAppendedPatterns : 0), kMaxPatterns);
  }
  layout.bank_values = row_values * layout.bank_capacity;
  return layout;
}

}  // namespace pkv
