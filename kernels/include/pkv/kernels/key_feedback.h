#ifndef PKV_KERNELS_KEY_FEEDBACK_H_
#define PKV_KERNELS_KEY_FEEDBACK_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace pkv {

// Channels that are coded side by side: none hears of the others' errors.
inline constexpr int kFeedbackRun = 8;

// How the rounding errors of the K channels of one layer make up for one another, so that what
// queries see of them is small: error feedback as in GPTQ (arXiv:2210.17323), with the second
// moment of the queries in place of that of a layer's input, and in place of a weight's columns
// runs of kFeedbackRun channels.
//
// Runs are coded one after another. Step i codes channel order[i], less the errors e of the runs
// before it times their weights: target = x - sum over j of scales[i] weights[i][j] e[j]. For an
// error e of all channels, in step order, e^T H e = sum over runs R of d_R^T S_R d_R, d = coded -
// target and S_R the run's Schur complement in H, but for what rounding weights to bytes and errors
// to units of their group (kernels/README.md, "Error feedback") does to it: each run's own rounding
// is all that is left. Readers know nothing of it.
struct KeyFeedback {
  int head_dim = 0;
  std::vector<uint8_t> order;  // [kv_head][step]: a permutation of the channels
  // [kv_head][step][earlier step], head_dim a row, -127..127; 0 from the step's own run on
  std::vector<int8_t> weights;
  std::vector<float> scales;  // [kv_head][step], 0 or 2^-60..2^60

  std::span<const uint8_t> order_of(int kv_head) const {
    return std::span(order).subspan(size_t(kv_head) * head_dim, head_dim);
  }
  std::span<const int8_t> weights_of(int kv_head) const {
    const size_t size = size_t(head_dim) * head_dim;
    return std::span(weights).subspan(kv_head * size, size);
  }
  std::span<const float> scales_of(int kv_head) const {
    return std::span(scales).subspan(size_t(kv_head) * head_dim, head_dim);
  }
};

// From H = mean of q q^T over the query vectors of each kv head, after RoPE and, for a rotated
// encoding, rotation: [kv_head][head_dim][head_dim]. `damping` times the mean of H's diagonal is
// added to the diagonal. Loudest channel first. A head whose H is zero, not finite or
// not positive definite with that gets no feedback: natural order, all weights and scales 0.
// REQUIRES: damping > 0.
KeyFeedback MakeKeyFeedback(std::span<const float> moments, int head_dim, double damping);

// H of rotated queries from H of the queries: R H R. moments: [count][head_dim][head_dim], in
// place.
void RotateMoments(std::span<float> moments, int head_dim);

}  // namespace pkv

#endif  // PKV_KERNELS_KEY_FEEDBACK_H_
