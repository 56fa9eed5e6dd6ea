#ifndef PKV_KERNELS_ATTENTION_SOFTMAX_STATE_H_
#define PKV_KERNELS_ATTENTION_SOFTMAX_STATE_H_

#include <cstddef>
#include <vector>

namespace pkv {

// Online softmax of several queries: after any tokens, output = acc / sum and
// lse = max + log(sum). States of disjoint tokens merge into that of their union.
// Thread-compatible.
class SoftmaxState {
 public:
  SoftmaxState(int num_queries, int head_dim);

  // Takes the scores [count] of further tokens of query `i`, a multiple of 16; rescales what stands
  // and leaves the tokens' weights e^(score - max) in `scores`. The caller adds weight times value
  // to acc(i), and to any other sum linear in the weights after multiplying it by the returned
  // factor. A score of -infinity takes no part.
  float Update(int i, int count, float* scores);

  float* acc(int i) { return acc_.data() + static_cast<size_t>(i) * head_dim_; }
  void Merge(SoftmaxState& other);
  // Writes acc / sum, or zeros when no token took part; returns the log of the sum of exponentials.
  float Finish(int i, float* out) const;

 private:
  int head_dim_;
  std::vector<float> max_, sum_, acc_;
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_SOFTMAX_STATE_H_
