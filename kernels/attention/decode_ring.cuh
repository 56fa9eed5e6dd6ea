#ifndef PKV_KERNELS_ATTENTION_DECODE_RING_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_RING_CUH_

// What a warp works on, unit after unit, and the copies that bring it into shared memory ahead of
// use. Every lane runs this code with the same values; they live in shared memory in between, the
// registers belong to the products.

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

  // REQUIRES: more than `count` units are left on the line.
  __device__ __forceinline__ void Advance(const DecodeLaunch& launch, int count) {
    unit += count;
    unit_in_item += count;
    while (unit_in_item >= item.total()) {
      unit_in_item -= item.total();
      if (item.total() > 0) ++items_before;
      if (++kv_head == launch.num_kv_heads) {
        kv_head = 0;
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
    const int block = unit_in_item / launch.rule.units_per_block;
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

// A warp's part of shared memory besides the ring.
struct alignas(16) WarpFeed {
  // The run of blocks of one item that is being copied; nothing else has to be known from one to
  // the next.
  const int32_t* page_entry;  // of the block after the next
  const std::byte* base;      // what a page's offset is added to: the kv head's part of page 0
  int left;                   // blocks not yet copied; 0: the next unit is none
  int is_first_block;         // the next one is
  int run;                    // units that `ahead` has to move by
  int end;                    // of the slice
  UnitCursor ahead;           // the next unit to copy, or the run's first
  UnitCursor consumed;        // the item that is being worked on
  UnitInfo units[2];          // those in the K slots
};

template <typename C>
struct Ring {
  static_assert(sizeof(WarpFeed) <= C::kFeedBytes && C::kKSlots <= 2 && C::kVSlots <= C::kKSlots);

  const DecodeLaunch& launch;
  WarpFeed* feed;
  uint32_t slots;     // shared address of this warp's ring
  uint32_t barriers;  // K slots', then V slots'
  int lane;

  __device__ Ring(const DecodeLaunch& launch_in, std::byte* shared, int warp, int lane_in)
      : launch(launch_in),
        feed(reinterpret_cast<WarpFeed*>(shared + C::kFeedsAt + warp * C::kFeedBytes)),
        slots(ptx::SharedAddress(shared) + C::kRingsAt + warp * C::kRingBytes),
        barriers(ptx::SharedAddress(shared) + C::kBarriersAt +
                 warp * 8 * (C::kKSlots + C::kVSlots)),
        lane(lane_in) {}

  __device__ uint32_t k_slot(int n) const { return slots + n % C::kKSlots * C::kKSlotBytes; }
  __device__ uint32_t v_slot(int n) const {
    return slots + C::kKSlots * C::kKSlotBytes + n % C::kVSlots * C::kVSlotBytes;
  }
  __device__ uint32_t k_barrier(int n) const { return barriers + 8 * (n % C::kKSlots); }
  __device__ uint32_t v_barrier(int n) const {
    return barriers + 8 * (C::kKSlots + n % C::kVSlots);
  }

  __device__ void Init() const {
    if (lane < C::kKSlots + C::kVSlots) ptx::InitBarrier(barriers + 8 * lane, 1);
    ptx::FenceBarrierInit();
    __syncwarp();
  }
  __device__ void WaitK(unsigned n) const { ptx::WaitBarrier(k_barrier(n), n / C::kKSlots & 1); }
  __device__ void WaitV(unsigned n) const { ptx::WaitBarrier(v_barrier(n), n / C::kVSlots & 1); }

  // Begins with the units at `at`. Returns the page of the first, if it is a block's.
  __device__ __forceinline__ int Enter(const UnitCursor& at, int end) const {
    int left = 0, page = 0;
    const std::byte* base = nullptr;
    const int32_t* entry = nullptr;
    if (at.unit < end && at.unit_in_item < at.item.blocks) {
      const int blocks = at.item.blocks - at.unit_in_item, units = end - at.unit;
      left = C::kHasCodes ? (min(blocks, units) + C::kWarps - 1) / C::kWarps : 0;
      entry = at.PageEntry(launch);
      page = *entry;
      entry += C::kWarps;
      base = launch.args.pages + int64_t{at.kv_head} * launch.head_bytes;
    }
    if (lane == 0) {
      feed->page_entry = entry;
      feed->base = base;
      feed->left = left;
      feed->is_first_block = at.unit_in_item == 0;
      feed->run = max(left, 1) * C::kWarps;
      feed->end = end;
      feed->ahead = at;
    }
    __syncwarp();
    return page;
  }

  // Copies the warp's n-th unit, K and what belongs to it; V comes later (IssueV). All lanes are
  // done with the slot and with unit n - 2's info. `page`: of the next block; becomes that of the
  // one after it, which is asked for here and is there when it is needed.
  __device__ __forceinline__ void IssueK(unsigned n, int& page) const {
    const int left = feed->left;
    UnitInfo info;
    if (left > 0) {
      const std::byte* head = feed->base + page * launch.args.page_stride;
      info.v = head + launch.v_codes;
      info.is_first_block = feed->is_first_block;
      if (left > 1) page = *feed->page_entry;
      CopyBlock(head, n);
      __syncwarp();
      if (lane == 0) {
        feed->page_entry += C::kWarps;
        feed->left = left - 1;
        feed->is_first_block = 0;
        feed->units[n % 2] = info;
      }
      if (left > 1) return;
    } else {
      const UnitCursor at = feed->ahead;
      if (at.unit < feed->end) info = IssueRows(at, page, n);
      __syncwarp();
      if (lane == 0) feed->units[n % 2] = info;
      if (at.unit >= feed->end) return;
    }
    __syncwarp();
    UnitCursor at = feed->ahead;
    const int end = feed->end, run = feed->run;
    __syncwarp();
    if (end - at.unit > run) {
      at.Advance(launch, run);
    } else {
      at.unit = end;
    }
    page = Enter(at, end);
  }
  // All lanes are done with the V slot.
  __device__ __forceinline__ void IssueV(unsigned n) const {
    __syncwarp();  // and see what lane 0 wrote of the unit
    const UnitInfo info = feed->units[n % 2];
    if (info.v == nullptr) return;
    if (!C::kHasCodes || info.rows > 0) {
      CopyRows(info, info.v, launch.args.token_v, v_slot(n), v_barrier(n));
    } else if (lane == 0) {
      ptx::ArriveExpecting(v_barrier(n), C::kCodeBytes);
      ptx::CopyBulk(v_slot(n), info.v, C::kCodeBytes, v_barrier(n));
    }
  }

 private:
  __device__ const std::byte* Head(const UnitCursor& at, int page) const {
    return launch.args.pages + page * launch.args.page_stride +
           int64_t{at.kv_head} * launch.head_bytes;
  }

  __device__ __forceinline__ void CopyBlock(const std::byte* head, unsigned n) const {
    if (lane != 0) return;
    const int params = launch.head_bytes - launch.k_scales;
    const uint32_t barrier = k_barrier(n), slot = k_slot(n);
    ptx::ArriveExpecting(barrier, C::kKCodeBytes + params);
    ptx::CopyBulk(slot, head, C::kKCodeBytes, barrier);
    ptx::CopyBulk(slot + C::kParamsAt, head + launch.k_scales, params, barrier);
  }

  __device__ __forceinline__ UnitInfo IssueRows(const UnitCursor& at, int page, unsigned n) const {
    const DecodeAttentionArgs& args = launch.args;
    UnitInfo info;
    info.item = at.request * launch.num_kv_heads + at.kv_head;
    int tile = at.unit_in_item, tokens = kBlockTokens;
    int64_t k_to_v = int64_t{kBlockTokens} * C::kRowBytes;
    const std::byte* k;
    if (!C::kHasCodes && tile < at.item.blocks) {
      k = Head(at, page);
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

  // A lane copies a row, or fills it with zeros when there is no such token: what is multiplied by
  // a weight of 0 must be finite.
  __device__ __forceinline__ void CopyRows(const UnitInfo& info, const std::byte* rows,
                                           const uint16_t* token_rows, uint32_t slot,
                                           uint32_t barrier) const {
    if (lane == 0) ptx::ArriveExpecting(barrier, info.rows * C::kRowBytes);
    __syncwarp();
    if (lane >= C::kTileTokens) return;
    const uint32_t to = slot + lane * C::kRowStride;
    if (lane < info.rows) {
      const std::byte* from = rows + lane * C::kRowBytes;
      if (lane == info.token_row) {
        from = reinterpret_cast<const std::byte*>(token_rows + int64_t{info.item} * C::kHeadDim);
      }
      ptx::CopyBulk(to, from, C::kRowBytes, barrier);
      return;
    }
#pragma unroll 1
    for (int i = 0; i < C::kRowBytes; i += 16) ptx::StoreShared128(to + i, uint4{0, 0, 0, 0});
    ptx::FenceSharedForCopies();
  }
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_RING_CUH_
