#ifndef PKV_KERNELS_CODEC_GROUP_QUANTIZER_H_
#define PKV_KERNELS_CODEC_GROUP_QUANTIZER_H_

// Loops of codec_math.h over rows on the CPU, with equal bits for every vector width.

#include <cstdint>
#include <span>

#include "kernels/codec/codec_math.h"
#include "pkv/kernels/codec_params.h"

namespace pkv {

struct Range {
  float min = 0;
  float max = 0;
};
// REQUIRES: count > 0.
Range RangeOf(const float* values, int count);

// Widens [min, max] of each column by one row.
void WidenRanges(const float* row, int count, float* min, float* max);

// codes[i] = QuantizeOne(values[i], scales[i], zeros[i]).
void QuantizeRow(const float* values, const float* scales, const float* zeros, int count, int bits,
                 uint8_t* codes);

// A group's values as fp32, and the bits of its codes.
struct GroupValues {
  const float* values;
  int count;  // positive
  int bits;
};

// BestClipRatio() of clip_ratio_math.h. REQUIRES: group.count <= kBlockTokens.
int BestClipRatio(const GroupValues& group, Range range, int num_ratios);
// Scale and zero point of the best of the first `num_ratios` shrink ratios; 1: from minimum and
// maximum.
GroupParams SearchParams(const GroupValues& group, int num_ratios);
// UnbiasedParams() of a group whose codes come from `searched`.
GroupParams CorrectGain(const GroupValues& group, GroupParams searched);

struct GroupChoice {
  GroupParams params;
  float squared_error = 0;  // of the decoded group; 0 when not asked for
};
// Scale and zero point of one V group under the clip rule. REQUIRES: count is a positive multiple
// of kErrorSums, and kBlockTokens at most.
GroupChoice ChooseGroup(const float* values, int count, int bits, Clip clip, bool with_error);

// ChooseGroup for a token's `head_dim` values in groups of `group_channels`; returns the sum of the
// errors in group order. `out` has head_dim / group_channels entries, or is null.
float ChooseGroups(const float* values, int head_dim, int group_channels, int bits, Clip clip,
                   bool with_error, GroupParams* out);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_GROUP_QUANTIZER_H_
