// The encoder of K for variants that search its clip range, correct its gain, have fine codes or
// feed errors back, with one group a channel: default, default4.
//
// Channels depend on one another, so a block's head is a chain of head_dim fits. To have many
// chains at once a warp owns a whole one, 16 or 12 on a multiprocessor, and keeps no tile:
// residuals [step][slot] in fp32 go through device memory (ArrangeKeysKernel writes them), where
// errors take their place. A lane holds four slots. Sixteen channels at a time (a panel) take the
// weighted errors of all channels before them from memory at once, so that each error is read eight
// times in place of 128; those of the panel itself stand in shared memory. Sums over slots have the
// order of FoldErrorSums(), sums over channels that of the steps.
//
// Compiled with --fmad=false: equal bytes to the CPU.

#include <cuda_fp16.h>

#include "kernels/codec/code_steps_math.h"
#include "kernels/codec/layer_encode.h"
#include "proto/block/fragment_order.h"

namespace pkv {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kSlots = 4;   // of a lane
constexpr int kPanel = 16;  // channels
constexpr int kChunk = 4;   // earlier channels at a time
constexpr int kMaxRatios = 8;
constexpr unsigned kAllLanes = ~0u;

// Element i of a group (slot first_slot + i) adds to partial sum i mod 16 (FoldErrorSums). Lanes s
// and s + 16 hold partial sum s: elements s + 16 n, n = 0..3 and n = 4..7.
PKV_HOST_DEVICE constexpr int ElementAt(int position) {
  const int lane = position / 4, q = position % 4;
  return lane % 16 + 16 * (4 * (lane / 16) + q);
}
PKV_HOST_DEVICE constexpr int ElementPosition(int element) {
  return 4 * (element % 16 + 16 * (element / 64)) + element / 16 % 4;
}

// Residuals of all blocks' K, [block][kv_head][step][position], 0 where sinks are, and the pattern
// ids of K of the pages. Grid: (block, kv head); 32 channels at a time go through shared memory.
// Reads 2 bytes a value, writes 4.
constexpr int kArrangeThreads = 256;
constexpr int kChannels = 32;  // at a time
constexpr int kOctet = 8;      // channels of a thread
constexpr int kRowThreads = kChannels / kOctet;
constexpr int kMaxHeadDim = 128;

// Row r of the tile is position 4 (r % 32) + r / 32: neighbours in another bank both ways.
__device__ int PositionOf(int row) { return 4 * (row % 32) + row / 32; }

struct TileShared {
  float values[kBlockTokens][kChannels + 1];
  uint8_t step_of[kMaxHeadDim];
};

__device__ void LoadTile(const SlotRows& source, int first_slot, int channel, TileShared& shared) {
  for (int i = static_cast<int>(threadIdx.x); i < kBlockTokens * kRowThreads;
       i += kArrangeThreads) {
    const int row = i / kRowThreads, at = i % kRowThreads * kOctet;
    const int slot = first_slot + ElementAt(PositionOf(row));
    float* out = shared.values[row] + at;
    if (slot >= kBlockTokens) {
      for (int j = 0; j < kOctet; ++j) out[j] = 0.0f;
      continue;
    }
    const uint4 raw = *reinterpret_cast<const uint4*>(source.Row(slot) + channel + at);
    const int id = source.Id(slot);
    uint4 pattern = {};
    if (id != kRawPatternId) {
      pattern =
          *reinterpret_cast<const uint4*>(source.patterns + id * source.head_dim + channel + at);
    }
    const auto* x = reinterpret_cast<const __half*>(&raw);
    const auto* p = reinterpret_cast<const __half*>(&pattern);
#pragma unroll
    for (int j = 0; j < kOctet; ++j) {
      // Without a pattern +0 is taken away, which changes nothing, not even -0.
      out[j] = __half2float(x[j]) - __half2float(p[j]);
    }
  }
}

__global__ void __launch_bounds__(kArrangeThreads)
    ArrangeKeysKernel(const __grid_constant__ LayerEncodeArgs args, float4* residuals) {
  __shared__ TileShared shared;
  const int block = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const int d = args.head_dim(), first_slot = args.FirstSlot(block);
  const SlotRows source = SlotRows::Keys(args, block, head);
  if (thread < d) {
    const int channel = args.k_order == nullptr ? thread : args.k_order[head * d + thread];
    shared.step_of[channel] = static_cast<uint8_t>(thread);
  }
  if (source.ids != nullptr && thread < kBlockTokens) {
    auto* ids = reinterpret_cast<uint8_t*>(args.HeadOf(block, head) + args.layout.k_ids);
    ids[RowPosition(thread, kBlockTokens)] = static_cast<uint8_t>(source.Id(thread));
  }
  float4* out = residuals + int64_t{args.ChainOf(block, head)} * d * 32;
  for (int channel = 0; channel < d; channel += kChannels) {
    LoadTile(source, first_slot, channel, shared);
    __syncthreads();
    for (int i = thread / 32; i < kChannels; i += kArrangeThreads / 32) {
      const float4 of_lane = make_float4(shared.values[lane][i], shared.values[32 + lane][i],
                                         shared.values[64 + lane][i], shared.values[96 + lane][i]);
      out[shared.step_of[channel + i] * 32 + lane] = of_lane;
    }
    __syncthreads();
  }
}

struct Quad {
  float x[kSlots];
};
__device__ Quad ToQuad(float4 v) { return {v.x, v.y, v.z, v.w}; }
__device__ float4 ToVector(const Quad& q) { return make_float4(q.x[0], q.x[1], q.x[2], q.x[3]); }

template <int kHeadDim, int kBits>
struct alignas(16) WarpShared {
  static constexpr int kRowWords = kHeadDim * kBits / 32;
  static constexpr int kFineWords = kHeadDim * kFineBits / 32;
  float4 panel[kPanel][32];
  float weights[kPanel][kPanel];  // of the panel's channels among themselves
  uint32_t codes[kRowWords][kBlockTokens];
  uint32_t fine_codes[kFineWords][kFineTokens];
};

// Which of a block's slots the lane holds, by element of the group.
struct LaneSlots {
  int num_coarse, num_coded;
  int element[kSlots];

