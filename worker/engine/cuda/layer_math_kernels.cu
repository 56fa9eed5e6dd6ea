#include "worker/engine/cuda/layer_math_kernels.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace pkv {
namespace {

constexpr int kThreads = 256;

template <typename T>
__device__ T FromFloat(float x);
template <>
__device__ __half FromFloat(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __nv_bfloat16 FromFloat(float x) {
  return __float2bfloat16_rn(x);
}
__device__ float ToFloat(__half x) { return __half2float(x); }
__device__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }

// Calls launch(T()) with the type that `type` names.
template <typename Launch>
cudaError_t ForType(WeightType type, const Launch& launch) {
  if (type == WeightType::kFloat16) {
    launch(__half());
  } else {
    launch(__nv_bfloat16());
  }
  return cudaGetLastError();
}

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

// One CTA a row.
constexpr int kNormThreads = 512;
template <typename T>
__global__ void NormRowsKernel(const float* x, const float* weight, float eps, int dim, T* out) {
  __shared__ float scratch[kNormThreads / 32];
  const float4* row = reinterpret_cast<const float4*>(x + int64_t{blockIdx.x} * dim);
  float squares = 0;
  for (int i = threadIdx.x; i < dim / 4; i += kNormThreads) {
    const float4 v = row[i];
    squares += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
  }
  const float scale = rsqrtf(SumOverCta<kNormThreads>(squares, scratch) / dim + eps);
  T* to = out + int64_t{blockIdx.x} * dim;
  for (int i = threadIdx.x; i < dim / 4; i += kNormThreads) {
    const float4 v = row[i];
    const float4 w = reinterpret_cast<const float4*>(weight)[i];
    to[4 * i] = FromFloat<T>(v.x * scale * w.x);
    to[4 * i + 1] = FromFloat<T>(v.y * scale * w.y);
    to[4 * i + 2] = FromFloat<T>(v.z * scale * w.z);
    to[4 * i + 3] = FromFloat<T>(v.w * scale * w.w);
  }
}

// Row blockIdx.x; a thread turns pairs (c, c + head_dim / 2), strided over blockIdx.y.
template <typename T>
__global__ void RotaryRowsKernel(RotaryRowsArgs args) {
  const int row = blockIdx.x, half = args.head_dim / 2;
  const int heads = args.num_qo_heads + 2 * args.num_kv_heads;
  const int position = args.positions != nullptr ? args.positions[row] : args.first_position + row;
  const float2* turn = args.cos_sin + int64_t{position} * half;
  const float* from = args.qkv + int64_t{row} * heads * args.head_dim;
  T* q = static_cast<T*>(args.q) + int64_t{row} * args.num_qo_heads * args.head_dim;
  bool is_finite = true;
  for (int i = blockIdx.y * kThreads + threadIdx.x; i < heads * half; i += gridDim.y * kThreads) {
    const int head = i / half, c = i % half;
    float a = from[head * args.head_dim + c], b = from[head * args.head_dim + c + half];
    if (args.bias != nullptr) {
      a += args.bias[head * args.head_dim + c];
      b += args.bias[head * args.head_dim + c + half];
    }
    const bool is_v = head >= args.num_qo_heads + args.num_kv_heads;
    if (!is_v) {
      const float2 cos_sin = turn[c];
      const float turned = a * cos_sin.x - b * cos_sin.y;
      b = b * cos_sin.x + a * cos_sin.y;
      a = turned;
    }
    if (head < args.num_qo_heads) {
      q[head * args.head_dim + c] = FromFloat<T>(a);
      q[head * args.head_dim + c + half] = FromFloat<T>(b);
      continue;
    }
    const int kv_head = (head - args.num_qo_heads) % args.num_kv_heads;
    uint16_t* to =
        (is_v ? args.v : args.k) + kv_head * args.kv_head_stride + row * args.kv_row_stride;
    const __half low = __float2half_rn(a), high = __float2half_rn(b);
    is_finite = is_finite && isfinite(__half2float(low)) && isfinite(__half2float(high));
    to[c] = __half_as_ushort(low);
    to[c + half] = __half_as_ushort(high);
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
    result.values[i] = FromFloat<T>(gate / (1.0f + __expf(-gate)) * up);
  }
  *reinterpret_cast<Octet*>(out + row * dim + c) = result;
}

__global__ void AddBiasRowsKernel(const float* bias, int64_t size, int dim, float* x) {
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < size;
       i += int64_t{gridDim.x} * kThreads) {
    x[i] += bias[i % dim];
  }
}

