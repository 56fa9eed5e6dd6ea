// The encoder of variants whose scales come from minimum and maximum alone, and whose K has coarse
// codes only: kivi*, pkv*.
//
// Grid: (block, kv head) x {K, V}; a CTA owns one 128 x head_dim tile in registers, 4 rows of 8
// channels a thread, loaded by 16 bytes a lane: every value is read from device memory once and
// converted once. K: threads own rows of the block in order, so that minimum and maximum over rows
// go through shared memory, and codes, 8 of a row at a time, are transposed bit by bit into words.
// V: a warp owns the rows that share a word, so that each thread has whole bytes of it. Words pass
// through shared memory, so that pages are written by 16 bytes a lane.
//
// Bytes moved per token and head at head_dim 128, 2 bits: 512 read, 74 written. Compiled with
// --fmad=false: equal bytes to the CPU.

#include <cuda_fp16.h>

#include "kernels/codec/code_items.cuh"
#include "kernels/codec/code_steps_math.h"
#include "kernels/codec/layer_encode.h"
#include "kernels/pattern/pattern_math.h"
#include "proto/block/fragment_order.h"

namespace pkv {
namespace {

constexpr int kRows = 4;       // of a thread
constexpr int kOctet = 8;      // channels of a thread
constexpr int kMaxGroups = 4;  // groups of 32 of 128
constexpr int kTileWords = 4;  // words between the row tiles of a staged matrix, against conflicts

// How the CTA's threads share a tile.
template <int kHeadDim>
struct Tile {
  static constexpr int kLanes = kHeadDim / kOctet;  // of a row
  static constexpr int kRowsPerLoad = 32 / kLanes;  // rows of a warp at a time
  static constexpr int kThreads = kBlockTokens / kRows * kLanes;
  static constexpr int kWarps = kThreads / 32;
  static constexpr int kWarpRows = kRows * kRowsPerLoad;

  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ static int warp() { return thread() / 32; }
  // The lane's octet of the row, and which of the rows loaded at a time.
  __device__ static int octet() { return thread() % kLanes; }
  __device__ static int sub() { return thread() % 32 / kLanes; }
};

template <int kHeadDim, int kBits>
constexpr int kTileCodeWords = 16 * kHeadDim* kBits / 32;

struct Octet {
  float values[kOctet];
};

__device__ uint4 LoadStreaming(const uint16_t* at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return v;
}

__device__ Octet ToFloats(const uint4& bits) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
  Octet out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = __half22float2(reinterpret_cast<const __half2&>(words[i]));
    out.values[2 * i] = pair.x;
    out.values[2 * i + 1] = pair.y;
  }
  return out;
}

// Keeps the largest magnitude of each half; NaN stays.
__device__ void KeepLargest(const uint4& bits, __half2& largest) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    largest = __hmax2_nan(largest, __habs2(reinterpret_cast<const __half2&>(words[i])));
  }
}

// A thread's rows as they stand in memory. `slot_of(i)` is the slot of row i.
struct LoadedRows {
  uint4 bits[kRows];
  int ids[kRows];

  template <typename SlotOf>
  __device__ void Load(const SlotRows& source, int channel, const SlotOf& slot_of) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int row = slot_of(i);  // DirectEncodeCovers(): no slots but the rows themselves
      bits[i] = LoadStreaming(source.rows + row * source.head_dim + channel);
      ids[i] = source.ids == nullptr ? kRawPatternId : source.ids[row];
    }
  }

  // Less its pattern.
  __device__ Octet Residual(const SlotRows& source, int channel, int i) const {
    Octet row = ToFloats(bits[i]);
    if (ids[i] == kRawPatternId) return row;
    const uint16_t* at = source.patterns + ids[i] * source.head_dim + channel;
    const Octet pattern = ToFloats(*reinterpret_cast<const uint4*>(at));
#pragma unroll
    for (int j = 0; j < kOctet; ++j) row.values[j] = row.values[j] - pattern.values[j];
    return row;
  }

  __device__ void CheckFinite(uint32_t* has_non_finite) const {
    __half2 largest = __float2half2_rn(0.0f);
#pragma unroll
    for (int i = 0; i < kRows; ++i) KeepLargest(bits[i], largest);
    const auto magnitudes = reinterpret_cast<const uint32_t&>(largest);
    const bool is_finite =
        (magnitudes & 0x7fffu) < 0x7c00u && (magnitudes >> 16 & 0x7fffu) < 0x7c00u;
    if (!is_finite && has_non_finite != nullptr) *has_non_finite = 1;
  }
};

