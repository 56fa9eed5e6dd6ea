// Rotation, finite check and slots of a layer. Compiled with --fmad=false: equal bits to
// the CPU.

#include <cmath>

#include <cuda_fp16.h>

#include "kernels/codec/code_steps_math.h"
#include "kernels/codec/layer_prepare.h"
#include "kernels/codec/octet_rotation.cuh"
#include "pkv/block/kv_shape.h"
#include "proto/block/fragment_order.h"

namespace pkv {
namespace {

constexpr int kThreads = 256;
constexpr int kCtasPerSm = 8;
// Rotation runs beside mining, which holds most multiprocessors for a while: of small pieces the
// others take as many as they can.
constexpr int kRotationWaves = 4;

__device__ HalfOctet LoadStreaming(const uint16_t* at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return reinterpret_cast<const HalfOctet&>(v);
}

__device__ bool AreFinite(const HalfOctet& row) {
  bool is_finite = true;
#pragma unroll
  for (int j = 0; j < kOctet; ++j) is_finite = is_finite && IsFiniteFloat16(row.bits[j]);
  return is_finite;
}

// Where the octets of a tensor with `num_tokens` rows a head stand.
struct Rows {
  const uint16_t* in;
  uint16_t* out;
};

// Grid: any number of CTAs x heads x {K, V}; a thread reads 8 channels of a row at a time. Moves 4
// bytes a value.
template <int kHeadDim>
__global__ void __launch_bounds__(kThreads)
    RotateRowsKernel(KvTensorView in, MutableKvTensorView out, float norm,
                     uint32_t* has_non_finite) {
  constexpr int kLanes = kHeadDim / kOctet;
  const int head = static_cast<int>(blockIdx.y);
  const Rows rows = blockIdx.z == 0
                        ? Rows{in.k + head * in.head_stride, out.k + head * out.head_stride}
                        : Rows{in.v + head * in.head_stride, out.v + head * out.head_stride};
  const int64_t count = static_cast<int64_t>(in.num_tokens) * kLanes;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  bool is_finite = true;
  // Whole warps go round together: rows do not end inside a group of kLanes, so lanes past the end
  // only follow.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads; first < count;
       first += stride) {
    const int64_t i = first + threadIdx.x;
    const bool is_inside = i < count;
    HalfOctet halves = {};
    if (is_inside) halves = LoadStreaming(rows.in + i * kOctet);
    is_finite = is_finite && AreFinite(halves);
    const int octet = static_cast<int>(threadIdx.x) % kLanes;
    RotateHalves<kHeadDim>(halves, octet, norm);
    if (is_inside) StoreRotated<kHeadDim>(halves, octet, rows.out + i / kLanes * kHeadDim);
  }
  if (!is_finite) *has_non_finite = 1;
}

__global__ void __launch_bounds__(kThreads)
    FiniteFlagKernel(KvTensorView kv, uint32_t* has_non_finite) {
  const int head = static_cast<int>(blockIdx.y);
  const uint16_t* rows = (blockIdx.z == 0 ? kv.k : kv.v) + head * kv.head_stride;
  const int64_t count = static_cast<int64_t>(kv.num_tokens) * kv.head_dim / kOctet;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  bool is_finite = true;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < count;
       i += stride) {
    is_finite = is_finite && AreFinite(LoadStreaming(rows + i * kOctet));
  }
  if (!is_finite) *has_non_finite = 1;
}

// Grid: kv heads x blocks, a thread a token. A token's rank is the number of those that come before
// it by importance; its slot that of those of its kind that stand before it.
__global__ void __launch_bounds__(kBlockTokens) ArrangeSlotsKernel(SlotKernelArgs args) {
  __shared__ __align__(16) float importance[kBlockTokens];
  __shared__ uint32_t fine_tokens[kBlockTokens / 32];
  const int head = static_cast<int>(blockIdx.x), block = static_cast<int>(blockIdx.y);
  const int token = static_cast<int>(threadIdx.x), warp = token / 32;
  const bool is_sink = block == 0 && token < args.num_sinks;
  float own =
      args.importance[head * args.head_stride + static_cast<int64_t>(block) * kBlockTokens + token];
  // Of K or queries that are not finite: every token still needs a slot of its own.
  if (!(own == own)) own = -INFINITY;
  // A sink comes before nobody.
  importance[token] = is_sink ? NAN : own;
  __syncthreads();
  int rank = 0;
#pragma unroll 8
  for (int first = 0; first < kBlockTokens; first += 4) {
    const float4 four = *reinterpret_cast<const float4*>(importance + first);
    const float others[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      rank += others[i] > own || (others[i] == own && first + i < token) ? 1 : 0;
    }
  }
  const bool is_fine = !is_sink && rank < args.num_fine;
  const uint32_t of_warp = __ballot_sync(~0u, is_fine);
  if (token % 32 == 0) fine_tokens[warp] = of_warp;
  __syncthreads();
  int fine_before = __popc(of_warp & ((1u << token % 32) - 1));
  for (int other = 0; other < warp; ++other) fine_before += __popc(fine_tokens[other]);
  const int slot = is_fine ? kBlockTokens - args.num_fine + fine_before : token - fine_before;
  const int64_t at = (static_cast<int64_t>(block) * args.num_kv_heads + head) * kBlockTokens;
  args.slots[at + slot] = static_cast<uint8_t>(token);
}

// Enough CTAs to fill the device `waves` times, at most one octet a thread.
dim3 RowGrid(const KvTensorView& kv, int waves) {
  int device = 0, num_sms = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) {
    num_sms = 1;
  }
  const int64_t octets = static_cast<int64_t>(kv.num_tokens) * kv.head_dim / kOctet;
  const int64_t needed = (octets + kThreads - 1) / kThreads;
  const int64_t wanted = (int64_t{num_sms} * kCtasPerSm * waves + 2 * kv.num_kv_heads - 1) /
                         (2 * int64_t{kv.num_kv_heads});
  return dim3(static_cast<unsigned>(needed < wanted ? needed : wanted), kv.num_kv_heads, 2);
}

}  // namespace

cudaError_t LaunchRotateRows(const KvTensorView& in, const MutableKvTensorView& out,
                             uint32_t* has_non_finite, cudaStream_t stream) {
  if (in.num_tokens == 0) return cudaSuccess;
  const float norm = RotationNorm(in.head_dim);
  const dim3 grid = RowGrid(in, kRotationWaves);
  if (in.head_dim == 64) {
    RotateRowsKernel<64><<<grid, kThreads, 0, stream>>>(in, out, norm, has_non_finite);
  } else {
    RotateRowsKernel<128><<<grid, kThreads, 0, stream>>>(in, out, norm, has_non_finite);
  }
  return cudaGetLastError();
}

cudaError_t LaunchFiniteFlag(const KvTensorView& kv, uint32_t* has_non_finite,
                             cudaStream_t stream) {
  if (kv.num_tokens == 0) return cudaSuccess;
  FiniteFlagKernel<<<RowGrid(kv, 1), kThreads, 0, stream>>>(kv, has_non_finite);
  return cudaGetLastError();
}

cudaError_t LaunchArrangeSlots(const SlotKernelArgs& args, cudaStream_t stream) {
  if (args.num_blocks == 0) return cudaSuccess;
  const dim3 grid(args.num_kv_heads, args.num_blocks);
  ArrangeSlotsKernel<<<grid, kBlockTokens, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace pkv
