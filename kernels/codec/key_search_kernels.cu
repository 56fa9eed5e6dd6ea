// The encoder of K for variants that search its clip range, correct its gain, have fine codes or
// feed errors back, with one group a channel: default, default4.
//
// Channels depend on one another, so a block's head is a chain of head_dim fits. A warp owns two
// chains, neighbouring blocks of one head, 16 or 12 on a multiprocessor, and keeps no tile:
// residuals [step][slot] in fp32 go through device memory (LaunchArrangeKeys), where
// errors take their place. A lane holds eight slots: one of the sixteen partial sums, whole, and
// what a step costs beside its values is shared by eight of them. Sixteen channels at a time (a
// panel) take the weighted errors of all channels before them from memory at once, so that each
// error is read eight times in place of 128; those of the panel itself stand in shared memory. Sums
// over slots have the order of FoldErrorSums(), sums over channels that of the steps.
//
// Compiled with --fmad=false: equal bytes to the CPU.

#include <cuda_fp16.h>

#include "kernels/codec/code_steps_math.h"
#include "kernels/codec/layer_encode.h"
#include "kernels/codec/layer_prepare.h"
#include "kernels/codec/near_error.cuh"
#include "proto/block/fragment_order.h"

namespace pkv {
namespace {

constexpr int kChains = 2;            // of a warp
constexpr int kLanes = 32 / kChains;  // of a chain
constexpr int kSlots = 8;             // of a lane
constexpr int kVectors = kSlots / 4;  // of four slots
constexpr int kSurelyCoarse = 3;      // of a lane's slots: at most 64 sinks and 16 fine ones
constexpr int kPanel = 16;            // channels
constexpr int kChunk = 4;             // earlier channels at a time
constexpr int kChunksAhead = kPanel / kChunk;
constexpr unsigned kAllLanes = ~0u;
static_assert(kLanes == kErrorSums);

struct Octet {
  float x[kSlots];

  // From, and to, a row of vectors; this lane's are `stride` apart.
  __device__ static Octet Of(const float4 (&v)[kVectors]) {
    return {v[0].x, v[0].y, v[0].z, v[0].w, v[1].x, v[1].y, v[1].z, v[1].w};
  }
  __device__ static Octet Load(const float4* at, int stride) {
    const float4 v[kVectors] = {at[0], at[stride]};
    return Of(v);
  }
  __device__ void Store(float4* at, int stride) const {
    at[0] = make_float4(x[0], x[1], x[2], x[3]);
    at[stride] = make_float4(x[4], x[5], x[6], x[7]);
  }
};

template <int kHeadDim, int kBits>
struct alignas(16) WarpShared {
  static constexpr int kRowWords = kHeadDim * kBits / 32;
  static constexpr int kFineWords = kBits == 2 ? kHeadDim * kFineBits / 32 : 1;
  float4 panel[kPanel][kVectors][32];
  float weights[kPanel][kPanel];  // of the panel's channels among themselves
  int order[kPanel];
  uint32_t codes[kChains][kRowWords][kBlockTokens];
  uint32_t fine_codes[kChains][kFineWords][kFineTokens];

  // [chunk of those ahead][channel of the panel], in the place of `weights`.
  __device__ auto chunk_weights() { return reinterpret_cast<float4(*)[kPanel]>(&weights[0][0]); }
};
static_assert(sizeof(float4) == kChunk * sizeof(float));

__device__ void CopyAsync(float4* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}
__device__ void CommitCopies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// All groups but the last kPending.
template <int kPending>
__device__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}
template <int kBits>
constexpr int kWarps = kBits == 2 ? 4 : 3;  // of a CTA: two CTAs fill the shared memory

__device__ int WarpLane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ int ChainLane() { return static_cast<int>(threadIdx.x) % kLanes; }
__device__ int ChainOfWarp() { return static_cast<int>(threadIdx.x) % 32 / kLanes; }

// Which of a block's slots the lane holds: element ChainLane() + 16 q of the group at q.
struct LaneSlots {
  int num_coarse, num_coded;  // of the group
  int coarse_of_lane;

