// The encoder of variants whose scales come from minimum and maximum alone, and whose K has coarse
// codes only: kivi*, pkv*.
//
// Grid: (block, kv head) x {K, V}; a CTA owns one 128 x head_dim tile in registers, 8 rows of 8
// channels a thread, loaded by 16 bytes a lane: every value is read from device memory once and
// converted once. What lanes find together they find by halving: of the values that a lane has, it
// sends half to its neighbour and keeps the other half.
//
// K: a warp owns 16 channels of all rows, so that minimum and maximum over rows stay in the warp;
// codes, 8 of a row at a time, meet those of the other channels of their words in shared memory,
// and are transposed bit by bit. V: a warp owns the rows that share words, each thread whole half
// words, and lanes of a row its range, its gate and its parameters; nothing waits for other warps.
// Words pass through shared memory, so that pages are written by 16 bytes a lane.
//
// Bytes moved per token and head at head_dim 128, 2 bits: 512 read, 74 written. Compiled with
// --fmad=false: equal bytes to the CPU.

#include <cuda_fp16.h>

#include "kernels/codec/code_items.cuh"
#include "kernels/codec/code_steps_math.h"
#include "kernels/codec/direct_rows.cuh"
#include "kernels/codec/layer_encode.h"
#include "kernels/codec/over_lanes.cuh"
#include "kernels/pattern/pattern_math.h"
#include "proto/block/fragment_order.h"

