#ifndef PKV_KERNELS_ATTENTION_DECODE_RING_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_RING_CUH_

// What a warp works on, unit after unit, and the copies that bring it into shared memory ahead of
// use. Every lane runs this code with the same values; most of them live in shared memory in
// between, the registers belong to the products.

#include "kernels/attention/decode_config.cuh"
#include "kernels/device/ptx.cuh"

namespace pkv {

// A place on the line of units (decode_plan_math.h).
struct alignas(16) UnitCursor {
  int unit = 0;
  int request = 0, kv_head = 0;
  int items_before = 0;  // with units
  int unit_in_item = 0;
  DecodeItemUnits item;
  int window_tokens = 0;  // of this request, the new one counted
  int heads_of_line = 1;  // kv heads on the line: 1, or all

  // REQUIRES: more than `count` units are left on the line.
  __device__ __forceinline__ void Advance(const DecodeLaunch& launch, int count) {
    unit += count;
    unit_in_item += count;
    while (unit_in_item >= item.total()) {
      unit_in_item -= item.total();
      if (item.total() > 0) ++items_before;
      if (++kv_head % heads_of_line == 0) {
        kv_head -= heads_of_line;
        ++request;
        Count(launch);
      }
    }
  }

  __device__ __forceinline__ void Count(const DecodeLaunch& launch) {
    const int blocks = launch.args.num_blocks[request];
    window_tokens =
        launch.args.num_window_tokens[request] + (launch.args.token_k != nullptr ? 1 : 0);
    item = CountDecodeUnits(launch.rule, blocks, window_tokens);
  }
  __device__ __forceinline__ const int32_t* PageEntry(const DecodeLaunch& launch) const {
    const int per_block = launch.rule.units_per_block;
    const int block = per_block == 1 ? unit_in_item : unit_in_item / per_block;
    return launch.args.block_table + int64_t{request} * launch.args.block_table_stride + block;
  }
};

// What must be known of a unit besides its bytes.
struct alignas(16) UnitInfo {
  const std::byte* v = nullptr;  // V codes, or the first V row; null: no unit
  int rows = 0;                  // dense tokens; 0: a block of codes
  int token_row = -1;            // the row that is the new token
  int item = 0;                  // request * num_kv_heads + kv_head
  int is_first_block = 0;        // its first slots are the sinks'
};

// A warp's slice, from lengths and tables alone: the same in launches that have these in common.
struct alignas(16) WarpPlan {
  UnitCursor consumed;  // the item that is being worked on, at first the slice's first
  DecodeSlices slices;  // of the launch
  int begin, end;       // of the slice; equal: it has no unit
  int first_page;       // of the first unit, where that is a block of codes
  DecodeTeams teams;    // of the launch
  int team_warps;       // slices of a team
  bool is_first_of_team;
  bool merges_several;  // query heads at once

  // The slice has its team's first part of the item whose units begin at `unit`.
  __device__ bool Leads(int unit) const { return unit >= begin || is_first_of_team; }
};

// What a warp knows of its slice; in shared memory.
struct alignas(16) WarpFeed : WarpPlan {
  UnitCursor ahead;   // the next unit to copy, or the first of the run of blocks that is copied
  UnitInfo units[2];  // those in the K slots
  int run;            // units that `ahead` has to move by, when the run is copied
};

// The run of blocks of one item that is being copied: all that has to be known from one block to
// the next. In registers, equal in all lanes.
struct BlockRun {
  const int32_t* entry = nullptr;  // of the block after the next
  const std::byte* base =
      nullptr;             // what a page's offset is added to: the kv head's part of page 0
  int page = 0;            // of the next block
  int left = 0;            // blocks not yet copied; 0: the next unit is none
  int is_first_block = 0;  // the next one is
};

template <typename C>
struct Ring {
  static_assert(sizeof(WarpFeed) <= C::kFeedBytes && C::kSlots <= 2);
  static constexpr int kLanes = 32;  // a barrier's arrivals: of each lane, or all of one lane

  const DecodeLaunch& launch;
  WarpFeed* feed;
  uint32_t warp;  // shared address of the warp's memory
  int lane;

