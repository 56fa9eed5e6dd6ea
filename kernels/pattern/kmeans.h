#ifndef PKV_KERNELS_PATTERN_KMEANS_H_
#define PKV_KERNELS_PATTERN_KMEANS_H_

#include <cstdint>
#include <vector>

#include "proto/base/float16.h"

namespace pkv {

// Lloyd's algorithm on the rows of one (kv head, K or V), one iteration a call so that the caller
// can stop all heads of a layer by one test. Thread-compatible.
class KMeans {
 public:
  // `rows` is [num_rows][head_dim] fp16 and must outlive this. Starts from the rows at index
  // floor(m num_rows / num_clusters). REQUIRES: 1 <= num_clusters <= min(255, num_rows).
  KMeans(const Float16Bits* rows, int num_rows, int head_dim, int num_clusters);

  // Assigns every row to its nearest centroid (ties to the lowest), then moves each centroid to the
  // mean of its rows, summed in row order in fp64; an empty cluster takes the row farthest from its
  // own centroid (several take the next farthest). Returns the largest move of a coordinate.
  double Iterate();

  // [num_clusters][head_dim].
  const std::vector<float>& centroids() const { return centroids_; }

 private:
  void Assign();
  void FillEmptyClusters(const std::vector<int>& empty, std::vector<float>& centroids) const;

  const Float16Bits* rows_;
  int num_rows_, head_dim_, num_clusters_;
  std::vector<float> centroids_;
  std::vector<uint8_t> ids_;     // [num_rows], of the last Assign()
  std::vector<double> sums_;     // [num_clusters][head_dim]
  std::vector<int64_t> counts_;  // [num_clusters]
};

}  // namespace pkv

#endif  // PKV_KERNELS_PATTERN_KMEANS_H_
