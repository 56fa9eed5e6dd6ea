// Decode attention on CUDA cores: the equations, one value at a time.
//
// Grid: a CTA of 128 threads for every (request, query head). It walks over the request's tokens in
// tiles of up to 128, block after block and then the window. In a tile a thread first owns a token
// and computes its score, then owns a channel and adds the tile's weighted V to its part of the
// output; between the two stands the softmax of the whole CTA. Values are decoded where they are
// used, in fp32. Tiles and sums have one order: equal inputs give equal bits.
//
// Shared memory: 3 rows of 512 bytes. Every query head reads its kv head's pages again, so a token
// moves 2 head_dim bits / 8 bytes a query head and tensor, its share of scales aside, mostly from
// the L2 cache. This kernel is to be read and compared with, not to be quick.

#include <cuda_bf16.h>

#include "kernels/attention/decode_attention_cuda_core_kernels.h"
#include "kernels/codec/codec_math.h"
#include "proto/block/fragment_order.h"

namespace pkv {
namespace {

constexpr int kThreads = kBlockTokens;
constexpr int kMaxHeadDim = 128;
static_assert(kMaxHeadDim <= kThreads, "a thread owns a channel");

struct SharedRows {
  float q[kMaxHeadDim];     // times sm_scale; rotated while rotated pages are attended to
  float weights[kThreads];  // of the tile's tokens, relative to exp(running maximum)
  float exchange[kThreads];
};

// What one kv head of a request's bank holds.
struct BankOfHead {
  const Float16Bits* k = nullptr;  // [pattern][head_dim]
  const Float16Bits* v = nullptr;
};

// The tokens of a tile as [token][channel], decoded one value at a time.

struct DenseTile {
  const Float16Bits* k;
  const Float16Bits* v;
  int head_dim;

  __device__ float K(int token, int channel) const {
    return Float16ToFloat(k[token * head_dim + channel]);
  }
  __device__ float V(int token, int channel) const {
    return Float16ToFloat(v[token * head_dim + channel]);
  }
};

// One kv head of a page of codes. The first num_sinks slots stand in `sinks`.
struct CodedTile {
  const PayloadLayout& page;
  const std::byte* head;
  BankOfHead bank;
  DenseTile sinks;
  int num_sinks;

  template <typename T>
  __device__ T At(int64_t offset, int index) const {
    return reinterpret_cast<const T*>(head + offset)[index];
  }
  __device__ float Half(int64_t offset, int index) const {
    return Float16ToFloat(At<Float16Bits>(offset, index));
  }
  __device__ float Code(int64_t codes, int row, int column, int num_columns, int bits) const {
    const CodePosition place = LocateCode(row, column, num_columns, bits);
    const uint32_t word = At<uint32_t>(codes, place.word_index);
    return static_cast<float>((word >> place.shift) & ((1u << bits) - 1));
  }
  __device__ float Pattern(const Float16Bits* patterns, int id, int channel) const {
    if (id == kRawPatternId) return 0;
    return Float16ToFloat(patterns[id * page.head_dim + channel]);
  }

  __device__ float K(int slot, int channel) const {
    if (slot < num_sinks) return sinks.K(slot, channel);
    const Encoding& encoding = page.encoding;
    const int d = page.head_dim, num_coarse = kBlockTokens - encoding.k_fine_tokens;
    const int params_at = slot / encoding.k_group_tokens * d + ColumnPosition(channel, d);
    const float scale = Half(page.k_scales, params_at), zero = Half(page.k_zeros, params_at);
    float value;
    if (slot < num_coarse) {
      value = DequantizeOne(Code(page.k_codes, slot, channel, d, encoding.bits_k), scale, zero);
    } else {
      const FineGrid fine = MakeFineGrid(scale, zero);
      value = DequantizeOne(Code(page.k_fine_codes, slot - num_coarse, channel, d, kFineBits),
                            fine.step, fine.low);
    }
    if (!encoding.has_patterns) return value;
    return value +
           Pattern(bank.k, At<uint8_t>(page.k_ids, RowPosition(slot, kBlockTokens)), channel);
  }