namespace pkv {
namespace {

constexpr int kMaxGroups = 4;  // groups of 32 of 128
constexpr int kTileWords = 4;  // words between the row tiles of a staged matrix, against conflicts

template <int kHeadDim, int kBits>
constexpr int kTileCodeWords = 16 * kHeadDim* kBits / 32;

// A range in fp32 tells of values that are not finite: its minima let NaN through.
__device__ void CheckFinite(float low, float high, uint32_t* has_non_finite) {
  if (!(high - low < INFINITY) && has_non_finite != nullptr) *has_non_finite = 1;
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
template <int kNumThreads, int kBytes>
__device__ void CopyOut(std::byte* out, const void* staged) {
  static_assert(kBytes <= 16 * kNumThreads);
  if (Thread() < kBytes / 16) {
    reinterpret_cast<uint4*>(out)[Thread()] = static_cast<const uint4*>(staged)[Thread()];
  }
}
template <int kNumThreads, int kTileCodes, int kCodes>
__device__ void CopyCodesOut(std::byte* out, const uint32_t* staged) {
#pragma unroll
  for (int first = 0; first < kCodes; first += 4 * kNumThreads) {
    const int i = first + 4 * Thread();
    if (kCodes % (4 * kNumThreads) != 0 && i >= kCodes) break;
    reinterpret_cast<uint4*>(out)[i / 4] =
        *reinterpret_cast<const uint4*>(staged + i + i / kTileCodes * kTileWords);
  }
}

struct alignas(16) Staged {
  Float16Bits scales[kMaxGroups * kBlockTokens];
  Float16Bits zeros[kMaxGroups * kBlockTokens];
  uint8_t ids[kBlockTokens];
};

template <int kBits>
__device__ CodeSteps StepsOf(GroupParams params) {
  return MakeCodeSteps(StoredToFloat(params.scale), StoredToFloat(params.zero), kBits);
}

// Codes of kBits, packed from the lowest bits on, come as sums of numbers on kCodeBase: what the
// bases of `count` of them add up to.
template <int kBits>
__device__ constexpr uint32_t PackedBases(int count) {
  uint32_t sum = 0;
  for (int i = 0; i < count; ++i) sum += kCodeBase << (kBits * i);
  return sum;
}

template <int kHeadDim, int kBits>
struct alignas(16) KeyShared {
  static constexpr int kItemBytes = kHeadDim * kBits / 8;  // of a row
  static constexpr int kPadBytes = 16;                     // every 4 rows, against conflicts
  float4 steps[kMaxGroups][kHeadDim];
  std::byte items[kBlockTokens * kItemBytes + kBlockTokens / 4 * kPadBytes];
  uint32_t codes[8 * (kTileCodeWords<kHeadDim, kBits> + kTileWords)];
  Staged staged;

  __device__ std::byte* Row(int slot) {
    return items + slot * kItemBytes + (slot >> 2) * kPadBytes;
  }
};

// What a CTA does with K of one head of one block. Two lanes of a warp share a row.
template <int kHeadDim, int kBits, int kGroup>
struct KeyEncoder {
  using Shared = KeyShared<kHeadDim, kBits>;
  static constexpr int kGroups = kBlockTokens / kGroup, kGroupRows = kRows / kGroups;
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

  __device__ static int Slot(int i) { return 16 * i + Lane() / 2; }
  __device__ static int FirstChannel() { return 16 * Warp() + kOctet * (Lane() % 2); }

  __device__ void TakeRows() {
    LoadedRows<kHeadDim, 16> loaded;
    loaded.Load(source, Slot(0), FirstChannel());
    // Sinks have no part in ranges.
    if (first_slot > 0) loaded.CheckFinite(args.has_non_finite);
    loaded.TakeResiduals(source, FirstChannel(), rows);
  }

  // Of a group, this lane finds the least value of one channel, or the largest.
  __device__ void PutParams(int group) {
    Numbers<2 * kOctet> least;
#pragma unroll
    for (float& x : least.x) x = INFINITY;
#pragma unroll
    for (int i = 0; i < kGroupRows; ++i) {
      const Octet& row = rows[group * kGroupRows + i];
      if (first_slot > 0 && Slot(group * kGroupRows + i) < first_slot) continue;
#pragma unroll
      for (int j = 0; j < kOctet; ++j) {
        least.x[2 * j] = Least(least.x[2 * j], row.x[j]);
        least.x[2 * j + 1] = Least(least.x[2 * j + 1], -row.x[j]);
      }
    }
    const float own = LeastOverLanes<16, 2>(least).x[0];
    const float other = __shfl_xor_sync(~0u, own, 2);
    const bool is_high = Lane() / 2 % 2 != 0;
    const float low = is_high ? other : own, high = is_high ? -own : -other;
    CheckFinite(low, high, args.has_non_finite);
    const int channel = FirstChannel() + Lane() / 4;
    const GroupParams params = ParamsOf(group, channel, low, high);
    const int at = group * kHeadDim + ColumnPosition(channel, kHeadDim);
    if (is_high) {
      shared.staged.zeros[at] = params.zero;
    } else {
      const CodeSteps steps = StepsOf<kBits>(params);
      shared.staged.scales[at] = params.scale;
      shared.steps[group][channel] = make_float4(steps.zero, steps.inverse, steps.residue, 0.0f);
    }
  }

  __device__ GroupParams ParamsOf(int group, int channel, float low, float high) const {
    const int begin = max(group * kGroup, first_slot), count = (group + 1) * kGroup - begin;
    if (count <= 0) return {};
    low =
        SignedLikeFirstZero(low, count, [&](int t) { return source.Residual(begin + t, channel); });
    return GroupParamsOf<kBits>(low, high);
  }

  __device__ void PutItems() {
    uint32_t items[kRows];
#pragma unroll
    for (uint32_t& item : items) item = 0u - PackedBases<kBits>(kOctet);
#pragma unroll
    for (int j = 0; j < kOctet; ++j) {
#pragma unroll
      for (int group = 0; group < kGroups; ++group) {
        const float4 s = shared.steps[group][FirstChannel() + j];
#pragma unroll
        for (int i = group * kGroupRows; i < (group + 1) * kGroupRows; ++i) {
          items[i] += CodeBitsOnBase<kBits>(rows[i].x[j], {s.x, s.y, s.z}) << (kBits * j);
        }
      }
    }
    using Item = std::conditional_t<kBits == 2, uint16_t, uint32_t>;
    std::byte* first = shared.Row(Slot(0)) + FirstChannel() / kOctet * sizeof(Item);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (first_slot > 0 && Slot(i) < first_slot) items[i] = 0;
      *reinterpret_cast<Item*>(first + i * (16 * Shared::kItemBytes + 4 * Shared::kPadBytes)) =
          static_cast<Item>(items[i]);
    }
  }

  // Four words of one row at a time: those of kColumns columns.
  __device__ void PutWords() {
    constexpr int kParts = kHeadDim / kColumns;
    for (int i = Thread(); i < kBlockTokens * kParts; i += kThreads<kHeadDim>) {
      const int tile = i % 8, row_in_tile = i / 8 % 2 * 8 + i / (16 * kParts);
      const int part = i / 16 % kParts, slot = tile * 16 + row_in_tile;
      const uint4 loaded = reinterpret_cast<const uint4*>(shared.Row(slot))[part];
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
    if (source.ids != nullptr && Thread() < kBlockTokens) {
      shared.staged.ids[RowPosition(Thread(), kBlockTokens)] =
          static_cast<uint8_t>(source.Id(Thread()));
    }
  }

  __device__ void CopyOutAll(std::byte* out) const {
    constexpr int kN = kThreads<kHeadDim>, kTile = kTileCodeWords<kHeadDim, kBits>;
    CopyCodesOut<kN, kTile, 8 * kTile>(out + args.layout.k_codes, shared.codes);
    constexpr int kParamsBytes = kGroups * kHeadDim * 2;
    CopyOut<kN, kParamsBytes>(out + args.layout.k_scales, shared.staged.scales);
    CopyOut<kN, kParamsBytes>(out + args.layout.k_zeros, shared.staged.zeros);
    if (source.ids != nullptr) {
      CopyOut<kN, kBlockTokens>(out + args.layout.k_ids, shared.staged.ids);
    }
  }
};

template <int kHeadDim, int kBits, int kGroup>
__device__ void EncodeKeys(const LayerEncodeArgs& args, int block, int head,
                           KeyShared<kHeadDim, kBits>& shared) {
  KeyEncoder<kHeadDim, kBits, kGroup> encoder(args, block, head, shared);
  encoder.TakeRows();
#pragma unroll
  for (int group = 0; group < kBlockTokens / kGroup; ++group) encoder.PutParams(group);
  __syncwarp();
  encoder.PutItems();
  __syncthreads();
  encoder.PutWords();
  __syncthreads();
  encoder.CopyOutAll(args.HeadOf(block, head));
}

template <int kHeadDim, int kBits>
struct alignas(16) ValueShared {
  uint32_t codes[kHeadDim / 16 * (kTileCodeWords<kBlockTokens, kBits> + kTileWords)];
  Staged staged;
};

// The same for V. Rows of a thread are 8 slots apart: consecutive pairs of words.
template <int kHeadDim, int kBits, int kGroup>
struct ValueEncoder {
  static constexpr int kLanes = kHeadDim / kOctet;  // of a row
  static constexpr int kChannels = kGroup < kHeadDim ? kGroup : kHeadDim;
  static constexpr int kGroupLanes = kChannels / kOctet;
  // Of the kRows rows that lanes have together each finds the parameters of these.
  static constexpr int kOwnRows = kRows > kGroupLanes ? kRows / kGroupLanes : 1;
  static constexpr int kTileWordsStaged = kTileCodeWords<kBlockTokens, kBits> + kTileWords;

  using Loaded = LoadedRows<kHeadDim, 8>;
  struct Ranges {
    Numbers<kOwnRows> low, high;  // `high` is negative
  };
  struct Own {
    CodeSteps steps[kOwnRows];
    bool accepts[kOwnRows];
  };

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
    const int sub = Lane() / kLanes, half = kHeadDim == 128 ? Warp() / 4 : sub / 2;
    slot0 = 64 * half + 2 * (Warp() % 4) + sub % 2;
  }

  __device__ int Slot(int i) const { return slot0 + 8 * i; }
  __device__ static int FirstChannel() { return Lane() % kLanes * kOctet; }
  __device__ static int Group() { return FirstChannel() / kChannels; }
  __device__ static int OwnRow(int n) { return Lane() % kGroupLanes * kRows / kGroupLanes + n; }

  __device__ Ranges RangesOfRaw(const Loaded& loaded) const {
    Numbers<kRows, __half2> least;
#pragma unroll
    for (int i = 0; i < kRows; ++i) least.x[i] = RangeOf(loaded.bits[i]);
    const auto own = LeastOverLanes<kGroupLanes, 1>(least);
    Ranges out;
#pragma unroll
    for (int n = 0; n < kOwnRows; ++n) {
      const float2 pair = __half22float2(own.x[n]);
      out.low.x[n] = pair.x;
      out.high.x[n] = pair.y;
    }
    return out;
  }

  __device__ Ranges RangesOfRows() const {
    Numbers<kRows> low, high;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      low.x[i] = high.x[i] = INFINITY;
#pragma unroll
      for (const float x : rows[i].x) {
        low.x[i] = Least(low.x[i], x);
        high.x[i] = Least(high.x[i], -x);
      }
    }
    return {LeastOverLanes<kGroupLanes, 1>(low), LeastOverLanes<kGroupLanes, 1>(high)};
  }

