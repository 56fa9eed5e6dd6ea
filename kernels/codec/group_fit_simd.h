#ifndef PKV_KERNELS_CODEC_GROUP_FIT_SIMD_H_
#define PKV_KERNELS_CODEC_GROUP_FIT_SIMD_H_

// The loops of group_quantizer.h and key_encoder.cc for every instruction set, built once each with
// Highway: the same operations on every element, in the same order of every sum of floats, so equal
// bits.

#include <cstdint>

#include "kernels/codec/codec_math.h"

namespace pkv {

// How a group is fitted and what of it is wanted.
struct GroupRule {
  int bits = 2;
  int num_ratios = 1;       // shrink ratios tried, kNumShrinkRatios at most
  bool unbiased = false;    // correct the gain
  bool with_error = false;  // the squared error is wanted
};

struct GroupFit {
  GroupParams searched;  // what codes come from
  GroupParams stored;
  float squared_error = 0;
};

// SearchParams() or ChooseGroup(), CorrectGain() and the codes of a group, whose values must be
// readable, and whose codes writable, up to the next multiple of 16 and 128 at most; what stands
// there does not matter. codes null: not wanted.
GroupFit FitGroup(const float* values, int count, const GroupRule& rule, uint8_t* codes);

// ChooseGroups() of group_quantizer.h without its groups: the error of a row under `rule`.
float RowError(const float* values, int head_dim, int group_channels, const GroupRule& rule);

// codes[i] = QuantizeOne(values[i], step, low, 15), for 16 values.
void QuantizeFine(const float* values, FineGrid grid, uint8_t* codes);

// What codes decode to, less the originals: DequantizeOne(codes[i], scale, zero) - originals[i].
// Codes, originals and errors are touched up to the next multiple of 16.
void DecodedErrors(const uint8_t* codes, const float* originals, int count, float scale, float zero,
                   float* errors);

// The counted errors of one slot in two steps, of the even one in the low half.
using ErrorPair = int32_t;

// Puts CountedError() of 128 errors of step `step` into `counted`, [step / 2][128].
void CountErrors(const float* errors, float inverse_unit, int step, ErrorPair* counted);

// FeedbackTarget() in 128 places, from the first `num_earlier` steps, an even number, of `counted`.
void SubtractFeedback(const float* x, const int8_t* weights, const ErrorPair* counted,
                      int num_earlier, float factor, float* target);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_GROUP_FIT_SIMD_H_
