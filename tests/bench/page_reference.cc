#include "tests/bench/page_reference.h"

#include <algorithm>
#include <cmath>

#include "pkv/kernels/block_codec.h"
#include "proto/base/float16.h"
#include "tests/support/rotation_reference.h"

namespace pkv {

void WeightedSum::Merge(const WeightedSum& other) {
  if (other.sum == 0) return;
  const double largest = std::max(max, other.max);
  const double ours = sum == 0 ? 0 : std::exp(max - largest);
  const double theirs = std::exp(other.max - largest);
  out.resize(other.out.size());
  for (size_t j = 0; j < out.size(); ++j) out[j] = out[j] * ours + other.out[j] * theirs;
  sum = sum * ours + other.sum * theirs;
  max = largest;
}

PageReference::PageReference(const EncodedSample& sample, int kv_head, std::span<const double> q,
                             int heads, double sm_scale, ThreadPool* pool)
    : kv_head_(kv_head),
      heads_(heads),
      head_dim_(sample.page.head_dim),
      sm_scale_(sm_scale),
      rotated_(sample.params.encoding.rotated),
      q_(q.begin(), q.end()),
      stored_q_(q_),
      first_(sample.first.size()),
      rest_(sample.rest.size()) {
  for (int g = 0; rotated_ && g < heads; ++g) {
    RotateReference(std::span(stored_q_).subspan(size_t(g) * head_dim_, head_dim_));
  }
  const int num_first = static_cast<int>(first_.size());
  ParallelFor(pool, num_first + static_cast<int>(rest_.size()), [&](int i) {
    if (i < num_first) {
      first_[i] = AttendBlock(sample.first[i]);
    } else {
      rest_[i - num_first] = AttendBlock(sample.rest[i - num_first]);
    }
  });
}

void PageReference::Add(std::span<const double> q, const double* k, const double* v,
                        WeightedSum& to) const {
  double score = 0;
  for (int j = 0; j < head_dim_; ++j) score += q[j] * k[j];
  to.Merge({score * sm_scale_, 1, std::vector<double>(v, v + head_dim_)});
}

PageReference::HeadSums PageReference::AttendBlock(const EncodedBlock& block) const {
  const size_t size = size_t{kBlockTokens} * head_dim_;
  std::vector<float> tile(size);
  DequantizeKTile(block.header, block.frame.span(), block.codebook, kv_head_, tile.data());
  const std::vector<double> k(tile.begin(), tile.end());
  DequantizeVTile(block.header, block.frame.span(), block.codebook, kv_head_, tile.data());
  const std::vector<double> v(tile.begin(), tile.end());
  HeadSums sums(heads_);
  for (int g = 0; g < heads_; ++g) {
    const auto q = std::span<const double>(stored_q_).subspan(size_t(g) * head_dim_, head_dim_);
    for (size_t at = 0; at < size; at += head_dim_) Add(q, &k[at], &v[at], sums[g]);
  }
  return sums;
}

std::vector<double> PageReference::Attend(int first_block, std::span<const int> rest,
                                          std::span<const uint16_t> window_k,
                                          std::span<const uint16_t> window_v) const {
  const auto widen = [](std::span<const uint16_t> rows) {
    std::vector<double> values(rows.size());
    std::transform(rows.begin(), rows.end(), values.begin(), Float16ToFloat);
    return values;
  };
  const std::vector<double> k = widen(window_k), v = widen(window_v);
  std::vector<double> result;
  for (int g = 0; g < heads_; ++g) {
    WeightedSum sum;
    if (first_block >= 0) sum.Merge(first_[first_block][g]);
    for (const int block : rest) sum.Merge(rest_[block][g]);
    if (rotated_ && sum.sum > 0) RotateReference(sum.out);
    const auto q = std::span<const double>(q_).subspan(size_t(g) * head_dim_, head_dim_);
    for (size_t at = 0; at < k.size(); at += head_dim_) Add(q, &k[at], &v[at], sum);
    sum.out.resize(head_dim_);
    for (const double x : sum.out) result.push_back(sum.sum > 0 ? x / sum.sum : 0);
  }
  return result;
}

double RelativeError(std::span<const double> actual, std::span<const double> expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  return norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
}

}  // namespace pkv