// The lanes of this lane's row.
template <int kLanes>
__device__ unsigned RowMask() {
  return ((1u << kLanes) - 1u) << (threadIdx.x % 32 / kLanes * kLanes);
}

__device__ float2 RangeOf(const Octet& row) {
  float low = row.values[0], high = low;
#pragma unroll
  for (int j = 1; j < kOctet; ++j) {
    low = fminf(low, row.values[j]);
    high = fmaxf(high, row.values[j]);
  }
  return make_float2(low, high);
}
__device__ float2 RangeOf(const uint4& bits) {
  const auto half2_of = [](const uint32_t& word) { return reinterpret_cast<const __half2&>(word); };
  const __half2 low = __hmin2(__hmin2(half2_of(bits.x), half2_of(bits.y)),
                              __hmin2(half2_of(bits.z), half2_of(bits.w)));
  const __half2 high = __hmax2(__hmax2(half2_of(bits.x), half2_of(bits.y)),
                               __hmax2(half2_of(bits.z), half2_of(bits.w)));
  return make_float2(__half2float(__hmin(low.x, low.y)), __half2float(__hmax(high.x, high.y)));
}

// Over kLanes neighbouring lanes. All lanes of `mask` come together.
template <int kLanes>
__device__ float2 Reduced(float2 range, unsigned mask) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    range.x = fminf(range.x, __shfl_xor_sync(mask, range.x, step));
    range.y = fmaxf(range.y, __shfl_xor_sync(mask, range.y, step));
  }
  return range;
}

// The CPU keeps the first of equal values, and 0 and -0 are equal. The machine's minimum is -0
// when any is. The least value is 0, so the first value that is 0 tells its sign.
template <typename ValueAt>
__device__ float SignedLikeFirstZero(float low, int count, const ValueAt& value_at) {
  if (__float_as_uint(low) != 0x80000000u) return low;
  for (int i = 0; i < count; ++i) {
    const float value = value_at(i);
    if (value == 0.0f) return value;
  }
  return low;
}

// Copies 16-byte pieces; staged codes have kTileWords more words a row tile.
template <int kThreads, int kBytes>
__device__ void CopyOut(std::byte* out, const void* staged) {
  static_assert(kBytes <= 16 * kThreads);
  const int i = static_cast<int>(threadIdx.x);
  if (i < kBytes / 16) reinterpret_cast<uint4*>(out)[i] = static_cast<const uint4*>(staged)[i];
}
template <int kThreads, int kTileCodes, int kCodes>
__device__ void CopyCodesOut(std::byte* out, const uint32_t* staged) {
#pragma unroll
  for (int first = 0; first < kCodes; first += 4 * kThreads) {
    const int i = first + 4 * static_cast<int>(threadIdx.x);
    if (kCodes % (4 * kThreads) != 0 && i >= kCodes) break;
    reinterpret_cast<uint4*>(out)[i / 4] =
        *reinterpret_cast<const uint4*>(staged + i + i / kTileCodes * kTileWords);
  }
}

struct alignas(16) Staged {
  Float16Bits scales[kMaxGroups * kBlockTokens];
  Float16Bits zeros[kMaxGroups * kBlockTokens];
  uint8_t ids[kBlockTokens];

  __device__ void Put(int scale_at, Float16Bits scale, int zero_at, Float16Bits zero) {
    scales[scale_at] = scale;
    zeros[zero_at] = zero;
  }
};

// CodeSteps as one 16-byte value.
template <int kBits>
__device__ float4 Steps(GroupParams params) {
  const CodeSteps steps =
      MakeCodeSteps(StoredToFloat(params.scale), StoredToFloat(params.zero), kBits);
  return make_float4(steps.zero, steps.inverse, steps.residue, 0.0f);
}

template <int kHeadDim, int kBits>
struct alignas(16) KeyShared {
  static constexpr int kItemBytes = kHeadDim * kBits / 8;  // of a row
  static constexpr int kPadBytes = 16;                     // every 16 rows
  float2 ranges[Tile<kHeadDim>::kWarps][kHeadDim];
  float4 steps[kMaxGroups][kHeadDim];
  std::byte items[kBlockTokens * kItemBytes + 8 * kPadBytes];
  uint32_t codes[8 * (kTileCodeWords<kHeadDim, kBits> + kTileWords)];
  Staged staged;
};

