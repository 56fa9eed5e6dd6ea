#ifndef PKV_KERNELS_ATTENTION_DECODE_KERNEL_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_KERNEL_CUH_

// Fused decode attention on tensor cores: one launch plans, reads every block, sink and window
// token once, and merges (kernels/PERFORMANCE.md).
//
// A CTA owns a slice of the line of units (decode_plan_math.h) and walks it item by item; its warps
// take units in turn, each with a ring of bulk copies of its own that runs ahead over items. No
// warp waits for another inside an item.

#include "kernels/attention/decode_block.cuh"
#include "kernels/attention/decode_merge.cuh"
#include "kernels/attention/decode_plan.cuh"
#include "kernels/attention/decode_query.cuh"
#include "kernels/attention/decode_rows.cuh"
#include "kernels/attention/decode_shared_items.cuh"
#include "kernels/attention/decode_values.cuh"

namespace pkv {

template <typename C>
class DecodeCta {
 public:
  __device__ DecodeCta(const DecodeLaunch& launch, std::byte* shared)
      : launch_(launch),
        shared_(shared),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void Run() {
    SlicePlanner<C>{launch_, shared_}.Plan();
    if (static_cast<int>(blockIdx.x) >= plan().slices.count || plan().first.unit >= plan().end) {
      return;
    }
    ClearConstants();
    StartFeed();
    unsigned n = 0;
    while (RunItem(n)) {
    }
  }

 private:
  __device__ const SlicePlan& plan() const {
    return *reinterpret_cast<const SlicePlan*>(shared_ + C::kPlanAt);
  }
  __device__ Ring<C> ring() const { return Ring<C>(launch_, shared_, warp_, lane_); }

  __device__ void StartFeed() {
    const Ring<C> mine = ring();
    UnitCursor at = FirstUnit();
    mine.Init();
    if (lane_ == 0) mine.feed->consumed = at;
    if (plan().end - at.unit <= warp_) {
      at.unit = plan().end;
    } else {
      if (warp_ > 0) at.Advance(launch_, warp_);
    }
    page_ = mine.Enter(at, plan().end);
    for (unsigned n = 0; n < C::kKSlots; ++n) {
      mine.IssueK(n, page_);
      if (n < C::kVSlots) mine.IssueV(n);
    }
  }

  // A slice that begins behind an item's last unit begins with the next item.
  __device__ UnitCursor FirstUnit() const {
    UnitCursor at = plan().first;
    if (at.unit < plan().end) at.Advance(launch_, 0);
    return at;
  }

  __device__ int FirstHead(const UnitCursor& at) const {
    return at.request * launch_.num_qo_heads + at.kv_head * launch_.heads_per_kv;
  }
  // All lines of `count` rows, by all threads.
  __device__ void PrefetchRows(const uint16_t* rows, int count) const {
    for (int at = static_cast<int>(threadIdx.x) * 128; at < count * C::kRowBytes;
         at += C::kThreads * 128) {
      asm volatile("prefetch.global.L1 [%0];" ::"l"(reinterpret_cast<const std::byte*>(rows) + at));
    }
  }

  // K patterns that ids of 255 stand for score 0; the query row of zeros.
  __device__ void ClearConstants() const {
    const int thread = static_cast<int>(threadIdx.x);
    if (C::kHasCodes && thread < C::kHeads) {
      reinterpret_cast<float*>(shared_ + C::kPatternScoresAt)[kRawPatternId * C::kHeads + thread] =
          0;
    }
    auto* zeros =
        reinterpret_cast<uint32_t*>(shared_ + C::kQueriesAt) + C::kHeads * C::kQueryStride / 2;
    if (!C::kWide && thread < C::kHeadDim / 2) zeros[thread] = 0;
  }

  // The part of an item that the slice holds; false behind the slice's last. n: units this warp has
  // used.
  __device__ bool RunItem(unsigned& n) {
    for (bool is_first = true; RunSegment(is_first, n); is_first = false) {
    }
    return FinishItem();
  }

  __device__ UnitCursor consumed() const { return ring().feed->consumed; }