  __device__ float V(int slot, int channel) const {
    if (slot < num_sinks) return sinks.V(slot, channel);
    const Encoding& encoding = page.encoding;
    const int group_at = channel / encoding.v_group_channels * kBlockTokens;
    const int column = ColumnPosition(slot, kBlockTokens);
    const float scale = Half(page.v_scales, group_at + RowPosition(slot, kBlockTokens));
    const float zero = Half(page.v_zeros, group_at + column);
    const float value = DequantizeOne(
        Code(page.v_codes, channel, slot, kBlockTokens, encoding.bits_v), scale, zero);
    if (!encoding.has_patterns) return value;
    return value + Pattern(bank.v, At<uint8_t>(page.v_ids, column), channel);
  }
};

__device__ float Sum(float a, float b) { return a + b; }
__device__ float Larger(float a, float b) { return fmaxf(a, b); }

// Combines a value of every thread, in halves; every thread gets the result.
template <float (*combine)(float, float)>
__device__ float Reduce(float value, float* exchange) {
  const int thread = static_cast<int>(threadIdx.x);
  exchange[thread] = value;
  __syncthreads();
  for (int half = kThreads / 2; half >= 1; half /= 2) {
    if (thread < half) exchange[thread] = combine(exchange[thread], exchange[thread + half]);
    __syncthreads();
  }
  const float result = exchange[0];
  __syncthreads();
  return result;
}

// Thread i < head_dim holds element i of a row and gets that of H / sqrt(head_dim) times the row:
// the order of kernels/codec/rotation.cc. The other threads hold zeros, and still do.
__device__ float Rotate(float value, int head_dim, float* exchange) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int half = 1; half < head_dim; half *= 2) {
    exchange[thread] = value;
    __syncthreads();
    const float other = exchange[thread ^ half];
    value = (thread & half) == 0 ? value + other : other - value;
    __syncthreads();
  }
  return value * (1.0f / sqrtf(static_cast<float>(head_dim)));
}

// Online softmax of one query head: what one thread keeps of it.
class HeadAttention {
 public:
  // `q`: this thread's element of the query times sm_scale, 0 beyond head_dim.
  __device__ HeadAttention(float q, int head_dim, SharedRows& shared)
      : head_dim_(head_dim), shared_(shared) {
    PutQuery(q);
  }

  __device__ void UseRotation(bool rotated) {
    if (rotated == is_rotated_) return;
    PutQuery(Rotate(q_, head_dim_, shared_.exchange));
    out_ = Rotate(out_, head_dim_, shared_.exchange);
    is_rotated_ = rotated;
  }

  // REQUIRES: 0 < count <= 128.
  template <typename Tile>
  __device__ void AddTokens(const Tile& tile, int count) {
    const int thread = static_cast<int>(threadIdx.x);
    float score = -INFINITY;
    if (thread < count) {
      score = 0;
      for (int j = 0; j < head_dim_; ++j) score += shared_.q[j] * tile.K(thread, j);
    }
    const float max = fmaxf(max_, Reduce<Larger>(score, shared_.exchange));
    const float rescale = expf(max_ - max), weight = expf(score - max);
    max_ = max;
    sum_ = sum_ * rescale + Reduce<Sum>(weight, shared_.exchange);
    shared_.weights[thread] = weight;
    __syncthreads();
    if (thread < head_dim_) {
      float added = 0;
      for (int t = 0; t < count; ++t) added += shared_.weights[t] * tile.V(t, thread);
      out_ = out_ * rescale + added;
    }
    __syncthreads();
  }

  // This thread's element of the output; 0 without tokens.
  __device__ float out() const { return sum_ > 0 ? out_ / sum_ : 0.0f; }
  __device__ float lse() const { return sum_ > 0 ? max_ + logf(sum_) : -INFINITY; }

 private:
  __device__ void PutQuery(float q) {
    q_ = q;
    shared_.q[threadIdx.x] = q;
    __syncthreads();
  }

  const int head_dim_;
  SharedRows& shared_;
  bool is_rotated_ = false;  // q_ and out_
  float q_ = 0, out_ = 0;    // this thread's channel
  float max_ = -INFINITY, sum_ = 0;
};