// What a CTA does with K of one head of one block, in this order, with a barrier after each step.
template <int kHeadDim, int kBits, int kGroup>
struct KeyEncoder {
  using T = Tile<kHeadDim>;
  using Shared = KeyShared<kHeadDim, kBits>;
  static constexpr int kColumns = 128 / kBits;  // that share words
  static constexpr int kTileWordsStaged = kTileCodeWords<kHeadDim, kBits> + kTileWords;

  const LayerEncodeArgs& args;
  SlotRows source;
  int first_slot;
  Shared& shared;
  Octet rows[kRows];

  __device__ KeyEncoder(const LayerEncodeArgs& launch, int block, int head, Shared& cta)
      : args(launch),
        source(SlotRows::Keys(launch, block, head)),
        first_slot(launch.FirstSlot(block)),
        shared(cta) {}

  __device__ int Slot(int i) const {
    return T::warp() * T::kWarpRows + i * T::kRowsPerLoad + T::sub();
  }
  __device__ static constexpr int group_tokens() { return kGroup; }

  // Channel j of an octet stands at j * kLanes + octet, so that a warp's accesses are contiguous.
  __device__ void PutRanges() {
    LoadedRows loaded;
    loaded.Load(source, T::octet() * kOctet, [&](int i) { return Slot(i); });
    loaded.CheckFinite(args.has_non_finite);
#pragma unroll
    for (int i = 0; i < kRows; ++i) rows[i] = loaded.Residual(source, T::octet() * kOctet, i);
#pragma unroll
    for (int j = 0; j < kOctet; ++j) {
      float low = INFINITY, high = -INFINITY;
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        if (Slot(i) < first_slot) continue;
        low = fminf(low, rows[i].values[j]);
        high = fmaxf(high, rows[i].values[j]);
      }
#pragma unroll
      for (int step = T::kLanes; step < 32; step *= 2) {
        low = fminf(low, __shfl_xor_sync(~0u, low, step));
        high = fmaxf(high, __shfl_xor_sync(~0u, high, step));
      }
      if (T::sub() == 0)
        shared.ranges[T::warp()][j * T::kLanes + T::octet()] = make_float2(low, high);
    }
  }

  __device__ GroupParams ParamsOf(int group, int channel) const {
    const int place = channel % kOctet * T::kLanes + channel / kOctet;
    const int warps = group_tokens() / T::kWarpRows;
    float low = INFINITY, high = -INFINITY;
    for (int w = group * warps; w < (group + 1) * warps; ++w) {
      low = fminf(low, shared.ranges[w][place].x);
      high = fmaxf(high, shared.ranges[w][place].y);
    }
    const int begin = max(group * group_tokens(), first_slot);
    const int count = (group + 1) * group_tokens() - begin;
    if (count <= 0) return {};
    low =
        SignedLikeFirstZero(low, count, [&](int t) { return source.Residual(begin + t, channel); });
    return GroupParamsOf<kBits>(low, high);
  }

  __device__ void PutParams() {
    for (int i = T::thread(); i < kBlockTokens / group_tokens() * kHeadDim; i += T::kThreads) {
      const int group = i / kHeadDim, channel = i % kHeadDim;
      const GroupParams params = ParamsOf(group, channel);
      shared.staged.Put(group * kHeadDim + ColumnPosition(channel, kHeadDim), params.scale,
                        group * kHeadDim + ColumnPosition(channel, kHeadDim), params.zero);
      shared.steps[group][channel % kOctet * T::kLanes + channel / kOctet] = Steps<kBits>(params);
    }
    if (source.ids != nullptr && T::thread() < kBlockTokens) {
      shared.staged.ids[RowPosition(T::thread(), kBlockTokens)] =
          static_cast<uint8_t>(source.Id(T::thread()));
    }
  }

  __device__ void PutItems() {
    uint32_t items[kRows] = {};
    const float4* steps = shared.steps[T::warp() * T::kWarpRows / group_tokens()];
#pragma unroll
    for (int j = 0; j < kOctet; ++j) {
      const float4 s = steps[j * T::kLanes + T::octet()];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const uint32_t bits = CodeBitsOnBase<kBits>(rows[i].values[j], {s.x, s.y, s.z});
        items[i] += (bits - kCodeBase) << (kBits * j);
      }
    }
    using Item = std::conditional_t<kBits == 2, uint16_t, uint32_t>;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int slot = Slot(i);
      std::byte* row = shared.items + slot * Shared::kItemBytes + slot / 16 * Shared::kPadBytes;
      reinterpret_cast<Item*>(row)[T::octet()] =
          slot < first_slot ? 0 : static_cast<Item>(items[i]);
    }
  }

  // Four words of one row at a time: those of kColumns columns.
  __device__ void PutWords() {
    constexpr int kParts = kHeadDim / kColumns;
    for (int i = T::thread(); i < kBlockTokens * kParts; i += T::kThreads) {
      const int tile = i % 8, row_in_tile = i / 8 % 2 * 8 + i / (16 * kParts);
      const int part = i / 16 % kParts, slot = tile * 16 + row_in_tile;
      const std::byte* row = shared.items + slot * Shared::kItemBytes + tile * Shared::kPadBytes;
      const uint4 loaded = reinterpret_cast<const uint4*>(row)[part];
      uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
      if constexpr (kBits == 2) {
        TransposeItems2(words);
      } else {
        TransposeItems4(words);
      }
      const int at = LocateCode(row_in_tile, part * kColumns, kHeadDim, kBits).word_index;
      const int next = LocateCode(0, 2, kHeadDim, kBits).word_index;  // from q to q + 1
#pragma unroll
      for (int q = 0; q < 4; ++q) shared.codes[tile * kTileWordsStaged + at + q * next] = words[q];
    }
  }

  __device__ void CopyOutAll(std::byte* out) const {
    constexpr int kWords = 8 * kTileCodeWords<kHeadDim, kBits>;
    CopyCodesOut<T::kThreads, kTileCodeWords<kHeadDim, kBits>, kWords>(out + args.layout.k_codes,
                                                                       shared.codes);
    constexpr int kParamsBytes = kBlockTokens / group_tokens() * kHeadDim * 2;
    CopyOut<T::kThreads, kParamsBytes>(out + args.layout.k_scales, shared.staged.scales);
    CopyOut<T::kThreads, kParamsBytes>(out + args.layout.k_zeros, shared.staged.zeros);
    if (source.ids != nullptr)
      CopyOut<T::kThreads, kBlockTokens>(out + args.layout.k_ids, shared.staged.ids);
  }
};

