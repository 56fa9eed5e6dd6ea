#include "proto/transport/nccl/span_kernels.h"

namespace pkv {
namespace {

constexpr int kCopyThreads = 256;
constexpr int kDigestWarps = 4;
constexpr int kCheckThreads = kCheckVectors;
constexpr int kRowsAhead = 4;
constexpr uint32_t kFullWarp = 0xffffffffu;
constexpr int kRowVectors = static_cast<int>(kDigestRowBytes / sizeof(uint4));

__global__ void __launch_bounds__(kCopyThreads)
    CopyItemsKernel(const CopyItem* items, uint32_t num_items) {
  for (uint32_t index = blockIdx.x; index < num_items; index += gridDim.x) {
    const CopyItem item = items[index];
    const auto* from = reinterpret_cast<const uint4*>(item.from);
    auto* to = reinterpret_cast<uint4*>(item.to);
    const uint32_t vectors = static_cast<uint32_t>(item.bytes / sizeof(uint4));
#pragma unroll 8
    for (uint32_t i = threadIdx.x; i < vectors; i += kCopyThreads) to[i] = from[i];
  }
}

// The nibble tables of one factor, word (place * 16 + value) * 32 + thread.
struct BankedNibbles {
  uint32_t product[8 * 16 * 32];
};

__device__ __forceinline__ uint32_t TimesBanked(const char* banked_of_thread, uint32_t a) {
  uint32_t sum = 0;
#pragma unroll
  for (int place = 0; place < 8; ++place) {
    // A value is 32 words, 128 bytes, after the one before.
    const int shift = 7 - 4 * place;
    const uint32_t offset = (shift >= 0 ? a << shift : a >> -shift) & 0x780u;
    sum ^= *reinterpret_cast<const uint32_t*>(banked_of_thread + place * 2048 + offset);
  }
  return sum;
}

__device__ __forceinline__ uint32_t TimesNibbles(const uint32_t* product, uint32_t a) {
  uint32_t sum = 0;
#pragma unroll
  for (int place = 0; place < 8; ++place) sum ^= product[place * 16 + ((a >> (4 * place)) & 15)];
  return sum;
}

struct DigestShared {
  BankedNibbles row;
  uint32_t word[8 * 16];
};

__device__ __forceinline__ void Advance(uint4& state, const uint4& row, const char* banked) {
  state.x = TimesBanked(banked, state.x) ^ row.x;
  state.y = TimesBanked(banked, state.y) ^ row.y;
  state.z = TimesBanked(banked, state.z) ^ row.z;
  state.w = TimesBanked(banked, state.w) ^ row.w;
}

// The four states of this thread after all rows of the item, which it copies to item.to meanwhile.
template <bool kCopies>
__device__ __forceinline__ uint4 ItemState(const DigestItem& item, int thread, const char* banked) {
  const auto* data = reinterpret_cast<const uint4*>(item.data);
  auto* to = reinterpret_cast<uint4*>(item.to);
  const int vectors = static_cast<int>(item.bytes / sizeof(uint4));
  const int rows = (vectors + kRowVectors - 1) / kRowVectors;
  const int first = vectors - rows * kRowVectors + thread;  // below 0: before the item
  uint4 state = first >= 0 ? __ldg(data + first) : make_uint4(0, 0, 0, 0);
  if (kCopies && first >= 0) to[first] = state;
  data += first + kRowVectors;
  if (kCopies) to += first + kRowVectors;
  int left = rows - 1;
  for (; left >= kRowsAhead; left -= kRowsAhead) {
    uint4 row[kRowsAhead];
#pragma unroll
    for (int r = 0; r < kRowsAhead; ++r) row[r] = __ldg(data + r * kRowVectors);
#pragma unroll
    for (int r = 0; r < kRowsAhead; ++r) {
      if (kCopies) to[r * kRowVectors] = row[r];
      Advance(state, row[r], banked);
    }
    data += kRowsAhead * kRowVectors;
    if (kCopies) to += kRowsAhead * kRowVectors;
  }
  for (; left > 0; --left, data += kRowVectors) {
    const uint4 row = __ldg(data);
    if (kCopies) {
      *to = row;
      to += kRowVectors;
    }
    Advance(state, row, banked);
  }
  return state;
}

__global__ void __launch_bounds__(32 * kDigestWarps)
    DigestItemsKernel(const DigestItem* items, uint32_t num_items, uint32_t* digests,
                      const __grid_constant__ DigestTables tables) {
  __shared__ DigestShared shared;
  const uint32_t* row = &tables.row.product[0][0];
  const uint32_t* word = &tables.word.product[0][0];
  for (int i = threadIdx.x; i < 8 * 16 * 32; i += 32 * kDigestWarps) {
    shared.row.product[i] = row[i / 32];
  }
  for (int i = threadIdx.x; i < 8 * 16; i += 32 * kDigestWarps) shared.word[i] = word[i];
  __syncthreads();

  const int thread = threadIdx.x % 32;
  const uint32_t thread_shift = tables.thread_shift[thread];
  const char* banked = reinterpret_cast<const char*>(shared.row.product + thread);
  for (uint32_t i = blockIdx.x * kDigestWarps + threadIdx.x / 32; i < num_items;
       i += gridDim.x * kDigestWarps) {
    const DigestItem item = items[i];
    const uint4 state = item.to != nullptr ? ItemState<true>(item, thread, banked)
                                           : ItemState<false>(item, thread, banked);
    uint32_t folded = TimesNibbles(shared.word, state.x) ^ state.y;
    folded = TimesNibbles(shared.word, folded) ^ state.z;
    folded = TimesNibbles(shared.word, folded) ^ state.w;
    const uint32_t part = __reduce_xor_sync(kFullWarp, Crc32cMultiply(folded, thread_shift));
    if (thread == 0) atomicXor(digests + item.digest_index, Crc32cMultiply(part, item.shift));
  }
}

__global__ void __launch_bounds__(kCheckThreads)
    CheckItemsKernel(const CheckItem* items, uint32_t num_items, const FrameRules* rules,
                     uint32_t* flags) {
  for (uint32_t index = blockIdx.x; index < num_items; index += gridDim.x) {
    const CheckItem item = items[index];
    const FrameRules& of = rules[item.rules_index];
    uint32_t bad = 0;
    for (uint32_t s = 0; s < of.num_sections; ++s) {
      const NumberSection section = of.sections[s];
      const uint32_t vectors = section.head_bytes / sizeof(uint4);
      for (uint32_t i = item.part * kCheckThreads + threadIdx.x; i < vectors * section.num_heads;
           i += item.num_parts * kCheckThreads) {
        const std::byte* head = item.frame + section.offset + i / vectors * section.head_stride;
        const uint4 four = __ldg(reinterpret_cast<const uint4*>(head) + i % vectors);
        for (const uint32_t word : {four.x, four.y, four.z, four.w}) {
          bad |= BreaksRule(word, section.rule, section.bank_size);
        }
      }
    }
    if (bad != 0) flags[item.flag_index] = 1;
  }
}

uint32_t NumCtas(uint32_t wanted, int max_ctas) {
  // More than any device runs at a time.
  constexpr uint32_t kMostCtas = 4096;
  const uint32_t most = max_ctas == 0 ? kMostCtas : static_cast<uint32_t>(max_ctas);
  return wanted < most ? wanted : most;
}

}  // namespace

cudaError_t LoadSpanKernels() {
  cudaFuncAttributes attributes;
  cudaError_t error = cudaFuncGetAttributes(&attributes, CopyItemsKernel);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, DigestItemsKernel);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, CheckItemsKernel);
  return error;
}