  // The width of an own row, of all its groups.
  __device__ static float Width(const Ranges& ranges, int n) {
    float low = ranges.low.x[n], high = ranges.high.x[n];
#pragma unroll
    for (int step = kGroupLanes; step < kLanes; step *= 2) {
      low = Least(low, __shfl_xor_sync(~0u, low, step));
      high = Least(high, __shfl_xor_sync(~0u, high, step));
    }
    return -high - low;
  }

  __device__ Own TakeRows(Loaded& loaded) {
    loaded.Load(source, slot0, FirstChannel());
    loaded.CheckFinite(args.has_non_finite);
    const Ranges raw = RangesOfRaw(loaded);
    loaded.TakeResiduals(source, FirstChannel(), rows);
    Own own;
    if (source.ids == nullptr) {
#pragma unroll
      for (int n = 0; n < kOwnRows; ++n) {
        PutParams(n, raw.low.x[n], raw.high.x[n], kRawPatternId, own);
      }
      return own;
    }
    const Ranges flat = RangesOfRows();
#pragma unroll
    for (int n = 0; n < kOwnRows; ++n) {
      int id = source.ids[Slot(OwnRow(n))];
      if (args.gate_v != Gate::kNone &&
          !ZTestAccepts(Width(flat, n), Width(raw, n), args.gate_threshold)) {
        id = kRawPatternId;
      }
      const bool is_flat = id != kRawPatternId;
      PutParams(n, is_flat ? flat.low.x[n] : raw.low.x[n], is_flat ? flat.high.x[n] : raw.high.x[n],
                id, own);
      shared.staged.ids[ColumnPosition(Slot(OwnRow(n)), kBlockTokens)] = static_cast<uint8_t>(id);
    }
    return own;
  }