  __device__ Ring(const DecodeLaunch& launch_in, std::byte* warp_memory, int lane_in)
      : launch(launch_in),
        feed(reinterpret_cast<WarpFeed*>(warp_memory + C::kFeedAt)),
        warp(ptx::SharedAddress(warp_memory)),
        lane(lane_in) {}

  __device__ uint32_t k_slot(unsigned n) const {
    return warp + C::kKSlotsAt + n % C::kSlots * C::kKSlotBytes;
  }
  __device__ uint32_t v_slot(unsigned n) const {
    return warp + C::kVSlotsAt + n % C::kSlots * C::kVSlotBytes;
  }
  __device__ uint32_t params(unsigned n) const {
    return warp + C::kParamsAt + n % 2 * C::kParamBytes;
  }
  __device__ uint32_t k_barrier(unsigned n) const {
    return warp + C::kBarriersAt + 8 * (n % C::kSlots);
  }
  __device__ uint32_t v_barrier(unsigned n) const {
    return warp + C::kBarriersAt + 8 * (C::kSlots + n % C::kSlots);
  }

  __device__ void Init() const {
    if (lane < 2 * C::kSlots + 1) ptx::InitBarrier(warp + C::kBarriersAt + 8 * lane, kLanes);
    ptx::FenceBarrierInit();
    __syncwarp();
  }
  __device__ void WaitK(unsigned n) const { ptx::WaitBarrier(k_barrier(n), n / C::kSlots & 1); }
  __device__ void WaitV(unsigned n) const { ptx::WaitBarrier(v_barrier(n), n / C::kSlots & 1); }

  // Begins with the units at `at`. first_page: of the first, if it is known and a block, or -1.
  __device__ __forceinline__ void Enter(const UnitCursor& at, int end, int first_page,
                                        BlockRun& run) const {
    run.left = 0;
    if (C::kHasCodes && at.unit < end && at.unit_in_item < at.item.blocks) {
      run.left = min(at.item.blocks - at.unit_in_item, end - at.unit);
      run.entry = at.PageEntry(launch);
      run.page = first_page >= 0 ? first_page : *run.entry;
      ++run.entry;
      run.base = launch.args.pages + int64_t{at.kv_head} * launch.head_bytes;
      run.is_first_block = at.unit_in_item == 0;
    }
    if (lane == 0) {
      feed->run = max(run.left, 1);
      feed->ahead = at;
    }
    __syncwarp();
  }

  // Copies the warp's n-th unit, K and what belongs to it; V comes later (IssueV). All lanes are
  // done with the K slot, and with the parameters and info of unit n - 2. The page of the block
  // after it is asked for here, and is there when it is needed.
  __device__ __forceinline__ void IssueK(unsigned n, BlockRun& run) const {
    __syncwarp();
    if (__builtin_expect(run.left > 0, 1)) {
      const std::byte* head = run.base + run.page * launch.args.page_stride;
      if (lane == 0) CopyBlock(head, run.is_first_block, n);
      run.is_first_block = 0;
      if (__builtin_expect(--run.left > 0, 1)) {
        run.page = *run.entry++;
        return;
      }
    } else {
      const UnitCursor at = feed->ahead;
      UnitInfo info;
      if (at.unit < feed->end) info = IssueRows(at, n);
      if (lane == 0) feed->units[n % 2] = info;
      if (at.unit >= feed->end) return;
    }
    UnitCursor at = feed->ahead;
    const int end = feed->end, units = feed->run;
    __syncwarp();
    if (end - at.unit > units) {
      at.Advance(launch, units);
    } else {
      at.unit = end;
    }
    Enter(at, end, -1, run);
  }
  // One lane, for the warp: `bytes` of bulk copies are to come.
  __device__ __forceinline__ static void ExpectCopies(uint32_t barrier, uint32_t bytes) {
    ptx::ExpectBytes(barrier, bytes);
    ptx::Arrive(barrier, kLanes);
  }
  // All lanes are done with the V slot.
  __device__ __forceinline__ void IssueV(unsigned n) const {
    __syncwarp();  // and see what lane 0 wrote of the unit
    const UnitInfo& info = feed->units[n % 2];
    const std::byte* v = info.v;
    if (__builtin_expect(v == nullptr, 0)) return;
    if (!C::kHasCodes || __builtin_expect(info.rows > 0, 0)) {
      CopyRows(UnitInfo(info), v, launch.args.token_v, v_slot(n), v_barrier(n));
    } else if (lane == 0) {
      ExpectCopies(v_barrier(n), C::kCodeBytes);
      ptx::CopyBulk(v_slot(n), v, C::kCodeBytes, v_barrier(n));
    }
  }

