// The CUDA codec: one CTA of 128 threads a kv head, in the order of block_codec_cpu.cc.
//
// A thread owns a channel or a token in turn: K channel (scale, zero point over tokens), K token
// (codes: every word of the matrix belongs to one row), V token (scale, zero point over channels),
// V channel (codes). Values are read again from L1 for every use instead of being staged: this
// kernel is the plain one. Compiled with --fmad=false: equal bytes to the CPU.

#include "kernels/codec/block_codec_kernels.h"
#include "kernels/codec/codec_math.h"
#include "proto/block/fragment_order.h"

namespace pkv {
namespace {

constexpr int kThreads = kBlockTokens;

// K or V of one kv head on its way into a frame.
struct DeviceSource {
  const uint16_t* rows;      // [128][head_dim]
  const uint16_t* patterns;  // [num][head_dim]
  const uint8_t* ids;        // [128]; null without patterns
  int head_dim;

  __device__ float Residual(int token, int channel) const {
    const float value = Float16ToFloat(rows[token * head_dim + channel]);
    if (ids == nullptr || ids[token] == kRawPatternId) return value;
    return value - Float16ToFloat(patterns[ids[token] * head_dim + channel]);
  }
};

__device__ void EncodeKParams(const DeviceSource& k, const CodecKernelArgs& args,
                              const HeadSections<std::byte>& frame) {
  const int channel = static_cast<int>(threadIdx.x), d = k.head_dim;
  if (channel >= d) return;
  const int group_tokens = args.encoding.k_group_tokens;
  for (int group = 0; group * group_tokens < kBlockTokens; ++group) {
    const int end = (group + 1) * group_tokens;
    const int begin = max(group * group_tokens, args.num_sinks);
    if (begin >= end) continue;  // sinks only: stays zero
    float low = k.Residual(begin, channel), high = low;
    for (int t = begin + 1; t < end; ++t) {
      const float value = k.Residual(t, channel);
      low = value < low ? value : low;
      high = value > high ? value : high;
    }
    const GroupParams params = MakeGroupParams(low, high, args.encoding.bits_k);
    frame.k_scales[group * d + ColumnPosition(channel, d)] = params.scale;
    frame.k_zeros[group * d + ColumnPosition(channel, d)] = params.zero;
  }
}

__device__ void EncodeKCodes(const DeviceSource& k, const CodecKernelArgs& args,
                             const HeadSections<std::byte>& frame) {
  const int token = static_cast<int>(threadIdx.x), d = k.head_dim, bits = args.encoding.bits_k;
  if (k.ids != nullptr) frame.k_ids[RowPosition(token, kBlockTokens)] = k.ids[token];
  if (token < args.num_sinks) return;
  const int params_at = token / args.encoding.k_group_tokens * d;
  for (int channel = 0; channel < d; ++channel) {
    const int at = params_at + ColumnPosition(channel, d);
    const float code = QuantizeOne(k.Residual(token, channel), Float16ToFloat(frame.k_scales[at]),
                                   Float16ToFloat(frame.k_zeros[at]), MaxCode(bits));
    const CodePosition place = LocateCode(token, channel, d, bits);
    frame.k_codes[place.word_index] |= static_cast<uint32_t>(code) << place.shift;
  }
}

// As SquaredError() of group_quantizer.cc, in the same order of additions.
__device__ float GroupError(const DeviceSource& v, int token, int first, int count,
                            GroupParams params, int bits) {
  const float scale = Float16ToFloat(params.scale), zero = Float16ToFloat(params.zero);
  float sums[kErrorSums] = {};
  for (int i = 0; i < count; i += kErrorSums) {
#pragma unroll
    for (int lane = 0; lane < kErrorSums; ++lane) {
      const float value = v.Residual(token, first + i + lane);
      const float code = QuantizeOne(value, scale, zero, MaxCode(bits));
      const float error = value - DequantizeOne(code, scale, zero);
      sums[lane] = sums[lane] + error * error;
    }
  }
  return FoldErrorSums(sums);
}

// As ChooseGroup() of group_quantizer.cc.
__device__ GroupParams ChooseGroup(const DeviceSource& v, int token, int first, int count, int bits,
                                   bool search) {
  float low = v.Residual(token, first), high = low;
  for (int i = 1; i < count; ++i) {
    const float value = v.Residual(token, first + i);
    low = value < low ? value : low;
    high = value > high ? value : high;
  }
  GroupParams best = ShrunkGroupParams(low, high, 0, bits);
  if (!search) return best;
  float best_error = GroupError(v, token, first, count, best, bits);
  for (int ratio = 1; ratio < kNumShrinkRatios; ++ratio) {
    const GroupParams params = ShrunkGroupParams(low, high, ratio, bits);
    const float error = GroupError(v, token, first, count, params, bits);
    if (error < best_error) {
      best = params;
      best_error = error;
    }
  }
  return best;
}

__device__ void EncodeVParams(const DeviceSource& v, const CodecKernelArgs& args,
                              const HeadSections<std::byte>& frame) {
  const int token = static_cast<int>(threadIdx.x), channels = args.encoding.v_group_channels;
  if (v.ids != nullptr) frame.v_ids[ColumnPosition(token, kBlockTokens)] = v.ids[token];
  if (token < args.num_sinks) return;
  for (int group = 0; group < v.head_dim / channels; ++group) {
    const GroupParams params =
        ChooseGroup(v, token, group * channels, channels, args.encoding.bits_v, args.search_clip_v);
    frame.v_scales[group * kBlockTokens + RowPosition(token, kBlockTokens)] = params.scale;
    frame.v_zeros[group * kBlockTokens + ColumnPosition(token, kBlockTokens)] = params.zero;
  }
}

__device__ void EncodeVCodes(const DeviceSource& v, const CodecKernelArgs& args,
                             const HeadSections<std::byte>& frame) {
  const int channel = static_cast<int>(threadIdx.x), bits = args.encoding.bits_v;
  if (channel >= v.head_dim) return;
  const int params_at = channel / args.encoding.v_group_channels * kBlockTokens;
  for (int token = args.num_sinks; token < kBlockTokens; ++token) {
    const float scale =
        Float16ToFloat(frame.v_scales[params_at + RowPosition(token, kBlockTokens)]);
    const float zero =
        Float16ToFloat(frame.v_zeros[params_at + ColumnPosition(token, kBlockTokens)]);
    const float code = QuantizeOne(v.Residual(token, channel), scale, zero, MaxCode(bits));
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

__global__ void __launch_bounds__(kThreads) EncodeKernel(CodecKernelArgs args) {
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
  EncodeKParams(k, args, frame);
  EncodeVParams(v, args, frame);
  __syncthreads();
  EncodeKCodes(k, args, frame);
  EncodeVCodes(v, args, frame);
}

__device__ float DecodeK(const CodecKernelArgs& args, const HeadSections<std::byte>& frame,
                         int head, int token, int channel) {
  const int d = args.head_dim, bits = args.encoding.bits_k;
  const CodePosition place = LocateCode(token, channel, d, bits);
  const uint32_t code = (frame.k_codes[place.word_index] >> place.shift) & ((1u << bits) - 1);
  const int at = token / args.encoding.k_group_tokens * d + ColumnPosition(channel, d);
  const float value = DequantizeOne(static_cast<float>(code), Float16ToFloat(frame.k_scales[at]),
                                    Float16ToFloat(frame.k_zeros[at]));
  if (frame.k_ids == nullptr) return value;
  const int id = frame.k_ids[RowPosition(token, kBlockTokens)];
  if (id == kRawPatternId) return value;
  return value + Float16ToFloat(args.k_patterns[(head * args.num_k + id) * d + channel]);
}

__device__ float DecodeV(const CodecKernelArgs& args, const HeadSections<std::byte>& frame,
                         int head, int token, int channel) {
  const int d = args.head_dim, bits = args.encoding.bits_v;
  const CodePosition place = LocateCode(channel, token, kBlockTokens, bits);
  const uint32_t code = (frame.v_codes[place.word_index] >> place.shift) & ((1u << bits) - 1);
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

}  // namespace

cudaError_t LaunchFiniteCheck(const CodecKernelArgs& args, unsigned long long* place,
                              cudaStream_t stream) {
  FiniteCheckKernel<<<dim3(args.num_kv_heads, 2), kThreads, 0, stream>>>(args, place);
  return cudaGetLastError();
}

cudaError_t LaunchEncode(const CodecKernelArgs& args, cudaStream_t stream) {
  EncodeKernel<<<args.num_kv_heads, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

cudaError_t LaunchDecode(const CodecKernelArgs& args, cudaStream_t stream) {
  DecodeKernel<<<args.num_kv_heads, kThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace pkv