  // Lanes that find the same put the same.
  __device__ void PutParams(int n, float least, float negative_largest, int id, Own& own) {
    const int slot = Slot(OwnRow(n));
    GroupParams params;
    if (slot >= first_slot) {
      const float low = SignedLikeFirstZero(least, kChannels, [&](int c) {
        const int channel = Group() * kChannels + c;
        const float value = StoredToFloat(source.Row(slot)[channel]);
        if (id == kRawPatternId) return value;
        return value - StoredToFloat(source.patterns[id * kHeadDim + channel]);
      });
      params = GroupParamsOf<kBits>(low, -negative_largest);
    }
    shared.staged.scales[Group() * kBlockTokens + RowPosition(slot, kBlockTokens)] = params.scale;
    shared.staged.zeros[Group() * kBlockTokens + ColumnPosition(slot, kBlockTokens)] = params.zero;
    own.steps[n] = StepsOf<kBits>(params);
    own.accepts[n] = id != kRawPatternId;
  }

  // Sinks have steps of scale 0, and so code 0.
  __device__ void PutWords(const Loaded& loaded, const Own& own) {
    uint32_t accepted[kOwnRows];
#pragma unroll
    for (int n = 0; n < kOwnRows; ++n) accepted[n] = __ballot_sync(~0u, own.accepts[n]);
    uint32_t parts[kOctet];
#pragma unroll
    for (uint32_t& part : parts) part = 0u - PackedBases<kBits>(kRows);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int n = i % kOwnRows, from = i * kGroupLanes / kRows;  // of the lanes of the group
      const CodeSteps steps = {__shfl_sync(~0u, own.steps[n].zero, from, kGroupLanes),
                               __shfl_sync(~0u, own.steps[n].inverse, from, kGroupLanes),
                               __shfl_sync(~0u, own.steps[n].residue, from, kGroupLanes)};
      const bool is_flat = (accepted[n] >> (Lane() / kGroupLanes * kGroupLanes + from) & 1) != 0;
      if (!is_flat && loaded.ids[i] != kRawPatternId) rows[i] = ToFloats(loaded.bits[i]);
#pragma unroll
      for (int j = 0; j < kOctet; ++j) {
        parts[j] += CodeBitsOnBase<kBits>(rows[i].x[j], steps) << (kBits * i);
      }
    }
    // A thread's channels are one half of a row tile; its slots fill the half words of an element.
    constexpr int kColumns = 128 / kBits,
                  kRowWords = LocateCode(1, 0, kBlockTokens, kBits).word_index;
    const int octet = FirstChannel() / kOctet, element = slot0 % 2;
    uint32_t* tile = shared.codes + octet / 2 * kTileWordsStaged;
#pragma unroll
    for (int word = 0; word < kRows * kBits / 16; ++word) {
      const int column = slot0 - element + word * kColumns;
      const int at = LocateCode(octet % 2 * kOctet, column, kBlockTokens, kBits).word_index;
      auto* halves = reinterpret_cast<uint16_t*>(tile + at) + element;
#pragma unroll
      for (int j = 0; j < kOctet; ++j) {
        halves[j * kRowWords * 2] = static_cast<uint16_t>(parts[j] >> (16 * word));
      }
    }
  }