  // Units of an item in the slice that meet the same query: rotated blocks and sinks a rotated one,
  // the window does not. [begin, end) on the line.
  struct Segment {
    int begin, end;
    bool is_rotated, is_last;
  };
  __device__ Segment SegmentOf(const UnitCursor& at, bool is_first) const {
    const int item_begin = at.unit - at.unit_in_item, item_end = item_begin + at.item.total();
    const int turn = launch_.is_rotated ? item_end - at.item.window : item_end;
    const int end = min(item_end, plan().end);
    if (is_first && at.unit < turn) {
      return {at.unit, min(end, turn), launch_.is_rotated, end <= turn};
    }
    return {max(at.unit, turn), end, false, true};
  }

  // False after the item's last segment.
  __device__ __forceinline__ bool RunSegment(bool is_first, unsigned& n) {
    WarpState<C> state(lane_);
    int left;
    {
      const UnitCursor at = consumed();
      const Segment segment = SegmentOf(at, is_first);
      const PatternRows patterns = PatternsOf<C>(launch_, at);
      PrefetchRows(patterns.k, patterns.num_k);
      const QueryMath<C> query = {launch_, shared_, warp_, lane_};
      for (int head = warp_; head < C::kHeads; head += C::kWarps) {
        query.Prepare(head, FirstHead(at) + head, segment.is_rotated);
      }
      __syncthreads();
      query.Load(state);
      query.ScorePatterns(state, patterns.k, patterns.num_k);
      state.num_v_patterns = patterns.num_v;
      state.many = ptx::SharedAddress(shared_ + C::kSharedBytes + warp_ * C::kManyBytes);
      state.Clear();
      const int before = C::kWarps - 1 - warp_ - plan().first.unit;
      left = (segment.end + before) / C::kWarps - (segment.begin + before) / C::kWarps;
      __syncthreads();
    }
    for (; left > 0; --left) {
      RunUnit(state, n);
      ++n;
    }
    const UnitCursor at = consumed();
    const Segment segment = SegmentOf(at, is_first);
    const PatternRows patterns = PatternsOf<C>(launch_, at);
    PrefetchRows(patterns.v, patterns.num_v);
    ItemMerge<C>{launch_, shared_, warp_, lane_}.AddSegment(state, segment.is_rotated, is_first,
                                                            patterns.v, patterns.num_v);
    return !segment.is_last;
  }

  __device__ __forceinline__ void RunUnit(WarpState<C>& state, unsigned n) {
    const Ring<C> ring = this->ring();
    const uint32_t k_slot = ring.k_slot(n), v_slot = ring.v_slot(n);
    const int rows = ring.feed->units[n % 2].rows;
    const bool is_block = C::kHasCodes && rows == 0;
    uint32_t b[C::kHasCodes ? 2 * C::kTiles : 2 * RowMath<C>::kTiles];
    WeightTile<C> weights[C::kTiles];
    BlockParams params(launch_, k_slot + C::kParamsAt);
    ring.WaitK(n);
    if (is_block) {
      if constexpr (C::kHasCodes) {
        params.num_masked = ring.feed->units[n % 2].is_first_block ? launch_.rule.num_sinks : 0;
        params.pattern_scores = ptx::SharedAddress(shared_ + C::kPatternScoresAt);
        typename WarpState<C>::TileScores scores[C::kTiles];
        KeyMath<C>{state, params}.Score(k_slot, scores);
#pragma unroll
        for (int t = 0; t < C::kTiles; ++t) weights[t] = WeightTile<C>(scores[t]);
        if constexpr (!C::kGrouped) {
          ValueMath<C>{state, params}.template PrepareGroup<0>(0, weights, b);
        }
      }
    } else {
      const RowMath<C> math = {state};
      typename WarpState<C>::TileScores scores[RowMath<C>::kTiles];
      math.Score(k_slot, rows, scores);
      math.Prepare(scores, b);
      if (ring.feed->units[n % 2].token_row >= 0) AppendToWindow(ring.feed->units[n % 2].item);
    }
    // Several groups' parameters are read between V's tiles.
    if constexpr (!C::kGrouped) {
      __syncwarp();
      ring.IssueK(n + C::kKSlots, page_);
    }
    ring.WaitV(n);
    if (is_block) {
      if constexpr (C::kHasCodes) {
        const ValueMath<C> math = {state, params};
        if constexpr (C::kGrouped) {
          math.template AddGroups<0>(v_slot, weights, b);
        } else {
          math.AddCodes(v_slot, b);
        }
      }
    } else {
      RowMath<C>{state}.Add(v_slot, b);
    }
    if constexpr (C::kGrouped) {
      __syncwarp();
      ring.IssueK(n + C::kKSlots, page_);
    }
    ring.IssueV(n + C::kVSlots);
  }

