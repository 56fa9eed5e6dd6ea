#include "worker/engine/dense_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "pkv/kernels/block_codec.h"
#include "pkv/kernels/rotation.h"
#include "proto/base/float16.h"
#include "proto/base/status_macros.h"
#include "proto/base/thread_pool.h"
#include "worker/engine/gemm.h"
#include "worker/engine/layer_math.h"

namespace pkv {
namespace {

// Queries of one task. Their scores against a tile, their running outputs and the tile itself stay
// in the second-level cache for groups of four heads, and each tile is dequantized once for all.
constexpr int kQueriesPerTask = 128;
constexpr int kLanes = 32;  // of a sum or maximum that the compiler may not reorder by itself

absl::Status CheckArgs(const AttentionArgs& args) {
  const KvTensorView& window = args.window;
  if (args.num_queries < 0 || args.num_queries > window.num_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("num_queries ", args.num_queries,
                                                   " is not in [0, ", window.num_tokens,
                                                   "], the tokens of the window"));
  }
  if (window.num_kv_heads < 1 || args.num_qo_heads < 1 ||
      args.num_qo_heads % window.num_kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("num_qo_heads ", args.num_qo_heads,
                                                   " is no multiple of num_kv_heads ",
                                                   window.num_kv_heads));
  }
  if (window.head_dim != 64 && window.head_dim != 128) {
    return absl::InvalidArgumentError(
        absl::StrCat("head_dim ", window.head_dim, " is not in {64, 128}"));
  }
  for (const BlockPage& page : args.pages) {
    if (page.header->num_kv_heads != window.num_kv_heads ||
        page.header->head_dim != window.head_dim) {
      return absl::InvalidArgumentError(absl::StrCat(
          "page of ", page.header->num_kv_heads, " kv heads of head_dim ", page.header->head_dim,
          " beside a window of ", window.num_kv_heads, " of ", window.head_dim));
    }
  }
  return absl::OkStatus();
}

float MaxOf(const float* x, int size) {
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, -std::numeric_limits<float>::infinity());
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
    }
  }
  for (; i < size; ++i) lanes[0] = std::max(lanes[0], x[i]);
  return *std::max_element(lanes, lanes + kLanes);
}

// x[i] = e^(x[i] - largest); returns their sum.
float ExpAndSum(float* x, int size, float largest) {
  for (int i = 0; i < size; ++i) x[i] = ExpNonPositive(x[i] - largest);
  float lanes[kLanes] = {};
  int i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += x[i + lane];
  }
  for (; i < size; ++i) lanes[0] += x[i];
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

void ConvertWindow(const uint16_t* bits, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = Float16ToFloat(bits[i]);
}

// Attention of queries [first_query, + num_queries) that read one kv head. Row r of the buffers is
// query r / group, head r % group of the group.
class Task {
 public:
  Task(const AttentionArgs& args, int kv_head, int first_query)
      : args_(args),
        kv_head_(kv_head),
        first_query_(first_query),
        num_queries_(std::min(kQueriesPerTask, args.num_queries - first_query)),
        group_(args.num_qo_heads / args.window.num_kv_heads),
        head_dim_(args.window.head_dim),
        num_rows_(num_queries_ * group_),
        q_(size_t(num_rows_) * head_dim_),
        out_(size_t(num_rows_) * head_dim_),
        scores_(size_t(num_rows_) * kBlockTokens),
        tile_(size_t(kBlockTokens) * head_dim_),
        largest_(num_rows_, -std::numeric_limits<float>::infinity()),
        sum_(num_rows_) {}

  absl::Status Run() {
    for (int i = 0; i < num_queries_; ++i) {
      std::copy_n(args_.q + Offset(i), group_ * head_dim_, q_.data() + i * group_ * head_dim_);
    }
    for (const BlockPage& page : args_.pages) PKV_RETURN_IF_ERROR(AttendPage(page));
    // The window token of the first of these queries; later ones follow one by one.
    const int own = args_.window.num_tokens - args_.num_queries + first_query_;
    for (int begin = 0; begin < own + num_queries_; begin += kBlockTokens) {
      PKV_RETURN_IF_ERROR(AttendWindow(begin, own));
    }
    Finish();
    return absl::OkStatus();
  }

 private:
  // Of query i and the first head of the group, in args_.q and args_.out.
  int64_t Offset(int i) const {
    return (int64_t{first_query_ + i} * args_.num_qo_heads + kv_head_ * group_) * head_dim_;
  }

