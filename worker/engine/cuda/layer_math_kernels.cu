#include "worker/engine/cuda/layer_math_kernels.h"

#include <cooperative_groups.h>

#include "kernels/device/ptx.cuh"
#include "worker/engine/cuda/weight_type.cuh"

namespace pkv {
namespace {

constexpr int kThreads = 256;

unsigned CtasFor(int64_t items) {
  // Kernels stride over the grid beyond this.
  constexpr int64_t kMaxCtas = 1 << 20;
  const int64_t needed = (items + kThreads - 1) / kThreads;
  return static_cast<unsigned>(needed < kMaxCtas ? needed : kMaxCtas);
}

template <typename Combine>
__device__ float ReduceWarp(float x, Combine combine) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = combine(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

// The sum over the CTA, in every thread. Same order each time.
template <int kCtaThreads>
__device__ float SumOverCta(float x, float* scratch) {
  const auto add = [](float a, float b) { return a + b; };
  x = ReduceWarp(x, add);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kCtaThreads / 32; ++i) sum += scratch[i];
  return sum;
}

template <typename T>
__global__ void EmbedRowsKernel(const T* table, const int32_t* tokens, int dim, float* hidden) {
  const T* from = table + int64_t{tokens[blockIdx.x]} * dim;
  float* to = hidden + int64_t{blockIdx.x} * dim;
  for (int i = threadIdx.x; i < dim; i += kThreads) to[i] = ToFloat(from[i]);
}

// One CTA a row, which its threads keep in registers.
constexpr int kNormThreads = 512;
constexpr int kNormQuads = kNormDimMax / 4 / kNormThreads;  // of a thread

template <typename T>
struct alignas(8) Quad {
  T values[4];
};

__device__ __forceinline__ float4 Add(float4 a, float4 b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

template <typename T>
__global__ void __launch_bounds__(kNormThreads) NormRowsKernel(NormRowsArgs args) {
  __shared__ float scratch[kNormThreads / 32];
  ptx::LetNextGridStart();
  const int quads = args.dim / 4, thread = static_cast<int>(threadIdx.x);
  const int64_t row = int64_t{blockIdx.x} * quads;
  float4 weight[kNormQuads];
#pragma unroll
  for (int j = 0; j < kNormQuads; ++j) {
    const int i = j * kNormThreads + thread;
    if (i < quads) weight[j] = reinterpret_cast<const float4*>(args.weight)[i];
  }
  ptx::WaitForPreviousGrid();
  float4 x[kNormQuads];
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kNormQuads; ++j) {
    const int i = j * kNormThreads + thread;
    if (i >= quads) continue;
    float4 v = reinterpret_cast<const float4*>(args.x)[row + i];
    float4 parts[kNormPartsMax];  // all asked for before the first is added
#pragma unroll
    for (int part = 0; part < kNormPartsMax; ++part) {
      if (part >= args.num_parts) continue;
      parts[part] = reinterpret_cast<const float4*>(args.parts + part * args.part_stride)[row + i];
    }
#pragma unroll
    for (int part = 0; part < kNormPartsMax; ++part) {
      if (part < args.num_parts) v = Add(v, parts[part]);
    }
    if (args.bias != nullptr) v = Add(v, reinterpret_cast<const float4*>(args.bias)[i]);
    if (args.sum != nullptr) reinterpret_cast<float4*>(args.sum)[row + i] = v;
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
    x[j] = v;
  }
  const auto dim = static_cast<float>(args.dim);
  const float scale = rsqrtf(SumOverCta<kNormThreads>(squares, scratch) / dim + args.eps);
#pragma unroll
  for (int j = 0; j < kNormQuads; ++j) {
    const int i = j * kNormThreads + thread;
    if (i >= quads) continue;
    static_cast<Quad<T>*>(args.out)[row + i] = {
        {FromFloat<T>(x[j].x * scale * weight[j].x), FromFloat<T>(x[j].y * scale * weight[j].y),
         FromFloat<T>(x[j].z * scale * weight[j].z), FromFloat<T>(x[j].w * scale * weight[j].w)}};
  }
}

__device__ __forceinline__ float4 LoadQuad(const float* at) {
  return *reinterpret_cast<const float4*>(at);
}

__device__ __forceinline__ void Turn(float cos, float sin, float& a, float& b) {
  const float turned = a * cos - b * sin;
  b = b * cos + a * sin;
  a = turned;
}

// A thread turns four pairs of channels, c .. c + 3 and half a head further. Grid: rows.
template <typename T>
__global__ void RotaryRowsKernel(RotaryRowsArgs args) {
  const int row = blockIdx.x, half = args.head_dim / 2;
  const int heads = args.num_qo_heads + 2 * args.num_kv_heads;
  const int position = args.positions != nullptr ? args.positions[row] : args.first_position + row;
  const auto* turns = reinterpret_cast<const float*>(args.cos_sin + int64_t{position} * half);
  const float* from = args.qkv + int64_t{row} * heads * args.head_dim;
  T* q = static_cast<T*>(args.q) + int64_t{row} * args.num_qo_heads * args.head_dim;
  bool is_finite = true;
  const auto round = [&](float x) {
    const __half rounded = __float2half_rn(x);
    is_finite = is_finite && isfinite(__half2float(rounded));
    return __half_as_ushort(rounded);
  };
  for (int i = threadIdx.x * 4; i < heads * half; i += kThreads * 4) {
    const int head = i / half, c = i % half, at = head * args.head_dim + c;
    float4 a = LoadQuad(from + at), b = LoadQuad(from + at + half);
    if (args.bias != nullptr) {
      a = Add(a, LoadQuad(args.bias + at));
      b = Add(b, LoadQuad(args.bias + at + half));
    }
    const bool is_v = head >= args.num_qo_heads + args.num_kv_heads;
    if (!is_v) {
      const float4 first = LoadQuad(turns + 2 * c), second = LoadQuad(turns + 2 * c + 4);
      Turn(first.x, first.y, a.x, b.x);
      Turn(first.z, first.w, a.y, b.y);
      Turn(second.x, second.y, a.z, b.z);
      Turn(second.z, second.w, a.w, b.w);
    }
    if (head < args.num_qo_heads) {
      *reinterpret_cast<Quad<T>*>(q + at) = {
          {FromFloat<T>(a.x), FromFloat<T>(a.y), FromFloat<T>(a.z), FromFloat<T>(a.w)}};
      *reinterpret_cast<Quad<T>*>(q + at + half) = {
          {FromFloat<T>(b.x), FromFloat<T>(b.y), FromFloat<T>(b.z), FromFloat<T>(b.w)}};
      continue;
    }
    const int kv_head = (head - args.num_qo_heads) % args.num_kv_heads;
    uint16_t* to =
        (is_v ? args.v : args.k) + kv_head * args.kv_head_stride + row * args.kv_row_stride + c;
    *reinterpret_cast<ushort4*>(to) = {round(a.x), round(a.y), round(a.z), round(a.w)};
    *reinterpret_cast<ushort4*>(to + half) = {round(b.x), round(b.y), round(b.z), round(b.w)};
  }
  // Whoever finds one writes the same value.
  if (!is_finite) args.not_finite[row * args.not_finite_stride] = 1;
}

// One CTA a kSwiGluElements piece of a row; 8 elements a thread, loaded as 16 bytes.
constexpr int kOctet = 8;
constexpr int kSwiGluElements = kOctet * kThreads;
template <typename T>
__global__ void SwiGluRowsKernel(const T* gate_up, const float* bias, int dim, T* out) {
  const int64_t row = blockIdx.y;
  const int c = (blockIdx.x * kThreads + threadIdx.x) * kOctet;
  if (c >= dim) return;
  struct alignas(16) Octet {
    T values[kOctet];
  };
  const Octet gates = *reinterpret_cast<const Octet*>(gate_up + 2 * row * dim + c);
  const Octet ups = *reinterpret_cast<const Octet*>(gate_up + (2 * row + 1) * dim + c);
  Octet result;
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    float gate = ToFloat(gates.values[i]), up = ToFloat(ups.values[i]);
    if (bias != nullptr) {
      gate += bias[c + i];
      up += bias[dim + c + i];
    }
    result.values[i] = FromFloat<T>(SwiGlu(gate, up));
  }
  *reinterpret_cast<Octet*>(out + row * dim + c) = result;
}

__global__ void AddBiasRowsKernel(const float* bias, int64_t size, int dim, float* x) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size;
       i += int64_t{gridDim.x} * kThreads) {
    x[i] += bias[i % dim];
  }
}

