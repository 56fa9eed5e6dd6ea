#include "kernels/pattern/kmeans.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/codec/float16_rows.h"
#include "kernels/device/cpu_clones.h"
#include "kernels/pattern/nearest_pattern.h"

namespace pkv {
namespace {

// Rows converted to fp32 at a time: 32 KiB at head_dim 128, so that they stay in L1.
constexpr int kRowChunk = 64;

PKV_CPU_CLONES void AddRow(const float* row, int head_dim, double* sum) {
  for (int j = 0; j < head_dim; ++j) sum[j] = sum[j] + row[j];
}

}  // namespace

KMeans::KMeans(const Float16Bits* rows, int num_rows, int head_dim, int num_clusters)
    : rows_(rows),
      num_rows_(num_rows),
      head_dim_(head_dim),
      num_clusters_(num_clusters),
      centroids_(static_cast<size_t>(num_clusters) * head_dim),
      ids_(num_rows),
      sums_(centroids_.size()),
      counts_(num_clusters) {
  for (int64_t m = 0; m < num_clusters; ++m) {
    const int64_t row = m * num_rows / num_clusters;
    ConvertToFloat(rows + row * head_dim, head_dim, centroids_.data() + m * head_dim);
  }
}

void KMeans::Assign() {
  const PatternMatrix matrix(std::span<const float>(centroids_), head_dim_);
  std::vector<float> chunk(static_cast<size_t>(kRowChunk) * head_dim_);
  std::fill(sums_.begin(), sums_.end(), 0.0);
  std::fill(counts_.begin(), counts_.end(), 0);
  for (int first = 0; first < num_rows_; first += kRowChunk) {
    const int count = std::min(kRowChunk, num_rows_ - first);
    ConvertToFloat(rows_ + static_cast<int64_t>(first) * head_dim_, count * head_dim_,
                   chunk.data());
    NearestL2(matrix, chunk.data(), count, ids_.data() + first);
    for (int r = 0; r < count; ++r) {
      const int id = ids_[first + r];
      AddRow(chunk.data() + static_cast<size_t>(r) * head_dim_, head_dim_,
             sums_.data() + static_cast<size_t>(id) * head_dim_);
      ++counts_[id];
    }
  }
}

void KMeans::FillEmptyClusters(const std::vector<int>& empty, std::vector<float>& centroids) const {
  std::vector<double> distance(num_rows_);
  for (int r = 0; r < num_rows_; ++r) {
    const Float16Bits* row = rows_ + static_cast<int64_t>(r) * head_dim_;
    const float* centroid = centroids_.data() + static_cast<size_t>(ids_[r]) * head_dim_;
    for (int j = 0; j < head_dim_; ++j) {
      const double gap = static_cast<double>(Float16ToFloat(row[j])) - centroid[j];
      distance[r] += gap * gap;
    }
  }
  std::vector<int> order(num_rows_);
  std::iota(order.begin(), order.end(), 0);
  const auto farther = [&](int a, int b) {
    return distance[a] != distance[b] ? distance[a] > distance[b] : a < b;
  };
  std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(empty.size()), order.end(),
                    farther);
  for (size_t i = 0; i < empty.size(); ++i) {
    ConvertToFloat(rows_ + static_cast<int64_t>(order[i]) * head_dim_, head_dim_,
                   centroids.data() + static_cast<size_t>(empty[i]) * head_dim_);
  }
}

double KMeans::Iterate() {
  Assign();
  std::vector<float> moved(centroids_.size());
  std::vector<int> empty;
  for (int m = 0; m < num_clusters_; ++m) {
    if (counts_[m] == 0) {
      empty.push_back(m);
      continue;
    }
    for (int j = 0; j < head_dim_; ++j) {
      const size_t at = static_cast<size_t>(m) * head_dim_ + j;
      moved[at] = static_cast<float>(sums_[at] / static_cast<double>(counts_[m]));
    }
  }
  if (!empty.empty()) FillEmptyClusters(empty, moved);
  double largest_move = 0;
  for (size_t i = 0; i < moved.size(); ++i) {
    largest_move = std::max(largest_move, std::abs(static_cast<double>(moved[i]) - centroids_[i]));
  }
  centroids_ = std::move(moved);
  return largest_move;
}

}  // namespace pkv
