// Blocks back into rows of fp16: one CTA a kv head of a block. Compiled with --fmad=false: equal
// bits to BlockCodec::Decode on the CPU, and to RotateFloat16Rows() behind it.
//
// The head is copied to shared memory, all of it in flight at once; then a thread owns 8 channels
// and walks over rows, so that scales and zero points of K and the words of V, which hold one
// channel of many rows, stay in registers. Shared: the head, 4.8 to 20.4 KB. Moves a page once and
// 4 head_dim bytes a slot and head; patterns come from L1. On an H200 2.0 TB/s (pkv2), 1.3
// (default), 3.4 (fp16): 54, 34 and 90 % of a copy's rate (PERFORMANCE.md).

#include <cuda_fp16.h>

#include "kernels/codec/code_steps_math.h"
#include "kernels/codec/codec_math.h"
#include "kernels/codec/layer_decoder_kernels.h"
#include "kernels/codec/octet_rotation.cuh"
#include "pkv/block/kv_shape.h"
#include "proto/block/fragment_order.h"

namespace pkv {
namespace {

constexpr int kThreads = 256;
constexpr int kFp16Bits = 16;
// V code words of the row tiles of a matrix, each tile 4 words further: the octets of a warp read
// neighbouring tiles, whose sizes are multiples of all 32 banks.
constexpr int kTileRows = 16, kTilePadBytes = 16;

// Eight halves of a row, in order.
struct alignas(16) Halves {
  __half2 pairs[kOctet / 2];
};

__device__ Halves LoadHalves(const uint16_t* at) {
  const uint4 raw = __ldg(reinterpret_cast<const uint4*>(at));
  return reinterpret_cast<const Halves&>(raw);
}

// ToFiniteFloat16() of both.
__device__ __half2 FinitePair(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.satfinite.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return reinterpret_cast<const __half2&>(pair);
}
__device__ Halves ToHalves(const float (&x)[kOctet]) {
  Halves out;
#pragma unroll
  for (int i = 0; i < kOctet / 2; ++i) out.pairs[i] = FinitePair(x[2 * i], x[2 * i + 1]);
  return out;
}
__device__ void ToFloats(const Halves& halves, float (&x)[kOctet]) {
#pragma unroll
  for (int i = 0; i < kOctet / 2; ++i) {
    x[2 * i] = __low2float(halves.pairs[i]);
    x[2 * i + 1] = __high2float(halves.pairs[i]);
  }
}

// The code in the low bits of `word`.
template <int kBits>
__device__ float CodeIn(uint32_t word) {
  constexpr uint32_t kMask = (1u << kBits) - 1;
  return __uint_as_float((word & kMask) | kCodeBase) - 0x1p+23f;
}

// A head in shared memory. What follows the V codes stands kPadBytes further than in the page.
template <int kHeadDim>
struct SharedHead {
  const std::byte* bytes;
  const PayloadLayout& layout;

  static constexpr int kPadBytes = kHeadDim / kTileRows * kTilePadBytes;
  template <typename T>
  __device__ const T* Codes(int64_t offset) const {
    return reinterpret_cast<const T*>(bytes + offset);
  }
  template <typename T>
  __device__ const T* List(int64_t offset) const {
    return reinterpret_cast<const T*>(bytes + offset + kPadBytes);
  }
};

template <int kHeadDim>
__device__ void CopyHead(const std::byte* head, const PayloadLayout& layout, std::byte* shared) {
  const auto* from = reinterpret_cast<const uint4*>(head);
  const int count = static_cast<int>(layout.head_bytes) / 16;
  const int first = static_cast<int>(layout.v_codes) / 16;
  const int last = static_cast<int>(layout.k_scales) / 16;
  const int tile = (last - first) / (kHeadDim / kTileRows);  // a power of two
  const int tile_shift = __ffs(tile) - 1;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const int pads = i < first ? 0 : min((i - first) >> tile_shift, kHeadDim / kTileRows);
    reinterpret_cast<uint4*>(shared)[i + pads] = __ldg(from + i);
  }
}

// What a thread owns: 8 channels of every kRowsAtOnce-th row.
template <int kHeadDim, bool kRotate>
struct OctetOwner {
  static constexpr int kLanes = kHeadDim / kOctet, kRowsAtOnce = kThreads / kLanes;
  int octet = static_cast<int>(threadIdx.x) % kLanes;
  int first_row = static_cast<int>(threadIdx.x) / kLanes;