  __device__ LaneSlots(int first_slot, int num_fine)
      : num_coarse(kBlockTokens - num_fine - first_slot), num_coded(kBlockTokens - first_slot) {
    const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
    for (int q = 0; q < kSlots; ++q) element[q] = ElementAt(kSlots * lane + q);
  }
  __device__ bool IsCoarse(int q) const { return element[q] < num_coarse; }
  __device__ bool IsFine(int q) const { return element[q] >= num_coarse && element[q] < num_coded; }
};

// Sum over the coarse elements: sixteen partial sums, each through two lanes, then folded.
__device__ float OrderedSum(const LaneSlots& slots, const Quad& terms) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  float sum = 0;
#pragma unroll
  for (int q = 0; q < kSlots; ++q) {
    if (slots.IsCoarse(q)) sum = sum + terms.x[q];
  }
  sum = __shfl_sync(kAllLanes, sum, lane % kErrorSums);
#pragma unroll
  for (int q = 0; q < kSlots; ++q) {
    if (slots.IsCoarse(q)) sum = sum + terms.x[q];
  }
  sum = __shfl_sync(kAllLanes, sum, lane % kErrorSums + kErrorSums);
#pragma unroll
  for (int half = kErrorSums / 2; half >= 1; half /= 2) {
    sum = sum + __shfl_xor_sync(kAllLanes, sum, half);
  }
  return sum;
}

// Integers in the order of the numbers, -0 before 0; and back.
__device__ int Ordered(float x) {
  const int bits = __float_as_int(x);
  return bits ^ (bits >> 31 & 0x7fffffff);
}
__device__ float FromOrdered(int key) { return __int_as_float(key ^ (key >> 31 & 0x7fffffff)); }

// RangeOf(): of equal values 0 and -0 it keeps the first.
__device__ float2 RangeOfGroup(const LaneSlots& slots, const Quad& target) {
  int low = Ordered(INFINITY), high = Ordered(-INFINITY);
#pragma unroll
  for (int q = 0; q < kSlots; ++q) {
    if (!slots.IsCoarse(q)) continue;
    low = min(low, Ordered(target.x[q]));
    high = max(high, Ordered(target.x[q]));
  }
  low = __reduce_min_sync(kAllLanes, low);
  high = __reduce_max_sync(kAllLanes, high);
  float2 range = make_float2(FromOrdered(low), FromOrdered(high));
  if (__float_as_uint(range.x) == 0x80000000u) {
    int first = 2 * kBlockTokens;
#pragma unroll
    for (int q = 0; q < kSlots; ++q) {
      if (!slots.IsCoarse(q) || target.x[q] != 0.0f) continue;
      first = min(first, 2 * slots.element[q] + (__float_as_int(target.x[q]) < 0 ? 1 : 0));
    }
    range.x = __reduce_min_sync(kAllLanes, first) % 2 == 0 ? 0.0f : -0.0f;
  }
  return range;
}

