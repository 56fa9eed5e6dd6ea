#ifndef PKV_KERNELS_ATTENTION_DECODE_CONFIG_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_CONFIG_CUH_

// Constants of one instance of the decode attention kernel, and how its shared memory is laid out.

#include <cstdint>

#include "kernels/attention/decode_attention_kernels.h"
#include "pkv/block/kv_shape.h"

namespace pkv {

// kWide: lane 4 g + q holds the scores of query heads 2 q and 2 q + 1, and column h of an mma is
// head h. Not wide (up to 4 query heads): head q alone, and columns 2 h and 2 h + 1 are head h.
template <int kBitsValue, int kHeadDimValue, bool kWideValue, bool kFineValue, bool kGroupedValue>
struct DecodeConfig {
  static constexpr int kBits = kBitsValue, kHeadDim = kHeadDimValue;
  static constexpr bool kWide = kWideValue, kFine = kFineValue, kGrouped = kGroupedValue;
  static constexpr bool kHasCodes = kBits != 16;

  static constexpr int kWarps = kHasCodes ? 4 : 3;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kHeads = kWide ? 8 : 4;      // query heads there is room for
  static constexpr int kLaneHeads = kWide ? 2 : 1;  // query heads a lane scores
  static constexpr int kSteps = kHeadDim / 16;      // mma steps over channels; also channel tiles
  static constexpr int kTiles = kBlockTokens / 16;  // mma steps over tokens; also token tiles
  static constexpr int kFineTiles = kFine ? 1 : 0;

  // Units go through a ring of slots of shared memory, one ring a warp. A K slot holds the K codes
  // (or rows) of a unit and its scales, zero points and ids; a V slot its V codes (or rows).
  static constexpr int kTileTokens = kBits == 2 ? 16 : 32;  // rows of a dense unit
  static constexpr int kRowBytes = 2 * kHeadDim;
  static constexpr int kRowStride = kRowBytes + 16;  // rows start in different banks
  static constexpr int kCodeBytes = kHasCodes ? kBlockTokens * kHeadDim * kBits / 8 : 0;
  static constexpr int kFineAt = kCodeBytes / 8 * 7;
  static constexpr int kKCodeBytes = kFine ? kFineAt + kFineTokens * kHeadDim / 2 : kCodeBytes;
  static constexpr int kDenseBytes = kTileTokens * kRowStride;
  static constexpr int Aligned(int at) { return (at + 15) / 16 * 16; }
  static constexpr int Larger(int a, int b) { return a > b ? a : b; }
  static constexpr int kParamsAt = Larger(kKCodeBytes, kDenseBytes);
  static constexpr int kMaxGroups = kGrouped ? 4 : 1;
  static constexpr int kMaxVGroups = kGrouped ? kHeadDim / 32 : 1;
  static constexpr int kParamBytes =
      kHasCodes ? kMaxGroups * 4 * kHeadDim + kMaxVGroups * 4 * kBlockTokens + 2 * kBlockTokens : 0;
  static constexpr int kKSlotBytes = kParamsAt + kParamBytes;
  static constexpr int kVSlotBytes = Larger(kCodeBytes, kDenseBytes);
  static constexpr int kKSlots = kHasCodes ? 1 : 2;
  static constexpr int kVSlots = kKSlots;

  // A CTA's shared memory.
  static constexpr int kRingBytes = kKSlots * kKSlotBytes + kVSlots * kVSlotBytes;
  static constexpr int kRingsAt = 0;
  static constexpr int kBarriersAt = kRingsAt + kWarps * kRingBytes;
  static constexpr int kQueriesAt = Aligned(kBarriersAt + kWarps * 8 * (kKSlots + kVSlots));
  // A query head a row: fp16 words of lane q = 0, 1, .., each in the order of B operands
  // (OperandPlace). Not wide: one row of zeros more.
  static constexpr int kQueryStride = kHeadDim + 8;  // elements
  static constexpr int kQueryRows = kWide ? kHeads : kHeads + 1;
  static constexpr int kQueryScalesAt = kQueriesAt + kQueryRows * kQueryStride * 2;
  static constexpr int kPatternScoresAt = Aligned(kQueryScalesAt + 4 * kHeads);  // fp32 [id][head]
  static constexpr int kNumIds = 256;
  // V patterns whose weights are summed in registers; those of later ones in shared memory, a list
  // a warp, behind kSharedBytes and only when the bank may hold so many.
  static constexpr int kRegisterPatterns = 64;
  static constexpr int kManyBytes = (kNumIds - kRegisterPatterns) * kHeads * 4;
  static constexpr int kOutAt = kPatternScoresAt + (kHasCodes ? kNumIds * kHeads * 4 : 0);
  static constexpr int kOutStride = kHeadDim + 8;                        // fp32 elements
  static constexpr int kHistogramAt = kOutAt + kHeads * kOutStride * 4;  // fp32 [id][head]
  static constexpr int kStatesAt = kHistogramAt + (kHasCodes ? kRegisterPatterns * kHeads * 4 : 0);
  static constexpr int kItemAt = kStatesAt + (kWarps + 2) * kHeads * 4;  // fp32 [head][kItemFloats]
  static constexpr int kItemFloats = kHeadDim + 4;  // maximum, sum, padding, then the output
  static constexpr int kFeedsAt = Aligned(kItemAt + kHeads * kItemFloats * 4);
  static constexpr int kFeedBytes = 224;
  static constexpr int kPlanAt = kFeedsAt + kWarps * kFeedBytes;
  static constexpr int kSharedBytes = Aligned(kPlanAt + 80);
  // What an item costs a CTA besides its units, in units, and the least that is worth a slice: both
  // measured (PERFORMANCE.md).
  static constexpr int kItemCost = kBits == 2 ? 12 : 16;
  static constexpr int kMinSliceCost = 2 * kWarps;
  static constexpr int kCtasWanted = kBits == 2 && !kWide && !kGrouped ? 3 : 2;
  static constexpr int kCtasThatFit = 228 * 1024 / (kSharedBytes + 1024);
  static constexpr int kCtasPerSm = kCtasThatFit < kCtasWanted ? kCtasThatFit : kCtasWanted;
  static_assert(kCtasPerSm > 0);

  // Codes enter mma as fp16 subnormals, c 2^w times 2^-24, with w the first bit of the code in its
  // masked word. The other operand carries 2^(kTopBit - w), so every product is 2^(kTopBit - 24)
  // times its value.
  static constexpr int kTopBit = kBits == 2 ? 8 : 4;
  static constexpr float kCodeUnit = kBits == 2 ? 0x1p-16f : 0x1p-20f;

  // w at (step, half); fp16 bits of a power of two; twice those of 2^(kTopBit - w).
  static constexpr int FirstBit(int step, int half) {
    if (kBits != 2) return 4 * half;
    const int pair = 2 * (step % 4) + half;
    return pair < 5 ? 2 * pair : 2 * pair - 6;
  }
  static constexpr uint32_t PowerOfTwo(int exponent) {
    return static_cast<uint32_t>(15 + exponent) << 10;
  }
  static constexpr uint32_t Weight(int step, int half) {
    return PowerOfTwo(kTopBit - FirstBit(step, half)) * 0x10001u;
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_CONFIG_CUH_
