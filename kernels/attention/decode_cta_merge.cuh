#ifndef PKV_KERNELS_ATTENTION_DECODE_CTA_MERGE_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_CTA_MERGE_CUH_

// After all warps' slices: the items that they share.

#include "kernels/attention/decode_memory.cuh"
#include "kernels/attention/decode_shared_items.cuh"

namespace pkv {

// Work is dealt out to warps by item and query head.
template <typename C>
class CtaMerge {
 public:
  __device__ CtaMerge(const DecodeLaunch& launch, std::byte* shared)
      : launch_(launch),
        memory_(launch, shared),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void Run() {
    bool has_head = false, has_tail = false, leads = false;
    const DecodeTeams teams = memory_.Feed(0).teams;
    const int team_warps = memory_.Feed(0).team_warps;
    if (lane_ < memory_.num_warps) {
      const SliceEnds& ends = memory_.Ends(lane_);
      has_head = ends.has_head, has_tail = ends.has_tail;
      // The first part in the team of an item that goes on behind the slice.
      leads = has_tail && memory_.Feed(lane_).Leads(ends.tail.begin());
    }
    const uint32_t heads = __ballot_sync(0xffffffffu, has_head);
    const uint32_t tails = __ballot_sync(0xffffffffu, has_tail);
    const uint32_t leaders = __ballot_sync(0xffffffffu, leads);
    int task = 0;
#pragma unroll 1
    for (int begin = 0; begin < teams.of_cta * team_warps; begin += team_warps) {
      const uint32_t team = ((1u << team_warps) - 1) << begin;
      uint32_t left = leaders & team;
      // The team may begin in an item that its first slice ends.
      bool is_head = (heads >> begin & 1) != 0;
#pragma unroll 1
      for (; is_head || left != 0; is_head = false) {
        const int first = is_head ? begin : __ffs(left) - 1;
        // Behind the first, an item ends in the next slice with a head, or behind the last with a
        // tail.
        const uint32_t behind = heads & team & (0xfffffffeu << first);
        const int last = is_head       ? first
                         : behind != 0 ? __ffs(behind) - 1
                                       : 31 - __clz(tails & team);
        if (!is_head) left &= left - 1;
        MergeItem(first, last, is_head, task);
      }
    }
  }

 private:
  // Query heads that one warp merges at once, when there is more to merge than warps: the latencies
  // of several are the same as those of one.
  static constexpr int kSeveral = 4;

  // The item's parts in this CTA are those of warps first .. last.
  __device__ void MergeItem(int first, int last, bool is_head, int& task) const {
    const bool several = memory_.Feed(first).merges_several;
    const int step = several ? kSeveral : 1;
#pragma unroll 1
    for (int head = 0; head < launch_.heads_per_kv; head += step, ++task) {
      if (task % memory_.num_warps != warp_) continue;
      if (several) {
        MergeHeads<kSeveral>(first, last, is_head, head);
      } else {
        MergeHeads<1>(first, last, is_head, head);
      }
    }
  }

  template <int kCount>
  __device__ void MergeHeads(int first, int last, bool is_head, int head) const {
    const ItemRange item = is_head ? memory_.Ends(first).head : memory_.Ends(first).tail;
    const PatternRows& patterns = item.patterns;
    const int mine = first + lane_;
    float* part = nullptr;
    if (mine <= last) {
      const bool ends_here = is_head || (lane_ > 0 && memory_.Ends(mine).has_head);
      part = (ends_here ? memory_.Head(mine) : memory_.Tail(mine)).memory;
    }
    HeadSums<C, kCount> total(head, lane_);
    total.AddParts(part, last - first + 1, patterns.num_v);
    const uint16_t* rows = nullptr;
    if (!is_head && min(patterns.num_v, C::kRowsInShared) > 0) {
      rows = memory_.Rows(first);
      ptx::WaitBarrier(memory_.RowsBarrier(first), 0);
    }
    total.AddPatterns(patterns, rows);
    if (C::kRotates && launch_.is_rotated && item.IsRotated()) total.Rotate();
    const WarpFeed& feed = memory_.Feed(first);
    // On the line of costs an item's units follow its gap.
    const int gaps = (item.at.items_before + 1) * C::kItemCost;
    const int first_team = feed.slices.SliceOf(item.begin() + gaps) / feed.team_warps;
    const int last_team = feed.slices.SliceOf(item.end() - 1 + gaps) / feed.team_warps;
    if (first_team != last_team) {
      const int lines = feed.teams.lines;
      const int team = static_cast<int>(blockIdx.x) * feed.teams.of_cta + first / feed.team_warps;
      const SharedItems<C> shared = {launch_, lane_, team % lines, lines, first_team, last_team};
      if (!shared.Add(team / lines, total)) return;
    }
    total.Write(launch_,
                item.at.request * launch_.num_qo_heads + item.at.kv_head * launch_.heads_per_kv);
  }

  const DecodeLaunch& launch_;
  const WarpMemory<C> memory_;
  const int warp_, lane_;
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_CTA_MERGE_CUH_
