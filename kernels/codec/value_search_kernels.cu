// The encoder of V for variants that search its clip range, correct its gain or gate it exactly,
// with one group a token: default, default4.
//
// Grid: (block, kv head); 256 threads, four a token, 64 tokens at a time. A lane holds the four
// neighbours of every sixteen channels, so that it has four of the sixteen partial sums whole, in
// their order (FoldErrorSums), and a lane reads 8 bytes at a time.
//
// The search costs 7 passes over every value, for the exact gate 14 (with and without the pattern),
// so it runs on near errors (near_error.cuh); only where their bound leaves open which ratio is
// best, or whether the gate accepts, the exact errors decide. Compiled with --fmad=false: equal
// bytes.

#include <cuda_fp16.h>

#include "kernels/codec/code_steps_math.h"
#include "kernels/codec/layer_encode.h"
#include "kernels/codec/near_error.cuh"
#include "kernels/pattern/pattern_math.h"
#include "proto/block/fragment_order.h"

namespace pkv {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 4;              // of a token
constexpr int kPart = 4;               // neighbouring channels of a lane
constexpr int kStep = kLanes * kPart;  // channels that the lanes of a token hold a load
static_assert(kStep == kErrorSums);
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

// RangeOf(): of equal values 0 and -0 it keeps the first.
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
  low = OverToken(low, [](float a, float b) { return fminf(a, b); });
  high = OverToken(high, [](float a, float b) { return fmaxf(a, b); });
  // Rare: the lowest channel that is zero, and its sign below.
  if (__any_sync(~0u, __float_as_uint(low) == 0x80000000u)) {
    int first = 2 * kHeadDim;
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
    if (low == 0.0f) low = first % 2 == 0 ? 0.0f : -0.0f;
  }
  return make_float2(low, high);
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

// The same to within NearErrorSlack().
template <int kHeadDim, int kBits>
__device__ float NearError(const Values<kHeadDim>& values, GroupParams params) {
  const NearLevels<kBits> levels(params);
  float sums[kPart] = {};
#pragma unroll
  for (int j = 0; j < Values<kHeadDim>::kLoads; ++j) {
#pragma unroll
    for (int c = 0; c < kPart; ++c) sums[c] = levels.AddSquare(sums[c], values.x[j][c]);
  }
  return OverToken((sums[0] + sums[1]) + (sums[2] + sums[3]), Added);
}

struct Choice {
  GroupParams params;
  float error = 0;  // to within `slack` of the exact one
  float slack = 0;
};

// SearchParams(): the ratio of the smallest error, ties to the widest range.
template <int kHeadDim, int kBits>
__device__ Choice Search(const Values<kHeadDim>& values, int num_ratios) {
  const float2 range = RangeOfToken(values);
  Choice best;
  best.params = ShrunkParamsOf<kBits>(range.x, range.y, 0);
  const float widest = StoredToFloat(best.params.scale);
  if (num_ratios == 1) {
    best.error = ExactError<kHeadDim, kBits>(values, best.params);
    return best;
  }
  const auto packed = [](GroupParams p) { return p.scale | static_cast<uint32_t>(p.zero) << 16; };
  const auto unpacked = [](uint32_t bits) {
    return GroupParams{static_cast<Float16Bits>(bits), static_cast<Float16Bits>(bits >> 16)};
  };
  float least = INFINITY, second = INFINITY;
#pragma unroll 1
  for (int first = 0; first < num_ratios; first += kLanes) {
    // Each lane makes the parameters of one ratio for all four.
    const uint32_t mine =
        packed(ShrunkParamsOf<kBits>(range.x, range.y, (first + Lane()) * kValueRatioStep));
#pragma unroll 1
    for (int i = 0; i < min(kLanes, num_ratios - first); ++i) {
      const GroupParams params = unpacked(__shfl_sync(~0u, mine, i, kLanes));
      const float error = NearError<kHeadDim, kBits>(values, params);
      second = fminf(second, fmaxf(error, least));
      if (!(error < least)) continue;
      least = error;
      best.params = params;
    }
  }
  best.error = least;
  best.slack = NearErrorSlack<kBits>(least, range, widest);
  const auto is_near = [&, bound = least + best.slack](float error) {
    return !(error - NearErrorSlack<kBits>(error, range, widest) > bound);  // NaN is
  };
  const bool is_open = is_near(second);
  if (!__any_sync(~0u, is_open)) return best;
  GroupParams exact_params;
  float exact = INFINITY;
#pragma unroll 1
  for (int ratio = 0; ratio < num_ratios; ++ratio) {
    const GroupParams params = ShrunkParamsOf<kBits>(range.x, range.y, ratio * kValueRatioStep);
    const bool takes_part = is_near(NearError<kHeadDim, kBits>(values, params)) && is_open;
    if (!__any_sync(~0u, takes_part)) continue;
    const float error = ExactError<kHeadDim, kBits>(values, params);
    if (!takes_part || !(ratio == 0 || error < exact)) continue;
    exact = error;
    exact_params = params;
  }
  if (is_open) best = {exact_params, exact, 0.0f};
  return best;
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
    out.words[j] = __byte_perm(__byte_perm(bits[0], bits[1], 0x0040),
                               __byte_perm(bits[2], bits[3], 0x0040), 0x5410);
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

// Whether the gate lets the pattern be subtracted, by the ranges alone.
template <int kHeadDim>
__device__ bool ZTestLets(const LayerEncodeArgs& args, const uint2 (&raw)[kHeadDim / kStep],
                          const uint16_t* pattern) {
  const float2 a = RangeOfToken(Residual<kHeadDim>(raw, pattern));
  const float2 b = RangeOfToken(Residual<kHeadDim>(raw, nullptr));
  return pattern != nullptr && ZTestAccepts(a.y - a.x, b.y - b.x, args.gate_threshold);
}

// Whether the decoded error is smaller with the pattern.
template <int kHeadDim, int kBits>
__device__ bool ExactGateLets(const uint2 (&raw)[kHeadDim / kStep], const uint16_t* pattern,
                              const Choice& flat_choice, const Choice& raw_choice) {
  const float gap = fabsf(flat_choice.error - raw_choice.error);
  const bool is_open = pattern != nullptr && !(gap > flat_choice.slack + raw_choice.slack);
  if (__any_sync(~0u, is_open)) {
    const float a =
        ExactError<kHeadDim, kBits>(Residual<kHeadDim>(raw, pattern), flat_choice.params);
    const float b =
        ExactError<kHeadDim, kBits>(Residual<kHeadDim>(raw, nullptr), raw_choice.params);
    if (is_open) return a < b;
  }
  return pattern != nullptr && flat_choice.error < raw_choice.error;
}

// What the search chose, and whether for the row less its pattern.
template <int kHeadDim, int kBits>
__device__ GroupParams Choose(const LayerEncodeArgs& args, const uint2 (&raw)[kHeadDim / kStep],
                              const uint16_t* pattern, bool& accepts) {
  const bool is_exact = args.gate_v == Gate::kExactMse;
  accepts = pattern != nullptr;
  if (args.gate_v == Gate::kZTest) accepts = ZTestLets<kHeadDim>(args, raw, pattern);
  Choice raw_choice, choice;
  // One copy of the search in the program. Only the exact gate needs it both ways.
#pragma unroll 1
  for (int pass = is_exact ? 0 : 1; pass < 2; ++pass) {
    const bool is_flat = pass == 1 && accepts;
    if (is_exact && pass == 1 && !__any_sync(~0u, accepts)) continue;
    const Values<kHeadDim> values = Residual<kHeadDim>(raw, is_flat ? pattern : nullptr);
    choice = Search<kHeadDim, kBits>(values, args.num_ratios_v);
    if (pass == 0) raw_choice = choice;
  }
  if (!is_exact) return choice.params;
  accepts = ExactGateLets<kHeadDim, kBits>(raw, pattern, choice, raw_choice);
  return accepts ? choice.params : raw_choice.params;
}

template <int kHeadDim, int kBits>
__device__ void EncodeToken(const LayerEncodeArgs& args, const SlotRows& source, int slot,
                            int first_slot, Shared<kHeadDim, kBits>& shared) {
  uint2 raw[kHeadDim / kStep];
  LoadRow<kHeadDim>(source.Row(slot), raw);
  int id = source.Id(slot);
  const uint16_t* pattern = id == kRawPatternId ? nullptr : source.patterns + id * kHeadDim;
  bool accepts;
  const GroupParams searched = Choose<kHeadDim, kBits>(args, raw, pattern, accepts);
  if (!accepts) id = kRawPatternId;
  const Values<kHeadDim> values = Residual<kHeadDim>(raw, accepts ? pattern : nullptr);
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
__global__ void __launch_bounds__(kThreads, 2)
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
  if (thread >= kBlockTokens) return;
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