  __device__ LaneSlots(int first_slot, int num_fine)
      : num_coarse(kBlockTokens - num_fine - first_slot),
        num_coded(kBlockTokens - first_slot),
        coarse_of_lane((num_coarse - ChainLane() + kLanes - 1) / kLanes) {}
  __device__ static int Element(int q) { return ChainLane() + kLanes * q; }
  __device__ bool IsCoarse(int q) const { return q < kSurelyCoarse || q < coarse_of_lane; }
  // The fine slots follow the coarse ones, one in each lane.
  __device__ bool IsFine(int q) const { return q == coarse_of_lane; }
  __device__ bool HasFine() const { return num_coded > num_coarse; }
};
static_assert(kFineTokens == kLanes);

// Over the lanes of a chain.
template <typename T, typename Combine>
__device__ T OverChain(T value, const Combine& combine) {
#pragma unroll
  for (int half = kLanes / 2; half >= 1; half /= 2) {
    value = combine(value, __shfl_xor_sync(kAllLanes, value, half));
  }
  return value;
}
__device__ float Added(float a, float b) { return a + b; }

// Sum over the coarse elements, as FoldErrorSums() has it.
__device__ float OrderedSum(const LaneSlots& slots, const Octet& terms) {
  float sum = 0;
#pragma unroll
  for (int q = 0; q < kSlots; ++q) {
    if (slots.IsCoarse(q)) sum = sum + terms.x[q];
  }
  return OverChain(sum, Added);
}

// RangeOf(): of equal values 0 and -0 it keeps the first. The machine's minimum is -0 when any is.
__device__ float2 RangeOfGroup(const LaneSlots& slots, const Octet& target) {
  float low = target.x[0], high = low;
#pragma unroll
  for (int q = 1; q < kSlots; ++q) {
    if (!slots.IsCoarse(q)) continue;
    low = fminf(low, target.x[q]);
    high = fmaxf(high, target.x[q]);
  }
  low = OverChain(low, [](float a, float b) { return fminf(a, b); });
  high = OverChain(high, [](float a, float b) { return fmaxf(a, b); });
  if (__any_sync(kAllLanes, __float_as_uint(low) == 0x80000000u)) {
    int first = 2 * kBlockTokens;
#pragma unroll
    for (int q = 0; q < kSlots; ++q) {
      if (!slots.IsCoarse(q) || target.x[q] != 0.0f) continue;
      first = min(first, 2 * slots.Element(q) + (__float_as_int(target.x[q]) < 0 ? 1 : 0));
    }
    first = OverChain(first, [](int a, int b) { return min(a, b); });
    if (low == 0.0f) low = first % 2 == 0 ? 0.0f : -0.0f;
  }
  return make_float2(low, high);
}

template <int kBits>
__device__ float ExactError(const LaneSlots& slots, const Octet& target, GroupParams params) {
  const float scale = StoredToFloat(params.scale), zero = StoredToFloat(params.zero);
  const CodeSteps steps = MakeCodeSteps(scale, zero, kBits);
  Octet squares;
#pragma unroll
  for (int q = 0; q < kSlots; ++q) {
    const float error = target.x[q] - LevelOf(CodeOf<kBits>(target.x[q], steps), scale, zero);
    squares.x[q] = error * error;
  }
  return OrderedSum(slots, squares);
}

template <int kBits>
__device__ float NearError(const LaneSlots& slots, const Octet& target, GroupParams params) {
  const NearLevels<kBits> levels(params);
  float sum = 0;
#pragma unroll
  for (int q = 0; q < kSlots; ++q) {
    if (slots.IsCoarse(q)) sum = levels.AddSquare(sum, target.x[q]);
  }
  return OverChain(sum, Added);
}

// SearchParams().
template <int kBits>
__device__ GroupParams Search(const LaneSlots& slots, const Octet& target, int num_ratios) {
  const float2 range = RangeOfGroup(slots, target);
  if (num_ratios == 1) return ShrunkParamsOf<kBits>(range.x, range.y, 0);
  // Each lane makes the parameters of one ratio for all.
  const GroupParams mine =
      ShrunkParamsOf<kBits>(range.x, range.y, min(ChainLane(), num_ratios - 1));
  const uint32_t packed = mine.scale | static_cast<uint32_t>(mine.zero) << 16;
  const auto params_of = [&](int ratio) {
    const uint32_t bits = __shfl_sync(kAllLanes, packed, ratio, kLanes);
    return GroupParams{static_cast<Float16Bits>(bits), static_cast<Float16Bits>(bits >> 16)};
  };
  float least = INFINITY, second = INFINITY;
  int best = 0;
  // As many at once as the presets try: they hide each other's latency.
  constexpr int kAtOnce = kBits == 2 ? 5 : 2;
#pragma unroll 1
  for (int first = 0; first < num_ratios; first += kAtOnce) {
    float errors[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      errors[i] = NearError<kBits>(slots, target, params_of(min(first + i, num_ratios - 1)));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const float error = first + i < num_ratios ? errors[i] : INFINITY;
      second = fminf(second, fmaxf(error, least));
      best = error < least ? first + i : best;
      least = fminf(least, error);
    }
  }
  const float widest = StoredToFloat(params_of(0).scale);
  const auto slack = [&](float error) { return NearErrorSlack<kBits>(error, range, widest); };
  const bool is_open = !(second - slack(second) > least + slack(least));
  if (__any_sync(kAllLanes, is_open)) {
    float exact = 0;
    int exact_best = 0;
#pragma unroll 1
    for (int i = 0; i < num_ratios; ++i) {
      const float of_ratio = ExactError<kBits>(slots, target, params_of(i));
      if (i > 0 && !(of_ratio < exact)) continue;
      exact = of_ratio;
      exact_best = i;
    }
    if (is_open) best = exact_best;
  }
  return params_of(best);
}

// CorrectGain(), from the codes of the coarse elements.
__device__ GroupParams Corrected(const LaneSlots& slots, const Octet& target, const Octet& codes,
                                 GroupParams searched) {
  const auto count = static_cast<float>(slots.num_coarse);
  // Codes are small integers: their sum is exact in any order.
  const float mean_code = OrderedSum(slots, codes) / count;
  const float mean_value = OrderedSum(slots, target) / count;
  Octet covariances, variances;
#pragma unroll
  for (int q = 0; q < kSlots; ++q) {
    const float code = codes.x[q] - mean_code, centred = target.x[q] - mean_value;
    covariances.x[q] = code * centred;
    variances.x[q] = centred * centred;
  }
  const float covariance = OrderedSum(slots, covariances);
  return UnbiasedParams(searched, mean_code, mean_value, covariance, OrderedSum(slots, variances));
}

// A lane's part of one of the warp's two chains.
template <int kHeadDim, int kBits>
struct KeyChain {
  using W = WarpShared<kHeadDim, kBits>;
  const LayerEncodeArgs& args;
  W& shared;
  LaneSlots slots;
  float4* residuals;     // the lane's of [step][vector][lane]; errors behind the step
  const uint8_t* order;  // null: natural
  const float* weights;  // null: no feedback
  std::byte* out;

