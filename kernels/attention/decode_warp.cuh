#ifndef PKV_KERNELS_ATTENTION_DECODE_WARP_CUH_
#define PKV_KERNELS_ATTENTION_DECODE_WARP_CUH_

// A warp's way over its slice: item by item, unit by unit, with copies of its own that run ahead.

#include "kernels/attention/decode_item_end.cuh"
#include "kernels/attention/decode_plan.cuh"
#include "kernels/attention/decode_rows.cuh"
#include "kernels/attention/decode_values.cuh"

namespace pkv {

template <typename C>
class DecodeWarp {
 public:
  __device__ DecodeWarp(const DecodeLaunch& launch, std::byte* shared)
      : launch_(launch),
        memory_(launch, shared),
        warp_(static_cast<int>(threadIdx.x) / 32),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  // The warp's slice.
  __device__ void Run() {
    if (lane_ == 0) memory_.Ends(warp_).has_head = memory_.Ends(warp_).has_tail = 0;
    const SlicePlanner<C> planner = {launch_, &memory_.Feed(warp_), warp_, lane_,
                                     memory_.num_warps};
    if (launch_.args.is_planned) {
      planner.Take();
    } else {
      planner.Make();
    }
    __syncwarp();
    const WarpFeed& feed = memory_.Feed(warp_);
    const bool has_units = feed.begin < feed.end;
    if (has_units) {
      ring().Init();
      ring().Enter(consumed(), feed.end, feed.first_page, run_);
      if (launch_.overlaps_previous && run_.left > 0) StartFeed();
    }
    ptx::WaitForPreviousGrid();
    if (warp_ == 0) planner.WriteEmptyRequests();
    if (!has_units) return;
    unsigned n = 0;
    while (RunItem(n)) {
    }
  }

 private:
  __device__ Ring<C> ring() const { return Ring<C>(launch_, memory_.At(warp_), lane_); }
  __device__ bool is_rotated() const { return C::kRotates && launch_.is_rotated; }
  __device__ UnitCursor consumed() const { return memory_.Feed(warp_).consumed; }
  __device__ void SetConsumed(const UnitCursor& at) const {
    __syncwarp();
    if (lane_ == 0) memory_.Feed(warp_).consumed = at;
    __syncwarp();
  }

  // The copies of the slice's first units.
  __device__ void StartFeed() {
    const Ring<C> mine = ring();
    for (unsigned n = 0; n < C::kSlots; ++n) {
      mine.IssueK(n, run_);
      if (!C::kHasCodes) mine.IssueV(n);
    }
    has_started_ = true;
  }

  // The part of an item that the slice holds; false behind the slice's last. n: units used.
  __device__ bool RunItem(unsigned& n) {
    WarpState<C> state(lane_);
    // Rotated blocks and sinks meet a rotated query, the window does not. The sums of an item that
    // has both are left rotated: the merge turns what all slices have of it at once.
    int unit = consumed().unit;
#pragma unroll 1
    for (bool is_first = true, goes_on = true; goes_on; is_first = false) {
      int left;
      bool rotates;
      {
        const ItemRange item = {consumed(), {}};
        const int stop = min(item.end(), memory_.Feed(warp_).end);
        const int turn = item.end() - (is_rotated() ? item.at.item.window : 0);
        rotates = is_rotated() && unit < turn;
        const int until = unit < turn ? min(stop, turn) : stop;
        const bool has_blocks = unit < item.begin() + item.at.item.blocks;
        PrepareQueries(item.at, is_first, rotates, has_blocks, state);
        left = until - unit;
        unit = until;
        goes_on = until < stop;
      }
#pragma unroll 1
      for (; left > 0; --left) {
        RunUnit(state, n);
        ++n;
      }
      state.AddZeros(launch_.v_groups);
      if (is_rotated() && (goes_on || !rotates) && consumed().item.blocks > 0) state.RotateOut();
    }
    return FinishItem(state);
  }

  // The queries that an item's next units meet, and with blocks the scores of K patterns; before
  // the item's first units also clears the state. Everything from global memory is asked for before
  // the first copies, which would be in its way.
  __device__ __forceinline__ void PrepareQueries(const UnitCursor& at, bool is_first, bool rotates,
                                                 bool has_blocks, WarpState<C>& state) {
    const QueryMath<C> query = {launch_, ring().warp + C::kQueriesAt, memory_.Table(warp_), lane_};
    const auto rows =
        query.Load(at.request * launch_.num_qo_heads + at.kv_head * launch_.heads_per_kv);
    PatternRows patterns = PatternsOf<C>(launch_, at);
    if (is_first) state.num_v_patterns = patterns.num_v;
    if (!has_blocks) patterns.num_k = 0;
    if constexpr (C::kHasCodes) {
      auto tile = query.LoadPatterns(state, patterns, 0);
      auto next = query.LoadPatterns(state, patterns, 1);
      if (!has_started_) StartFeed();
      query.Prepare(rows, rotates, state);
#pragma unroll 1
      for (int i = 0; 16 * i < patterns.num_k; ++i) {
        query.ScorePatterns(state, tile, i);
        tile = next;
        if (16 * (i + 2) < patterns.num_k) next = query.LoadPatterns(state, patterns, i + 2);
      }
      query.ClearRaw();
    } else {
      if (!has_started_) StartFeed();
      query.Prepare(rows, rotates, state);
    }
    if (is_first) state.Clear();
  }

