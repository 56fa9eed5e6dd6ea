// Nearest patterns of any number of tokens, and Chebyshev centres. Compiled with --fmad=false:
// min-max distances and centres have the bits of the CPU's.

#include "kernels/pattern/assign_kernels.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include <cuda_fp16.h>

#include "kernels/codec/codec_math.h"
#include "kernels/codec/octet_rotation.cuh"
#include "kernels/pattern/nearest_mma.cuh"
#include "kernels/pattern/pattern_math.h"
#include "pkv/block/kv_shape.h"

namespace pkv {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kCtasPerSm = 2;
constexpr int kMaxBankPatterns = 256;  // 255, rounded up to a tile

// K or V of a layer.
struct AssignTensor {
  const uint16_t* rows;
  const uint16_t* patterns;  // [kv_head][bank_capacity][head_dim]
  uint8_t* ids;
  int num_patterns;
};

// Grid: tensors x kv heads in y.
struct AssignTask {
  AssignTensor tensors[2];
  AssignKernelArgs args;
  float rotation_norm;  // of patterns that are rotated back, otherwise 0
};

// What a CTA works on: one kv head of one tensor.
struct AssignHead {
  const uint16_t* rows;
  const uint16_t* patterns;
  uint8_t* ids;
  int num_patterns;

  __device__ explicit AssignHead(const AssignTask& task) {
    const int heads = task.args.num_kv_heads, head = static_cast<int>(blockIdx.y) % heads;
    const AssignTensor& tensor = task.tensors[blockIdx.y / heads];
    rows = tensor.rows + head * task.args.head_stride;
    patterns = tensor.patterns + int64_t{head} * task.args.bank_capacity * task.args.head_dim;
    ids = tensor.ids + head * task.args.ids_stride;
    num_patterns = tensor.num_patterns;
  }
  // A token that has an id of its own; others get 255.
  __device__ bool HasId(const AssignTask& task, int token) const {
    return token >= task.args.first_token && num_patterns > 0;
  }
};

__device__ uint4 LoadOnce(const uint16_t* at) {
  uint4 value;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "l"(at));
  return value;
}

// Patterns of a head in shared memory (nearest_mma.cuh), then -|c|^2 / 2 of each, -infinity past
// the last.
template <int kHeadDim>
struct StagedPatterns {
  uint4* fragments;
  float* biases;
  int num_tiles;

  // rotation_norm: 0, or 1 / sqrt(kHeadDim) to rotate them back.
  __device__ StagedPatterns(const AssignHead& head, float rotation_norm, uint4* shared)
      : fragments(shared),
        biases(reinterpret_cast<float*>(shared + kMaxBankPatterns * kHeadDim / 8)),
        num_tiles((head.num_patterns + kMmaPatterns - 1) / kMmaPatterns) {
    constexpr int kLanes = kHeadDim / kOctet;  // of a pattern
    static_assert(kMmaPatterns % (32 / kLanes) == 0, "warps go round together");
    auto* words = reinterpret_cast<uint32_t*>(fragments);
    const int octet = static_cast<int>(threadIdx.x) % kLanes;
    for (int pattern = static_cast<int>(threadIdx.x) / kLanes; pattern < num_tiles * kMmaPatterns;
         pattern += kThreads / kLanes) {
      const bool exists = pattern < head.num_patterns;
      HalfOctet halves = {};
      if (exists) {
        halves = *reinterpret_cast<const HalfOctet*>(head.patterns + pattern * kHeadDim +
                                                     octet * kOctet);
      }
      int first = octet * kOctet, second = first + kOctet / 2;  // channels of the two halves
      if (rotation_norm > 0) {
        RotateHalves<kHeadDim>(halves, octet, rotation_norm);
        first = octet * (kOctet / 2);
        second = kHeadDim / 2 + first;
      }
      float sum = 0;
#pragma unroll
      for (const uint16_t bits : halves.bits) {
        const float x = StoredToFloat(bits);
        sum = fmaf(x, x, sum);
      }
#pragma unroll
      for (int distance = kLanes / 2; distance >= 1; distance /= 2) {
        sum += __shfl_xor_sync(~0u, sum, distance);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        words[PatternWord<kHeadDim>(pattern, first / 2 + i)] = halves.Word(i);
        words[PatternWord<kHeadDim>(pattern, second / 2 + i)] = halves.Word(2 + i);
      }
      if (octet == 0) biases[pattern] = exists ? -0.5f * sum : -kInfinity;
    }
    __syncthreads();
  }
};