  __device__ Octet LoadStep(int step) const {
    return Octet::Load(residuals + step * kVectors * kLanes, kLanes);
  }

  // Sends for chunk `chunk` of earlier errors, and what they weigh in the panel at `begin`. Both go
  // where panel and weights will stand.
  __device__ void FetchChunk(int begin, int chunk) {
    const int at = chunk % kChunksAhead, first = chunk * kChunk;
#pragma unroll
    for (int n = 0; n < kChunk; ++n) {
#pragma unroll
      for (int vector = 0; vector < kVectors; ++vector) {
        CopyAsync(&shared.panel[at * kChunk + n][vector][WarpLane()],
                  residuals + ((first + n) * kVectors + vector) * kLanes);
      }
    }
    if (WarpLane() < kPanel) {
      CopyAsync(&shared.chunk_weights()[at][WarpLane()],
                weights + (begin + WarpLane()) * kHeadDim + first);
    }
  }

  // Puts the weighted errors of channels [0, begin) for those of the panel in its place.
  __device__ void TakePanel(int begin) {
    Octet sums[kPanel] = {};
    const int num_chunks = begin / kChunk;
    __syncwarp();
    // One commit a chunk, also of none, so that all but the last kChunksAhead - 2 have arrived.
#pragma unroll 1
    for (int chunk = 0; chunk < kChunksAhead - 1; ++chunk) {
      if (chunk < num_chunks) FetchChunk(begin, chunk);
      CommitCopies();
    }
#pragma unroll 1
    for (int chunk = 0; chunk < num_chunks; ++chunk) {
      WaitForCopies<kChunksAhead - 2>();
      __syncwarp();
      const int at = chunk % kChunksAhead;
      Octet errors[kChunk];
#pragma unroll
      for (int n = 0; n < kChunk; ++n) {
        errors[n] = Octet::Load(&shared.panel[at * kChunk + n][0][WarpLane()], 32);
      }
      // The chunk before this one is used up.
      if (chunk + kChunksAhead - 1 < num_chunks) FetchChunk(begin, chunk + kChunksAhead - 1);
      CommitCopies();
#pragma unroll
      for (int i = 0; i < kPanel; ++i) {
        const float4 w = shared.chunk_weights()[at][i];
        const float of_error[kChunk] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int n = 0; n < kChunk; ++n) {
#pragma unroll
          for (int q = 0; q < kSlots; ++q) {
            sums[i].x[q] = FusedMultiplyAdd(of_error[n], errors[n].x[q], sums[i].x[q]);
          }
        }
      }
    }
    WaitForCopies<0>();
    __syncwarp();
#pragma unroll
    for (int i = 0; i < kPanel; ++i) sums[i].Store(&shared.panel[i][0][WarpLane()], 32);
    for (int i = WarpLane(); i < kPanel * kPanel; i += 32) {
      shared.weights[i / kPanel][i % kPanel] =
          weights[(begin + i / kPanel) * kHeadDim + begin + i % kPanel];
    }
    __syncwarp();
  }