template <int kBits>
__device__ float ExactError(const LaneSlots& slots, const Quad& target, GroupParams params) {
  const float scale = StoredToFloat(params.scale), zero = StoredToFloat(params.zero);
  const CodeSteps steps = MakeCodeSteps(scale, zero, kBits);
  Quad squares;
#pragma unroll
  for (int q = 0; q < kSlots; ++q) {
    const float error = target.x[q] - LevelOf(CodeOf<kBits>(target.x[q], steps), scale, zero);
    squares.x[q] = error * error;
  }
  return OrderedSum(slots, squares);
}

// The lane's part of an approximate error, and how far that of all lanes may be from the exact one:
// as in value_search_kernels.cu.
template <int kBits>
__device__ float NearErrorPart(const LaneSlots& slots, const Quad& target, float scale,
                               float zero) {
  constexpr float kBase = 0x1p+23f, kMax = static_cast<float>((1 << kBits) - 1);
  const float inverse = scale > 0.0f ? __fdividef(1.0f, kMax * scale) : 0.0f;
  const float offset = -zero * inverse;
  float sum = 0;
#pragma unroll
  for (int q = 0; q < kSlots; ++q) {
    const float part = __saturatef(__fmaf_rn(target.x[q], inverse, offset));
    const float code = __fmaf_rn(part, kMax, kBase) - kBase;
    const float error = target.x[q] - __fmaf_rn(code, scale, zero);
    if (slots.IsCoarse(q)) sum = __fmaf_rn(error, error, sum);
  }
  return sum;
}
__device__ float Slack(float2 range, float scale) {
  return 0x1p-12f * scale * fmaxf(fabsf(range.x), fabsf(range.y));
}
constexpr float kSumError = 0x1p-18f;

// Sums of eight values over 32 lanes: lane l gets that of value l / 4, bits reversed as below.
__device__ float SumOfEight(float (&v)[kMaxRatios]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int half = 4; half >= 1; half /= 2) {
    const bool is_upper = (lane & (4 * half)) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const float other = __shfl_xor_sync(kAllLanes, is_upper ? v[i] : v[i + half], 4 * half);
      v[i] = (is_upper ? v[i + half] : v[i]) + other;
    }
  }
  v[0] = v[0] + __shfl_xor_sync(kAllLanes, v[0], 2);
  return v[0] + __shfl_xor_sync(kAllLanes, v[0], 1);
}

// SearchParams().
template <int kBits>
__device__ GroupParams Search(const LaneSlots& slots, const Quad& target, int num_ratios) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float2 range = RangeOfGroup(slots, target);
  if (num_ratios == 1) return ShrunkParamsOf<kBits>(range.x, range.y, 0);
  // Lane l makes the parameters of ratio l.
  const GroupParams mine = ShrunkParamsOf<kBits>(range.x, range.y, min(lane, num_ratios - 1));
  const uint32_t packed = mine.scale | static_cast<uint32_t>(mine.zero) << 16;
  const auto params_of = [&](int ratio) {
    const uint32_t bits = __shfl_sync(kAllLanes, packed, ratio);
    return GroupParams{static_cast<Float16Bits>(bits), static_cast<Float16Bits>(bits >> 16)};
  };
  float errors[kMaxRatios];
#pragma unroll
  for (int ratio = 0; ratio < kMaxRatios; ++ratio) {
    errors[ratio] = INFINITY;
    if (ratio >= num_ratios) continue;
    const GroupParams params = params_of(ratio);
    errors[ratio] = NearErrorPart<kBits>(slots, target, StoredToFloat(params.scale),
                                         StoredToFloat(params.zero));
  }
  // Errors are not negative, so their bits are in their order.
  const unsigned error = __float_as_uint(SumOfEight(errors));
  const int ratio = lane / 4;
  const unsigned least = __reduce_min_sync(kAllLanes, error);
  int best = __reduce_min_sync(kAllLanes, error == least ? ratio : kMaxRatios);
  const unsigned second = __reduce_min_sync(kAllLanes, ratio == best ? ~0u : error);
  const float widest = StoredToFloat(params_of(0).scale);
  const float gap = __uint_as_float(second) - __uint_as_float(least);
  const float slack = Slack(range, widest) + kSumError * __uint_as_float(second);
  if (!(gap > 2.0f * slack)) {
    float exact = 0;
#pragma unroll 1
    for (int i = 0; i < num_ratios; ++i) {
      const float of_ratio = ExactError<kBits>(slots, target, params_of(i));
      if (i > 0 && !(of_ratio < exact)) continue;
      exact = of_ratio;
      best = i;
    }
  }
  return params_of(best);
}