// A warp takes 16 or 32 tokens at a time, 4 or 8 KiB at head_dim 128, straight into registers.
// kAhead: it loads the next ones before it works on these. 16 ahead keeps memory busy; 32 read the
// patterns in shared memory half as often, which decides when there are many.
template <int kHeadDim, int kTiles>
using TokenTiles = uint4[kTiles][kHeadDim / 32];

template <int kHeadDim, int kTiles>
__device__ void LoadTokens(const AssignHead& head, int first, int num_tokens,
                           TokenTiles<kHeadDim, kTiles>& tokens) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    const int token = min(first + tile * kMmaTokens + lane / 4, num_tokens - 1);
#pragma unroll
    for (int group = 0; group < kHeadDim / 32; ++group) {
      tokens[tile][group] =
          LoadOnce(head.rows + int64_t{token} * kHeadDim + group * 32 + lane % 4 * 8);
    }
  }
}

// Against 16 patterns.
template <int kHeadDim, int kTiles>
__device__ void ScoreTile(const StagedPatterns<kHeadDim>& patterns, int pattern_tile,
                          const TokenTiles<kHeadDim, kTiles>& tokens,
                          NearestSoFar (&best)[2 * kTiles]) {
  constexpr int kSteps = kHeadDim / 16;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float* biases = patterns.biases + pattern_tile * kMmaPatterns + lane / 4;
  float scores[kTiles][4];
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
    scores[tile][0] = scores[tile][1] = biases[0];
    scores[tile][2] = scores[tile][3] = biases[kMmaPatterns / 2];
  }
#pragma unroll
  for (int step = 0; step < kSteps; ++step) {
    const uint4 fragment = patterns.fragments[(pattern_tile * kSteps + step) * 32 + lane];
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const uint4& token = tokens[tile][step / 2];
      MultiplyAdd(scores[tile], fragment, step % 2 == 0 ? token.x : token.z,
                  step % 2 == 0 ? token.y : token.w);
    }
  }
#pragma unroll
  for (int token = 0; token < 2 * kTiles; ++token) {
    best[token].Take(scores[token / 2][token % 2], 2 * pattern_tile);
    best[token].Take(scores[token / 2][2 + token % 2], 2 * pattern_tile + 1);
  }
}

// Grid: slices of the tokens x heads of tensors. Dynamic shared memory: the patterns of a head.
// Reads every row once: 256 bytes a token, head and tensor at head_dim 128, and writes one.
template <int kHeadDim, int kTiles, bool kAhead>
__global__ void __launch_bounds__(kThreads, kCtasPerSm) NearestL2Kernel(AssignTask task) {
  extern __shared__ uint4 shared[];
  const AssignHead head(task);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int num_tokens = task.args.num_tokens;
  const int stride = static_cast<int>(gridDim.x) * kWarps * kTiles * kMmaTokens;
  int first = (static_cast<int>(blockIdx.x) * kWarps + warp) * kTiles * kMmaTokens;
  TokenTiles<kHeadDim, kTiles> ahead;
  if constexpr (kAhead) LoadTokens<kHeadDim, kTiles>(head, first, num_tokens, ahead);
  const StagedPatterns<kHeadDim> patterns(head, task.rotation_norm, shared);
  for (; first < num_tokens; first += stride) {
    TokenTiles<kHeadDim, kTiles> tokens;
    if constexpr (kAhead) {
      memcpy(tokens, ahead, sizeof(tokens));
      LoadTokens<kHeadDim, kTiles>(head, first + stride, num_tokens, ahead);
    } else {
      LoadTokens<kHeadDim, kTiles>(head, first, num_tokens, tokens);
    }
    NearestSoFar best[2 * kTiles];
    for (int tile = 0; tile < patterns.num_tiles; ++tile) {
      ScoreTile<kHeadDim, kTiles>(patterns, tile, tokens, best);
    }
    NearestPattern nearest[2 * kTiles];
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) nearest[i] = NearestPattern::Of(best[i]);
    const int id = MergeTokens(nearest);
    const int token = first + OwnToken<kTiles>(lane);
    if (token < num_tokens && lane < kTiles * kMmaTokens) {
      head.ids[token] = static_cast<uint8_t>(head.HasId(task, token) ? id : kRawPatternId);
    }
  }
}