__device__ float LoadQuery(const void* q, int64_t at, QueryType type) {
  const uint16_t bits = static_cast<const uint16_t*>(q)[at];
  if (type == QueryType::kFloat16) return Float16ToFloat(bits);
  return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

__device__ void StoreOut(float value, void* out, int64_t at, QueryType type) {
  if (type == QueryType::kFloat16) {
    static_cast<uint16_t*>(out)[at] = FloatToFloat16(value);
  } else {
    static_cast<__nv_bfloat16*>(out)[at] = __float2bfloat16_rn(value);
  }
}

__device__ void AddPages(const CudaCoreLaunch& launch, int request, int kv_head,
                         HeadAttention& attention) {
  const DecodeAttentionArgs& args = launch.args;
  const PayloadLayout& page = launch.page;
  const int d = page.head_dim, num_heads = page.num_kv_heads;
  const int num_blocks = args.num_blocks[request];
  if (num_blocks == 0) return;
  BankOfHead bank;
  if (page.encoding.has_patterns) {
    const int64_t tensor = int64_t{num_heads} * args.bank_capacity * d;
    bank.k = args.banks + args.bank_ids[request] * args.bank_stride +
             int64_t{kv_head} * args.bank_capacity * d;
    bank.v = bank.k + tensor;
  }
  DenseTile sinks = {nullptr, nullptr, d};
  if (launch.num_sinks > 0) {
    const int64_t tensor = int64_t{launch.num_sinks} * d;
    sinks.k = args.sinks + args.sink_ids[request] * args.sink_stride + 2 * kv_head * tensor;
    sinks.v = sinks.k + tensor;
  }
  attention.UseRotation(page.encoding.rotated);
  for (int block = 0; block < num_blocks; ++block) {
    const int64_t page_index = args.block_table[int64_t{request} * args.block_table_stride + block];
    const std::byte* head = args.pages + page_index * args.page_stride + kv_head * page.head_bytes;
    if (page.encoding.bits_k == 16) {
      const auto* rows = reinterpret_cast<const Float16Bits*>(head);
      attention.AddTokens(DenseTile{rows, rows + kBlockTokens * d, d}, kBlockTokens);
    } else {
      const int num_sinks = block == 0 ? launch.num_sinks : 0;
      attention.AddTokens(CodedTile{page, head, bank, sinks, num_sinks}, kBlockTokens);
    }
  }
  attention.UseRotation(false);
}

// The window, then the token that q belongs to. `appends`: this CTA writes that one to the window.
__device__ void AddWindow(const CudaCoreLaunch& launch, int request, int kv_head, bool appends,
                          HeadAttention& attention) {
  const DecodeAttentionArgs& args = launch.args;
  const int d = launch.page.head_dim, num_heads = launch.page.num_kv_heads;
  const int num_tokens = args.num_window_tokens[request];
  const int64_t rows = int64_t{args.window_capacity} * d;
  uint16_t* k = args.windows + args.window_ids[request] * args.window_stride + kv_head * rows;
  uint16_t* v = k + num_heads * rows;
  for (int first = 0; first < num_tokens; first += kBlockTokens) {
    const int64_t at = int64_t{first} * d;
    attention.AddTokens(DenseTile{k + at, v + at, d}, min(kBlockTokens, num_tokens - first));
  }
  if (args.token_k == nullptr) return;
  const int64_t token_at = (int64_t{request} * num_heads + kv_head) * d;
  attention.AddTokens(DenseTile{args.token_k + token_at, args.token_v + token_at, d}, 1);
  const int thread = static_cast<int>(threadIdx.x);
  if (!appends || thread >= d) return;
  k[int64_t{num_tokens} * d + thread] = args.token_k[token_at + thread];
  v[int64_t{num_tokens} * d + thread] = args.token_v[token_at + thread];
}

__global__ void __launch_bounds__(kThreads)
    DecodeAttentionCudaCoreKernel(const __grid_constant__ CudaCoreLaunch launch) {
  __shared__ SharedRows shared;
  const int request = static_cast<int>(blockIdx.x) / launch.num_qo_heads;
  const int qo_head = static_cast<int>(blockIdx.x) % launch.num_qo_heads;
  const int heads_per_kv = launch.num_qo_heads / launch.page.num_kv_heads;
  const int kv_head = qo_head / heads_per_kv, d = launch.page.head_dim;
  const int channel = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x;
  const float q = channel < d ? LoadQuery(launch.args.q, row * d + channel, launch.query_type) : 0;
  HeadAttention attention(q * launch.args.sm_scale, d, shared);
  AddPages(launch, request, kv_head, attention);
  AddWindow(launch, request, kv_head, qo_head % heads_per_kv == 0, attention);
  if (channel < d) StoreOut(attention.out(), launch.args.out, row * d + channel, launch.query_type);
  if (channel == 0 && launch.args.lse != nullptr) launch.args.lse[row] = attention.lse();
}

}  // namespace

cudaError_t LaunchDecodeAttentionCudaCore(const CudaCoreLaunch& launch, cudaStream_t stream) {
  const int num_ctas = launch.args.batch * launch.num_qo_heads;
  DecodeAttentionCudaCoreKernel<<<num_ctas, kThreads, 0, stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace pkv