// The largest of some logits and the sum of their exponentials, relative to it.
struct Likeliest {
  float logit = -INFINITY;
  int32_t token = 0x7fffffff;
  float sum = 0;

  __device__ void Add(float x, int32_t id) {
    if (x > logit) {
      sum = sum * __expf(logit - x) + 1;
      logit = x, token = id;
    } else if (x != -INFINITY) {
      sum += __expf(x - logit);
    }
  }
  __device__ void Merge(const Likeliest& other) {
    const bool is_better = other.logit > logit || (other.logit == logit && other.token < token);
    const float larger = is_better ? other.logit : logit;
    const float mine = logit == larger ? sum : sum * __expf(logit - larger);
    const float its = other.logit == larger ? other.sum : other.sum * __expf(other.logit - larger);
    sum = mine + its;
    logit = larger;
    if (is_better) token = other.token;
  }
  // Of 32 lanes, in every lane.
  __device__ void MergeLanes() {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      Likeliest other;
      other.logit = __shfl_xor_sync(~0u, logit, step);
      other.token = __shfl_xor_sync(~0u, token, step);
      other.sum = __shfl_xor_sync(~0u, sum, step);
      Merge(other);
    }
  }
};

// A cluster a row: each CTA takes every eighth piece of it.
constexpr int kGreedyThreads = 1024, kGreedyCtas = 8;
__global__ void __cluster_dims__(kGreedyCtas) __launch_bounds__(kGreedyThreads)
    GreedyRowsKernel(const float* logits, int vocab, int32_t* tokens, float* logprobs) {
  __shared__ Likeliest of_warps[kGreedyThreads / 32];
  __shared__ Likeliest of_cta;
  const auto cluster = cooperative_groups::this_cluster();
  const int thread = static_cast<int>(threadIdx.x);
  const int rank = static_cast<int>(cluster.block_rank());
  const unsigned row = blockIdx.x / kGreedyCtas;
  ptx::WaitForPreviousGrid();
  const float* from = logits + int64_t{row} * vocab;
  Likeliest best;
#pragma unroll 8
  for (int i = rank * kGreedyThreads + thread; i < vocab; i += kGreedyCtas * kGreedyThreads) {
    best.Add(from[i], i);
  }
  best.MergeLanes();
  if (thread % 32 == 0) of_warps[thread / 32] = best;
  __syncthreads();
  if (thread < 32) {
    best = of_warps[thread];
    best.MergeLanes();
    if (thread == 0) of_cta = best;
  }
  cluster.sync();
  if (rank == 0 && thread == 0) {
    best = of_cta;
    for (int i = 1; i < kGreedyCtas; ++i) best.Merge(*cluster.map_shared_rank(&of_cta, i));
    // A row without any number, all NaN, has no likeliest token: 0 stays inside the vocabulary.
    tokens[row] = best.token < vocab ? best.token : 0;
    logprobs[row] = -logf(best.sum);
  }
  cluster.sync();  // what is read stays until it has been
}

