#include "kernels/device/highway_targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/attention/pattern_terms.cc"
#include "hwy/foreach_target.h"  // includes this file once per instruction set

#include <algorithm>

#include "hwy/highway.h"
#include "kernels/attention/dense_rows.h"
#include "kernels/attention/pattern_terms.h"
#include "kernels/codec/float16_rows.h"
#include "proto/block/fragment_order.h"

HWY_BEFORE_NAMESPACE();
namespace pkv {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

constexpr int kRows = 4;    // of a block
constexpr int kCopies = 4;  // of the weights: sums of neighbouring tokens do not wait for another

#if HWY_TARGET != HWY_SCALAR
using Four = hn::FixedTag<float, 4>;

// Turns four vectors of four lanes about.
template <class V>
HWY_INLINE void Transpose(V (&v)[4]) {
  const Four d;
  const hn::FixedTag<double, 2> pairs;
  const auto low01 = hn::BitCast(pairs, hn::InterleaveLower(d, v[0], v[1]));
  const auto low23 = hn::BitCast(pairs, hn::InterleaveLower(d, v[2], v[3]));
  const auto high01 = hn::BitCast(pairs, hn::InterleaveUpper(d, v[0], v[1]));
  const auto high23 = hn::BitCast(pairs, hn::InterleaveUpper(d, v[2], v[3]));
  v[0] = hn::BitCast(d, hn::InterleaveLower(pairs, low01, low23));
  v[1] = hn::BitCast(d, hn::InterleaveUpper(pairs, low01, low23));
  v[2] = hn::BitCast(d, hn::InterleaveLower(pairs, high01, high23));
  v[3] = hn::BitCast(d, hn::InterleaveUpper(pairs, high01, high23));
}
#endif

// scores[row][token] = of_pattern[ids[token]][row], for count <= 4 rows.
void LookUp(const uint8_t* ids, const float* of_pattern, int count, float* scores) {
#if HWY_TARGET != HWY_SCALAR
  if (count == kRows) {
    const Four d;
    for (int t = 0; t < kBlockTokens; t += 4) {
      hn::Vec<Four> v[4];
      for (int i = 0; i < 4; ++i) v[i] = hn::LoadU(d, of_pattern + ids[t + i] * kRows);
      Transpose(v);
      for (int row = 0; row < kRows; ++row) hn::StoreU(v[row], d, scores + row * kBlockTokens + t);
    }
    return;
  }
#endif
  for (int row = 0; row < count; ++row) {
    for (int t = 0; t < kBlockTokens; ++t) {
      scores[row * kBlockTokens + t] = of_pattern[ids[t] * kRows + row];
    }
  }
}

// sums[token mod 4][ids[token]][row] += weights[row][token], for count <= 4 rows.
void Scatter(const uint8_t* ids, const float* weights, int count, int num_ids, float* sums) {
#if HWY_TARGET != HWY_SCALAR
  if (count == kRows) {
    const Four d;
    for (int t = 0; t < kBlockTokens; t += 4) {
      hn::Vec<Four> v[4];
      for (int row = 0; row < kRows; ++row) v[row] = hn::LoadU(d, weights + row * kBlockTokens + t);
      Transpose(v);
      for (int i = 0; i < 4; ++i) {
        float* sum = sums + (i * num_ids + ids[t + i]) * kRows;
        hn::StoreU(hn::Add(hn::LoadU(d, sum), v[i]), d, sum);
      }
    }
    return;
  }
#endif
  for (int row = 0; row < count; ++row) {
    for (int t = 0; t < kBlockTokens; ++t) {
      sums[(t % kCopies * num_ids + ids[t]) * kRows + row] += weights[row * kBlockTokens + t];
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace pkv
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pkv {
namespace {

constexpr int kRows = 4;
constexpr int kCopies = 4;

HWY_EXPORT(LookUp);
HWY_EXPORT(Scatter);

}  // namespace

void PatternTerms::UseBank(const Codebook* codebook, int kv_head, const float* q) {
  num_k_ = codebook == nullptr ? 0 : codebook->num_k();
  num_v_ = codebook == nullptr ? 0 : codebook->num_v();
  if (codebook == nullptr) return;
  const auto k = codebook->k(kv_head), v = codebook->v(kv_head);
  std::vector<float> k_patterns(k.size()), scores(num_k_);
  ConvertToFloat(k.data(), static_cast<int>(k.size()), k_patterns.data());
  v_patterns_.resize(v.size());
  ConvertToFloat(v.data(), static_cast<int>(v.size()), v_patterns_.data());
  const size_t num_blocks = (num_rows_ + kRows - 1) / kRows;
  k_scores_.assign(num_blocks * (num_k_ + 1) * kRows, 0.0f);
  v_weights_.assign(num_blocks * kCopies * (num_v_ + 1) * kRows, 0.0f);
  for (int row = 0; row < num_rows_; ++row) {
    DotRows(k_patterns.data(), num_k_, head_dim_, q + static_cast<size_t>(row) * head_dim_,
            scores.data());
    float* out = k_scores_.data() + static_cast<size_t>(row / kRows) * (num_k_ + 1) * kRows;
    for (int id = 0; id < num_k_; ++id) out[id * kRows + row % kRows] = scores[id];
  }
}

void PatternTerms::WriteScores(const uint8_t* ids, float* scores) const {
  uint8_t by_token[kBlockTokens];
  for (int t = 0; t < kBlockTokens; ++t) {
    by_token[t] = std::min(ids[RowPosition(t, kBlockTokens)], static_cast<uint8_t>(num_k_));
  }
  for (int row = 0; row < num_rows_; row += kRows) {
    HWY_DYNAMIC_DISPATCH(LookUp)
    (by_token, k_scores_.data() + static_cast<size_t>(row) * (num_k_ + 1),
     std::min(kRows, num_rows_ - row), scores + static_cast<size_t>(row) * kBlockTokens);
  }
}

void PatternTerms::AddWeights(const uint8_t* ids, const float* weights) {
  uint8_t by_token[kBlockTokens];
  for (int t = 0; t < kBlockTokens; ++t) {
    by_token[t] = std::min(ids[ColumnPosition(t, kBlockTokens)], static_cast<uint8_t>(num_v_));
  }
  for (int row = 0; row < num_rows_; row += kRows) {
    HWY_DYNAMIC_DISPATCH(Scatter)
    (by_token, weights + static_cast<size_t>(row) * kBlockTokens, std::min(kRows, num_rows_ - row),
     num_v_ + 1, v_weights_.data() + static_cast<size_t>(row) * kCopies * (num_v_ + 1));
  }
}

void PatternTerms::Rescale(int row, float factor) {
  if (num_v_ == 0) return;
  const int count = kCopies * (num_v_ + 1);
  float* weights = v_weights_.data() + static_cast<size_t>(row / kRows) * count * kRows;
  for (int i = 0; i < count; ++i) weights[i * kRows + row % kRows] *= factor;
}

void PatternTerms::Flush(float* out) {
  const int num_ids = num_v_ + 1;
  std::vector<float> sums(num_v_);
  for (int row = 0; row < num_rows_ && num_v_ > 0; ++row) {
    const float* weights = v_weights_.data() +
                           static_cast<size_t>(row / kRows) * kCopies * num_ids * kRows +
                           row % kRows;
    for (int id = 0; id < num_v_; ++id) {
      const auto copy = [&](int i) { return weights[(i * num_ids + id) * kRows]; };
      sums[id] = (copy(0) + copy(1)) + (copy(2) + copy(3));
    }
    AddWeightedRows(v_patterns_.data(), sums.data(), num_v_, head_dim_,
                    out + static_cast<size_t>(row) * head_dim_);
  }
  std::fill(v_weights_.begin(), v_weights_.end(), 0.0f);
}

}  // namespace pkv
#endif  // HWY_ONCE