constexpr int kMinMaxTokens = 32;    // of a CTA: one a lane
constexpr int kMinMaxPatterns = 32;  // staged at a time, the same number for each warp
constexpr int kWarpPatterns = kMinMaxPatterns / kWarps;

template <int kHeadDim>
struct MinMaxShared {
  float tokens[kHeadDim][kMinMaxTokens];
  float4 patterns[kMinMaxPatterns][kHeadDim / 4];
  float ranges[kWarps][kMinMaxTokens];
  uint8_t ids[kWarps][kMinMaxTokens];
};

__device__ void WidenWord(uint32_t word, float& low, float& high) {
  low = Float16ToFloat(static_cast<uint16_t>(word));
  high = Float16ToFloat(static_cast<uint16_t>(word >> 16));
}

template <int kHeadDim>
__device__ void StageMinMaxTokens(const AssignHead& head, int first, int num_tokens,
                                  MinMaxShared<kHeadDim>& shared) {
  for (int i = static_cast<int>(threadIdx.x); i < kMinMaxTokens * kHeadDim / 8; i += kThreads) {
    const int own = i % kMinMaxTokens, channel = i / kMinMaxTokens * 8;
    const int token = min(first + own, num_tokens - 1);
    const uint4 words = LoadOnce(head.rows + int64_t{token} * kHeadDim + channel);
    auto& out = shared.tokens;
    WidenWord(words.x, out[channel][own], out[channel + 1][own]);
    WidenWord(words.y, out[channel + 2][own], out[channel + 3][own]);
    WidenWord(words.z, out[channel + 4][own], out[channel + 5][own]);
    WidenWord(words.w, out[channel + 6][own], out[channel + 7][own]);
  }
}

template <int kHeadDim>
__device__ void StageMinMaxPatterns(const AssignHead& head, int first,
                                    MinMaxShared<kHeadDim>& shared) {
  const int count = min(kMinMaxPatterns, head.num_patterns - first) * kHeadDim / 4;
  const auto* in = reinterpret_cast<const uint2*>(head.patterns + first * kHeadDim);
  float4* out = &shared.patterns[0][0];
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    float4 value;
    WidenWord(in[i].x, value.x, value.y);
    WidenWord(in[i].y, value.z, value.w);
    out[i] = value;
  }
}

// Ranges of the lane's token from this warp's staged patterns, in the order of the CPU.
template <int kHeadDim>
__device__ void ResidualRanges(const MinMaxShared<kHeadDim>& shared, int lane, int first,
                               float (&ranges)[kWarpPatterns]) {
  float high[kWarpPatterns], low[kWarpPatterns];
#pragma unroll
  for (int m = 0; m < kWarpPatterns; ++m) {
    high[m] = low[m] = shared.tokens[0][lane] - shared.patterns[first + m][0].x;
  }
#pragma unroll 4
  for (int at = 0; at < kHeadDim / 4; ++at) {
    const float x[4] = {shared.tokens[4 * at][lane], shared.tokens[4 * at + 1][lane],
                        shared.tokens[4 * at + 2][lane], shared.tokens[4 * at + 3][lane]};
#pragma unroll
    for (int m = 0; m < kWarpPatterns; ++m) {
      const float4 c = shared.patterns[first + m][at];
      const float residuals[4] = {x[0] - c.x, x[1] - c.y, x[2] - c.z, x[3] - c.w};
#pragma unroll
      for (const float residual : residuals) {
        high[m] = fmaxf(high[m], residual);
        low[m] = fminf(low[m], residual);
      }
    }
  }
#pragma unroll
  for (int m = 0; m < kWarpPatterns; ++m) ranges[m] = high[m] - low[m];
}

