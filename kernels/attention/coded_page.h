#ifndef PKV_KERNELS_ATTENTION_CODED_PAGE_H_
#define PKV_KERNELS_ATTENTION_CODED_PAGE_H_

#include <vector>

#include "kernels/attention/code_matrix_simd.h"
#include "kernels/codec/head_frame.h"

namespace pkv {

// Codes and zero points of one kv head's coded pages against the query rows, in integers
// (code_matrix_simd.h); patterns are the caller's. Keeps the queries in byte order from page to
// page. Thread-compatible.
class CodedPage {
 public:
  // q: [num_rows][head_dim], read by AddScores().
  CodedPage(const float* q, int num_rows, int head_dim);

  // Call it when q holds something else.
  void QueriesChanged() { coarse_.order = fine_.order = nullptr; }

  // scores[row][128] += q . zero + (q * scale) . codes.
  void AddScores(const HeadFrame<const std::byte>& frame, const PayloadLayout& layout,
                 float* scores);
  // out[row][head_dim] += sum over tokens of weight * zero + (weight * scale) * code.
  void AddValues(const HeadFrame<const std::byte>& frame, const PayloadLayout& layout,
                 const float* weights, float* out);

 private:
  struct PlacedQueries {
    const ByteOrder* order = nullptr;
    std::vector<float> values;  // [row][head_dim] in byte order
  };
  const float* Place(const ByteOrder& order, PlacedQueries& queries) const;
  void AddFineScores(const HeadFrame<const std::byte>& frame, int group, float* scores);

  const float* const q_;
  const int num_rows_, head_dim_;
  PlacedQueries coarse_, fine_;
  // Scratch of one group.
  std::vector<float> placed_weights_;  // [row][128]
  float scales_[kBlockTokens], zeros_[kBlockTokens];
  CodeFactors factors_;
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_CODED_PAGE_H_