  __device__ int channel() const { return kOctet * octet; }
  __device__ void Store(const Halves& halves, float norm, uint16_t* row) const {
    if constexpr (kRotate) {
      float x[kOctet];
      ToFloats(halves, x);
      RotateOctets<kHeadDim>(x, octet, norm);
      StoreRotated<kHeadDim>(ToHalves(x), octet, row);
    } else {
      *reinterpret_cast<Halves*>(row + channel()) = halves;
    }
  }
};

// One tensor of the head: where rows and patterns come from, and where rows go.
struct TensorPart {
  const uint16_t* rows;  // fp16 as stored, `num_rows` of them
  int num_rows;
  const uint16_t* patterns;  // null without
  uint16_t* out;
};

// Adds the pattern's 8 channels from `channel` on; nothing for id 255.
__device__ void AddPattern(const uint16_t* patterns, int head_dim, int id, int channel,
                           float (&x)[kOctet]) {
  if (id == kRawPatternId) return;
  float pattern[kOctet];
  ToFloats(LoadHalves(patterns + id * head_dim + channel), pattern);
#pragma unroll
  for (int i = 0; i < kOctet; ++i) x[i] = x[i] + pattern[i];
}

template <int kHeadDim, int kBits>
__device__ void UnpackKeys(const uint32_t* codes, int row, int channel, float (&x)[kOctet]) {
#pragma unroll
  for (int i = 0; i < kOctet; i += 2) {
    const CodePosition place = LocateCode(row, channel + i, kHeadDim, kBits);
    const uint32_t word = codes[place.word_index] >> place.shift;
    x[i] = CodeIn<kBits>(word);
    x[i + 1] = CodeIn<kBits>(word >> 16);
  }
}

// Scales or zero points of 8 channels of K.
template <int kHeadDim>
__device__ void LoadKeyList(const uint16_t* list, int channel, float (&x)[kOctet]) {
#pragma unroll
  for (int i = 0; i < kOctet; i += 2) {
    const auto* pair =
        reinterpret_cast<const __half2*>(list + ColumnPosition(channel + i, kHeadDim));
    x[i] = __low2float(*pair);
    x[i + 1] = __high2float(*pair);
  }
}

template <int kHeadDim, bool kRotate, int kBits>
__device__ void DecodeKeys(const SharedHead<kHeadDim>& head, const TensorPart& part, float norm) {
  using Owner = OctetOwner<kHeadDim, kRotate>;
  const Owner owner;
  const PayloadLayout& layout = head.layout;
  const int channel = owner.channel();
  const int num_coarse = kBlockTokens - layout.encoding.k_fine_tokens;
  const auto* group_scales = head.template List<uint16_t>(layout.k_scales);
  const auto* group_zeros = head.template List<uint16_t>(layout.k_zeros);
  int next_group = 0;  // the row it begins with
  float scales[kOctet], zeros[kOctet], x[kOctet];
#pragma unroll 1
  for (int i = 0; i < kBlockTokens / Owner::kRowsAtOnce; ++i) {
    const int row = owner.first_row + i * Owner::kRowsAtOnce;
    Halves halves;
    if constexpr (kBits != kFp16Bits) {
      // Groups are as long as a turn or longer: all threads begin one together.
      if (i * Owner::kRowsAtOnce == next_group) {
        LoadKeyList<kHeadDim>(group_scales, channel, scales);
        LoadKeyList<kHeadDim>(group_zeros, channel, zeros);
        next_group += layout.encoding.k_group_tokens;
        group_scales += kHeadDim;
        group_zeros += kHeadDim;
      }
      if (row < num_coarse) {
        UnpackKeys<kHeadDim, kBits>(head.template Codes<uint32_t>(layout.k_codes), row, channel, x);
#pragma unroll
        for (int j = 0; j < kOctet; ++j) x[j] = LevelOf(x[j], scales[j], zeros[j]);
      } else {
        UnpackKeys<kHeadDim, kFineBits>(head.template Codes<uint32_t>(layout.k_fine_codes),
                                        row - num_coarse, channel, x);
#pragma unroll
        for (int j = 0; j < kOctet; ++j) {
          const FineGrid fine = FineGridOf(scales[j], zeros[j]);
          x[j] = DequantizeOne(x[j], fine.step, fine.low);
        }
      }
      if (part.patterns != nullptr) {
        const int id = head.template List<uint8_t>(layout.k_ids)[RowPosition(row, kBlockTokens)];
        AddPattern(part.patterns, kHeadDim, id, channel, x);
      }
      halves = ToHalves(x);
    }
    if (row < part.num_rows) halves = LoadHalves(part.rows + row * kHeadDim + channel);
    owner.Store(halves, norm, part.out + row * kHeadDim);
  }
}

template <int kHeadDim, bool kRotate, int kBits>
__device__ void DecodeValues(const SharedHead<kHeadDim>& head, const TensorPart& part, float norm) {
  using Owner = OctetOwner<kHeadDim, kRotate>;
  constexpr int kWordRows = kBits == 2 ? 64 : 32;  // whose codes stand in the same words
  const Owner owner;
  const PayloadLayout& layout = head.layout;
  const int channel = owner.channel();
  uint32_t words[kOctet];
  float x[kOctet];
#pragma unroll 1
  for (int i = 0; i < kBlockTokens / Owner::kRowsAtOnce; ++i) {
    const int row = owner.first_row + i * Owner::kRowsAtOnce;
    Halves halves;
    if constexpr (kBits != kFp16Bits) {
      if (i * Owner::kRowsAtOnce % kWordRows == 0) {
        const auto* codes = head.template Codes<uint32_t>(layout.v_codes) +
                            channel / kTileRows * (kTilePadBytes / sizeof(uint32_t));
#pragma unroll
        for (int j = 0; j < kOctet; ++j) {
          words[j] = codes[LocateCode(channel + j, row, kBlockTokens, kBits).word_index];
        }
      }
      const int shift = LocateCode(channel, row, kBlockTokens, kBits).shift;
      const int64_t at = channel / layout.encoding.v_group_channels * 2 * kBlockTokens;
      const auto* scales = head.template List<uint16_t>(layout.v_scales + at);
      const auto* zeros = head.template List<uint16_t>(layout.v_zeros + at);
      const float scale = StoredToFloat(scales[RowPosition(row, kBlockTokens)]);
      const float zero = StoredToFloat(zeros[ColumnPosition(row, kBlockTokens)]);
#pragma unroll
      for (int j = 0; j < kOctet; ++j)
        x[j] = LevelOf(CodeIn<kBits>(words[j] >> shift), scale, zero);
      if (part.patterns != nullptr) {
        const int id = head.template List<uint8_t>(layout.v_ids)[ColumnPosition(row, kBlockTokens)];
        AddPattern(part.patterns, kHeadDim, id, channel, x);
      }
      halves = ToHalves(x);
    }
    if (row < part.num_rows) halves = LoadHalves(part.rows + row * kHeadDim + channel);
    owner.Store(halves, norm, part.out + row * kHeadDim);
  }
}

__device__ TensorPart PartOf(const LayerDecodeArgs& args, int block, int head, bool is_v) {
  const int d = args.head_dim();
  TensorPart part = {};
  const uint16_t* rows = nullptr;
  if (args.is_fp16()) {
    part.num_rows = kBlockTokens;
    rows = reinterpret_cast<const uint16_t*>(args.HeadOf(block, head));
  } else if (block == 0) {
    part.num_rows = args.num_sinks;
    rows = args.sinks + int64_t{2} * head * args.num_sinks * d;
  }
  part.rows = rows + (is_v ? part.num_rows * d : 0);
  const uint16_t* patterns = is_v ? args.v_patterns : args.k_patterns;
  if (patterns != nullptr) {
    part.patterns = patterns + head * (is_v ? args.v_bank_head_stride : args.k_bank_head_stride);
  }
  part.out = (is_v ? args.v : args.k) + head * args.head_stride + int64_t{block} * kBlockTokens * d;
  return part;
}

// Grid: kv heads x blocks. Dynamic shared memory: SharedBytes().
template <int kHeadDim, bool kRotate>
__global__ void __launch_bounds__(kThreads)
    LayerDecodeKernel(const __grid_constant__ LayerDecodeArgs args, float norm) {
  extern __shared__ uint4 shared[];
  const int head = static_cast<int>(blockIdx.x), block = static_cast<int>(blockIdx.y);
  auto* bytes = reinterpret_cast<std::byte*>(shared);
  const SharedHead<kHeadDim> codes = {bytes, args.layout};
  const Encoding& encoding = args.layout.encoding;
  const TensorPart k = PartOf(args, block, head, false);
  if (args.is_fp16()) {
    DecodeKeys<kHeadDim, kRotate, kFp16Bits>(codes, k, norm);
    DecodeValues<kHeadDim, kRotate, kFp16Bits>(codes, PartOf(args, block, head, true), norm);
    return;
  }
  CopyHead<kHeadDim>(args.HeadOf(block, head), args.layout, bytes);
  __syncthreads();
  if (encoding.bits_k == 2) {
    DecodeKeys<kHeadDim, kRotate, 2>(codes, k, norm);
  } else {
    DecodeKeys<kHeadDim, kRotate, 4>(codes, k, norm);
  }
  const TensorPart v = PartOf(args, block, head, true);
  if (encoding.bits_v == 2) {
    DecodeValues<kHeadDim, kRotate, 2>(codes, v, norm);
  } else {
    DecodeValues<kHeadDim, kRotate, 4>(codes, v, norm);
  }
}

template <int kHeadDim>
void Launch(const LayerDecodeArgs& args, cudaStream_t stream) {
  const dim3 grid(args.layout.num_kv_heads, args.num_blocks);
  // 4 bits in groups of 32: 20.4 KB with the pad, below the 48 KB that a kernel gets unasked.
  const int64_t shared_bytes =
      args.is_fp16() ? 0 : args.layout.head_bytes + SharedHead<kHeadDim>::kPadBytes;
  const float norm = RotationNorm(kHeadDim);
  if (args.rotate) {
    LayerDecodeKernel<kHeadDim, true><<<grid, kThreads, shared_bytes, stream>>>(args, norm);
  } else {
    LayerDecodeKernel<kHeadDim, false><<<grid, kThreads, shared_bytes, stream>>>(args, norm);
  }
}

}  // namespace

cudaError_t LaunchLayerDecode(const LayerDecodeArgs& args, cudaStream_t stream) {
  if (args.num_blocks == 0) return cudaSuccess;
  if (args.head_dim() == 64) {
    Launch<64>(args, stream);
  } else {
    Launch<128>(args, stream);
  }
  return cudaGetLastError();
}

}  // namespace pkv
