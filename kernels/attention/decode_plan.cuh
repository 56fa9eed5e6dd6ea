#ifndef PKV_KERNELS_ATTENTION_DECODE_PLAN_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_PLAN_CUH_

// The plan of a launch, made by every warp for itself (decode_plan_math.h): no warp waits for
// another, and a captured graph follows the lengths. Or made once for launches to come, and read.

#include "kernels/attention/decode_ring.cuh"

namespace pkv {

template <typename C>
struct SlicePlanner {
  const DecodeLaunch& launch;
  WarpPlan* plan;
  int warp, lane, num_warps;

  // Units and items of one kv head: before the lane's requests, and with them.
  struct LaneSums {
    int begin;  // the lane's first request
    int2 before, with;

    __device__ static int Cost(int2 sum) { return sum.x + sum.y * C::kItemCost; }
  };

  // Fills in the plan.
  __device__ void Make() const {
    if (lane == 0) plan->begin = plan->end = 0;
    const LaneSums sums = SumRequests();
    const int items = __shfl_sync(0xffffffffu, sums.with.y, 31) * launch.num_kv_heads;
    const DecodeTeams teams = TeamsFor(items);
    const int heads_of_line = teams.lines > 1 ? 1 : launch.num_kv_heads;
    const int total = __shfl_sync(0xffffffffu, LaneSums::Cost(sums.with), 31) * heads_of_line;
    // As few warps of a team as leave the longest slice as long: they are in each other's way.
    const bool is_one_line = teams.lines == 1;
    const int most_warps = is_one_line ? num_warps : num_warps / teams.of_cta;
    const int of_team = (total + teams.of_line - 1) / teams.of_line;
    const int longest = (of_team + most_warps - 1) / most_warps;
    const int team_warps = total == 0 ? 1 : (of_team + longest - 1) / longest;
    if (lane == 0) plan->teams = teams, plan->team_warps = team_warps;
    const DecodeSlices slices = CutDecodeUnits(total, teams.of_line * team_warps, 1);
    int team = static_cast<int>(blockIdx.x), line = 0, in_team = warp;
    if (!is_one_line) {
      team = team * teams.of_cta + warp / team_warps;
      in_team = warp % team_warps;
      line = team % teams.lines;
      team /= teams.lines;
    }
    const int slice = team * team_warps + in_team;
    if (warp >= teams.of_cta * team_warps || slice >= slices.count) return;
    UnitCursor start;
    start.heads_of_line = heads_of_line;
    start.kv_head = line;
    int item_at;
    UnitCursor first = Locate(slices.CostBegin(slice), start, sums, item_at);
    // Most slices end in the item that they begin in.
    const int end_cost = slices.CostBegin(slice + 1), units = first.item.total();
    const int end =
        end_cost <= item_at + C::kItemCost + units
            ? first.unit - first.unit_in_item + DecodeUnitAt(end_cost, item_at, C::kItemCost, units)
            : Locate(end_cost, start, sums, item_at).unit;
    if (first.unit >= end) return;
    // A slice that begins behind an item's last unit begins with the next item.
    first.Advance(launch, 0);
    const bool is_block = C::kHasCodes && first.unit_in_item < first.item.blocks;
    if (lane == 0) {
      plan->consumed = first;
      plan->slices = slices;
      plan->begin = first.unit;
      plan->end = end;
      plan->first_page = is_block ? *first.PageEntry(launch) : -1;
      plan->is_first_of_team = in_team == 0;
      // Every item, and every team once more, is merged for each query head.
      const int num_teams = teams.of_line * teams.lines;
      plan->merges_several =
          (items + num_teams) * launch.heads_per_kv > static_cast<int>(gridDim.x) * num_warps;
    }
  }

  // To and from what launches to come read.
  __device__ void Keep() const { Copy(Kept(), Words(plan)); }
  __device__ void Take() const { Copy(Words(plan), Kept()); }

