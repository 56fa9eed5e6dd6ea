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
    if (lane_ < memory_.num_warps) {
      const SliceEnds& ends = memory_.Ends(lane_);
      has_head = ends.has_head, has_tail = ends.has_tail;
      // The first part in the CTA of an item that goes on behind the slice.
      leads = has_tail && (lane_ == 0 || ends.tail.begin() >= memory_.Feed(lane_).begin);
    }
    const uint32_t heads = __ballot_sync(0xffffffffu, has_head);
    const uint32_t tails = __ballot_sync(0xffffffffu, has_tail);
    int task = 0;
    // The CTA begins in an item that its first slice ends.
    if ((heads & 1) != 0) MergeItem(0, 0, true, task);
    for (uint32_t left = __ballot_sync(0xffffffffu, leads); left != 0; left &= left - 1) {
      const int first = __ffs(left) - 1;
      // Behind the first, the item ends in the next slice with a head, or behind the last with a
      // tail.
      const uint32_t behind = heads & (0xfffffffeu << first);
      const int last = behind != 0 ? __ffs(behind) - 1 : 31 - __clz(tails);
      MergeItem(first, last, false, task);
    }
  }

 private:
  // The item's parts in this CTA are those of warps first .. last.
  __device__ void MergeItem(int first, int last, bool is_head, int& task) const {
    for (int head = 0; head < launch_.heads_per_kv; ++head, ++task) {
      if (task % memory_.num_warps == warp_) MergeHead(first, last, is_head, head);
    }
  }

  __device__ void MergeHead(int first, int last, bool is_head, int head) const {
    const ItemRange item = is_head ? memory_.Ends(first).head : memory_.Ends(first).tail;
    const PatternRows& patterns = item.patterns;
    const int mine = first + lane_;
    float* part = nullptr;
    if (mine <= last) {
      const bool ends_here = is_head || (lane_ > 0 && memory_.Ends(mine).has_head);
      part = (ends_here ? memory_.Head(mine) : memory_.Tail(mine)).memory;
    }
    HeadSum<C> total(head, lane_);
    total.AddParts(part, last - first + 1, patterns.num_v);
    total.AddPatterns(patterns, launch_.is_rotated);
    const WarpFeed& feed = memory_.Feed(first);
    // On the line of costs an item's units follow its gap.
    const int gaps = (item.at.items_before + 1) * C::kItemCost;
    const int first_cta = feed.slices.SliceOf(item.begin() + gaps) / feed.active_warps;
    const int last_cta = feed.slices.SliceOf(item.end() - 1 + gaps) / feed.active_warps;
    if (first_cta != last_cta && !SharedItems<C>{launch_, lane_}.Add(first_cta, last_cta, total)) {
      return;
    }
    total.Write(launch_, item.at.request * launch_.num_qo_heads +
                             item.at.kv_head * launch_.heads_per_kv + head);
  }

  const DecodeLaunch& launch_;
  const WarpMemory<C> memory_;
  const int warp_, lane_;
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_CTA_MERGE_CUH_