template <int kHeadDim, int kBits, int kGroup>
__device__ void EncodeKeys(const LayerEncodeArgs& args, int block, int head,
                           KeyShared<kHeadDim, kBits>& shared) {
  KeyEncoder<kHeadDim, kBits, kGroup> encoder(args, block, head, shared);
  encoder.PutRanges();
  __syncthreads();
  encoder.PutParams();
  __syncthreads();
  encoder.PutItems();
  __syncthreads();
  encoder.PutWords();
  __syncthreads();
  encoder.CopyOutAll(args.HeadOf(block, head));
}

template <int kHeadDim, int kBits>
struct alignas(16) ValueShared {
  float2 ranges[kMaxGroups][kBlockTokens];
  float4 steps[kMaxGroups][kBlockTokens];
  uint32_t codes[kHeadDim / 16 * (kTileCodeWords<kBlockTokens, kBits> + kTileWords)];
  uint8_t ids[kBlockTokens];  // by row, gated
  Staged staged;
};

// The same for V. Rows of a thread are 8 slots apart: four consecutive pairs of a word.
template <int kHeadDim, int kBits, int kGroup>
struct ValueEncoder {
  using T = Tile<kHeadDim>;
  static constexpr int kTileWordsStaged = kTileCodeWords<kBlockTokens, kBits> + kTileWords;

  const LayerEncodeArgs& args;
  SlotRows source;
  int first_slot, slot0;
  ValueShared<kHeadDim, kBits>& shared;
  Octet rows[kRows];

  __device__ ValueEncoder(const LayerEncodeArgs& launch, int block, int head,
                          ValueShared<kHeadDim, kBits>& cta)
      : args(launch),
        source(SlotRows::Values(launch, block, head)),
        first_slot(launch.FirstSlot(block)),
        shared(cta) {
    const int warp = T::warp(), q = warp % 4;
    const int quarter = 2 * (warp / 4 % 2) + (kHeadDim == 128 ? warp / 8 : T::sub() / 2);
    slot0 = 32 * quarter + 2 * q + T::sub() % 2;
  }

