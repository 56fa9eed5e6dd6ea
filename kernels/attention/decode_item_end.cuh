#ifndef PKV_KERNELS_ATTENTION_DECODE_ITEM_END_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_ITEM_END_CUH_

// What a warp does with its sums when it is through with its part of an item.

#include "kernels/attention/decode_memory.cuh"

namespace pkv {

template <typename C>
struct ItemEnd {
  const DecodeLaunch& launch;
  const WarpMemory<C>& memory;
  int warp, lane;

  // Writes the output of the item at `at`, or leaves the slice's part of it to the merge.
  __device__ ItemRange Write(const UnitCursor& at, WarpState<C>& state) const {
    const ItemRange item = {at, PatternsOf<C>(launch, at)};
    const WarpFeed& feed = memory.Feed(warp);
    const bool begins = item.begin() >= feed.begin, ends = item.end() <= feed.end;
    const DecodePart<C> part = !ends    ? memory.Tail(warp)
                               : begins ? memory.Whole(warp)
                                        : memory.Head(warp);
    part.Write(state);
    if constexpr (C::kHasCodes) AddManyPatterns(item.patterns, part);
    SliceEnds& mine = memory.Ends(warp);
    if (lane == 0 && !ends) mine.tail = item, mine.has_tail = 1;
    if (lane == 0 && ends && !begins) mine.head = item, mine.has_head = 1;
    if (begins && ends) {
      WriteWhole(item, part);
    } else if (C::kRowsInShared > 0 && !ends && feed.Leads(item.begin())) {
      CopyRows(item.patterns);
    } else {
      PrefetchRows(item.patterns.v, item.patterns.num_v);
    }
    return item;
  }

 private:
  // For the merge.
  __device__ void PrefetchRows(const uint16_t* rows, int count) const {
    for (int at = lane * 128; at < count * C::kRowBytes; at += 32 * 128) {
      asm volatile("prefetch.global.L1 [%0];" ::"l"(reinterpret_cast<const std::byte*>(rows) + at));
    }
  }

  // V patterns to where codes were.
  __device__ void CopyRows(const PatternRows& patterns) const {
    const int rows = min(patterns.num_v, C::kRowsInShared);
    if (rows == 0) return;
    ptx::FenceSharedForCopies();
    __syncwarp();
    if (lane != 0) return;
    const uint32_t barrier = memory.RowsBarrier(warp);
    Ring<C>::ExpectCopies(barrier, rows * C::kRowBytes);
    ptx::CopyBulk(ptx::SharedAddress(memory.Rows(warp)), patterns.v, rows * C::kRowBytes, barrier);
  }

  __device__ void WriteWhole(const ItemRange& item, const DecodePart<C>& part) const {
    const int64_t first =
        int64_t{item.at.request} * launch.num_qo_heads + item.at.kv_head * launch.heads_per_kv;
#pragma unroll 1
    for (int head = 0; head < launch.heads_per_kv; ++head) {
      HeadSums<C, 1> total(head, lane);
      total.AddParts(part.memory, 1, item.patterns.num_v);
      total.AddPatterns(item.patterns, nullptr);
      if (C::kRotates && launch.is_rotated && item.IsRotated()) total.Rotate();
      total.Write(launch, first);
    }
    __syncwarp();
  }

  // V patterns whose weights are not in registers: into the part's output.
  __device__ void AddManyPatterns(const PatternRows& patterns, const DecodePart<C>& part) const {
    if (patterns.num_v <= C::kRegisterPatterns) return;
    using Sums = HeadSums<C, 1>;
    constexpr int kChannels = Sums::kChannels;
    const auto* many = reinterpret_cast<const float*>(memory.At(warp) + C::kWarpBytes);
    __syncwarp();
#pragma unroll 1
    for (int head = 0; head < launch.heads_per_kv; ++head) {
      const Sums sum(head, lane);
      float x[kChannels] = {};
#pragma unroll 4
      for (int id = C::kRegisterPatterns; id < patterns.num_v; ++id) {
        Sums::AddRow(sum.LoadRow(patterns.v + int64_t{id} * C::kHeadDim),
                     many[(id - C::kRegisterPatterns) * C::kHeads + head], x);
      }
#pragma unroll
      for (int i = 0; i < kChannels; ++i) part.out(head)[lane * kChannels + i] += x[i];
    }
    __syncwarp();
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_ITEM_END_CUH_