  __device__ __forceinline__ void RunUnit(WarpState<C>& state, unsigned n) {
    const Ring<C> ring = this->ring();
    ring.WaitK(n);
    __syncwarp();  // lane 0 wrote the unit's info
    const UnitInfo& info = ring.feed->units[n % 2];
    const int rows = info.rows;
    // Not earlier, which was slower (PERFORMANCE.md).
    if (C::kHasCodes) ring.IssueV(n);
    if (C::kHasCodes && rows == 0) {
      if constexpr (C::kHasCodes) RunBlock(ring, info.is_first_block, state, n);
    } else {
      RunRows(ring, info, rows, state, n);
    }
  }

  __device__ __forceinline__ void RunRows(const Ring<C>& ring, const UnitInfo& info, int rows,
                                          WarpState<C>& state, unsigned n) {
    using Math = RowMath<C>;
    if (info.token_row >= 0) AppendToWindow(info.item);
    typename WarpState<C>::TileScores scores[Math::kTiles];
    Math{state}.Score(ring.k_slot(n), rows, scores);
    ptx::FenceSharedForCopies();  // what follows in the slot may be a bulk copy
    ring.IssueK(n + C::kSlots, run_);
    constexpr float kNothing[C::kLaneHeads] = {};
    float factor[C::kLaneHeads];
    state.Weigh(scores, kNothing, factor);
    WeightTile<C> weights[Math::kTiles];
#pragma unroll
    for (int t = 0; t < Math::kTiles; ++t) weights[t] = WeightTile<C>(scores[t]);
    ring.WaitV(n);
    __syncwarp();  // rows are copies of all lanes
    Math{state}.Add(ring.v_slot(n), weights, factor);
    ptx::FenceSharedForCopies();
    if (!C::kHasCodes) ring.IssueV(n + C::kSlots);
  }

  __device__ __forceinline__ void RunBlock(const Ring<C>& ring, bool is_first_block,
                                           WarpState<C>& state, unsigned n) {
    BlockParams params(launch_, ring.params(n));
    params.pattern_scores = ptx::SharedAddress(memory_.Table(warp_)) + state.q * C::kLaneHeads * 4;
    params.id_mask = launch_.table_bytes - C::kIdBytes;
    params.num_masked = is_first_block ? launch_.rule.num_sinks : 0;
    float factor[C::kLaneHeads];
    WeightTile<C> weights[C::kTiles];
    {
      typename WarpState<C>::TileScores scores[C::kTiles];
      float offset[C::kLaneHeads];
      KeyMath<C>{state, params}.Score(ring.k_slot(n), scores, offset);
      ring.IssueK(n + 1, run_);
      state.Weigh(scores, offset, factor);
#pragma unroll
      for (int t = 0; t < C::kTiles; ++t) weights[t] = WeightTile<C>(scores[t]);
    }
    const ValueMath<C> math = {state, params, factor};
    using Math = ValueMath<C>;
    typename Math::ValueGroup value;
    if constexpr (C::kGrouped) {
      const typename Math::PlainWeights plain(weights);
      math.AddPatterns(plain);
      ring.WaitV(n);
      math.template AddGroups<0>(ring.v_slot(n), weights, plain, value);
    } else {
      {
        const typename Math::PlainWeights plain(weights);
        math.AddPatterns(plain);
        math.template AddZeros<0>(0, plain);
      }
      math.template LoadValueGroup<0>(0, weights, value);
      ring.WaitV(n);
      math.AddCodes(ring.v_slot(n), value);
    }
  }

  // The new token's row of K and V, behind the window's others.
  __device__ void AppendToWindow(int item) const {
    using Row = Values<uint16_t, C::kHeadDim / 32>;
    const DecodeAttentionArgs& args = launch_.args;
    const int request = item / launch_.num_kv_heads, kv_head = item % launch_.num_kv_heads;
    const int64_t row = int64_t{kv_head} * args.window_capacity + args.num_window_tokens[request];
    auto* k = reinterpret_cast<Row*>(args.windows + args.window_ids[request] * args.window_stride +
                                     row * C::kHeadDim);
    auto* v = k + int64_t{launch_.num_kv_heads} * args.window_capacity * 32;
    k[lane_] = reinterpret_cast<const Row*>(args.token_k)[int64_t{item} * 32 + lane_];
    v[lane_] = reinterpret_cast<const Row*>(args.token_v)[int64_t{item} * 32 + lane_];
  }

  // The item's output, or the slice's part of it. Moves to the next item; false when there is none
  // in the slice.
  __device__ bool FinishItem(WarpState<C>& state) const {
    const ItemEnd<C> item_end = {launch_, memory_, warp_, lane_};
    const ItemRange item = item_end.Write(consumed(), state);
    if (item.end() >= memory_.Feed(warp_).end) return false;
    UnitCursor next = item.at;
    next.Advance(launch_, item.end() - next.unit);
    SetConsumed(next);
    return true;
  }

  const DecodeLaunch& launch_;
  const WarpMemory<C> memory_;
  const int warp_, lane_;
  BlockRun run_;
  bool has_started_ = false;
};

}  // namespace pkv

#endif  // PKV_KERNELS_ATTENTION_DECODE_WARP_CUH_
