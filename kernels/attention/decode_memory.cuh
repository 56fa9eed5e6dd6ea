#ifndef PKV_KERNELS_ATTENTION_DECODE_MEMORY_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_MEMORY_CUH_

// What the warps of a CTA leave each other: shared memory by warp, and parts of items.

#include "kernels/attention/decode_merge.cuh"

namespace pkv {

// An item that a slice has a part of.
struct ItemRange {
  UnitCursor at;         // somewhere in it
  PatternRows patterns;  // of its bank

  __device__ int begin() const { return at.unit - at.unit_in_item; }
  __device__ int end() const { return begin() + at.item.total(); }
  // Of a rotated encoding: what slices leave of it is.
  __device__ bool IsRotated() const { return at.item.blocks > 0; }
};

// What a warp leaves to the merge: parts of items that are not in its slice as a whole. In shared
// memory behind the feed.
struct alignas(16) SliceEnds {
  int has_head = 0, has_tail = 0;
  ItemRange head;  // the item that the slice begins in and ends
  ItemRange tail;  // the item that goes on behind the slice
};

template <typename C>
struct WarpMemory {
  const DecodeLaunch& launch;
  std::byte* shared;  // aligned to a list of scores
  int num_warps;

  __device__ WarpMemory(const DecodeLaunch& launch_in, std::byte* memory)
      : launch(launch_in), shared(memory), num_warps(static_cast<int>(blockDim.x) / 32) {
    if constexpr (C::kHasCodes) {
      shared += (launch.table_bytes - 1) & -static_cast<int>(ptx::SharedAddress(memory));
    }
  }

  __device__ float* Table(int warp) const {
    return reinterpret_cast<float*>(shared + warp * launch.table_bytes);
  }
  __device__ std::byte* At(int warp) const {
    return shared + num_warps * launch.table_bytes + warp * launch.warp_bytes;
  }
  __device__ WarpFeed& Feed(int warp) const {
    return *reinterpret_cast<WarpFeed*>(At(warp) + C::kFeedAt);
  }
  __device__ SliceEnds& Ends(int warp) const {
    static_assert(sizeof(SliceEnds) <= C::kEndsBytes);
    return *reinterpret_cast<SliceEnds*>(At(warp) + C::kEndsAt);
  }
  // Of the item in SliceEnds::tail: the slots of codes are free by then.
  __device__ DecodePart<C> Tail(int warp) const {
    return {reinterpret_cast<float*>(At(warp) + C::kKSlotsAt)};
  }
  // Some V patterns of the item in SliceEnds::tail, in the memory of the first warp of its team
  // that has a part of it; there when RowsBarrier()'s first phase has ended.
  __device__ const uint16_t* Rows(int warp) const {
    return reinterpret_cast<const uint16_t*>(At(warp) + C::kRowsAt);
  }
  __device__ uint32_t RowsBarrier(int warp) const {
    return ptx::SharedAddress(At(warp)) + C::kRowsBarrierAt;
  }
  // Of the item in SliceEnds::head.
  __device__ DecodePart<C> Head(int warp) const {
    if constexpr (C::kHeadInShared) return {reinterpret_cast<float*>(At(warp) + C::kHeadAt)};
    return Scratch(warp, 0);
  }
  // Of an item that is in the slice as a whole.
  __device__ DecodePart<C> Whole(int warp) const { return Scratch(warp, 1); }

 private:
  __device__ DecodePart<C> Scratch(int warp, int place) const {
    const int64_t index = (int64_t{blockIdx.x} * C::kWarps + warp) * 2 + place;
    return {launch.warp_parts + index * C::kPartFloats};
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_MEMORY_CUH_