cudaError_t LaunchCopyItems(const CopyItem* items, uint32_t num_items, int max_ctas, void* stream) {
  if (num_items == 0) return cudaSuccess;
  CopyItemsKernel<<<NumCtas(num_items, max_ctas), kCopyThreads, 0,
                    static_cast<cudaStream_t>(stream)>>>(items, num_items);
  return cudaGetLastError();
}

cudaError_t LaunchDigestItems(const DigestItem* items, uint32_t num_items, uint32_t* digests,
                              int max_ctas, void* stream) {
  if (num_items == 0) return cudaSuccess;
  constexpr DigestTables kTables;
  const uint32_t wanted = (num_items + kDigestWarps - 1) / kDigestWarps;
  DigestItemsKernel<<<NumCtas(wanted, max_ctas), 32 * kDigestWarps, 0,
                      static_cast<cudaStream_t>(stream)>>>(items, num_items, digests, kTables);
  return cudaGetLastError();
}

cudaError_t LaunchCheckItems(const CheckItem* items, uint32_t num_items, const FrameRules* rules,
                             uint32_t* flags, int max_ctas, void* stream) {
  if (num_items == 0) return cudaSuccess;
  CheckItemsKernel<<<NumCtas(num_items, max_ctas), kCheckThreads, 0,
                     static_cast<cudaStream_t>(stream)>>>(items, num_items, rules, flags);
  return cudaGetLastError();
}

}  // namespace pkv