  __device__ int Slot(int i) const { return slot0 + 8 * i; }
  __device__ static constexpr int channels() { return kGroup < kHeadDim ? kGroup : kHeadDim; }
  __device__ int group() const { return T::octet() * kOctet / channels(); }

  // Whether the gate lets a pattern be subtracted. The lanes of a row agree: they have one id.
  __device__ bool Accepts(const uint4& bits, const Octet& flat) const {
    const unsigned lanes = RowMask<T::kLanes>();
    const float2 of_raw = Reduced<T::kLanes>(RangeOf(bits), lanes);
    const float2 of_flat = Reduced<T::kLanes>(RangeOf(flat), lanes);
    return ZTestAccepts(of_flat.y - of_flat.x, of_raw.y - of_raw.x, args.gate_threshold);
  }

  __device__ void PutRanges() {
    LoadedRows loaded;
    loaded.Load(source, T::octet() * kOctet, [&](int i) { return Slot(i); });
    loaded.CheckFinite(args.has_non_finite);
    constexpr int kGroupLanes = channels() / kOctet;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      rows[i] = loaded.Residual(source, T::octet() * kOctet, i);
      if (args.gate_v != Gate::kNone && loaded.ids[i] != kRawPatternId &&
          !Accepts(loaded.bits[i], rows[i])) {
        rows[i] = ToFloats(loaded.bits[i]);
        loaded.ids[i] = kRawPatternId;
      }
      const float2 range = Reduced<kGroupLanes>(RangeOf(rows[i]), ~0u);
      if (T::octet() % kGroupLanes == 0) shared.ranges[group()][Slot(i)] = range;
      if (T::octet() == 0) {
        shared.ids[Slot(i)] = static_cast<uint8_t>(loaded.ids[i]);
      }
    }
  }

  __device__ void PutParams() {
    if (source.ids != nullptr) source.ids = shared.ids;
    for (int i = T::thread(); i < kHeadDim / channels() * kBlockTokens; i += T::kThreads) {
      const int of_group = i / kBlockTokens, slot = i % kBlockTokens;
      GroupParams params;
      if (slot >= first_slot) {
        const float2 range = shared.ranges[of_group][slot];
        const float low = SignedLikeFirstZero(range.x, channels(), [&](int c) {
          return source.Residual(slot, of_group * channels() + c);
        });
        params = GroupParamsOf<kBits>(low, range.y);
      }
      const int at = of_group * kBlockTokens;
      shared.staged.Put(at + RowPosition(slot, kBlockTokens), params.scale,
                        at + ColumnPosition(slot, kBlockTokens), params.zero);
      shared.steps[of_group][slot] = Steps<kBits>(params);
    }
    if (source.ids != nullptr && T::thread() < kBlockTokens) {
      shared.staged.ids[ColumnPosition(T::thread(), kBlockTokens)] =
          static_cast<uint8_t>(source.Id(T::thread()));
    }
  }

  // Sinks have steps of scale 0, and so code 0.
  __device__ void PutWords() {
    uint32_t parts[kOctet] = {};
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float4 s = shared.steps[group()][Slot(i)];
#pragma unroll
      for (int j = 0; j < kOctet; ++j) {
        const uint32_t bits = CodeBitsOnBase<kBits>(rows[i].values[j], {s.x, s.y, s.z});
        parts[j] += (bits - kCodeBase) << (kBits * i);
      }
    }
    // A thread's channels are one half of a row tile, its slots from `slot0 - element` on in a
    // word.
    constexpr int kRowWords = LocateCode(1, 0, kBlockTokens, kBits).word_index;
    const int row = T::octet() % 2 * kOctet, tile = T::octet() / 2, element = slot0 % 2;
    const CodePosition at = LocateCode(row, slot0 - element, kBlockTokens, kBits);
    uint32_t* words = shared.codes + tile * kTileWordsStaged + at.word_index;
    // The pairs of an element fill 16 bits; our first one stands at at.shift.
    auto* bytes = reinterpret_cast<uint8_t*>(words) + 2 * element + at.shift / 8;