struct Candidate {
  float logit;
  int32_t token;
};
__device__ Candidate Better(Candidate a, Candidate b) {
  return b.logit > a.logit || (b.logit == a.logit && b.token < a.token) ? b : a;
}

// One CTA a row, two passes: the largest, then the sum of exp.
constexpr int kGreedyThreads = 1024;
__global__ void GreedyRowsKernel(const float* logits, int vocab, int32_t* tokens, float* logprobs) {
  __shared__ Candidate best_of[kGreedyThreads / 32];
  __shared__ float sums[kGreedyThreads / 32];
  const float* row = logits + int64_t{blockIdx.x} * vocab;
  Candidate best = {-INFINITY, vocab};
  for (int i = threadIdx.x; i < vocab; i += kGreedyThreads) best = Better(best, {row[i], i});
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    best = Better(best,
                  {__shfl_xor_sync(~0u, best.logit, step), __shfl_xor_sync(~0u, best.token, step)});
  }
  if (threadIdx.x % 32 == 0) best_of[threadIdx.x / 32] = best;
  __syncthreads();
  best = best_of[0];
#pragma unroll
  for (int i = 1; i < kGreedyThreads / 32; ++i) best = Better(best, best_of[i]);

  float sum = 0;
  for (int i = threadIdx.x; i < vocab; i += kGreedyThreads) sum += __expf(row[i] - best.logit);
  sum = ReduceWarp(sum, [](float a, float b) { return a + b; });
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0;
  for (int i = 0; i < kGreedyThreads / 32; ++i) sum += sums[i];
  // A row without any number, all NaN, has no likeliest token: 0 stays inside the vocabulary.
  tokens[blockIdx.x] = best.token < vocab ? best.token : 0;
  logprobs[blockIdx.x] = -logf(sum);
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
  });
}

cudaError_t LaunchNormRows(WeightType type, const float* x, const float* weight, float eps,
                           int rows, int dim, void* out, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  return ForType(type, [&]<typename T>(T) {
    NormRowsKernel<T><<<rows, kNormThreads, 0, stream>>>(x, weight, eps, dim, static_cast<T*>(out));
  });
}

cudaError_t LaunchRotaryRows(WeightType type, const RotaryRowsArgs& args, cudaStream_t stream) {
  if (args.rows == 0) return cudaSuccess;
  return ForType(
      type, [&]<typename T>(T) { RotaryRowsKernel<T><<<args.rows, kThreads, 0, stream>>>(args); });
}

cudaError_t LaunchSwiGluRows(WeightType type, const void* gate_up, const float* bias, int rows,
                             int dim, void* out, cudaStream_t stream) {
  if (rows == 0) return cudaSuccess;
  const dim3 grid((dim + kSwiGluElements - 1) / kSwiGluElements, rows);
  return ForType(type, [&]<typename T>(T) {
    SwiGluRowsKernel<T><<<grid, kThreads, 0, stream>>>(static_cast<const T*>(gate_up), bias, dim,
                                                       static_cast<T*>(out));
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
  GreedyRowsKernel<<<rows, kGreedyThreads, 0, stream>>>(logits, vocab, tokens, logprobs);
  return cudaGetLastError();
}

cudaError_t LaunchRandomWeights(WeightType type, uint64_t seed, float scale, int64_t count,
                                void* out, cudaStream_t stream) {
  if (count == 0) return cudaSuccess;
  return ForType(type, [&]<typename T>(T) {
    RandomWeightsKernel<T>
        <<<CtasFor(count), kThreads, 0, stream>>>(seed, scale, count, static_cast<T*>(out));
  });
}

}  // namespace pkv