// CorrectGain(), from the codes of the coarse elements.
__device__ GroupParams Corrected(const LaneSlots& slots, const Quad& target, const Quad& codes,
                                 GroupParams searched) {
  const auto count = static_cast<float>(slots.num_coarse);
  int code_sum = 0;
#pragma unroll
  for (int q = 0; q < kSlots; ++q) {
    if (slots.IsCoarse(q)) code_sum += static_cast<int>(codes.x[q]);
  }
  const float mean_code = static_cast<float>(__reduce_add_sync(kAllLanes, code_sum)) / count;
  const float mean_value = OrderedSum(slots, target) / count;
  Quad covariances, variances;
#pragma unroll
  for (int q = 0; q < kSlots; ++q) {
    const float code = codes.x[q] - mean_code, centred = target.x[q] - mean_value;
    covariances.x[q] = code * centred;
    variances.x[q] = centred * centred;
  }
  const float covariance = OrderedSum(slots, covariances);
  return UnbiasedParams(searched, mean_code, mean_value, covariance, OrderedSum(slots, variances));
}

// One warp's chain.
template <int kHeadDim, int kBits>
struct KeyChain {
  using W = WarpShared<kHeadDim, kBits>;
  const LayerEncodeArgs& args;
  W& shared;
  LaneSlots slots;
  int lane;
  float4* residuals;     // [step][lane]; errors behind the step
  const uint8_t* order;  // null: natural
  const float* weights;  // null: no feedback
  std::byte* out;

