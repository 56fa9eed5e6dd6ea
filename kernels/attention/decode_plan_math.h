#ifndef PKV_KERNELS_ATTENTION_DECODE_PLAN_MATH_H_
#define PKV_KERNELS_ATTENTION_DECODE_PLAN_MATH_H_

// How one launch of decode attention is cut into slices, one a warp. Every warp does this
// arithmetic for itself from the lengths, so there is no planning pass and a captured graph follows
// them.
//
// The work is a line of units of about equal bytes: request after request, kv head after kv head,
// and for each of them (an "item") its blocks, its sinks' and its window's tiles of dense tokens.
// Every warp takes an equal run of it, within one unit. Neighbouring warps so share an item, which
// their CTA merges before other CTAs see it.
//
// With many items every kv head has a line of its own: a page's heads are then read at about one
// time, by neighbouring CTAs.

#include "proto/base/host_device.h"

namespace pkv {

// The units of one item, in this order.
struct DecodeItemUnits {
  int blocks = 0;  // codes: one a block; fp16: tiles
  int sinks = 0;
  int window = 0;

  PKV_HOST_DEVICE int total() const { return blocks + sinks + window; }
};

// What of DecodeAttentionShape decides how tokens make units.
struct DecodeUnitRule {
  int units_per_block = 1;
  int tile_shift = 4;  // log2 of a dense tile's tokens: a quotient would cost every warp
  int num_sinks = 0;
};

// `window_tokens` counts the new token.
PKV_HOST_DEVICE inline DecodeItemUnits CountDecodeUnits(const DecodeUnitRule& rule, int num_blocks,
                                                        int window_tokens) {
  const int shift = rule.tile_shift, up = (1 << shift) - 1;
  return {num_blocks * rule.units_per_block, num_blocks > 0 ? (rule.num_sinks + up) >> shift : 0,
          (window_tokens + up) >> shift};
}

// The warps of a CTA form teams, each with consecutive slices of one line. Team t of the launch
// (CTA c has teams c * of_cta and on) is the t / lines-th of line t % lines.
struct DecodeTeams {
  int lines = 1;  // one of all kv heads, or one of each
  int of_cta = 1;
  int of_line = 1;
};

// For a line of each kv head; for one of all where these could not have equally many teams.
PKV_HOST_DEVICE inline DecodeTeams TeamsOfKvHeads(int num_ctas, int num_kv_heads) {
  constexpr int kMostTeams = 4;  // of a CTA: more of them leave more parts to merge
  for (int of_cta = 1; of_cta <= kMostTeams; of_cta *= 2) {
    if (num_ctas * of_cta % num_kv_heads == 0) {
      return {num_kv_heads, of_cta, num_ctas * of_cta / num_kv_heads};
    }
  }
  return {1, 1, num_ctas};
}

// Where slices begin. Starting an item costs a warp what `item_cost` units do (query, pattern
// scores, merging), so slices are of equal cost: on the line of costs every item stands behind a
// gap of item_cost, and a slice has the units that lie in its part of that line.
//
// Units and costs are counted in 31 bits: 2^31 blocks are more than a device holds.
struct DecodeSlices {
  int count = 0;
  int share = 0, long_slices = 0;  // long_slices slices of cost share + 1, then the others of share

  PKV_HOST_DEVICE int CostBegin(int slice) const {
    return slice * share + (slice < long_slices ? slice : long_slices);
  }
  // The slice that holds the unit at `cost`. REQUIRES: 0 <= cost < CostBegin(count).
  PKV_HOST_DEVICE int SliceOf(int cost) const {
    const int in_long = long_slices * (share + 1);
    return cost < in_long ? cost / (share + 1) : long_slices + (cost - in_long) / share;
  }
};

// `num_slices` slices, or fewer of cost `min_cost` and more.
PKV_HOST_DEVICE inline DecodeSlices CutDecodeUnits(int total_cost, int num_slices, int min_cost) {
  DecodeSlices slices;
  if (total_cost == 0) return slices;
  const int most = total_cost < min_cost ? 1 : total_cost / min_cost;
  slices.count = most < num_slices ? most : num_slices;
  slices.share = total_cost / slices.count;
  slices.long_slices = total_cost - slices.share * slices.count;
  return slices;
}

// The first unit of an item of `units` units, whose gap begins at `item_at` on the line of costs,
// that stands at `cost` or behind; `units` when none does.
PKV_HOST_DEVICE inline int DecodeUnitAt(int cost, int item_at, int item_cost, int units) {
  const int unit = cost - item_at - item_cost;
  return unit < 0 ? 0 : unit < units ? unit : units;
}

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_PLAN_MATH_H_