  absl::Status AttendPage(const BlockPage& page) {
    static const Codebook* const kNoPatterns = new Codebook;
    const Codebook& codebook = page.codebook == nullptr ? *kNoPatterns : *page.codebook;
    const bool rotated = page.header->encoding().rotated;
    DequantizeKTile(*page.header, page.frame, codebook, kv_head_, tile_.data());
    if (rotated) RotateRows(tile_.data(), kBlockTokens, head_dim_);
    PKV_RETURN_IF_ERROR(ComputeScores(kBlockTokens));
    Normalise(kBlockTokens, kBlockTokens);
    DequantizeVTile(*page.header, page.frame, codebook, kv_head_, tile_.data());
    if (rotated) RotateRows(tile_.data(), kBlockTokens, head_dim_);
    return AddValues(kBlockTokens);
  }

  // Window tokens [begin, + 128) as far as one of the queries sees them.
  absl::Status AttendWindow(int begin, int own) {
    const int num_tokens = std::min(kBlockTokens, own + num_queries_ - begin);
    const int64_t size = int64_t{num_tokens} * head_dim_;
    ConvertWindow(args_.window.k_row(kv_head_, begin), size, tile_.data());
    PKV_RETURN_IF_ERROR(ComputeScores(num_tokens));
    Normalise(num_tokens, own + 1 - begin);
    ConvertWindow(args_.window.v_row(kv_head_, begin), size, tile_.data());
    return AddValues(num_tokens);
  }

  absl::Status ComputeScores(int num_tokens) {
    return Gemm({.m = num_rows_,
                 .n = num_tokens,
                 .k = head_dim_,
                 .a = q_.data(),
                 .b = tile_.data(),
                 .c = scores_.data(),
                 .a_stride = head_dim_,
                 .b_stride = head_dim_,
                 .c_stride = kBlockTokens,
                 .transpose_b = true,
                 .alpha = args_.sm_scale},
                nullptr);
  }

  // Turns scores into weights relative to the largest score so far, and rescales what was added
  // before. The first query sees `first_visible` of the tile's tokens, each later one more. (Every
  // query sees the first token of all, so the largest score is finite from the first tile on.)
  void Normalise(int num_tokens, int first_visible) {
    for (int row = 0; row < num_rows_; ++row) {
      float* scores = scores_.data() + int64_t{row} * kBlockTokens;
      const int visible = std::clamp(first_visible + row / group_, 0, num_tokens);
      std::fill(scores + visible, scores + num_tokens, 0.0f);
      if (visible == 0) continue;
      const float largest = std::max(largest_[row], MaxOf(scores, visible));
      const float keep = ExpNonPositive(largest_[row] - largest);
      sum_[row] = sum_[row] * keep + ExpAndSum(scores, visible, largest);
      if (keep != 1) {
        float* out = out_.data() + int64_t{row} * head_dim_;
        for (int c = 0; c < head_dim_; ++c) out[c] *= keep;
      }
      largest_[row] = largest;
    }
  }

  absl::Status AddValues(int num_tokens) {
    return Gemm({.m = num_rows_,
                 .n = head_dim_,
                 .k = num_tokens,
                 .a = scores_.data(),
                 .b = tile_.data(),
                 .c = out_.data(),
                 .a_stride = kBlockTokens,
                 .b_stride = head_dim_,
                 .c_stride = head_dim_,
                 .beta = 1},
                nullptr);
  }

  void Finish() const {
    for (int row = 0; row < num_rows_; ++row) {
      const int i = row / group_, head = row % group_;
      const float* from = out_.data() + int64_t{row} * head_dim_;
      float* to = args_.out + Offset(i) + head * head_dim_;
      const float scale = 1 / sum_[row];
      for (int c = 0; c < head_dim_; ++c) to[c] = from[c] * scale;
      if (args_.lse != nullptr) {
        args_.lse[int64_t{first_query_ + i} * args_.num_qo_heads + kv_head_ * group_ + head] =
            largest_[row] + std::log(sum_[row]);
      }
    }
  }

  const AttentionArgs& args_;
  const int kv_head_, first_query_, num_queries_, group_, head_dim_, num_rows_;
  std::vector<float> q_, out_, scores_, tile_;
  std::vector<float> largest_, sum_;  // [row]
};

}  // namespace

absl::Status DenseAttention(const AttentionArgs& args, ThreadPool* pool) {
  PKV_RETURN_IF_ERROR(CheckArgs(args));
  const int num_chunks = (args.num_queries + kQueriesPerTask - 1) / kQueriesPerTask;
  const int num_tasks = num_chunks * args.window.num_kv_heads;
  std::vector<absl::Status> statuses(num_tasks);
  ParallelFor(pool, num_tasks, [&](int task) {
    // The last chunk sees most tokens: longest first leaves no thread alone at the end.
    const int chunk = num_chunks - 1 - task / args.window.num_kv_heads;
    const int kv_head = task % args.window.num_kv_heads;
    statuses[task] = Task(args, kv_head, chunk * kQueriesPerTask).Run();
  });
  for (const absl::Status& status : statuses) PKV_RETURN_IF_ERROR(status);
  return absl::OkStatus();
}

}  // namespace pkv
