// The encoder of V for variants that search its clip range, correct its gain or gate it exactly,
// with one group a token: default, default4.
//
// Grid: (block, kv head); 128 threads, four a token, 32 tokens at a time. A lane holds the four
// neighbours of every sixteen channels, so that it has four of the sixteen partial sums whole, in
// their order (FoldErrorSums), and a lane reads 8 bytes at a time.
//
// The ratio comes from integers (clip_ratio.cuh). Everything else is the arithmetic of the CPU,
// operation for operation. Compiled with --fmad=false: equal bytes.

#include <cuda_fp16.h>

#include "kernels/codec/clip_ratio.cuh"
#include "kernels/codec/code_steps_math.h"
#include "kernels/codec/layer_encode.h"
#include "kernels/pattern/pattern_math.h"
#include "proto/block/fragment_order.h"

namespace pkv {
namespace {

constexpr int kThreads = 128;
constexpr int kLanes = 4;              // of a token
constexpr int kPart = 4;               // neighbouring channels of a lane
constexpr int kStep = kLanes * kPart;  // channels that the lanes of a token hold a load
static_assert(kStep == kErrorSums && kThreads == kBlockTokens);
constexpr int kTokens = kThreads / kLanes;  // at a time
constexpr int kTileWords = 4;               // words between row tiles, against conflicts

template <int kHeadDim>
struct Values {
  static constexpr int kLoads = kHeadDim / kStep;
  float x[kLoads][kPart];
};

template <int kHeadDim, int kBits>
struct alignas(16) Shared {
  // Codes of a token; rows are 16 bytes longer, against conflicts.
  static constexpr int kRowBytes = kHeadDim + 16;
  static constexpr int kTileCodeWords = 16 * kBlockTokens * kBits / 32;
  uint8_t codes[kBlockTokens * kRowBytes];
  uint32_t words[kHeadDim / 16 * (kTileCodeWords + kTileWords)];
  Float16Bits scales[kBlockTokens], zeros[kBlockTokens];
  uint8_t ids[kBlockTokens];
};

__device__ int Lane() { return static_cast<int>(threadIdx.x) % kLanes; }

// Over the four lanes of a token.
template <typename T, typename Combine>
__device__ T OverToken(T value, const Combine& combine) {
  value = combine(value, __shfl_xor_sync(~0u, value, 2));
  return combine(value, __shfl_xor_sync(~0u, value, 1));
}
__device__ float Added(float a, float b) { return a + b; }

// FoldErrorSums(): lane l holds sums 4 l .. 4 l + 3.
__device__ float FoldOverToken(const float (&sums)[kPart]) {
  float folded[kPart];
#pragma unroll
  for (int c = 0; c < kPart; ++c) folded[c] = OverToken(sums[c], Added);
  return (folded[0] + folded[2]) + (folded[1] + folded[3]);
}

template <int kHeadDim>
__device__ void LoadRow(const uint16_t* row, uint2 (&bits)[kHeadDim / kStep]) {
#pragma unroll
  for (int j = 0; j < kHeadDim / kStep; ++j) {
    bits[j] = *reinterpret_cast<const uint2*>(row + j * kStep + Lane() * kPart);
  }
}

__device__ void ToFloats(uint2 bits, float (&x)[kPart]) {
  const float2 low = __half22float2(reinterpret_cast<const __half2&>(bits.x));
  const float2 high = __half22float2(reinterpret_cast<const __half2&>(bits.y));
  x[0] = low.x;
  x[1] = low.y;
  x[2] = high.x;
  x[3] = high.y;
}

// The row less its pattern; null: as it is.
template <int kHeadDim>
__device__ Values<kHeadDim> Residual(const uint2 (&raw)[kHeadDim / kStep],
                                     const uint16_t* pattern) {
  Values<kHeadDim> out;
#pragma unroll
  for (int j = 0; j < kHeadDim / kStep; ++j) {
    ToFloats(raw[j], out.x[j]);
    if (pattern == nullptr) continue;
    float p[kPart];
    ToFloats(*reinterpret_cast<const uint2*>(pattern + j * kStep + Lane() * kPart), p);
#pragma unroll
    for (int c = 0; c < kPart; ++c) out.x[j][c] = out.x[j][c] - p[c];
  }
  return out;
}

// RangeOf() but for the sign of zeros. Not a number is left out.
template <int kHeadDim>
__device__ float2 RangeOfToken(const Values<kHeadDim>& values) {
  float low = values.x[0][0], high = low;
#pragma unroll
  for (int j = 0; j < Values<kHeadDim>::kLoads; ++j) {
#pragma unroll
    for (int c = 0; c < kPart; ++c) {
      low = fminf(low, values.x[j][c]);
      high = fmaxf(high, values.x[j][c]);
    }
  }
  return {OverToken(low, [](float a, float b) { return fminf(a, b); }),
          OverToken(high, [](float a, float b) { return fmaxf(a, b); })};
}
// The same of fp16, two at a time.
template <int kHeadDim>
__device__ float2 RangeOfToken(const uint2 (&raw)[kHeadDim / kStep]) {
  const auto pair = [](const uint32_t& bits) { return reinterpret_cast<const __half2&>(bits); };
  __half2 low = pair(raw[0].x), high = low;
#pragma unroll
  for (int j = 0; j < kHeadDim / kStep; ++j) {
    low = __hmin2(__hmin2(low, pair(raw[j].x)), pair(raw[j].y));
    high = __hmax2(__hmax2(high, pair(raw[j].x)), pair(raw[j].y));
  }
  low = OverToken(low, [](__half2 a, __half2 b) { return __hmin2(a, b); });
  high = OverToken(high, [](__half2 a, __half2 b) { return __hmax2(a, b); });
  return {__half2float(__hmin(__low2half(low), __high2half(low))),
          __half2float(__hmax(__low2half(high), __high2half(high)))};
}

// RangeOf() keeps the first of equal values: a least value of zero has the sign of the first zero.
template <int kHeadDim>
__device__ float WithSignOfFirstZero(const Values<kHeadDim>& values, float low) {
  if (!__any_sync(~0u, low == 0.0f)) return low;  // rare else
  int first = 2 * kHeadDim;  // the lowest channel that is zero, and its sign below
#pragma unroll
  for (int j = Values<kHeadDim>::kLoads - 1; j >= 0; --j) {
#pragma unroll
    for (int c = kPart - 1; c >= 0; --c) {
      const int sign = static_cast<int>(__float_as_uint(values.x[j][c]) >> 31);
      const int key = 2 * (j * kStep + Lane() * kPart + c) + sign;
      first = values.x[j][c] == 0.0f ? key : first;
    }
  }
  first = OverToken(first, [](int a, int b) { return min(a, b); });
  if (low != 0.0f) return low;
  return first % 2 == 0 ? 0.0f : -0.0f;
}

// The squared error of the decoded token, in the order of the CPU.
template <int kHeadDim, int kBits>
__device__ float ExactError(const Values<kHeadDim>& values, GroupParams params) {
  const float scale = StoredToFloat(params.scale), zero = StoredToFloat(params.zero);
  const CodeSteps steps = MakeCodeSteps(scale, zero, kBits);
  float sums[kPart] = {};
#pragma unroll
  for (int j = 0; j < Values<kHeadDim>::kLoads; ++j) {
#pragma unroll
    for (int c = 0; c < kPart; ++c) {
      const float value = values.x[j][c];
      const float error = value - LevelOf(CodeOf<kBits>(value, steps), scale, zero);
      sums[c] = sums[c] + error * error;
    }
  }
  return FoldOverToken(sums);
}

// BestClipRatio().
template <int kHeadDim, int kBits>
__device__ int BestRatio(const Values<kHeadDim>& values, float2 range) {
  constexpr int kLoads = Values<kHeadDim>::kLoads;
  const ClipUnits units = ClipUnits::Of(range.x, range.y, kBits);
  uint32_t distances[kLoads];
#pragma unroll
  for (int j = 0; j < kLoads; ++j) {
    uint32_t on_base[kPart];
#pragma unroll
    for (int c = 0; c < kPart; ++c) {
      on_base[c] = __float_as_uint(units.DistanceOnBase(values.x[j][c]));
    }
    distances[j] = LastBytes(on_base);
  }
  __syncwarp();  // nvcc 13.0 mixes what follows with what stands above, and spills
  constexpr int kAtOnce = 8;
  const int best = BestClipRatio<kBits, kLanes, kAtOnce>(distances, kHeadDim, kNumShrinkRatios);
  return range.x < range.y ? best : 0;
}

// A token on its way: its row, and the values that are encoded.
template <int kHeadDim>
struct Token {
  const uint16_t* row;
  const uint16_t* pattern;  // null: none
  Values<kHeadDim> values;  // less the pattern, or the row as it is
  float2 range;