#pragma unroll
    for (int j = 0; j < kOctet; ++j) {
      uint8_t* byte = bytes + j * kRowWords * static_cast<int>(sizeof(uint32_t));
      if constexpr (kBits == 2) {
        *byte = static_cast<uint8_t>(parts[j]);
      } else {
        *reinterpret_cast<uint16_t*>(byte) = static_cast<uint16_t>(parts[j]);
      }
    }
  }

  __device__ void CopyOutAll(std::byte* out) const {
    constexpr int kTileWordsOut = kTileCodeWords<kBlockTokens, kBits>;
    CopyCodesOut<T::kThreads, kTileWordsOut, kHeadDim / 16 * kTileWordsOut>(
        out + args.layout.v_codes, shared.codes);
    constexpr int kParamsBytes = kHeadDim / channels() * kBlockTokens * 2;
    CopyOut<T::kThreads, kParamsBytes>(out + args.layout.v_scales, shared.staged.scales);
    CopyOut<T::kThreads, kParamsBytes>(out + args.layout.v_zeros, shared.staged.zeros);
    if (source.ids != nullptr)
      CopyOut<T::kThreads, kBlockTokens>(out + args.layout.v_ids, shared.staged.ids);
  }
};

template <int kHeadDim, int kBits, int kGroup>
__device__ void EncodeValues(const LayerEncodeArgs& args, int block, int head,
                             ValueShared<kHeadDim, kBits>& shared) {
  ValueEncoder<kHeadDim, kBits, kGroup> encoder(args, block, head, shared);
  encoder.PutRanges();
  __syncthreads();
  encoder.PutParams();
  __syncthreads();
  encoder.PutWords();
  __syncthreads();
  encoder.CopyOutAll(args.HeadOf(block, head));
}

template <int kHeadDim, int kBitsK, int kBitsV, int kGroup>
__global__ void __launch_bounds__(Tile<kHeadDim>::kThreads, 1024 / Tile<kHeadDim>::kThreads)
    DirectEncodeKernel(const __grid_constant__ LayerEncodeArgs args) {
  __shared__ union {
    KeyShared<kHeadDim, kBitsK> keys;
    ValueShared<kHeadDim, kBitsV> values;
  } shared;
  // Neighbours in the grid are blocks of one head, which share its patterns.
  const int block = static_cast<int>(blockIdx.x / 2), head = static_cast<int>(blockIdx.y);
  if (blockIdx.x % 2 == 0) {
    EncodeKeys<kHeadDim, kBitsK, kGroup>(args, block, head, shared.keys);
  } else {
    EncodeValues<kHeadDim, kBitsV, kGroup>(args, block, head, shared.values);
  }
}

template <int kHeadDim, int kBitsK, int kBitsV>
void LaunchGroups(const LayerEncodeArgs& args, cudaStream_t stream) {
  const dim3 grid(2 * args.num_blocks, args.num_kv_heads());
  constexpr int kThreads = Tile<kHeadDim>::kThreads;
  switch (args.layout.encoding.k_group_tokens) {
    case 32:
      DirectEncodeKernel<kHeadDim, kBitsK, kBitsV, 32><<<grid, kThreads, 0, stream>>>(args);
      break;
    case 64:
      DirectEncodeKernel<kHeadDim, kBitsK, kBitsV, 64><<<grid, kThreads, 0, stream>>>(args);
      break;
    default:
      DirectEncodeKernel<kHeadDim, kBitsK, kBitsV, 128><<<grid, kThreads, 0, stream>>>(args);
  }
}

template <int kHeadDim>
cudaError_t Launch(const LayerEncodeArgs& args, cudaStream_t stream) {
  const Encoding& encoding = args.layout.encoding;
  if (encoding.bits_k == 2) {
    LaunchGroups<kHeadDim, 2, 2>(args, stream);
  } else {
    LaunchGroups<kHeadDim, 4, 4>(args, stream);
  }
  return cudaGetLastError();
}

}  // namespace

bool DirectEncodeCovers(const LayerEncodeArgs& args) {
  const Encoding& encoding = args.layout.encoding;
  const int channels =
      encoding.k_group_tokens < args.head_dim() ? encoding.k_group_tokens : args.head_dim();
  return !encoding.is_fp16() && encoding.bits_k == encoding.bits_v &&
         encoding.v_group_channels == channels && encoding.k_fine_tokens == 0 &&
         args.slots == nullptr && args.num_ratios_k == 1 && args.num_ratios_v == 1 &&
         !args.unbiased_k && !args.unbiased_v && args.gate_v != Gate::kExactMse &&
         args.k_order == nullptr;
}

cudaError_t LaunchDirectEncode(const LayerEncodeArgs& args, cudaStream_t stream) {
  return args.head_dim() == 64 ? Launch<64>(args, stream) : Launch<128>(args, stream);
}

}  // namespace pkv
