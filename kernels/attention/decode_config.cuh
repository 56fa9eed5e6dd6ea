#ifndef PKV_KERNELS_ATTENTION_DECODE_CONFIG_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_CONFIG_CUH_

// Constants of one instance of the decode attention kernel, and how its shared memory is laid out.

#include <cstdint>

#include "kernels/attention/decode_attention_kernels.h"
#include "pkv/block/kv_shape.h"

namespace pkv {

// kWide: lane 4 g + q holds the scores of query heads 2 q and 2 q + 1, and column h of an mma is
// head h. Not wide (up to 4 query heads): head q alone, and columns 2 h and 2 h + 1 are head h.
template <int kBitsValue, int kHeadDimValue, bool kWideValue, bool kFineValue, bool kGroupedValue,
          bool kRotatesValue>
struct DecodeConfig {
  static constexpr int kBits = kBitsValue, kHeadDim = kHeadDimValue;
  static constexpr bool kWide = kWideValue, kFine = kFineValue, kGrouped = kGroupedValue;
  // Takes rotated encodings: code that an instance does not need is in the way of what it does.
  static constexpr bool kRotates = kRotatesValue;
  static constexpr bool kHasCodes = kBits != 16;

  // One CTA an SM, of as many warps as there are registers and shared memory for.
  static constexpr bool kNarrow = !kWide && !kGrouped;
  static constexpr int kWarps = !kHasCodes ? 6 : kNarrow && kBits == 2 ? 12 : 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kHeads = kWide ? 8 : 4;      // query heads there is room for
  static constexpr int kLaneHeads = kWide ? 2 : 1;  // query heads a lane scores
  // Vectors meet codes as 16-bit integers in two bytes. Wide: column h of set 0 is the high byte of
  // head h, of set 1 its low one. Not wide: columns 2 h and 2 h + 1 of one set.
  static constexpr int kSets = kWide ? 2 : 1;
  static constexpr int kSteps = kHeadDim / 16;      // mma steps over channels; also channel tiles
  static constexpr int kTiles = kBlockTokens / 16;  // mma steps over tokens; also token tiles
  static constexpr int kFineTiles = kFine ? 1 : 0;

  // Units go through slots of shared memory, every warp with its own. A K slot holds the K codes
  // (or rows) of a unit, a V slot its V codes (or rows). A block's scales, zero points and ids
  // stand apart, for two units, so that a K slot is free as soon as its codes are scored.
  static constexpr int kTileTokens = kBits == 2 ? 16 : 32;  // rows of a dense unit
  static constexpr int kRowBytes = 2 * kHeadDim;
  static constexpr int kRowStride = kRowBytes + 16;  // rows start in different banks
  static constexpr int kCodeBytes = kHasCodes ? kBlockTokens * kHeadDim * kBits / 8 : 0;
  static constexpr int kFineAt = kCodeBytes / 8 * 7;
  static constexpr int kKCodeBytes = kFine ? kFineAt + kFineTokens * kHeadDim / 2 : kCodeBytes;
  static constexpr int kDenseBytes = kTileTokens * kRowStride;
  static constexpr int Aligned(int at, int to = 16) { return (at + to - 1) / to * to; }
  static constexpr int Larger(int a, int b) { return a > b ? a : b; }
  static constexpr int Smaller(int a, int b) { return a < b ? a : b; }
  static constexpr int kMaxGroups = kGrouped ? 4 : 1;
  static constexpr int kMaxVGroups = kGrouped ? kHeadDim / 32 : 1;
  static constexpr int kParamBytes =
      kHasCodes ? kMaxGroups * 4 * kHeadDim + kMaxVGroups * 4 * kBlockTokens + 2 * kBlockTokens : 0;
  static constexpr int kKSlotBytes = Larger(kKCodeBytes, kDenseBytes);
  static constexpr int kVSlotBytes = Larger(kCodeBytes, kDenseBytes);
  static constexpr int kSlots = kHasCodes ? 1 : 2;  // of K and of V

  // A warp's shared memory; before that of all warps stand their lists of K patterns' scores, and
  // behind each warp's, with more ids than kRegisterPatterns, the weights of later V patterns: fp32
  // [id][head].
  static constexpr int kKSlotsAt = 0;
  static constexpr int kVSlotsAt = kKSlotsAt + kSlots * kKSlotBytes;
  static constexpr int kParamsAt = kVSlotsAt + kSlots * kVSlotBytes;
  static constexpr int kFeedAt = kParamsAt + 2 * kParamBytes;  // WarpFeed
  static constexpr int kFeedBytes = 224;
  static constexpr int kBarriersAt = kFeedAt + kFeedBytes;
  static constexpr int kRowsBarrierAt = kBarriersAt + 2 * 8 * kSlots;
  static constexpr int kEndsAt = Aligned(kRowsBarrierAt + 8);  // SliceEnds
  static constexpr int kEndsBytes = 192;
  // A query head a row: fp16 words of lane q = 0, 1, .., each in the order of B operands
  // (OperandPlace).
  static constexpr int kQueriesAt = kEndsAt + kEndsBytes;
  static constexpr int kQueryStride = kHeadDim + 8;                       // elements
  static constexpr int kHeadAt = kQueriesAt + kHeads * kQueryStride * 2;  // WarpMemory::Head
  static constexpr int kIdBytes = kHasCodes ? 4 * kHeads : 0;
  // V patterns whose weights are summed in registers.
  static constexpr int kRegisterPatterns = kBits == 2 && kNarrow ? 32 : 64;

  // A warp's part of an item (DecodePart), in fp32: the reference and the sum of every head, the
  // output [head][kOutStride], the weights of V patterns [id][head].
  static constexpr int kOutStride = kHeadDim + 4;
  static constexpr int kPartOutAt = 2 * kHeads;
  static constexpr int kPartHistogramAt = kPartOutAt + kHeads * kOutStride;
  static constexpr int kPartFloats =
      kPartHistogramAt + (kHasCodes ? kRegisterPatterns * kHeads : 0);
  // The one of a slice's first item has shared memory of its own where there is enough.
  static constexpr bool kHeadInShared = kHasCodes && kNarrow;
  static_assert(kHeadAt % 16 == 0);
  // A bulk copy to shared memory that does not begin at a multiple of 128 bytes takes longer: 9 %
  // of a launch of 4 bits (PERFORMANCE.md).
  static constexpr int kCopyAlignment = 128;
  static constexpr int kWarpBytes =
      Aligned(kHeadAt + (kHeadInShared ? 4 * kPartFloats : 0), kCopyAlignment);
  static_assert(kVSlotsAt % kCopyAlignment == 0 && kParamsAt % kCopyAlignment == 0 &&
                kKSlotBytes % kCopyAlignment == 0 && kVSlotBytes % kCopyAlignment == 0 &&
                kParamBytes % kCopyAlignment == 0);
  // The last one of a slice is left where its codes were, and behind it the item's V patterns.
  static_assert(4 * kPartFloats <= kSlots * (kKSlotBytes + kVSlotBytes));
  static constexpr int kRowsAt = (4 * kPartFloats + 127) / 128 * 128;
  static constexpr int kRowsInShared =
      kHasCodes ? Smaller(kRegisterPatterns, (kFeedAt - kRowsAt) / kRowBytes / 32 * 32) : 0;

  // What an item costs a warp besides its units, in units (PERFORMANCE.md).
  static constexpr int kItemCost = 1;

  // By how much the units of a step's halves differ, as exponents of fp16 stand in its bits
  // (SplitConstants).
  static constexpr uint32_t kHalf1Shift = kBits == 2 ? 2u << 10 : 0;
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_CONFIG_CUH_