// Grid: 32 tokens x heads of tensors. A lane owns a token, a warp an eighth of the patterns.
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads) NearestMinMaxKernel(AssignTask task) {
  __shared__ MinMaxShared<kHeadDim> shared;
  const AssignHead head(task);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int first_token = static_cast<int>(blockIdx.x) * kMinMaxTokens;
  StageMinMaxTokens(head, first_token, task.args.num_tokens, shared);
  float best = kInfinity;
  int best_id = 0;
  for (int staged = 0; staged < head.num_patterns; staged += kMinMaxPatterns) {
    if (staged > 0) __syncthreads();
    StageMinMaxPatterns(head, staged, shared);
    __syncthreads();
    const int own = warp * kWarpPatterns;
    if (staged + own >= head.num_patterns) continue;
    float ranges[kWarpPatterns];
    ResidualRanges(shared, lane, own, ranges);
#pragma unroll
    for (int m = 0; m < kWarpPatterns; ++m) {
      if (staged + own + m < head.num_patterns && ranges[m] < best) {
        best = ranges[m];
        best_id = staged + own + m;
      }
    }
  }
  shared.ranges[warp][lane] = best;
  shared.ids[warp][lane] = static_cast<uint8_t>(best_id);
  __syncthreads();
  const int token = first_token + lane;
  if (warp > 0 || token >= task.args.num_tokens) return;
  for (int other = 1; other < kWarps; ++other) {
    const float range = shared.ranges[other][lane];
    const int id = shared.ids[other][lane];
    if (range < best || (range == best && id < best_id)) {
      best = range;
      best_id = id;
    }
  }
  head.ids[token] = static_cast<uint8_t>(head.HasId(task, token) ? best_id : kRawPatternId);
}

// The minimum and maximum of one channel over some tokens in their order. Of two zeros the first
// stays, as on the CPU: fminf() would tell them apart.
struct ChannelRange {
  float min, max;
  __device__ void Widen(const ChannelRange& later) {
    min = later.min < min ? later.min : min;
    max = later.max > max ? later.max : max;
  }
};

constexpr int kCentreSlices = 8;  // of the tokens
constexpr int kMaxHeadDim = 128;

// Grid: kv heads x {K, V}; a thread owns a channel of a slice of the tokens.
__global__ void __launch_bounds__(kCentreSlices* kMaxHeadDim) CentreKernel(CentreKernelArgs args) {
  __shared__ ChannelRange ranges[kCentreSlices][kMaxHeadDim];
  const int head = static_cast<int>(blockIdx.x), channel = static_cast<int>(threadIdx.x);
  const int slice = static_cast<int>(threadIdx.y);
  const bool is_v = blockIdx.y == 1;
  const int id = is_v ? args.v_id : args.k_id;
  if (id < 0) return;
  const uint16_t* column = (is_v ? args.v : args.k) + head * args.head_stride + channel;
  const int num_tokens = args.num_tokens - args.first_token;
  // No slice is empty: one of few tokens repeats the last.
  const int begin = min(slice * num_tokens / kCentreSlices, num_tokens - 1);
  const int end = max((slice + 1) * num_tokens / kCentreSlices, begin + 1);
  const auto value = [&](int token) {
    return Float16ToFloat(column[int64_t{args.first_token + token} * args.head_dim]);
  };
  ChannelRange range = {value(begin), value(begin)};
#pragma unroll 8
  for (int token = begin + 1; token < end; ++token) range.Widen({value(token), value(token)});
  ranges[slice][channel] = range;
  __syncthreads();
  if (slice > 0) return;
  for (int later = 1; later < kCentreSlices; ++later) range.Widen(ranges[later][channel]);
  const int64_t list = int64_t{is_v ? args.num_kv_heads : 0} + head;
  args.bank[(list * args.bank_capacity + id) * args.head_dim + channel] =
      ChebyshevCentre(range.min, range.max);
}