// SplitMix64 (Steele, Lea, Flood 2014), as a hash of seed and index.
__device__ uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

template <typename T>
__global__ void RandomWeightsKernel(uint64_t seed, float scale, int64_t count, T* out) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * kThreads) {
    const float unit = static_cast<float>(Mix(Mix(seed) + i) >> 40) * 0x1p-23f - 1.0f;
    out[i] = FromFloat<T>(unit * scale);
  }
}

}  // namespace

cudaError_t LaunchEmbedRows(WeightType type, const void* table, const int32_t* tokens, int rows,
                            int dim, float* hidden, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return ForType(type, [&]<typename T>(T) {
    EmbedRowsKernel<T>
        <<<rows, kThreads, 0, stream>>>(static_cast<const T*>(table), tokens, dim, hidden);
    return cudaGetLastError();
  });
}

cudaError_t LaunchNormRows(WeightType type, const NormRowsArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  return ForType(type, [&]<typename T>(T) {
    return LaunchOverlapping(&NormRowsKernel<T>, dim3(args.rows), kNormThreads, 0, stream, args);
  });
}

cudaError_t LaunchRotaryRows(WeightType type, const RotaryRowsArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  return ForType(type, [&]<typename T>(T) {
    RotaryRowsKernel<T><<<args.rows, kThreads, 0, stream>>>(args);
    return cudaGetLastError();
  });
}

cudaError_t LaunchSwiGluRows(WeightType type, const void* gate_up, const float* bias, int rows,
                             int dim, void* out, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const dim3 grid((dim + kSwiGluElements - 1) / kSwiGluElements, rows);
  return ForType(type, [&]<typename T>(T) {
    SwiGluRowsKernel<T><<<grid, kThreads, 0, stream>>>(static_cast<const T*>(gate_up), bias, dim,
                                                       static_cast<T*>(out));
    return cudaGetLastError();
  });
}

cudaError_t LaunchAddBiasRows(const float* bias, int rows, int dim, float* x, cudaStream_t stream) {
  const int64_t size = int64_t{rows} * dim;
  if (size == 0) return cudaSuccess;
  AddBiasRowsKernel<<<CtasFor(size), kThreads, 0, stream>>>(bias, size, dim, x);
  return cudaGetLastError();
}

cudaError_t LaunchGreedyRows(const float* logits, int rows, int vocab, int32_t* tokens,
                             float* logprobs, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return LaunchOverlapping(&GreedyRowsKernel, dim3(rows * kGreedyCtas), kGreedyThreads, 0, stream,
                           logits, vocab, tokens, logprobs);
}

cudaError_t LaunchRandomWeights(WeightType type, uint64_t seed, float scale, int64_t count,
                                void* out, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return ForType(type, [&]<typename T>(T) {
    RandomWeightsKernel<T>
        <<<CtasFor(count), kThreads, 0, stream>>>(seed, scale, count, static_cast<T*>(out));
    return cudaGetLastError();
  });
}

}  // namespace pkv
