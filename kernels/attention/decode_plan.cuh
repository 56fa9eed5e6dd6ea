#ifndef PKV_KERNELS_ATTENTION_DECODE_PLAN_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_PLAN_CUH_

// The plan of a launch, made by every CTA for itself (decode_plan_math.h).

#include "kernels/attention/decode_ring.cuh"

namespace pkv {

// What one CTA does; in shared memory.
struct SlicePlan {
  UnitCursor first;  // the slice's first unit
  DecodeSlices slices;
  int end;  // of the slice
};

template <typename C>
struct SlicePlanner {
  const DecodeLaunch& launch;
  std::byte* shared;

  // All threads; each adds up requests of its own. The ring is not in use yet.
  __device__ void Plan() const {
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
    const int batch = launch.args.batch, share = (batch + C::kThreads - 1) / C::kThreads;
    const int begin = min(batch, thread * share), end = min(batch, begin + share);
    UnitCursor at;
    int2 mine = {0, 0};  // units, items
    for (at.request = begin; at.request < end; ++at.request) {
      at.Count(launch);
      mine.x += at.item.total() * launch.num_kv_heads;
      mine.y += at.item.total() > 0 ? launch.num_kv_heads : 0;
      if (at.item.total() == 0) WriteEmptyRequest(at.request);
    }
    int2 sum = mine;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int2 below = {__shfl_up_sync(0xffffffffu, sum.x, distance),
                          __shfl_up_sync(0xffffffffu, sum.y, distance)};
      if (lane >= distance) sum.x += below.x, sum.y += below.y;
    }
    auto* warp_sums = reinterpret_cast<int2*>(shared);
    if (lane == 31) warp_sums[warp] = sum;
    __syncthreads();
    int2 total = {0, 0};
#pragma unroll
    for (int w = 0; w < C::kWarps; ++w) {
      if (w == warp) sum.x += total.x, sum.y += total.y;
      total.x += warp_sums[w].x, total.y += warp_sums[w].y;
    }
    const DecodeSlices slices =
        CutDecodeUnits(total.x + total.y * C::kItemCost, launch.num_ctas, C::kMinSliceCost);
    auto& plan = *reinterpret_cast<SlicePlan*>(shared + C::kPlanAt);
    if (thread == 0) plan.slices = slices;
    const int slice = static_cast<int>(blockIdx.x);
    if (slice < slices.count) {
      const int2 before = {sum.x - mine.x, sum.y - mine.y};
      const int from = before.x + before.y * C::kItemCost, to = sum.x + sum.y * C::kItemCost;
      const int first = slices.CostBegin(slice), last = slices.CostBegin(slice + 1);
      if (first >= from && first < to) plan.first = Locate(first, begin, before);
      if (last > from && last <= to) plan.end = Locate(last, begin, before).unit;
    }
    __syncthreads();
  }

  // The first unit at `cost` or behind. `before`: units and items before `request`; the line of
  // costs reaches `cost` in this request or one of the next.
  __device__ __forceinline__ UnitCursor Locate(int cost, int request, int2 before) const {
    UnitCursor at;
    at.request = request;
    at.unit = before.x;
    at.items_before = before.y;
    int from = before.x + before.y * C::kItemCost, item_cost;
    for (;; ++at.request) {
      at.Count(launch);
      item_cost = at.item.total() > 0 ? at.item.total() + C::kItemCost : 0;
      if (cost <= from + item_cost * launch.num_kv_heads) break;
      from += item_cost * launch.num_kv_heads;
      at.unit += at.item.total() * launch.num_kv_heads;
      at.items_before += at.item.total() > 0 ? launch.num_kv_heads : 0;
    }
    // Empty requests may stand at the same place of the line.
    if (item_cost == 0) return at;
    at.kv_head = min((cost - from) / item_cost, launch.num_kv_heads - 1);
    from += at.kv_head * item_cost;
    at.items_before += at.kv_head;
    at.unit_in_item = DecodeUnitAt(cost, from, C::kItemCost, at.item.total());
    at.unit += at.kv_head * at.item.total() + at.unit_in_item;
    return at;
  }

  // One thread of one CTA: such requests are few.
  __device__ void WriteEmptyRequest(int request) const {
    if (request % gridDim.x != blockIdx.x) return;
    const int64_t first = int64_t{request} * launch.num_qo_heads;
    auto* out = static_cast<uint16_t*>(launch.args.out) + first * C::kHeadDim;
#pragma unroll 1
    for (int i = 0; i < launch.num_qo_heads * C::kHeadDim; ++i) out[i] = 0;
    if (launch.args.lse == nullptr) return;
#pragma unroll 1
    for (int i = 0; i < launch.num_qo_heads; ++i) launch.args.lse[first + i] = -INFINITY;
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_PLAN_CUH_