  // Which channels the steps of a panel code.
  __device__ void TakeOrder(int begin) {
    const int step = begin + ChainLane();
    if (ChainOfWarp() == 0) shared.order[ChainLane()] = order == nullptr ? step : order[step];
    __syncwarp();
  }

  // What the errors before `step` weigh. A lane reads what it wrote itself.
  __device__ Octet FeedbackSum(int step) const {
    const int at = step % kPanel;
    Octet sum = Octet::Load(&shared.panel[at][0][WarpLane()], 32);
    const auto add = [&](int j, float weight) {
      const Octet error = Octet::Load(&shared.panel[j][0][WarpLane()], 32);
#pragma unroll
      for (int q = 0; q < kSlots; ++q) sum.x[q] = FusedMultiplyAdd(weight, error.x[q], sum.x[q]);
    };
    int j = 0;
#pragma unroll 1
    for (; j + 4 <= at; j += 4) {
      const float4 w = *reinterpret_cast<const float4*>(&shared.weights[at][j]);
      add(j, w.x);
      add(j + 1, w.y);
      add(j + 2, w.z);
      add(j + 3, w.w);
    }
#pragma unroll 1
    for (; j < at; ++j) add(j, shared.weights[at][j]);
    return sum;
  }

  // `codes` on their base.
  __device__ void PutCodes(int channel, const Octet& codes) {
    const int shift = LocateCode(0, channel, kHeadDim, kBits).shift;
    const uint32_t mask = ((1u << kBits) - 1) << shift;
    auto* words = reinterpret_cast<uint4*>(shared.codes[ChainOfWarp()][RowWord<kBits>(channel)]) +
                  ChainLane();
#pragma unroll
    for (int vector = 0; vector < kVectors; ++vector) {
      uint4 of_slots = words[vector * kLanes];
      uint32_t* of_slot[] = {&of_slots.x, &of_slots.y, &of_slots.z, &of_slots.w};
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        const uint32_t own = slots.IsCoarse(4 * vector + q) ? mask : 0;
        *of_slot[q] |= __float_as_uint(codes.x[4 * vector + q]) << shift & own;
      }
      words[vector * kLanes] = of_slots;
    }
  }

  // The lane's fine slot: its code, and its error in place of a coarse one.
  __device__ void EncodeFine(int channel, const Octet& target, const Octet& original, FineGrid grid,
                             Octet& errors) {
    float value = 0, wanted = 0;
#pragma unroll
    for (int q = kSurelyCoarse; q < kSlots; ++q) {
      value = slots.IsFine(q) ? target.x[q] : value;
      wanted = slots.IsFine(q) ? original.x[q] : wanted;
    }
    const float code = QuantizeOne(value, grid.step, grid.low, MaxCode(kFineBits));
    const float error = DequantizeOne(code, grid.step, grid.low) - wanted;
#pragma unroll
    for (int q = kSurelyCoarse; q < kSlots; ++q) {
      errors.x[q] = slots.IsFine(q) ? error : errors.x[q];
    }
    shared.fine_codes[ChainOfWarp()][RowWord<kFineBits>(channel)]
                     [slots.Element(slots.coarse_of_lane) - slots.num_coarse] |=
        static_cast<uint32_t>(code) << LocateCode(0, channel, kHeadDim, kFineBits).shift;
  }

  // Which of a row's words holds a channel.
  template <int kOfBits>
  __device__ static int RowWord(int channel) {
    return channel / (128 / kOfBits) * 4 + channel % 8 / 2;
  }

  // `original` is the step's residuals, loaded before the step before.
  __device__ void EncodeStep(int step, const Octet& original) {
    const int channel = shared.order[step % kPanel];
    Octet target = original;
    if (weights != nullptr) {
      const Octet sum = FeedbackSum(step);
#pragma unroll
      for (int q = 0; q < kSlots; ++q) target.x[q] = target.x[q] - sum.x[q];
    }
    const GroupParams searched = Search<kBits>(slots, target, args.num_ratios_k);
    const CodeSteps steps =
        MakeCodeSteps(StoredToFloat(searched.scale), StoredToFloat(searched.zero), kBits);
    Octet on_base, codes;
#pragma unroll
    for (int q = 0; q < kSlots; ++q) {
      on_base.x[q] = CodeOnBase<kBits>(target.x[q], steps);
      codes.x[q] = on_base.x[q] - 0x1p+23f;
    }
    GroupParams stored = searched;
    if (args.unbiased_k) stored = Corrected(slots, target, codes, searched);
    const float scale = StoredToFloat(stored.scale), zero = StoredToFloat(stored.zero);
    if (ChainLane() == 0) {
      const int at = ColumnPosition(channel, kHeadDim);
      reinterpret_cast<Float16Bits*>(out + args.layout.k_scales)[at] = stored.scale;
      reinterpret_cast<Float16Bits*>(out + args.layout.k_zeros)[at] = stored.zero;
    }
    Octet errors;
#pragma unroll
    for (int q = 0; q < kSlots; ++q) errors.x[q] = LevelOf(codes.x[q], scale, zero) - original.x[q];
    PutCodes(channel, on_base);
    if (slots.HasFine()) EncodeFine(channel, target, original, MakeFineGrid(scale, zero), errors);
    if (weights == nullptr) return;
    errors.Store(&shared.panel[step % kPanel][0][WarpLane()], 32);
    errors.Store(residuals + step * kVectors * kLanes, kLanes);
  }
};