  // The new token's row of K and V, behind the window's others.
  __device__ void AppendToWindow(int item) const {
    using Row = Values<uint16_t, ItemState<C>::kChannels>;
    const DecodeAttentionArgs& args = launch_.args;
    const int request = item / launch_.num_kv_heads, kv_head = item % launch_.num_kv_heads;
    const int64_t row = int64_t{kv_head} * args.window_capacity + args.num_window_tokens[request];
    auto* k = reinterpret_cast<Row*>(args.windows + args.window_ids[request] * args.window_stride +
                                     row * C::kHeadDim);
    auto* v = k + int64_t{launch_.num_kv_heads} * args.window_capacity * 32;
    k[lane_] = reinterpret_cast<const Row*>(args.token_k)[int64_t{item} * 32 + lane_];
    v[lane_] = reinterpret_cast<const Row*>(args.token_v)[int64_t{item} * 32 + lane_];
  }

  // Writes the item's output, or leaves the slice's part of it to the last slice that has one.
  // Moves to the next item; false when there is none in the slice.
  __device__ bool FinishItem() const {
    UnitCursor at = consumed();
    const int item_begin = at.unit - at.unit_in_item, item_end = item_begin + at.item.total();
    const int first_head = FirstHead(at);
    if (item_begin >= plan().first.unit && item_end <= plan().end) {
      for (int head = warp_; head < launch_.heads_per_kv; head += C::kWarps) {
        const ItemState<C> item(shared_, head, lane_);
        float out[ItemState<C>::kChannels];
        item.Read(out);
        WriteHead(launch_, first_head + head, lane_, item.reference(), item.sum(), out);
      }
    } else {
      MergeShared(item_begin, item_end, at.items_before, first_head);
    }
    if (item_end >= plan().end) return false;
    at.Advance(launch_, item_end - at.unit);
    __syncwarp();
    if (lane_ == 0) ring().feed->consumed = at;
    __syncwarp();
    return true;
  }

  __device__ void MergeShared(int item_begin, int item_end, int items_before,
                              int first_head) const {
    const int slice = static_cast<int>(blockIdx.x);
    // On the line of costs an item's units follow its gap.
    const int gaps = (items_before + 1) * C::kItemCost;
    const int first = plan().slices.SliceOf(item_begin + gaps);
    const int last = plan().slices.SliceOf(item_end - 1 + gaps);
    const SharedItems<C> items = {launch_, warp_, lane_};
    items.Write(slice, slice == first ? 1 : 0, shared_);
    auto* is_last = reinterpret_cast<int*>(shared_ + C::kPlanAt + sizeof(SlicePlan));
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      const uint32_t parts = last - first + 1;
      *is_last = atomicAdd(launch_.tickets + first, 1) == parts - 1;
      if (*is_last != 0) launch_.tickets[first] = 0;
      __threadfence();
    }
    __syncthreads();
    if (*is_last != 0) items.Finish(first, last, first_head);
  }

  const DecodeLaunch& launch_;
  std::byte* shared_;
  const int warp_, lane_;
  int page_ = 0;
};

template <typename C>
__global__ void __launch_bounds__(C::kThreads, C::kCtasPerSm)
    DecodeKernel(const __grid_constant__ DecodeLaunch launch) {
  extern __shared__ __align__(128) std::byte shared[];
  DecodeCta<C>(launch, shared).Run();
}

template <typename C>
DecodeKernelInfo InfoOf() {
  return {reinterpret_cast<const void*>(&DecodeKernel<C>),
          C::kThreads,
          C::kSharedBytes,
          C::kRegisterPatterns,
          C::kWarps * C::kManyBytes,
          C::kTileTokens};
}

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_KERNEL_CUH_
