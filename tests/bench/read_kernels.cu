// How quickly memory can be read, and copied, when nothing is done with the bytes: the ceilings
// that attention and compression are held to.

#include "tests/bench/read_kernels.h"

namespace pkv {
namespace {

constexpr int kThreads = 512;
constexpr int kUnroll = 8;  // 16-byte loads in flight a thread: 64 KB a CTA
constexpr int kStages = 4;
constexpr uint32_t kBulkBytes = 16384;  // a stage of the ring
static_assert(kReadGranule % (kThreads * kUnroll * sizeof(uint4)) == 0);
static_assert(kReadGranule % kBulkBytes == 0);

__device__ uint4 LoadOnce(const uint4* at) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at));
  return v;
}

// CTAs take chunks of kThreads * kUnroll in turn.
__global__ void __launch_bounds__(kThreads)
    ReadLoads(const uint4* data, int64_t count, uint32_t* sink) {
  constexpr int64_t kChunk = int64_t{kThreads} * kUnroll;
  uint32_t sum = 0;
  for (int64_t at = blockIdx.x * kChunk; at < count; at += gridDim.x * kChunk) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) v[u] = LoadOnce(data + at + u * kThreads + threadIdx.x);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) sum += v[u].x ^ v[u].y ^ v[u].z ^ v[u].w;
  }
  // One value in 2^32, which noise does not hit in every thread: keeps the loads alive.
  if (__syncthreads_and(sum == 0x9e3779b9u)) *sink = sum;
}

__global__ void __launch_bounds__(kThreads) Copy(uint4* to, const uint4* from, int64_t count) {
  constexpr int64_t kChunk = int64_t{kThreads} * kUnroll;
  for (int64_t at = blockIdx.x * kChunk; at < count; at += gridDim.x * kChunk) {
    uint4 v[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) v[u] = LoadOnce(from + at + u * kThreads + threadIdx.x);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) __stcs(to + at + u * kThreads + threadIdx.x, v[u]);
  }
}

__device__ void WaitFor(uint32_t barrier, uint32_t phase) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "WAIT:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra WAIT;\n}"
      :
      : "r"(barrier), "r"(phase)
      : "memory");
}

__device__ void Fetch(uint32_t to, const std::byte* from, uint32_t barrier) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
               "r"(kBulkBytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(to),
      "l"(from), "r"(kBulkBytes), "r"(barrier)
      : "memory");
}

// One thread a CTA: the copy engine does the rest.
__global__ void ReadBulk(const std::byte* data, int64_t num_chunks) {
  extern __shared__ __align__(128) std::byte ring[];
  __shared__ uint64_t full[kStages];
  const uint32_t ring_at = static_cast<uint32_t>(__cvta_generic_to_shared(ring));
  const uint32_t full_at = static_cast<uint32_t>(__cvta_generic_to_shared(full));
  for (int stage = 0; stage < kStages; ++stage) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(full_at + 8 * stage) : "memory");
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  uint32_t fetched = 0;
  for (int64_t chunk = blockIdx.x; chunk < num_chunks; chunk += gridDim.x, ++fetched) {
    const uint32_t stage = fetched % kStages, round = fetched / kStages;
    if (round > 0) WaitFor(full_at + 8 * stage, (round - 1) & 1);
    Fetch(ring_at + stage * kBulkBytes, data + chunk * kBulkBytes, full_at + 8 * stage);
  }
  // Shared memory must not go while copies are under way.
  for (uint32_t i = fetched < kStages ? 0 : fetched - kStages; i < fetched; ++i) {
    WaitFor(full_at + 8 * (i % kStages), (i / kStages) & 1);
  }
}

__device__ uint32_t Scramble(uint64_t x) {  // the finalizer of MurmurHash3
  x = (x ^ (x >> 33)) * 0xff51afd7ed558ccdull;
  x = (x ^ (x >> 33)) * 0xc4ceb9fe1a85ec53ull;
  return static_cast<uint32_t>(x >> 32);
}

__global__ void FillNoise(uint4* data, int64_t count) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    data[i] = {Scramble(4 * i), Scramble(4 * i + 1), Scramble(4 * i + 2), Scramble(4 * i + 3)};
  }
}

}  // namespace

cudaError_t LaunchReadLoads(const std::byte* data, int64_t bytes, int num_ctas, uint32_t* sink,
                            cudaStream_t stream) {
  ReadLoads<<<num_ctas, kThreads, 0, stream>>>(reinterpret_cast<const uint4*>(data),
                                               bytes / static_cast<int64_t>(sizeof(uint4)), sink);
  return cudaGetLastError();
}

cudaError_t LaunchReadBulk(const std::byte* data, int64_t bytes, int num_ctas,
                           cudaStream_t stream) {
  constexpr int kRingBytes = kStages * kBulkBytes;
  const cudaError_t error =
      cudaFuncSetAttribute(ReadBulk, cudaFuncAttributeMaxDynamicSharedMemorySize, kRingBytes);
  if (error != cudaSuccess) return error;
  ReadBulk<<<num_ctas, 1, kRingBytes, stream>>>(data, bytes / kBulkBytes);
  return cudaGetLastError();
}

cudaError_t LaunchCopy(std::byte* to, const std::byte* from, int64_t bytes, int num_ctas,
                       cudaStream_t stream) {
  Copy<<<num_ctas, kThreads, 0, stream>>>(reinterpret_cast<uint4*>(to),
                                          reinterpret_cast<const uint4*>(from),
                                          bytes / static_cast<int64_t>(sizeof(uint4)));
  return cudaGetLastError();
}

cudaError_t LaunchFillNoise(std::byte* data, int64_t bytes, cudaStream_t stream) {
  constexpr int kCtas = 1024, kCtaThreads = 256;
  FillNoise<<<kCtas, kCtaThreads, 0, stream>>>(reinterpret_cast<uint4*>(data),
                                               bytes / static_cast<int64_t>(sizeof(uint4)));
  return cudaGetLastError();
}

}  // namespace pkv
