#ifndef PKV_KERNELS_CODEC_KEY_ENCODER_H_
#define PKV_KERNELS_CODEC_KEY_ENCODER_H_

#include <cstdint>
#include <vector>

#include "kernels/codec/codec_math.h"
#include "pkv/kernels/codec_params.h"
#include "pkv/kernels/key_feedback.h"

namespace pkv {

// The slots of a kv head that share K scales and zero points: first those with coarse codes, then
// those with fine ones.
struct KeyGroup {
  int num_coarse = 0;
  int num_fine = 0;
  int num_slots() const { return num_coarse + num_fine; }
};

// What one K group becomes.
struct KeyGroupCodes {
  std::vector<GroupParams> params;  // [head_dim], as stored
  std::vector<uint8_t> codes;       // [head_dim][slot]
};

// How many shrink ratios the clip search of K tries; 1: none but the whole range.
int NumKeyRatios(const CodecParams& params);

// Chooses scale, zero point and codes of one K group, channel by channel: in natural order, or with
// error feedback in that of `feedback` (kv head `kv_head`; null: none).
//   residuals   [head_dim][num_slots] fp32
// REQUIRES: num_coarse > 0.
KeyGroupCodes EncodeKeyGroup(const std::vector<float>& residuals, int head_dim, KeyGroup group,
                             const CodecParams& params, const KeyFeedback* feedback, int kv_head);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_KEY_ENCODER_H_
