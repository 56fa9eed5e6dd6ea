#include "worker/prefill/error_sample.h"

#include <algorithm>
#include <cmath>

#include "proto/base/float16.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// Sums of squares over rows.
struct Squares {
  double error = 0, norm = 0;

  void Add(const uint16_t* exact, const uint16_t* decoded, int count) {
    for (int i = 0; i < count; ++i) {
      const double value = Float16ToFloat(exact[i]);
      const double difference = value - Float16ToFloat(decoded[i]);
      error += difference * difference;
      norm += value * value;
    }
  }
  double Relative() const { return norm > 0 ? std::sqrt(error / norm) : 0; }
};

}  // namespace

std::optional<ErrorSample> ErrorSample::Take(const KvSequence& sequence, int layer) {
  const KvTensorView window = sequence.window(layer);
  if (sequence.made_objects().blocks.empty() || window.num_tokens < kBlockTokens) {
    return std::nullopt;
  }
  return ErrorSample(window.Tokens(0, kBlockTokens), sequence.num_blocks(), layer);
}

ErrorSample::ErrorSample(const KvTensorView& exact, int block_index, int layer)
    : block_index_(block_index),
      layer_(layer),
      exact_(exact.num_kv_heads, exact.num_tokens, exact.head_dim) {
  const MutableKvTensorView copy = exact_.view();
  const int row_values = exact.num_tokens * exact.head_dim;
  for (int h = 0; h < exact.num_kv_heads; ++h) {
    std::copy_n(exact.k_row(h, 0), row_values, copy.k + h * copy.head_stride);
    std::copy_n(exact.v_row(h, 0), row_values, copy.v + h * copy.head_stride);
  }
}

absl::StatusOr<RelativeError> ErrorSample::Measure(KvSequence& sequence) {
  const KvTensorView exact = exact_.view();
  KvBuffer buffer(exact.num_kv_heads, exact.num_tokens, exact.head_dim);
  PKV_RETURN_IF_ERROR(sequence.DecodeBlock(block_index_, layer_, buffer.view()));
  const KvTensorView decoded = buffer.view();
  Squares k, v;
  const int row_values = exact.num_tokens * exact.head_dim;
  for (int h = 0; h < exact.num_kv_heads; ++h) {
    k.Add(exact.k_row(h, 0), decoded.k_row(h, 0), row_values);
    v.Add(exact.v_row(h, 0), decoded.v_row(h, 0), row_values);
  }
  return RelativeError{k.Relative(), v.Relative()};
}

}  // namespace pkv