 private:
  // Lane 0.
  __device__ __forceinline__ void CopyBlock(const std::byte* head, int is_first, unsigned n) const {
    const int bytes = launch.head_bytes - launch.k_scales;
    const uint32_t barrier = k_barrier(n);
    ExpectCopies(barrier, C::kKCodeBytes + bytes);
    ptx::CopyBulk(k_slot(n), head, C::kKCodeBytes, barrier);
    ptx::CopyBulk(params(n), head + launch.k_scales, bytes, barrier);
    UnitInfo& info = feed->units[n % 2];
    info.v = head + launch.v_codes;
    info.rows = 0;
    info.is_first_block = is_first;
  }

  __device__ __forceinline__ UnitInfo IssueRows(const UnitCursor& at, unsigned n) const {
    const DecodeAttentionArgs& args = launch.args;
    UnitInfo info;
    info.item = at.request * launch.num_kv_heads + at.kv_head;
    int tile = at.unit_in_item, tokens = kBlockTokens;
    int64_t k_to_v = int64_t{kBlockTokens} * C::kRowBytes;
    const std::byte* k;
    if (!C::kHasCodes && tile < at.item.blocks) {
      k = launch.args.pages + *at.PageEntry(launch) * launch.args.page_stride +
          int64_t{at.kv_head} * launch.head_bytes;
      tile %= kBlockTokens / C::kTileTokens;
    } else if (tile < at.item.blocks + at.item.sinks) {
      tile -= at.item.blocks;
      tokens = launch.rule.num_sinks;
      k_to_v = int64_t{tokens} * C::kRowBytes;
      k = reinterpret_cast<const std::byte*>(args.sinks +
                                             args.sink_ids[at.request] * args.sink_stride +
                                             int64_t{at.kv_head} * 2 * tokens * C::kHeadDim);
    } else {
      tile -= at.item.blocks + at.item.sinks;
      tokens = at.window_tokens;
      k_to_v = int64_t{launch.num_kv_heads} * args.window_capacity * C::kRowBytes;
      k = reinterpret_cast<const std::byte*>(
          args.windows + args.window_ids[at.request] * args.window_stride +
          int64_t{at.kv_head} * args.window_capacity * C::kHeadDim);
      const int token_row = tokens - 1 - tile * C::kTileTokens;
      if (args.token_k != nullptr && token_row < C::kTileTokens) info.token_row = token_row;
    }
    k += int64_t{tile} * C::kTileTokens * C::kRowBytes;
    info.rows = min(C::kTileTokens, tokens - tile * C::kTileTokens);
    info.v = k + k_to_v;
    CopyRows(info, k, args.token_k, k_slot(n), k_barrier(n));
    return info;
  }

  // Rows that there are not become zeros: what is multiplied by a weight of 0 must be finite. By
  // the lanes, since a bulk copy of every row would cost more than its bytes.
  __device__ __forceinline__ void CopyRows(const UnitInfo& info, const std::byte* rows,
                                           const uint16_t* token_rows, uint32_t slot,
                                           uint32_t barrier) const {
    constexpr int kPieces = C::kRowBytes / 16;  // of a row
    const auto* token =
        reinterpret_cast<const std::byte*>(token_rows) + int64_t{info.item} * C::kRowBytes;
#pragma unroll 1
    for (int i = 0; i < C::kTileTokens * kPieces; i += 32) {
      const int row = (i + lane) / kPieces, at = lane % kPieces * 16;
      const std::byte* from = row == info.token_row ? token : rows + row * C::kRowBytes;
      const bool is_row = row < info.rows;
      ptx::CopyAsync16(slot + row * C::kRowStride + at, is_row ? from + at : rows, is_row ? 16 : 0);
    }
    ptx::ArriveAfterCopies(barrier);
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_RING_CUH_