// The words of a matrix of `num_rows` rows as they stand in the page, by a warp.
template <int kHeadDim, int kBits, typename WordAt>
__device__ void CopyCodesOut(uint32_t* words, int num_rows, const WordAt& word_at) {
  constexpr int kLaneWords = kHeadDim * kBits / 64, kChunkWords = kLaneWords < 4 ? kLaneWords : 4;
  for (int i = WarpLane(); i < num_rows * kHeadDim * kBits / 32; i += 32) {
    const int tile = i / (32 * kLaneWords), rest = i % (32 * kLaneWords);
    const int word = rest / (32 * kChunkWords) * kChunkWords + rest % kChunkWords;
    const int of_lane = rest / kChunkWords % 32;
    const int row = 16 * tile + 8 * (word % 2) + of_lane / 4;
    words[i] = word_at(word / 2 * 4 + of_lane % 4, row);
  }
}

// The codes of one of the warp's chains.
template <int kHeadDim, int kBits>
__device__ void CopyChainOut(const LayerEncodeArgs& args, int first_slot,
                             const WarpShared<kHeadDim, kBits>& shared, int chain, std::byte* out) {
  const int num_fine = args.layout.encoding.k_fine_tokens;
  CopyCodesOut<kHeadDim, kBits>(
      reinterpret_cast<uint32_t*>(out + args.layout.k_codes), kBlockTokens - num_fine,
      [&](int word, int slot) {
        return slot < first_slot ? 0u
                                 : shared.codes[chain][word][ElementPosition(slot - first_slot)];
      });
  if constexpr (kBits == 2) {
    CopyCodesOut<kHeadDim, kFineBits>(
        reinterpret_cast<uint32_t*>(out + args.layout.k_fine_codes), num_fine,
        [&](int word, int row) { return shared.fine_codes[chain][word][row]; });
  }
}