  // The outputs of requests without tokens, of one warp a CTA.
  __device__ void WriteEmptyRequests() const {
    UnitCursor at;
    for (at.request = blockIdx.x; at.request < launch.args.batch; at.request += gridDim.x) {
      at.Count(launch);
      if (at.item.total() > 0) continue;
      const int64_t first = int64_t{at.request} * launch.num_qo_heads;
      auto* out = static_cast<uint16_t*>(launch.args.out) + first * C::kHeadDim;
      for (int i = lane; i < launch.num_qo_heads * C::kHeadDim; i += 32) out[i] = 0;
      if (launch.args.lse == nullptr) continue;
      for (int i = lane; i < launch.num_qo_heads; i += 32) launch.args.lse[first + i] = -INFINITY;
    }
  }

 private:
  __device__ static uint4* Words(WarpPlan* of) { return reinterpret_cast<uint4*>(of); }
  __device__ uint4* Kept() const {
    return Words(launch.plans + static_cast<int>(blockIdx.x) * C::kWarps + warp);
  }
  __device__ void Copy(uint4* to, const uint4* from) const {
    static_assert(sizeof(WarpPlan) % sizeof(uint4) == 0 && sizeof(WarpPlan) / sizeof(uint4) <= 32);
    if (lane < static_cast<int>(sizeof(WarpPlan) / sizeof(uint4))) to[lane] = from[lane];
  }

  // A line of each kv head reads faster, but leaves more parts to merge: for many items.
  __device__ DecodeTeams TeamsFor(int items) const {
    constexpr int kManyItems = 2;  // of a team
    const int ctas = static_cast<int>(gridDim.x), of_cta = launch.head_teams.of_cta;
    const bool has_many = items >= kManyItems * ctas * of_cta && num_warps >= of_cta;
    return has_many ? launch.head_teams : DecodeTeams{1, 1, ctas};
  }

  // Every lane adds up requests of its own.
  __device__ LaneSums SumRequests() const {
    const int batch = launch.args.batch, share = (batch + 31) / 32;
    LaneSums sums;
    sums.begin = min(batch, lane * share);
    const int end = min(batch, sums.begin + share);
    int2 mine = {0, 0};
    UnitCursor at;
    for (at.request = sums.begin; at.request < end; ++at.request) {
      at.Count(launch);
      const int units = at.item.total();
      mine.x += units;
      mine.y += units > 0 ? 1 : 0;
    }
    int2 sum = mine;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int2 below = {__shfl_up_sync(0xffffffffu, sum.x, distance),
                          __shfl_up_sync(0xffffffffu, sum.y, distance)};
      if (lane >= distance) sum.x += below.x, sum.y += below.y;
    }
    sums.with = sum;
    sums.before = {sum.x - mine.x, sum.y - mine.y};
    return sums;
  }

  // The first unit at `cost` or behind, 0 <= cost <= the whole; item_at: where the gap of its item
  // begins. start: at the line's first kv head. All lanes walk alike.
  __device__ __forceinline__ UnitCursor Locate(int cost, const UnitCursor& start,
                                               const LaneSums& sums, int& item_at) const {
    const int heads = start.heads_of_line;
    const bool reaches = cost <= LaneSums::Cost(sums.with) * heads;
    const int owner = __ffs(static_cast<int>(__ballot_sync(0xffffffffu, reaches))) - 1;
    UnitCursor at = start;
    at.request = __shfl_sync(0xffffffffu, sums.begin, owner);
    at.unit = __shfl_sync(0xffffffffu, sums.before.x, owner) * heads;
    at.items_before = __shfl_sync(0xffffffffu, sums.before.y, owner) * heads;
    int from = LaneSums::Cost({at.unit, at.items_before}), item_cost;
    for (;; ++at.request) {
      at.Count(launch);
      item_cost = at.item.total() > 0 ? at.item.total() + C::kItemCost : 0;
      if (cost <= from + item_cost * heads) break;
      from += item_cost * heads;
      at.unit += at.item.total() * heads;
      at.items_before += at.item.total() > 0 ? heads : 0;
    }
    item_at = from;
    // Empty requests may stand at the same place of the line.
    if (item_cost == 0) return at;
    const int head = min((cost - from) / item_cost, heads - 1);
    at.kv_head += head;
    item_at = from += head * item_cost;
    at.items_before += head;
    at.unit_in_item = DecodeUnitAt(cost, from, C::kItemCost, at.item.total());
    at.unit += head * at.item.total() + at.unit_in_item;
    return at;
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_PLAN_CUH_