template <int kHeadDim, int kTiles, bool kAhead>
cudaError_t LaunchL2(const AssignTask& task, int num_lists, cudaStream_t stream) {
  constexpr int kMaxSharedBytes =
      kMaxBankPatterns * kHeadDim * 2 + kMaxBankPatterns * static_cast<int>(sizeof(float));
  const auto kernel = NearestL2Kernel<kHeadDim, kTiles, kAhead>;
  // The limit is one for all threads of the process, so every call sets the same.
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kMaxSharedBytes);
  int device = 0, num_sms = 0;
  if (error == cudaSuccess) error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device);
  }
  if (error != cudaSuccess) return error;
  // One wave: every CTA stages its patterns once and then only streams tokens.
  constexpr int kCtaTokens = kWarps * kTiles * kMmaTokens;
  const int num_slices = (task.args.num_tokens + kCtaTokens - 1) / kCtaTokens;
  const int slices = std::max(1, std::min(num_slices, num_sms * kCtasPerSm / num_lists));
  kernel<<<dim3(slices, num_lists), kThreads, kMaxSharedBytes, stream>>>(task);
  return cudaGetLastError();
}

// From this number of patterns on, reading them costs more than reading tokens.
constexpr int kManyPatterns = 65;

template <int kHeadDim>
cudaError_t LaunchHeadDim(const AssignTask& task, bool min_max, int num_lists,
                          cudaStream_t stream) {
  if (!min_max) {
    const bool has_many =
        std::max(task.args.num_patterns_k, task.args.num_patterns_v) >= kManyPatterns;
    return has_many ? LaunchL2<kHeadDim, 4, false>(task, num_lists, stream)
                    : LaunchL2<kHeadDim, 2, true>(task, num_lists, stream);
  }
  const int num_slices = (task.args.num_tokens + kMinMaxTokens - 1) / kMinMaxTokens;
  NearestMinMaxKernel<kHeadDim><<<dim3(num_slices, num_lists), kThreads, 0, stream>>>(task);
  return cudaGetLastError();
}

// The tensors that have ids to write and this metric, in one launch.
cudaError_t LaunchMetric(const AssignKernelArgs& args, bool min_max, cudaStream_t stream) {
  AssignTask task = {.args = args};
  if (args.is_bank_rotated) task.rotation_norm = RotationNorm(args.head_dim);
  int num_tensors = 0;
  const uint16_t* v_bank =
      args.bank + int64_t{args.num_kv_heads} * args.bank_capacity * args.head_dim;
  if (args.k_ids != nullptr && args.min_max_k == min_max) {
    task.tensors[num_tensors++] = {args.k, args.bank, args.k_ids, args.num_patterns_k};
  }
  if (args.v_ids != nullptr && args.min_max_v == min_max) {
    task.tensors[num_tensors++] = {args.v, v_bank, args.v_ids, args.num_patterns_v};
  }
  const int num_lists = num_tensors * args.num_kv_heads;
  if (num_lists == 0) return cudaSuccess;
  return args.head_dim == 128 ? LaunchHeadDim<128>(task, min_max, num_lists, stream)
                              : LaunchHeadDim<64>(task, min_max, num_lists, stream);
}

}  // namespace

cudaError_t LaunchAssignPatterns(const AssignKernelArgs& args, cudaStream_t stream) {
  if (args.num_tokens == 0) return cudaSuccess;
  const cudaError_t error = LaunchMetric(args, false, stream);
  return error == cudaSuccess ? LaunchMetric(args, true, stream) : error;
}

cudaError_t LaunchAppendCentres(const CentreKernelArgs& args, cudaStream_t stream) {
  CentreKernel<<<dim3(args.num_kv_heads, 2), dim3(args.head_dim, kCentreSlices), 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace pkv
