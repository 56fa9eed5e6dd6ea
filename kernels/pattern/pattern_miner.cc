#include "pkv/kernels/pattern_miner.h"

#include <algorithm>
#include <cmath>
#include <span>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/codec/codec_math.h"
#include "kernels/pattern/finite_check.h"
#include "kernels/pattern/kmeans.h"
#include "kernels/pattern/mined_sample.h"
#include "kernels/pattern/pattern_backends.h"
#include "proto/base/status_macros.h"
#include "proto/base/thread_pool.h"

namespace pkv {
namespace {

// The K-means problems of one tensor of a layer, one per kv head, stopped together.
struct Mine {
  std::vector<std::vector<uint16_t>> samples;  // [kv_head], of a prompt that is not mined whole
  std::vector<KMeans> heads;
  std::vector<double> moves;  // of the last iteration
  bool done = false;
};

// The rows of one head that are mined, copied together.
std::vector<uint16_t> SampleRows(const uint16_t* rows, int num_tokens, int head_dim) {
  const int num_mined = NumMinedTokens(num_tokens);
  std::vector<uint16_t> sample(static_cast<size_t>(num_mined) * head_dim);
  for (int i = 0; i < num_mined; ++i) {
    std::copy_n(rows + int64_t{MinedToken(i, num_tokens)} * head_dim, head_dim,
                sample.begin() + int64_t{i} * head_dim);
  }
  return sample;
}

Mine StartMine(const KvTensorView& kv, bool is_k, int num_patterns) {
  Mine mine;
  const int num_clusters = std::min(num_patterns, kv.num_tokens);
  mine.done = num_clusters == 0;
  if (mine.done) return mine;
  for (int head = 0; head < kv.num_kv_heads; ++head) {
    const uint16_t* rows = is_k ? kv.k_row(head, 0) : kv.v_row(head, 0);
    if (kv.num_tokens > kMaxMinedTokens) {
      mine.samples.push_back(SampleRows(rows, kv.num_tokens, kv.head_dim));
      rows = mine.samples.back().data();
    }
    mine.heads.emplace_back(rows, NumMinedTokens(kv.num_tokens), kv.head_dim, num_clusters);
  }
  mine.moves.resize(mine.heads.size());
  return mine;
}

void Iterate(std::span<Mine> mines, ThreadPool* pool) {
  std::vector<std::pair<Mine*, int>> tasks;
  for (Mine& mine : mines) {
    if (mine.done) continue;
    for (size_t head = 0; head < mine.heads.size(); ++head) tasks.emplace_back(&mine, head);
  }
  ParallelFor(pool, static_cast<int>(tasks.size()), [&](int i) {
    auto [mine, head] = tasks[i];
    mine->moves[head] = mine->heads[head].Iterate();
  });
}

std::vector<uint16_t> ToFloat16(const std::vector<float>& values) {
  std::vector<uint16_t> bits(values.size());
  std::transform(values.begin(), values.end(), bits.begin(), ToFiniteFloat16);
  return bits;
}

}  // namespace

absl::StatusOr<Codebook> MinePatterns(const KvTensorView& kv, const CodecParams& params,
                                      const ComputeContext& ctx) {
  if (ctx.device == Device::kCuda) return MinePatternsCuda(kv, params, ctx);
  PKV_RETURN_IF_ERROR(CheckFinite(kv, ctx.pool));
  Codebook codebook(kv.num_kv_heads, kv.head_dim);
  Mine mines[] = {StartMine(kv, true, params.num_patterns_k),
                  StartMine(kv, false, params.num_patterns_v)};
  for (int iteration = 1; iteration <= params.kmeans_iterations; ++iteration) {
    Iterate(mines, ctx.pool);
    for (Mine& mine : mines) {
      // The authors test from the second iteration on: the first never stops.
      if (mine.done || iteration < 2) continue;
      mine.done =
          *std::max_element(mine.moves.begin(), mine.moves.end()) <= params.kmeans_tolerance;
    }
    if (mines[0].done && mines[1].done) break;
  }
  for (size_t head = 0; head < mines[0].heads.size(); ++head) {
    codebook.AppendK(static_cast<int>(head), ToFloat16(mines[0].heads[head].centroids()));
  }
  for (size_t head = 0; head < mines[1].heads.size(); ++head) {
    codebook.AppendV(static_cast<int>(head), ToFloat16(mines[1].heads[head].centroids()));
  }
  return codebook;
}

}  // namespace pkv