template <int kHeadDim, int kBits>
__global__ void __launch_bounds__(32 * kWarps<kBits>, 2)
    KeySearchKernel(const __grid_constant__ LayerEncodeArgs args, float4* residuals) {
  using W = WarpShared<kHeadDim, kBits>;
  extern __shared__ std::byte dynamic_shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int pairs = (args.num_blocks + 1) / kChains;
  const int pair = static_cast<int>(blockIdx.x) * kWarps<kBits> + warp;
  if (pair >= pairs * args.num_kv_heads()) return;
  // Neighbours are blocks of one head, which share its weights. Of an odd number the last block is
  // encoded by both halves of a warp, in step and to equal bytes.
  const int head = pair / pairs;
  const auto block_of = [&](int chain) {
    return min(pair % pairs * kChains + chain, args.num_blocks - 1);
  };
  W& shared = reinterpret_cast<W*>(dynamic_shared)[warp];
  for (auto* words : {&shared.codes[0][0][0], &shared.fine_codes[0][0][0]}) {
    const int count =
        words == &shared.codes[0][0][0] ? sizeof(shared.codes) / 4 : sizeof(shared.fine_codes) / 4;
    for (int i = WarpLane(); i < count; i += 32) words[i] = 0;
  }
  __syncwarp();
  const int block = block_of(ChainOfWarp());
  const bool has_feedback = args.k_order != nullptr;
  KeyChain<kHeadDim, kBits> keys = {
      args,
      shared,
      LaneSlots(args.FirstSlot(block), args.layout.encoding.k_fine_tokens),
      residuals + int64_t{args.ChainOf(block, head)} * kHeadDim * 32 + ChainLane(),
      has_feedback ? args.k_order + head * kHeadDim : nullptr,
      has_feedback ? args.k_weights + int64_t{head} * kHeadDim * kHeadDim : nullptr,
      args.HeadOf(block, head)};
#pragma unroll 1
  for (int begin = 0; begin < kHeadDim; begin += kPanel) {
    keys.TakeOrder(begin);
    if (has_feedback) keys.TakePanel(begin);
    Octet original = keys.LoadStep(begin);
#pragma unroll 1
    for (int step = begin; step < begin + kPanel; ++step) {
      const Octet next = keys.LoadStep(min(step + 1, kHeadDim - 1));
      keys.EncodeStep(step, original);
      original = next;
    }
  }
  __syncwarp();
  for (int chain = 0; chain < kChains; ++chain) {
    CopyChainOut(args, args.FirstSlot(block_of(chain)), shared, chain,
                 args.HeadOf(block_of(chain), head));
  }
}

template <int kHeadDim, int kBits>
cudaError_t Launch(const LayerEncodeArgs& args, cudaStream_t stream) {
  constexpr int kSharedBytes = kWarps<kBits> * sizeof(WarpShared<kHeadDim, kBits>);
  const cudaError_t error = cudaFuncSetAttribute(
      KeySearchKernel<kHeadDim, kBits>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  const int num_pairs = (args.num_blocks + 1) / kChains * args.num_kv_heads();
  const int num_ctas = (num_pairs + kWarps<kBits> - 1) / kWarps<kBits>;
  KeySearchKernel<kHeadDim, kBits><<<num_ctas, 32 * kWarps<kBits>, kSharedBytes, stream>>>(
      args, reinterpret_cast<float4*>(args.residuals));
  return cudaGetLastError();
}

}  // namespace

bool KeySearchCovers(const LayerEncodeArgs& args) {
  return args.layout.encoding.k_group_tokens == kBlockTokens && args.num_ratios_k <= kLanes &&
         args.residuals != nullptr;
}

cudaError_t LaunchKeySearch(const LayerEncodeArgs& args, cudaStream_t stream) {
  if (const cudaError_t error = LaunchArrangeKeys(args, stream); error != cudaSuccess) return error;
  const bool is_2_bit = args.layout.encoding.bits_k == 2;
  if (args.head_dim() == 64) {
    return is_2_bit ? Launch<64, 2>(args, stream) : Launch<64, 4>(args, stream);
  }
  return is_2_bit ? Launch<128, 2>(args, stream) : Launch<128, 4>(args, stream);
}

}  // namespace pkv