  // Returns the range of the row.
  __device__ float2 TakeResidual(bool is_flat) {
    uint2 raw[kHeadDim / kStep];
    LoadRow<kHeadDim>(row, raw);
    values = Residual<kHeadDim>(raw, is_flat ? pattern : nullptr);
    range = RangeOfToken(values);
    return RangeOfToken<kHeadDim>(raw);
  }
  // Where `wanted`, the values are the row as it is. It is read again, from L1: kept, it would take
  // the registers of a CTA.
  __device__ void TakeRaw(bool wanted) {
    if (!__any_sync(~0u, wanted)) return;
    asm volatile("" ::: "memory");
    uint2 raw[kHeadDim / kStep];
    LoadRow<kHeadDim>(row, raw);
#pragma unroll
    for (int j = 0; j < Values<kHeadDim>::kLoads; ++j) {
      float x[kPart];
      ToFloats(raw[j], x);
#pragma unroll
      for (int c = 0; c < kPart; ++c) values.x[j][c] = wanted ? x[c] : values.x[j][c];
    }
  }
};

// What codes come from, as searched; and whether the pattern is taken away, as it then is from the
// token's values.
template <int kHeadDim, int kBits>
__device__ GroupParams Choose(const LayerEncodeArgs& args, Token<kHeadDim>& token, bool& accepts) {
  const bool is_exact = args.gate_v == Gate::kExactMse;
  GroupParams params, raw_params;
  float raw_error = 0;
  accepts = token.pattern != nullptr;
  // One copy of the search in the program. Only the exact gate needs it both ways.
#pragma unroll 1
  for (int pass = is_exact ? 0 : 1; pass < 2; ++pass) {
    const float2 of_row = token.TakeResidual(pass == 1);
    if (args.gate_v == Gate::kZTest) {
      accepts = accepts && ZTestAccepts(token.range.y - token.range.x, of_row.y - of_row.x,
                                        args.gate_threshold);
      token.TakeRaw(!accepts);
      if (!accepts) token.range = of_row;
    }
    token.range.x = WithSignOfFirstZero(token.values, token.range.x);
    const int ratio =
        args.num_ratios_v > 1 ? BestRatio<kHeadDim, kBits>(token.values, token.range) : 0;
    params = ShrunkParamsOf<kBits>(token.range.x, token.range.y, ratio);
    if (!is_exact) break;
    const float error = ExactError<kHeadDim, kBits>(token.values, params);
    if (pass == 0) {
      raw_params = params;
      raw_error = error;
    } else {
      accepts = accepts && error < raw_error;
      token.TakeRaw(!accepts);
      if (!accepts) params = raw_params;
    }
  }
  return params;
}

// The codes of a lane's values, one a byte.
template <int kHeadDim>
struct Codes {
  uint32_t words[Values<kHeadDim>::kLoads];
};
template <int kHeadDim, int kBits>
__device__ Codes<kHeadDim> CodesOf(const Values<kHeadDim>& values, const CodeSteps& steps) {
  Codes<kHeadDim> out;
#pragma unroll
  for (int j = 0; j < Values<kHeadDim>::kLoads; ++j) {
    uint32_t bits[kPart];
#pragma unroll
    for (int c = 0; c < kPart; ++c) bits[c] = CodeBitsOnBase<kBits>(values.x[j][c], steps);
    out.words[j] = LastBytes(bits);
  }
  return out;
}

// CorrectGain().
template <int kHeadDim>
__device__ GroupParams Corrected(const Values<kHeadDim>& values, const Codes<kHeadDim>& codes,
                                 GroupParams searched) {
  constexpr float kCount = static_cast<float>(kHeadDim);
  // Codes are small integers: their sum is exact in any order.
  uint32_t code_sum = 0;
  float sums[kPart] = {};
#pragma unroll
  for (int j = 0; j < Values<kHeadDim>::kLoads; ++j) {
    code_sum = __dp4a(codes.words[j], 0x01010101u, code_sum);
#pragma unroll
    for (int c = 0; c < kPart; ++c) sums[c] = sums[c] + values.x[j][c];
  }
  code_sum = OverToken(code_sum, [](uint32_t a, uint32_t b) { return a + b; });
  const float mean_code = static_cast<float>(code_sum) / kCount;
  const float mean_value = FoldOverToken(sums) / kCount;
  float covariances[kPart] = {}, variances[kPart] = {};
#pragma unroll
  for (int j = 0; j < Values<kHeadDim>::kLoads; ++j) {
#pragma unroll
    for (int c = 0; c < kPart; ++c) {
      const uint32_t on_base = __byte_perm(codes.words[j], kCodeBase, 0x7650 + c);
      const float code = (__uint_as_float(on_base) - 0x1p+23f) - mean_code;
      const float centred = values.x[j][c] - mean_value;
      covariances[c] = covariances[c] + code * centred;
      variances[c] = variances[c] + centred * centred;
    }
  }
  const float covariance = FoldOverToken(covariances), variance = FoldOverToken(variances);
  return UnbiasedParams(searched, mean_code, mean_value, covariance, variance);
}

template <int kHeadDim, int kBits>
__device__ void EncodeToken(const LayerEncodeArgs& args, const SlotRows& source, int slot,
                            int first_slot, Shared<kHeadDim, kBits>& shared) {
  Token<kHeadDim> token;
  token.row = source.Row(slot);
  int id = source.Id(slot);
  token.pattern = id == kRawPatternId ? nullptr : source.patterns + id * kHeadDim;
  bool accepts;
  const GroupParams searched = Choose<kHeadDim, kBits>(args, token, accepts);
  if (!accepts) id = kRawPatternId;
  const Values<kHeadDim>& values = token.values;
  CodeSteps steps =
      MakeCodeSteps(StoredToFloat(searched.scale), StoredToFloat(searched.zero), kBits);
  if (slot < first_slot) steps = {};
  const Codes<kHeadDim> codes = CodesOf<kHeadDim, kBits>(values, steps);
  GroupParams stored = searched;
  if (args.unbiased_v) stored = Corrected<kHeadDim>(values, codes, searched);
  if (slot < first_slot) stored = {};
#pragma unroll
  for (int j = 0; j < Values<kHeadDim>::kLoads; ++j) {
    uint8_t* row = shared.codes + slot * Shared<kHeadDim, kBits>::kRowBytes;
    *reinterpret_cast<uint32_t*>(row + j * kStep + Lane() * kPart) = codes.words[j];
  }
  if (Lane() != 0) return;
  shared.scales[RowPosition(slot, kBlockTokens)] = stored.scale;
  shared.zeros[ColumnPosition(slot, kBlockTokens)] = stored.zero;
  shared.ids[ColumnPosition(slot, kBlockTokens)] = static_cast<uint8_t>(id);
}

// Words of four channels and one q: of each, 32 / kBits codes of slots that are first + 8 p +
// element, p in order.
template <int kHeadDim, int kBits>
__device__ void PutWords(Shared<kHeadDim, kBits>& shared) {
  using S = Shared<kHeadDim, kBits>;
  constexpr int kPairs = 16 / kBits, kSlots = 8 * kPairs;  // of a word
  constexpr int kCodes = 8 / kBits;                        // of a byte
  constexpr int kQuads = kHeadDim / 4;
  for (int i = static_cast<int>(threadIdx.x); i < kQuads * 4 * kBlockTokens / kSlots;
       i += kThreads) {
    const int quad = i % kQuads, first = i / kQuads / 4 * kSlots + i / kQuads % 4 * 2;
    // Byte b of the words of all four channels: element b / 2, pairs from (b % 2) kCodes on.
    uint32_t bytes[4];
#pragma unroll
    for (int b = 0; b < 4; ++b) {
      bytes[b] = 0;
#pragma unroll
      for (int n = 0; n < kCodes; ++n) {
        const int slot = first + 8 * (b % 2 * kCodes + n) + b / 2;
        bytes[b] |=
            *reinterpret_cast<const uint32_t*>(shared.codes + slot * S::kRowBytes + 4 * quad)
            << (kBits * n);
      }
    }
    const uint32_t even01 = __byte_perm(bytes[0], bytes[1], 0x6240);
    const uint32_t odd01 = __byte_perm(bytes[0], bytes[1], 0x7351);
    const uint32_t even23 = __byte_perm(bytes[2], bytes[3], 0x6240);
    const uint32_t odd23 = __byte_perm(bytes[2], bytes[3], 0x7351);
    const uint32_t words[4] = {
        __byte_perm(even01, even23, 0x5410), __byte_perm(odd01, odd23, 0x5410),
        __byte_perm(even01, even23, 0x7632), __byte_perm(odd01, odd23, 0x7632)};
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int channel = 4 * quad + c;
      const int at = LocateCode(channel % 16, first, kBlockTokens, kBits).word_index;
      shared.words[channel / 16 * (S::kTileCodeWords + kTileWords) + at] = words[c];
    }
  }
}

template <int kHeadDim, int kBits>
__global__ void __launch_bounds__(kThreads, 5)
    ValueSearchKernel(const __grid_constant__ LayerEncodeArgs args) {
  using S = Shared<kHeadDim, kBits>;
  __shared__ S shared;
  const int thread = static_cast<int>(threadIdx.x);
  const int block = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  const SlotRows source = SlotRows::Values(args, block, head);
#pragma unroll 1
  for (int first = 0; first < kBlockTokens; first += kTokens) {
    EncodeToken<kHeadDim, kBits>(args, source, first + thread / kLanes, args.FirstSlot(block),
                                 shared);
  }
  __syncthreads();
  PutWords<kHeadDim, kBits>(shared);
  __syncthreads();
  std::byte* out = args.HeadOf(block, head);
  for (int i = 4 * thread; i < kHeadDim / 16 * S::kTileCodeWords; i += 4 * kThreads) {
    const uint32_t* from = shared.words + i + i / S::kTileCodeWords * kTileWords;
    reinterpret_cast<uint4*>(out + args.layout.v_codes)[i / 4] =
        *reinterpret_cast<const uint4*>(from);
  }
  reinterpret_cast<Float16Bits*>(out + args.layout.v_scales)[thread] = shared.scales[thread];
  reinterpret_cast<Float16Bits*>(out + args.layout.v_zeros)[thread] = shared.zeros[thread];
  if (source.ids != nullptr) {
    reinterpret_cast<uint8_t*>(out + args.layout.v_ids)[thread] = shared.ids[thread];
  }
}

}  // namespace

bool ValueSearchCovers(const LayerEncodeArgs& args) {
  return args.layout.encoding.v_group_channels == args.head_dim();
}

cudaError_t LaunchValueSearch(const LayerEncodeArgs& args, cudaStream_t stream) {
  const dim3 grid(args.num_blocks, args.num_kv_heads());
  const bool is_2_bit = args.layout.encoding.bits_v == 2;
  if (args.head_dim() == 64) {
    if (is_2_bit) {
      ValueSearchKernel<64, 2><<<grid, kThreads, 0, stream>>>(args);
    } else {
      ValueSearchKernel<64, 4><<<grid, kThreads, 0, stream>>>(args);
    }
  } else if (is_2_bit) {
    ValueSearchKernel<128, 2><<<grid, kThreads, 0, stream>>>(args);
  } else {
    ValueSearchKernel<128, 4><<<grid, kThreads, 0, stream>>>(args);
  }
  return cudaGetLastError();
}

}  // namespace pkv