  // Adds to `sums` the weighted errors of channels [0, begin) for those of the panel.
  __device__ void TakePanel(int begin) {
    Quad sums[kPanel] = {};
    // The next chunk is on its way while one is worked on.
    float4 next[kChunk];
#pragma unroll
    for (int n = 0; n < kChunk; ++n) next[n] = residuals[n * 32 + lane];
#pragma unroll 1
    for (int j = 0; j < begin; j += kChunk) {
      Quad errors[kChunk];
#pragma unroll
      for (int n = 0; n < kChunk; ++n) {
        errors[n] = ToQuad(next[n]);
        next[n] = residuals[(j + kChunk + n) * 32 + lane];
      }
#pragma unroll
      for (int i = 0; i < kPanel; ++i) {
        const float4 w = *reinterpret_cast<const float4*>(weights + (begin + i) * kHeadDim + j);
        const float of_error[kChunk] = {w.x, w.y, w.z, w.w};
#pragma unroll
        for (int n = 0; n < kChunk; ++n) {
#pragma unroll
          for (int q = 0; q < kSlots; ++q) {
            sums[i].x[q] = sums[i].x[q] + of_error[n] * errors[n].x[q];
          }
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kPanel; ++i) shared.panel[i][lane] = ToVector(sums[i]);
    __syncwarp();
    for (int i = lane; i < kPanel * kPanel; i += 32) {
      shared.weights[i / kPanel][i % kPanel] =
          weights[(begin + i / kPanel) * kHeadDim + begin + i % kPanel];
    }
    __syncwarp();
  }

  // What the errors before `step` weigh. A lane reads what it wrote itself.
  __device__ Quad FeedbackSum(int step) const {
    const int at = step % kPanel;
    Quad sum = ToQuad(shared.panel[at][lane]);
    for (int j = 0; j < at; ++j) {
      const float weight = shared.weights[at][j];
      const Quad error = ToQuad(shared.panel[j][lane]);
#pragma unroll
      for (int q = 0; q < kSlots; ++q) sum.x[q] = sum.x[q] + weight * error.x[q];
    }
    return sum;
  }

  __device__ void PutCodes(int channel, const Quad& codes, const Quad& fine) {
    const CodePosition at = LocateCode(0, channel, kHeadDim, kBits);
    auto* words = reinterpret_cast<uint4*>(shared.codes[RowWord<kBits>(channel)]) + lane;
    uint4 of_slots = *words;
    of_slots.x |= static_cast<uint32_t>(codes.x[0]) << at.shift;
    of_slots.y |= static_cast<uint32_t>(codes.x[1]) << at.shift;
    of_slots.z |= static_cast<uint32_t>(codes.x[2]) << at.shift;
    of_slots.w |= static_cast<uint32_t>(codes.x[3]) << at.shift;
    *words = of_slots;
    const CodePosition fine_at = LocateCode(0, channel, kHeadDim, kFineBits);
#pragma unroll
    for (int q = 0; q < kSlots; ++q) {
      if (!slots.IsFine(q)) continue;
      shared.fine_codes[RowWord<kFineBits>(channel)][slots.element[q] - slots.num_coarse] |=
          static_cast<uint32_t>(fine.x[q]) << fine_at.shift;
    }
  }

  // Which of a row's words holds a channel.
  template <int kOfBits>
  __device__ static int RowWord(int channel) {
    return channel / (128 / kOfBits) * 4 + channel % 8 / 2;
  }

  // `original` is the step's residuals, loaded before the step before.
  __device__ void EncodeStep(int step, const Quad& original) {
    const int channel = order == nullptr ? step : order[step];
    Quad target = original;
    if (weights != nullptr) {
      const Quad sum = FeedbackSum(step);
#pragma unroll
      for (int q = 0; q < kSlots; ++q) target.x[q] = target.x[q] - sum.x[q];
    }
    const GroupParams searched = Search<kBits>(slots, target, args.num_ratios_k);
    const CodeSteps steps =
        MakeCodeSteps(StoredToFloat(searched.scale), StoredToFloat(searched.zero), kBits);
    Quad codes;
#pragma unroll
    for (int q = 0; q < kSlots; ++q) {
      codes.x[q] = slots.IsCoarse(q) ? CodeOf<kBits>(target.x[q], steps) : 0.0f;
    }
    GroupParams stored = searched;
    if (args.unbiased_k) stored = Corrected(slots, target, codes, searched);
    const float scale = StoredToFloat(stored.scale), zero = StoredToFloat(stored.zero);
    if (lane == 0) {
      const int at = ColumnPosition(channel, kHeadDim);
      reinterpret_cast<Float16Bits*>(out + args.layout.k_scales)[at] = stored.scale;
      reinterpret_cast<Float16Bits*>(out + args.layout.k_zeros)[at] = stored.zero;
    }
    Quad errors, fine = {};
#pragma unroll
    for (int q = 0; q < kSlots; ++q) {
      errors.x[q] = LevelOf(codes.x[q], scale, zero) - original.x[q];
      if (!slots.IsFine(q)) continue;
      const FineGrid grid = MakeFineGrid(scale, zero);
      fine.x[q] = QuantizeOne(target.x[q], grid.step, grid.low, MaxCode(kFineBits));
      errors.x[q] = DequantizeOne(fine.x[q], grid.step, grid.low) - original.x[q];
    }
    PutCodes(channel, codes, fine);
    if (weights == nullptr) return;
    shared.panel[step % kPanel][lane] = ToVector(errors);
    residuals[step * 32 + lane] = ToVector(errors);
  }

  // The words of a matrix of `num_rows` rows from slot `first_row` on, as they stand in the page.
  template <int kOfBits, typename WordAt>
  __device__ void CopyCodesOut(uint32_t* words, int num_rows, const WordAt& word_at) const {
    constexpr int kLaneWords = kHeadDim * kOfBits / 64,
                  kChunkWords = kLaneWords < 4 ? kLaneWords : 4;
    for (int i = lane; i < num_rows * kHeadDim * kOfBits / 32; i += 32) {
      const int tile = i / (32 * kLaneWords), rest = i % (32 * kLaneWords);
      const int word = rest / (32 * kChunkWords) * kChunkWords + rest % kChunkWords;
      const int of_lane = rest / kChunkWords % 32;
      const int row = 16 * tile + 8 * (word % 2) + of_lane / 4;
      words[i] = word_at(word / 2 * 4 + of_lane % 4, row);
    }
  }

  __device__ void CopyOut(int first_slot) const {
    const int num_fine = args.layout.encoding.k_fine_tokens;
    CopyCodesOut<kBits>(
        reinterpret_cast<uint32_t*>(out + args.layout.k_codes), kBlockTokens - num_fine,
        [&](int word, int slot) {
          return slot < first_slot ? 0u : shared.codes[word][ElementPosition(slot - first_slot)];
        });
    CopyCodesOut<kFineBits>(reinterpret_cast<uint32_t*>(out + args.layout.k_fine_codes), num_fine,
                            [&](int word, int row) { return shared.fine_codes[word][row]; });
  }
};

template <int kHeadDim, int kBits>
__global__ void __launch_bounds__(kThreads, kBits == 2 ? 4 : 3)
    KeySearchKernel(const __grid_constant__ LayerEncodeArgs args, float4* residuals) {
  using W = WarpShared<kHeadDim, kBits>;
  extern __shared__ std::byte dynamic_shared[];
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int chain = static_cast<int>(blockIdx.x) * kWarps + warp;
  if (chain >= args.num_blocks * args.num_kv_heads()) return;
  // Neighbours are blocks of one head, which share its weights.
  const int block = chain % args.num_blocks, head = chain / args.num_blocks;
  const int first_slot = args.FirstSlot(block);
  W& shared = reinterpret_cast<W*>(dynamic_shared)[warp];
  for (int i = lane; i < W::kRowWords * kBlockTokens; i += 32) (&shared.codes[0][0])[i] = 0;
  for (int i = lane; i < W::kFineWords * kFineTokens; i += 32) (&shared.fine_codes[0][0])[i] = 0;
  __syncwarp();
  const bool has_feedback = args.k_order != nullptr;
  KeyChain<kHeadDim, kBits> keys = {
      args,
      shared,
      LaneSlots(first_slot, args.layout.encoding.k_fine_tokens),
      lane,
      residuals + int64_t{args.ChainOf(block, head)} * kHeadDim * 32,
      has_feedback ? args.k_order + head * kHeadDim : nullptr,
      has_feedback ? args.k_weights + int64_t{head} * kHeadDim * kHeadDim : nullptr,
      args.HeadOf(block, head)};
#pragma unroll 1
  for (int begin = 0; begin < kHeadDim; begin += kPanel) {
    if (has_feedback) keys.TakePanel(begin);
    float4 original = keys.residuals[begin * 32 + lane];
#pragma unroll 1
    for (int step = begin; step < begin + kPanel; ++step) {
      const float4 next = keys.residuals[min(step + 1, kHeadDim - 1) * 32 + lane];
      keys.EncodeStep(step, ToQuad(original));
      original = next;
    }
  }
  __syncwarp();
  keys.CopyOut(first_slot);
}

template <int kHeadDim, int kBits>
cudaError_t Launch(const LayerEncodeArgs& args, cudaStream_t stream) {
  constexpr int kSharedBytes = kWarps * sizeof(WarpShared<kHeadDim, kBits>);
  const cudaError_t error = cudaFuncSetAttribute(
      KeySearchKernel<kHeadDim, kBits>, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  const int num_chains = args.num_blocks * args.num_kv_heads();
  const int num_ctas = (num_chains + kWarps - 1) / kWarps;
  KeySearchKernel<kHeadDim, kBits><<<num_ctas, kThreads, kSharedBytes, stream>>>(
      args, reinterpret_cast<float4*>(args.residuals));
  return cudaGetLastError();
}

}  // namespace

bool KeySearchCovers(const LayerEncodeArgs& args) {
  return args.layout.encoding.k_group_tokens == kBlockTokens && args.num_ratios_k <= kMaxRatios &&
         args.residuals != nullptr;
}

cudaError_t LaunchKeySearch(const LayerEncodeArgs& args, cudaStream_t stream) {
  const dim3 grid(args.num_blocks, args.num_kv_heads());
  ArrangeKeysKernel<<<grid, kArrangeThreads, 0, stream>>>(
      args, reinterpret_cast<float4*>(args.residuals));
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) return error;
  const bool is_2_bit = args.layout.encoding.bits_k == 2;
  if (args.head_dim() == 64) {
    return is_2_bit ? Launch<64, 2>(args, stream) : Launch<64, 4>(args, stream);
  }
  return is_2_bit ? Launch<128, 2>(args, stream) : Launch<128, 4>(args, stream);
}

}  // namespace pkv
