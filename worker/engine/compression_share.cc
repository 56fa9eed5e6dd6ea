#include "worker/engine/compression_share.h"

#include <cstdint>

namespace pkv {
namespace {

// What an H200's multiprocessor does of a model's products, 4.7 TFLOP/s, while it compresses a
// channel of K and of V of one token with `default`, 2.1 ns at most: rotation, ids, K, V and what
// the queries say, added up (kernels/PERFORMANCE.md).
constexpr double kFlopsAChannel = 1e4;

// Without any search, or with one group a channel of K and a token of V.
bool HasEncoderOfItsOwn(const CodecParams& params, int head_dim) {
  const bool searches = params.clip_k == Clip::kSearch || params.clip_v == Clip::kSearch ||
                        params.unbiased_k || params.unbiased_v || params.feedback_k;
  return params.gate_v != Gate::kExactMse &&
         (!searches || (params.encoding.k_group_tokens == kBlockTokens &&
                        params.encoding.v_group_channels == head_dim));
}

}  // namespace

bool CompressionKeepsUp(const ModelConfig& config, const CodecParams& params, int num_sms,
                        int all_sms) {
  if (!HasEncoderOfItsOwn(params, config.head_dim)) return false;
  const int64_t q = int64_t{config.num_qo_heads} * config.head_dim;
  const int64_t kv = int64_t{config.num_kv_heads} * config.head_dim;
  const int64_t weights =
      config.hidden_size * (2 * q + 2 * kv + 3 * int64_t{config.intermediate_size});
  return kFlopsAChannel * static_cast<double>(kv) * (all_sms - num_sms) <=
         2.0 * static_cast<double>(weights) * num_sms;
}

}  // namespace pkv
