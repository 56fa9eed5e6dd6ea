#ifndef PKV_KERNELS_ATTENTION_PATTERN_TERMS_H_
#define PKV_KERNELS_ATTENTION_PATTERN_TERMS_H_

#include <cstdint>
#include <vector>

#include "pkv/kernels/codebook.h"

namespace pkv {

// What the patterns of a bank add to the scores and outputs of the query rows of one kv head
// (kernels/README.md, "Attend"). Rows are taken four at a time, so that a token's pattern id is
// looked up once for them. The order of every sum is fixed: equal bits for every vector width.
// Thread-compatible.
class PatternTerms {
 public:
  PatternTerms(int num_rows, int head_dim) : num_rows_(num_rows), head_dim_(head_dim) {}

  // Takes the bank of the pages to come; null: none. q: [num_rows][head_dim]. What waits is lost:
  // flush first.
  void UseBank(const Codebook* codebook, int kv_head, const float* q);

  // scores[row][128] = q . pattern, 0 where the id is 255. ids: as K's stand in a frame, row order.
  void WriteScores(const uint8_t* ids, float* scores) const;
  // Adds each token's weight [row][128] to that of its pattern. ids: as V's, column order.
  void AddWeights(const uint8_t* ids, const float* weights);
  // The row's weights so far, times `factor`.
  void Rescale(int row, float factor);
  // out[row][head_dim] += sum over patterns of weight * pattern; the weights are 0 then.
  void Flush(float* out);

 private:
  int num_rows_, head_dim_;
  int num_k_ = 0, num_v_ = 0;
  std::vector<float> v_patterns_;  // [num_v][head_dim]
  // Rows in blocks of four; the last id is that of no pattern.
  std::vector<float> k_scores_;   // [block][num_k + 1][4]
  std::vector<float> v_weights_;  // [block][token mod 4][num_v + 1][4]
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_PATTERN_TERMS_H_
