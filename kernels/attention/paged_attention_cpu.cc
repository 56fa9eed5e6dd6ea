// Scores and outputs of kernels/README.md, "Attend", over pages, sinks and window.
//
// A task is one kv head and a run of pages; it serves all query rows of that kv head (queries times
// query heads), so that codes are read once for them. Runs are as long for any thread pool and
// merge in page order, so the result does not depend on it.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

#include "kernels/attention/attention_backends.h"
#include "kernels/attention/code_matrix.h"
#include "kernels/attention/coded_page.h"
#include "kernels/attention/dense_rows.h"
#include "kernels/attention/pattern_terms.h"
#include "kernels/attention/softmax_state.h"
#include "kernels/codec/codec_math.h"
#include "kernels/codec/float16_rows.h"
#include "kernels/codec/head_frame.h"
#include "pkv/kernels/rotation.h"
#include "proto/base/thread_pool.h"

namespace pkv {
namespace {

using ConstHeadFrame = HeadFrame<const std::byte>;

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
constexpr int kPagesPerTask = 32;
constexpr int kTileRows = 16;

// One kv head of a bank, and what the query rows know of it.
struct BankOfHead {
  const Codebook* codebook = nullptr;
  int num_k = 0, num_v = 0;
  std::vector<float> v_patterns;  // [num_v][head_dim]
  std::vector<float> k_scores;    // [row][num_k] q . pattern
  std::vector<float> v_weights;   // [row][num_v] softmax weight of the tokens with that pattern
};

// Softmax attention of the query rows of one kv head over some tokens. Thread-compatible.
class HeadAttention {
 public:
  HeadAttention(const AttentionArgs& args, int kv_head, CodeArithmetic arithmetic);

  // Fetches the codes of a page to come, while another one is worked on.
  void Prefetch(const BlockPage& page) const;
  void AddPage(const BlockPage& page);
  // Window tokens, where a query sees none later than its own.
  void AddWindow();
  // Call it after the last page.
  void Finish() {
    Flush();
    UseRotation(false);
  }
  SoftmaxState& state() { return state_; }
  int num_rows() const { return num_rows_; }

 private:
  // Query rows: query i's heads follow each other.
  int query_of(int row) const { return row / heads_per_kv_; }

  // Queries and outputs of the next page are rotated, or no longer.
  void UseRotation(bool rotated);
  void UseBank(const Codebook* codebook);
  // Adds what the V patterns of the pages since the last call contribute.
  void Flush();
  void AddCodedPage(const ConstHeadFrame& frame, const PayloadLayout& layout);
  void ScoreCodes(const ConstHeadFrame& frame, const PayloadLayout& layout);
  void ScoreFineCodes(const ConstHeadFrame& frame, const std::vector<float>& zeros);
  void ScoreRows(const float* rows, int count, int scores_at);
  void AddCodedValues(const ConstHeadFrame& frame, const PayloadLayout& layout);
  void AddDenseTile(const uint16_t* k, const uint16_t* v, int count, int first_visible);
  // Updates the softmax of every row with scores_; scores_ then holds weights.
  void UpdateStates();
  float* scores(int row) { return scores_.data() + static_cast<size_t>(row) * kBlockTokens; }

