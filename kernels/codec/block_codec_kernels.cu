// The CUDA codec: one CTA of 128 threads a kv head, in the order of block_codec_cpu.cc.
//
// A thread owns a slot or a channel in turn: K slot (channel after channel, fitted by the threads
// of the slot's group together, key_fit_math.h), V token (scale, zero point over channels), V
// channel (codes). Values are read again from L1 for every use instead of being staged: this kernel
// is the plain one. Compiled with --fmad=false: equal bytes to the CPU.

#include "kernels/codec/block_codec_kernels.h"
#include "kernels/codec/codec_math.h"
#include "kernels/codec/group_lanes_math.h"
#include "kernels/codec/key_fit_math.h"
#include "proto/block/fragment_order.h"

namespace pkv {
namespace {

constexpr int kThreads = kBlockTokens;
constexpr int kMaxHeadDim = 128;
constexpr int kMaxGroupsV = kMaxHeadDim / 32;

// K or V of one kv head on its way into a frame.
struct DeviceSource {
  const uint16_t* rows;      // [128][head_dim]
  const uint16_t* patterns;  // [num][head_dim]
  const uint8_t* ids;        // [128]; null without patterns
  int head_dim;

  PKV_HOST_DEVICE float Residual(int token, int channel) const {
    const float value = Float16ToFloat(rows[token * head_dim + channel]);
    if (ids == nullptr || ids[token] == kRawPatternId) return value;
    return value - Float16ToFloat(patterns[ids[token] * head_dim + channel]);
  }
};

// The threads of this CTA, from inside one of them.
struct ThisCta {
  KeyFitThread* thread;

  template <typename Phase>
  PKV_HOST_DEVICE void operator()(const Phase& phase) const {
    phase(*thread);
#ifdef __CUDA_ARCH__
    __syncthreads();
#endif
  }
};

// The sum, in order of steps, of what the errors of this slot's earlier channels weigh.
__device__ float FeedbackSum(const float* weights, const float* errors, int step) {
  float sum = 0;
  for (int j = 0; j < step; ++j) sum = sum + weights[j] * errors[j * kThreads];
  return sum;
}

// A thread owns a slot, and its column of the errors [step][slot]; without feedback there are none.
__device__ void EncodeK(const DeviceSource& k, const CodecKernelArgs& args, int head,
                        const HeadSections<std::byte>& frame, KeyFitShared& shared, float* errors) {
  const int slot = static_cast<int>(threadIdx.x), d = k.head_dim, bits = args.encoding.bits_k;
  const bool has_feedback = args.k_order != nullptr;
  if (k.ids != nullptr) frame.k_ids[RowPosition(slot, kBlockTokens)] = k.ids[slot];
  const KeyFitRule rule = {
      args.encoding.k_group_tokens,
      args.num_sinks,
      args.encoding.k_fine_tokens,
      bits,
      args.num_ratios_k,
      args.unbiased_k,
  };
  KeyFitThread thread(rule, slot, shared);
  for (int step = 0; step < d; ++step) {
    const int channel = has_feedback ? args.k_order[head * d + step] : step;
    const float original = thread.is_coded() ? k.Residual(slot, channel) : 0.0f;
    float target = original;
    if (has_feedback && thread.is_coded()) {
      target = target - FeedbackSum(args.k_weights + (static_cast<int64_t>(head) * d + step) * d,
                                    errors + slot, step);
    }
    thread.PutTarget(target);
    __syncthreads();
    FitKeys(rule, ThisCta{&thread});
    if (thread.is_first_worker()) {
      const int at = thread.group_index() * d + ColumnPosition(channel, d);
      frame.k_scales[at] = thread.stored().scale;
      frame.k_zeros[at] = thread.stored().zero;
    }
    if (!thread.is_coded()) continue;
    const KeyFitThread::Coded coded = thread.Code();
    if (has_feedback) errors[step * kThreads + slot] = coded.value - original;
    // Every word of a code matrix belongs to one row: no other thread writes it.
    if (thread.is_fine()) {
      const int row = slot - (kBlockTokens - kFineTokens);
      const CodePosition place = LocateCode(row, channel, d, kFineBits);
      frame.k_fine_codes[place.word_index] |= coded.code << place.shift;
    } else {
      const CodePosition place = LocateCode(slot, channel, d, bits);
      frame.k_codes[place.word_index] |= coded.code << place.shift;
    }
  }
}

// A V group of one token.
struct TokenGroup {
  const DeviceSource& v;
  int token, first;