  __device__ void CopyOutAll(std::byte* out) const {
    constexpr int kN = kThreads<kHeadDim>, kTile = kTileCodeWords<kBlockTokens, kBits>;
    CopyCodesOut<kN, kTile, kHeadDim / 16 * kTile>(out + args.layout.v_codes, shared.codes);
    constexpr int kParamsBytes = kHeadDim / kChannels * kBlockTokens * 2;
    CopyOut<kN, kParamsBytes>(out + args.layout.v_scales, shared.staged.scales);
    CopyOut<kN, kParamsBytes>(out + args.layout.v_zeros, shared.staged.zeros);
    if (source.ids != nullptr) {
      CopyOut<kN, kBlockTokens>(out + args.layout.v_ids, shared.staged.ids);
    }
  }
};

template <int kHeadDim, int kBits, int kGroup>
__device__ void EncodeValues(const LayerEncodeArgs& args, int block, int head,
                             ValueShared<kHeadDim, kBits>& shared) {
  ValueEncoder<kHeadDim, kBits, kGroup> encoder(args, block, head, shared);
  LoadedRows<kHeadDim, 8> loaded;
  const auto own = encoder.TakeRows(loaded);
  encoder.PutWords(loaded, own);
  __syncthreads();
  encoder.CopyOutAll(args.HeadOf(block, head));
}

template <int kHeadDim, int kBitsK, int kBitsV, int kGroup>
__global__ void __launch_bounds__(kThreads<kHeadDim>, 512 / kThreads<kHeadDim>)
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
  constexpr int kN = kThreads<kHeadDim>;
  switch (args.layout.encoding.k_group_tokens) {
    case 32:
      DirectEncodeKernel<kHeadDim, kBitsK, kBitsV, 32><<<grid, kN, 0, stream>>>(args);
      break;
    case 64:
      DirectEncodeKernel<kHeadDim, kBitsK, kBitsV, 64><<<grid, kN, 0, stream>>>(args);
      break;
    default:
      DirectEncodeKernel<kHeadDim, kBitsK, kBitsV, 128><<<grid, kN, 0, stream>>>(args);
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