  const AttentionArgs& args_;
  const int kv_head_, head_dim_, heads_per_kv_, num_rows_;
  std::vector<float> q_;     // [row][head_dim], times sm_scale; rotated while is_rotated_
  bool is_rotated_ = false;  // q_ and the outputs in state_
  SoftmaxState state_;
  BankOfHead bank_;
  // Do the work of a coded page, and of bank_, in CodeArithmetic::kInteger.
  struct Integer {
    CodedPage page;
    PatternTerms patterns;
  };
  std::optional<Integer> integer_;
  // Scratch of one page.
  std::vector<float> scores_;  // [row][128]
  std::vector<float> plane_, factors_, natural_, product_, tile_;
};

HeadAttention::HeadAttention(const AttentionArgs& args, int kv_head, CodeArithmetic arithmetic)
    : args_(args),
      kv_head_(kv_head),
      head_dim_(args.window.head_dim),
      heads_per_kv_(args.num_qo_heads / args.window.num_kv_heads),
      num_rows_(args.num_queries * heads_per_kv_),
      q_(static_cast<size_t>(num_rows_) * head_dim_),
      state_(num_rows_, head_dim_),
      scores_(static_cast<size_t>(num_rows_) * kBlockTokens),
      plane_(static_cast<size_t>(num_rows_) * PlaneOrder::kMaxSize),
      factors_(plane_.size()),
      natural_(kBlockTokens),
      product_(static_cast<size_t>(num_rows_) * kBlockTokens),
      tile_(static_cast<size_t>(kBlockTokens) * head_dim_) {
  for (int row = 0; row < num_rows_; ++row) {
    const int64_t head =
        int64_t{query_of(row)} * args.num_qo_heads + kv_head * heads_per_kv_ + row % heads_per_kv_;
    const float* q = args.q + head * head_dim_;
    float* out = q_.data() + static_cast<size_t>(row) * head_dim_;
    for (int j = 0; j < head_dim_; ++j) out[j] = q[j] * args.sm_scale;
  }
  if (arithmetic == CodeArithmetic::kInteger) {
    integer_.emplace(Integer{{q_.data(), num_rows_, head_dim_}, {num_rows_, head_dim_}});
  }
}

void HeadAttention::UseRotation(bool rotated) {
  if (rotated == is_rotated_) return;
  UseBank(nullptr);
  RotateRows(q_.data(), num_rows_, head_dim_);
  for (int row = 0; row < num_rows_; ++row) RotateRows(state_.acc(row), 1, head_dim_);
  if (integer_) integer_->page.QueriesChanged();
  is_rotated_ = rotated;
}

void HeadAttention::UseBank(const Codebook* codebook) {
  if (codebook == bank_.codebook) return;
  Flush();
  bank_ = {};
  bank_.codebook = codebook;
  if (integer_) integer_->patterns.UseBank(codebook, kv_head_, q_.data());
  if (codebook == nullptr || integer_) return;
  bank_.num_k = codebook->num_k();
  bank_.num_v = codebook->num_v();
  const auto k = codebook->k(kv_head_), v = codebook->v(kv_head_);
  std::vector<float> k_patterns(k.size());
  ConvertToFloat(k.data(), static_cast<int>(k.size()), k_patterns.data());
  bank_.v_patterns.resize(v.size());
  ConvertToFloat(v.data(), static_cast<int>(v.size()), bank_.v_patterns.data());
  bank_.k_scores.resize(static_cast<size_t>(num_rows_) * bank_.num_k);
  bank_.v_weights.assign(static_cast<size_t>(num_rows_) * bank_.num_v, 0.0f);
  for (int row = 0; row < num_rows_; ++row) {
    DotRows(k_patterns.data(), bank_.num_k, head_dim_,
            q_.data() + static_cast<size_t>(row) * head_dim_,
            bank_.k_scores.data() + static_cast<size_t>(row) * bank_.num_k);
  }
}

void HeadAttention::Flush() {
  if (integer_) integer_->patterns.Flush(state_.acc(0));
  for (int row = 0; row < num_rows_ && bank_.num_v > 0; ++row) {
    float* weights = bank_.v_weights.data() + static_cast<size_t>(row) * bank_.num_v;
    AddWeightedRows(bank_.v_patterns.data(), weights, bank_.num_v, head_dim_, state_.acc(row));
    std::fill_n(weights, bank_.num_v, 0.0f);
  }
}

void HeadAttention::UpdateStates() {
  for (int row = 0; row < num_rows_; ++row) {
    const float rescale = state_.Update(row, kBlockTokens, scores(row));
    if (rescale == 1.0f) continue;
    if (integer_) integer_->patterns.Rescale(row, rescale);
    if (bank_.num_v == 0) continue;
    ScaleBy(rescale, bank_.num_v, bank_.v_weights.data() + static_cast<size_t>(row) * bank_.num_v);
  }
}

void HeadAttention::ScoreRows(const float* rows, int count, int scores_at) {
  for (int row = 0; row < num_rows_; ++row) {
    DotRows(rows, count, head_dim_, q_.data() + static_cast<size_t>(row) * head_dim_,
            scores(row) + scores_at);
  }
}

// The last row tile, on the finer grid of the last group, whose scales stand in natural_: q . k = q
// . (zero - scale) + (q * scale / 3) . codes.
void HeadAttention::ScoreFineCodes(const ConstHeadFrame& frame, const std::vector<float>& zeros) {
  const PlaneOrder& order = PlaneOrder::Of(head_dim_, kFineBits);
  std::vector<float> factors(head_dim_), low(head_dim_);
  for (int j = 0; j < head_dim_; ++j) {
    const FineGrid fine = MakeFineGrid(natural_[j], zeros[j]);
    natural_[j] = fine.step;
    low[j] = fine.low;
  }
  for (int row = 0; row < num_rows_; ++row) {
    const float* q = q_.data() + static_cast<size_t>(row) * head_dim_;
    Multiply(q, natural_.data(), head_dim_, factors.data());
    order.Permute(factors.data(), factors_.data() + static_cast<size_t>(row) * order.size);
  }
  constexpr int kFirst = kBlockTokens - kFineTokens;
  MultiplyCodes(order, frame.k_fine_codes, 0, 1, factors_.data(), num_rows_,
                scores_.data() + kFirst, kBlockTokens);
  for (int row = 0; row < num_rows_; ++row) {
    const float zero = Dot(q_.data() + static_cast<size_t>(row) * head_dim_, low.data(), head_dim_);
    for (int t = kFirst; t < kBlockTokens; ++t) scores(row)[t] += zero;
  }
}

// q . k = q . pattern + q . zero + (q * scale) . codes, group by group of tokens.
void HeadAttention::ScoreCodes(const ConstHeadFrame& frame, const PayloadLayout& layout) {
  const PlaneOrder& order = PlaneOrder::Of(head_dim_, layout.encoding.bits_k);
  const int group_tokens = layout.encoding.k_group_tokens;
  std::vector<float> scales(PlaneOrder::kMaxSize), zeros(head_dim_);
  for (int row = 0; row < num_rows_; ++row) {
    order.Permute(q_.data() + static_cast<size_t>(row) * head_dim_,
                  plane_.data() + static_cast<size_t>(row) * order.size);
  }
  for (int group = 0; group < layout.k_groups(); ++group) {
    for (int j = 0; j < head_dim_; ++j) {
      const int at = group * head_dim_ + ColumnPosition(j, head_dim_);
      natural_[j] = Float16ToFloat(frame.k_scales[at]);
      zeros[j] = Float16ToFloat(frame.k_zeros[at]);
    }
    order.Permute(natural_.data(), scales.data());
    for (int row = 0; row < num_rows_; ++row) {
      const size_t at = static_cast<size_t>(row) * order.size;
      Multiply(plane_.data() + at, scales.data(), order.size, factors_.data() + at);
    }
    const int num_coarse = kBlockTokens - layout.encoding.k_fine_tokens;
    const int begin = group * group_tokens, end = std::min(begin + group_tokens, num_coarse);
    MultiplyCodes(order, frame.k_codes, begin / kTileRows, end / kTileRows, factors_.data(),
                  num_rows_, scores_.data(), kBlockTokens);
    for (int row = 0; row < num_rows_; ++row) {
      const float zero =
          Dot(q_.data() + static_cast<size_t>(row) * head_dim_, zeros.data(), head_dim_);
      for (int t = begin; t < end; ++t) scores(row)[t] += zero;
    }
  }
  if (frame.k_fine_codes != nullptr) ScoreFineCodes(frame, zeros);
  if (frame.k_ids == nullptr) return;
  for (int t = 0; t < kBlockTokens; ++t) {
    const int id = frame.k_ids[RowPosition(t, kBlockTokens)];
    if (id == kRawPatternId) continue;
    for (int row = 0; row < num_rows_; ++row) {
      scores(row)[t] += bank_.k_scores[static_cast<size_t>(row) * bank_.num_k + id];
    }
  }
}

// sum p v = sum (p * scale) codes + sum p * zero + sum over patterns of (sum p) * pattern; the
// last one waits for Flush(). scores_ holds the weights p.
void HeadAttention::AddCodedValues(const ConstHeadFrame& frame, const PayloadLayout& layout) {
  const PlaneOrder& order = PlaneOrder::Of(kBlockTokens, layout.encoding.bits_v);
  const int group_channels = layout.encoding.v_group_channels;
  std::vector<float> scales(PlaneOrder::kMaxSize), zeros(kBlockTokens);
  for (int row = 0; row < num_rows_; ++row) {
    order.Permute(scores(row), plane_.data() + static_cast<size_t>(row) * order.size);
  }
  for (int group = 0; group < layout.v_groups(); ++group) {
    const int params_at = group * kBlockTokens, begin = group * group_channels;
    for (int t = 0; t < kBlockTokens; ++t) {
      natural_[t] = Float16ToFloat(frame.v_scales[params_at + RowPosition(t, kBlockTokens)]);
      zeros[t] = Float16ToFloat(frame.v_zeros[params_at + ColumnPosition(t, kBlockTokens)]);
    }
    order.Permute(natural_.data(), scales.data());
    for (int row = 0; row < num_rows_; ++row) {
      const size_t at = static_cast<size_t>(row) * order.size;
      Multiply(plane_.data() + at, scales.data(), order.size, factors_.data() + at);
    }
    MultiplyCodes(order, frame.v_codes, begin / kTileRows, (begin + group_channels) / kTileRows,
                  factors_.data(), num_rows_, product_.data(), kBlockTokens);
    for (int row = 0; row < num_rows_; ++row) {
      const float zero = Dot(scores(row), zeros.data(), kBlockTokens);
      const float* product = product_.data() + static_cast<size_t>(row) * kBlockTokens;
      float* acc = state_.acc(row);
      for (int j = begin; j < begin + group_channels; ++j) acc[j] += product[j] + zero;
    }
  }
  if (frame.v_ids == nullptr) return;
  for (int t = 0; t < kBlockTokens; ++t) {
    const int id = frame.v_ids[ColumnPosition(t, kBlockTokens)];
    if (id == kRawPatternId) continue;
    for (int row = 0; row < num_rows_; ++row) {
      bank_.v_weights[static_cast<size_t>(row) * bank_.num_v + id] += scores(row)[t];
    }
  }
}

void HeadAttention::AddCodedPage(const ConstHeadFrame& frame, const PayloadLayout& layout) {
  if (integer_) {
    if (frame.k_ids != nullptr) {
      integer_->patterns.WriteScores(frame.k_ids, scores_.data());
    } else {
      std::fill(scores_.begin(), scores_.end(), 0.0f);
    }
    integer_->page.AddScores(frame, layout, scores_.data());
  } else {
    ScoreCodes(frame, layout);
  }
  if (frame.num_rows > 0) {  // sinks stand apart; their code slots hold nothing
    ConvertToFloat(frame.k_rows, frame.num_rows * head_dim_, tile_.data());
    ScoreRows(tile_.data(), frame.num_rows, 0);
  }
  UpdateStates();
  if (frame.num_rows > 0) {
    ConvertToFloat(frame.v_rows, frame.num_rows * head_dim_, tile_.data());
    for (int row = 0; row < num_rows_; ++row) {
      AddWeightedRows(tile_.data(), scores(row), frame.num_rows, head_dim_, state_.acc(row));
      std::fill_n(scores(row), frame.num_rows, 0.0f);
    }
  }
  if (integer_) {
    integer_->page.AddValues(frame, layout, scores_.data(), state_.acc(0));
    if (frame.v_ids != nullptr) integer_->patterns.AddWeights(frame.v_ids, scores_.data());
  } else {
    AddCodedValues(frame, layout);
  }
}

// Up to 128 fp16 tokens. Query i sees the first `first_visible` + i of them.
void HeadAttention::AddDenseTile(const uint16_t* k, const uint16_t* v, int count,
                                 int first_visible) {
  ConvertToFloat(k, count * head_dim_, tile_.data());
  ScoreRows(tile_.data(), count, 0);
  for (int row = 0; row < num_rows_; ++row) {
    const int visible = std::clamp(first_visible + query_of(row), 0, count);
    std::fill(scores(row) + visible, scores(row) + kBlockTokens, kMinusInfinity);
  }
  UpdateStates();
  ConvertToFloat(v, count * head_dim_, tile_.data());
  for (int row = 0; row < num_rows_; ++row) {
    AddWeightedRows(tile_.data(), scores(row), count, head_dim_, state_.acc(row));
  }
}

void HeadAttention::Prefetch(const BlockPage& page) const {
  const PayloadLayout layout = PayloadLayout::Of(*page.header);
  if (layout.encoding.is_fp16()) return;  // long rows: the processor does it
  constexpr int64_t kLineBytes = 64;
  const std::byte* head = page.frame.data() + kv_head_ * layout.head_bytes;
  for (int64_t at = 0; at < layout.head_bytes; at += kLineBytes)
    __builtin_prefetch(head + at, 0, 2);
}

void HeadAttention::AddPage(const BlockPage& page) {
  const PayloadLayout layout = PayloadLayout::Of(*page.header);
  const ConstHeadFrame frame(*page.header, layout, page.frame.data(), kv_head_);
  UseRotation(layout.encoding.rotated);
  if (layout.encoding.is_fp16()) {
    AddDenseTile(frame.k_rows, frame.v_rows, kBlockTokens, kBlockTokens);
    return;
  }
  UseBank(layout.encoding.has_patterns ? page.codebook : nullptr);
  AddCodedPage(frame, layout);
}

void HeadAttention::AddWindow() {
  UseRotation(false);
  const KvTensorView& window = args_.window;
  for (int first = 0; first < window.num_tokens; first += kBlockTokens) {
    const int count = std::min(kBlockTokens, window.num_tokens - first);
    AddDenseTile(window.k_row(kv_head_, first), window.v_row(kv_head_, first), count,
                 window.num_tokens - args_.num_queries + 1 - first);
  }
}

}  // namespace

void PagedAttentionCpu(const AttentionArgs& args, ThreadPool* pool, CodeArithmetic arithmetic) {
  const int num_pages = static_cast<int>(args.pages.size());
  const int num_runs = std::max(1, (num_pages + kPagesPerTask - 1) / kPagesPerTask);
  const int num_heads = args.window.num_kv_heads, head_dim = args.window.head_dim;
  std::vector<SoftmaxState> states(static_cast<size_t>(num_heads) * num_runs, SoftmaxState(0, 0));
  ParallelFor(pool, num_heads * num_runs, [&](int task) {
    const int run = task % num_runs;
    HeadAttention attention(args, task / num_runs, arithmetic);
    const int end = std::min(num_pages, (run + 1) * kPagesPerTask);
    for (int page = run * kPagesPerTask; page < end; ++page) {
      if (page + 1 < end) attention.Prefetch(args.pages[page + 1]);
      attention.AddPage(args.pages[page]);
    }
    attention.Finish();
    if (run == num_runs - 1) attention.AddWindow();
    states[task] = std::move(attention.state());
  });
  const int heads_per_kv = args.num_qo_heads / num_heads;
  for (int head = 0; head < num_heads; ++head) {
    SoftmaxState& state = states[static_cast<size_t>(head) * num_runs];
    for (int run = 1; run < num_runs; ++run) {
      state.Merge(states[static_cast<size_t>(head) * num_runs + run]);
    }
    for (int row = 0; row < args.num_queries * heads_per_kv; ++row) {
      const int64_t at = int64_t{row / heads_per_kv} * args.num_qo_heads + head * heads_per_kv +
                         row % heads_per_kv;
      const float lse = state.Finish(row, args.out + at * head_dim);
      if (args.lse != nullptr) args.lse[at] = lse;
    }
  }
}

}  // namespace pkv