  PKV_HOST_DEVICE float operator()(int i) const { return v.Residual(token, first + i); }
};

// Scale and zero point that the codes of V come from, when the frame holds corrected ones.
struct SearchedV {
  GroupParams params[kMaxGroupsV][kBlockTokens];
};

__device__ void EncodeVParams(const DeviceSource& v, const CodecKernelArgs& args,
                              const HeadSections<std::byte>& frame, SearchedV& searched) {
  const int token = static_cast<int>(threadIdx.x), channels = args.encoding.v_group_channels;
  const int bits = args.encoding.bits_v;
  if (v.ids != nullptr) frame.v_ids[ColumnPosition(token, kBlockTokens)] = v.ids[token];
  if (token < args.num_sinks) return;
  for (int group = 0; group < v.head_dim / channels; ++group) {
    const TokenGroup values = {v, token, group * channels};
    const GroupParams found = SearchLanes(values, channels, bits, args.num_ratios_v);
    const GroupParams stored =
        args.unbiased_v ? CorrectLanes(values, channels, bits, found) : found;
    searched.params[group][token] = found;
    frame.v_scales[group * kBlockTokens + RowPosition(token, kBlockTokens)] = stored.scale;
    frame.v_zeros[group * kBlockTokens + ColumnPosition(token, kBlockTokens)] = stored.zero;
  }
}

__device__ void EncodeVCodes(const DeviceSource& v, const CodecKernelArgs& args,
                             const HeadSections<std::byte>& frame, const SearchedV& searched) {
  const int channel = static_cast<int>(threadIdx.x), bits = args.encoding.bits_v;
  if (channel >= v.head_dim) return;
  const int group = channel / args.encoding.v_group_channels;
  for (int token = args.num_sinks; token < kBlockTokens; ++token) {
    const GroupParams params = searched.params[group][token];
    const float code = QuantizeOne(v.Residual(token, channel), Float16ToFloat(params.scale),
                                   Float16ToFloat(params.zero), MaxCode(bits));
    const CodePosition place = LocateCode(channel, token, kBlockTokens, bits);
    frame.v_codes[place.word_index] |= static_cast<uint32_t>(code) << place.shift;
  }
}

__device__ void CopyRows(const CodecKernelArgs& args, int head,
                         const HeadSections<std::byte>& frame) {
  const int64_t at = head * args.head_stride;
  const int d = args.head_dim, thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < frame.num_rows * d; i += kThreads) {
    frame.k_rows[i] = args.k_in[at + i];
    frame.v_rows[i] = args.v_in[at + i];
  }
  if (thread >= d) return;
  if (frame.k_appended != nullptr) {
    frame.k_appended[thread] = args.k_patterns[((head + 1) * args.num_k - 1) * d + thread];
  }
  if (frame.v_appended != nullptr) {
    frame.v_appended[thread] = args.v_patterns[((head + 1) * args.num_v - 1) * d + thread];
  }
}

// Dynamic shared memory: with feedback, KeyErrorBytes(head_dim).
__global__ void __launch_bounds__(kThreads) EncodeKernel(CodecKernelArgs args) {
  extern __shared__ float key_errors[];
  __shared__ KeyFitShared key_fit;
  __shared__ SearchedV searched_v;
  const int head = static_cast<int>(blockIdx.x), d = args.head_dim;
  const HeadSections<std::byte> frame = args.frames[head];
  CopyRows(args, head, frame);
  if (frame.k_codes == nullptr) return;  // fp16
  const bool has_patterns = args.k_ids != nullptr;
  const DeviceSource k = {args.k_in + head * args.head_stride,
                          has_patterns ? args.k_patterns + head * args.num_k * d : nullptr,
                          has_patterns ? args.k_ids + head * kBlockTokens : nullptr, d};
  const DeviceSource v = {args.v_in + head * args.head_stride,
                          has_patterns ? args.v_patterns + head * args.num_v * d : nullptr,
                          has_patterns ? args.v_ids + head * kBlockTokens : nullptr, d};
  EncodeVParams(v, args, frame, searched_v);
  EncodeK(k, args, head, frame, key_fit, key_errors);
  __syncthreads();
  EncodeVCodes(v, args, frame, searched_v);
}

__device__ uint32_t CodeAt(const uint32_t* codes, int row, int column, int num_columns, int bits) {
  const CodePosition place = LocateCode(row, column, num_columns, bits);
  return (codes[place.word_index] >> place.shift) & ((1u << bits) - 1);
}

__device__ float DecodeK(const CodecKernelArgs& args, const HeadSections<std::byte>& frame,
                         int head, int token, int channel) {
  const int d = args.head_dim, num_coarse = kBlockTokens - args.encoding.k_fine_tokens;
  const int at = token / args.encoding.k_group_tokens * d + ColumnPosition(channel, d);
  const float scale = Float16ToFloat(frame.k_scales[at]), zero = Float16ToFloat(frame.k_zeros[at]);
  float value;
  if (token < num_coarse) {
    const uint32_t code = CodeAt(frame.k_codes, token, channel, d, args.encoding.bits_k);
    value = DequantizeOne(static_cast<float>(code), scale, zero);
  } else {
    const FineGrid fine = MakeFineGrid(scale, zero);
    const uint32_t code = CodeAt(frame.k_fine_codes, token - num_coarse, channel, d, kFineBits);
    value = DequantizeOne(static_cast<float>(code), fine.step, fine.low);
  }
  if (frame.k_ids == nullptr) return value;
  const int id = frame.k_ids[RowPosition(token, kBlockTokens)];
  if (id == kRawPatternId) return value;
  return value + Float16ToFloat(args.k_patterns[(head * args.num_k + id) * d + channel]);
}

__device__ float DecodeV(const CodecKernelArgs& args, const HeadSections<std::byte>& frame,
                         int head, int token, int channel) {
  const int d = args.head_dim, bits = args.encoding.bits_v;
  const uint32_t code = CodeAt(frame.v_codes, channel, token, kBlockTokens, bits);
  const int first = channel / args.encoding.v_group_channels * kBlockTokens;
  const float value =
      DequantizeOne(static_cast<float>(code),
                    Float16ToFloat(frame.v_scales[first + RowPosition(token, kBlockTokens)]),
                    Float16ToFloat(frame.v_zeros[first + ColumnPosition(token, kBlockTokens)]));
  if (frame.v_ids == nullptr) return value;
  const int id = frame.v_ids[ColumnPosition(token, kBlockTokens)];
  if (id == kRawPatternId) return value;
  return value + Float16ToFloat(args.v_patterns[(head * args.num_v + id) * d + channel]);
}

__global__ void __launch_bounds__(kThreads) DecodeKernel(CodecKernelArgs args) {
  const int head = static_cast<int>(blockIdx.x), channel = static_cast<int>(threadIdx.x);
  const int d = args.head_dim;
  if (channel >= d) return;
  const HeadSections<std::byte> frame = args.frames[head];
  const int64_t head_at = head * args.head_stride;
  for (int token = 0; token < kBlockTokens; ++token) {
    const int at = token * d + channel;
    const bool is_row = token < frame.num_rows;
    args.k_out[head_at + at] =
        is_row ? frame.k_rows[at] : ToFiniteFloat16(DecodeK(args, frame, head, token, channel));
    args.v_out[head_at + at] =
        is_row ? frame.v_rows[at] : ToFiniteFloat16(DecodeV(args, frame, head, token, channel));
  }
}

// Grid: kv heads x {K, V}.
__global__ void __launch_bounds__(kThreads)
    FiniteCheckKernel(CodecKernelArgs args, unsigned long long* place) {
  const int head = static_cast<int>(blockIdx.x), is_v = static_cast<int>(blockIdx.y);
  const uint16_t* rows = (is_v ? args.v_in : args.k_in) + head * args.head_stride;
  const int count = kBlockTokens * args.head_dim;
  const auto first = static_cast<unsigned long long>(is_v * args.num_kv_heads + head) * count;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    if (!IsFiniteFloat16(rows[i])) atomicMin(place, first + i);
  }
}

// fp32 [head_dim][128]: 64 KiB for head_dim 128, more than a kernel gets without asking.
constexpr int KeyErrorBytes(int head_dim) {
  return head_dim * kThreads * static_cast<int>(sizeof(float));
}

}  // namespace

cudaError_t LaunchFiniteCheck(const CodecKernelArgs& args, unsigned long long* place,
                              cudaStream_t stream) {
  FiniteCheckKernel<<<dim3(args.num_kv_heads, 2), kThreads, 0, stream>>>(args, place);
  return cudaGetLastError();
}

cudaError_t LaunchEncode(const CodecKernelArgs& args, cudaStream_t stream) {
  int shared_bytes = 0;
  if (args.k_order != nullptr) {
    shared_bytes = KeyErrorBytes(args.head_dim);
    // The limit is one for all threads of the process, so every call sets the same.
    const cudaError_t error = cudaFuncSetAttribute(
        EncodeKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, KeyErrorBytes(kMaxHeadDim));
    if (error != cudaSuccess) return error;
  }
  EncodeKernel<<<args.num_kv_heads, kThreads, shared_bytes, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchDecode(const CodecKernelArgs& args, cudaStream_t stream) {
  DecodeKernel<<<args.num_kv_heads, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace pkv
