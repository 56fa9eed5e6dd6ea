#include <limits>
#include <vector>

#include "kernels/codec/block_codec_backends.h"
#include "kernels/codec/block_codec_kernels.h"
#include "kernels/codec/layer_decoder_kernels.h"
#include "kernels/codec/layer_encode.h"
#include "kernels/device/cuda_status.h"
#include "kernels/device/device_buffer.h"
#include "kernels/pattern/finite_check.h"
#include "pkv/block/object_header.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

constexpr unsigned long long kAllFinite = std::numeric_limits<unsigned long long>::max();

// Host data of one call, and its copies on the device. The host parts must live until the stream
// has passed, so the codec synchronizes before they go.
struct CallBuffers {
  std::vector<uint16_t> k_patterns, v_patterns;
  DeviceBuffer k_patterns_device, v_patterns_device, k_ids, v_ids, k_order, k_weights, k_scales,
      k_columns;
};

template <typename T>
std::span<const std::byte> Bytes(const std::vector<T>& values) {
  return std::as_bytes(std::span<const T>(values));
}

absl::Status UploadPatterns(const Codebook& codebook, void* stream, CallBuffers& buffers) {
  for (int head = 0; head < codebook.num_kv_heads(); ++head) {
    const auto k = codebook.k(head), v = codebook.v(head);
    buffers.k_patterns.insert(buffers.k_patterns.end(), k.begin(), k.end());
    buffers.v_patterns.insert(buffers.v_patterns.end(), v.begin(), v.end());
  }
  PKV_ASSIGN_OR_RETURN(buffers.k_patterns_device,
                       DeviceBuffer::CopyOf(Bytes(buffers.k_patterns), stream));
  PKV_ASSIGN_OR_RETURN(buffers.v_patterns_device,
                       DeviceBuffer::CopyOf(Bytes(buffers.v_patterns), stream));
  return absl::OkStatus();
}

// Adds patterns and what is chosen about the block.
absl::Status UploadAssignment(const PatternAssignment& assignment, const Codebook& codebook,
                              void* stream, CallBuffers& buffers, LayerEncodeArgs& args) {
  if (args.layout.encoding.is_fp16()) return absl::OkStatus();
  if (args.layout.encoding.has_patterns) {
    PKV_RETURN_IF_ERROR(UploadPatterns(codebook, stream, buffers));
    PKV_ASSIGN_OR_RETURN(buffers.k_ids, DeviceBuffer::CopyOf(Bytes(assignment.k), stream));
    PKV_ASSIGN_OR_RETURN(buffers.v_ids, DeviceBuffer::CopyOf(Bytes(assignment.v), stream));
    args.k_patterns = buffers.k_patterns_device.As<uint16_t>();
    args.v_patterns = buffers.v_patterns_device.As<uint16_t>();
    args.k_bank_head_stride = int64_t{codebook.num_k()} * codebook.head_dim();
    args.v_bank_head_stride = int64_t{codebook.num_v()} * codebook.head_dim();
    const auto& layout = args.layout;
    PKV_ASSIGN_OR_RETURN(
        buffers.k_columns,
        DeviceBuffer::Make(KeySearchBytes(codebook.num_k(), layout.num_kv_heads, layout.head_dim),
                           stream));
    args.num_k_patterns = codebook.num_k();
    args.k_pattern_columns = buffers.k_columns.As<float>();
    args.k_ids = buffers.k_ids.As<uint8_t>();
    args.v_ids = buffers.v_ids.As<uint8_t>();
    args.ids_head_stride = kBlockTokens;
  }
  if (assignment.feedback == nullptr) return absl::OkStatus();
  const KeyFeedback& feedback = *assignment.feedback;
  PKV_ASSIGN_OR_RETURN(buffers.k_order, DeviceBuffer::CopyOf(Bytes(feedback.order), stream));
  PKV_ASSIGN_OR_RETURN(buffers.k_weights, DeviceBuffer::CopyOf(Bytes(feedback.weights), stream));
  PKV_ASSIGN_OR_RETURN(buffers.k_scales, DeviceBuffer::CopyOf(Bytes(feedback.scales), stream));
  args.k_order = buffers.k_order.As<uint8_t>();
  args.k_weights = buffers.k_weights.As<int8_t>();
  args.k_weight_scales = buffers.k_scales.As<float>();
  return absl::OkStatus();
}

// The last pattern of each head into the frame, K and then V.
absl::Status CopyAppended(const ObjectHeader& header, const Codebook& codebook,
                          CallBuffers& buffers, std::byte* frame, cudaStream_t stream) {
  const PayloadLayout layout = PayloadLayout::Of(header);
  const size_t row_bytes = header.head_dim * sizeof(uint16_t);
  std::byte* out = frame + layout.appended;
  const auto copy = [&](DeviceBuffer& patterns, int num) {
    const std::byte* last = patterns.data() + (num - 1) * row_bytes;
    const cudaError_t error = cudaMemcpy2DAsync(
        out, static_cast<size_t>(layout.appended_head_bytes), last, num * row_bytes, row_bytes,
        header.num_kv_heads, cudaMemcpyDeviceToDevice, stream);
    out += row_bytes;
    return CudaStatus(error, "copy appended patterns");
  };
  if ((header.flags & kFlagAppendsK) != 0) {
    PKV_RETURN_IF_ERROR(copy(buffers.k_patterns_device, codebook.num_k()));
  }
  if ((header.flags & kFlagAppendsV) == 0) return absl::OkStatus();
  return copy(buffers.v_patterns_device, codebook.num_v());
}

absl::Status CheckFiniteOnDevice(const KvTensorView& kv, cudaStream_t stream) {
  unsigned long long place = kAllFinite;
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(&place, 1));
  PKV_ASSIGN_OR_RETURN(DeviceBuffer place_device, DeviceBuffer::CopyOf(bytes, stream));
  PKV_RETURN_IF_ERROR(CudaStatus(
      LaunchFiniteCheck(kv, place_device.As<unsigned long long>(), stream), "launch finite check"));
  PKV_RETURN_IF_ERROR(place_device.CopyToHost(bytes));
  if (place == kAllFinite) return absl::OkStatus();
  const int channel = static_cast<int>(place % kv.head_dim);
  const int token = static_cast<int>(place / kv.head_dim % kBlockTokens);
  const int tensor_head = static_cast<int>(place / kv.head_dim / kBlockTokens);
  const int head = tensor_head % kv.num_kv_heads;
  const bool is_k = tensor_head < kv.num_kv_heads;
  const uint16_t* row = is_k ? kv.k_row(head, token) : kv.v_row(head, token);
  uint16_t value = 0;
  PKV_RETURN_IF_ERROR(CudaStatus(
      cudaMemcpy(&value, row + channel, sizeof(value), cudaMemcpyDeviceToHost), "copy value"));
  return NotFinite({is_k, head, token, channel}, value);
}

// The decoder stores 16 bytes at a time.
absl::Status CheckAligned(const MutableKvTensorView& out) {
  const auto bits = reinterpret_cast<uintptr_t>(out.k) | reinterpret_cast<uintptr_t>(out.v);
  if (bits % 16 == 0 && out.head_stride % 8 == 0) return absl::OkStatus();
  return absl::InvalidArgumentError("kv_out has rows that are not aligned to 16 bytes");
}

// Every call ends synchronized with its stream: the first correct version. Thread-safe (immutable).
class BlockCodecCuda final : public BlockCodec {
 public:
  BlockCodecCuda(const KvShape& shape, const CodecParams& params)
      : shape_(shape), params_(params) {}

  absl::Status Encode(const ObjectHeader& header, const KvTensorView& kv,
                      const PatternAssignment& assignment, const Codebook& codebook,
                      const ComputeContext& ctx, std::span<std::byte> frame) const override {
    PKV_RETURN_IF_ERROR(
        CheckEncodeArguments(shape_, params_, header, kv, assignment, codebook, frame));
    const auto stream = static_cast<cudaStream_t>(ctx.stream);
    PKV_RETURN_IF_ERROR(CheckFiniteOnDevice(kv, stream));
    PKV_RETURN_IF_ERROR(
        CudaStatus(cudaMemsetAsync(frame.data(), 0, frame.size(), stream), "clear frame"));
    CallBuffers buffers;
    LayerEncodeArgs args = EncodeArgsFor(shape_, params_);
    args.num_blocks = 1;
    args.num_sinks = header.num_sinks;
    args.k = kv.k;
    args.v = kv.v;
    args.head_stride = kv.head_stride;
    args.pages = frame.data();
    args.sinks = reinterpret_cast<uint16_t*>(frame.data() + PayloadLayout::Of(header).sinks);
    PKV_RETURN_IF_ERROR(UploadAssignment(assignment, codebook, stream, buffers, args));
    PKV_RETURN_IF_ERROR(CudaStatus(LaunchLayerEncode(args, stream, stream), "launch encode"));
    PKV_RETURN_IF_ERROR(CopyAppended(header, codebook, buffers, frame.data(), stream));
    return CudaStatus(cudaStreamSynchronize(stream), "encode");
  }

  absl::Status Decode(const ObjectHeader& header, std::span<const std::byte> frame,
                      const Codebook& codebook, const ComputeContext& ctx,
                      const MutableKvTensorView& kv_out) const override {
    PKV_RETURN_IF_ERROR(CheckDecodeArguments(shape_, params_, header, frame, codebook, kv_out));
    PKV_RETURN_IF_ERROR(CheckAligned(kv_out));
    const auto stream = static_cast<cudaStream_t>(ctx.stream);
    CallBuffers buffers;
    LayerDecodeArgs args;
    args.layout = PayloadLayout::Of(header);
    args.num_blocks = 1;
    args.num_sinks = header.num_sinks;
    args.pages = frame.data();
    args.sinks = reinterpret_cast<const uint16_t*>(frame.data() + args.layout.sinks);
    if (args.layout.encoding.has_patterns) {
      PKV_RETURN_IF_ERROR(UploadPatterns(codebook, stream, buffers));
      args.k_patterns = buffers.k_patterns_device.As<uint16_t>();
      args.v_patterns = buffers.v_patterns_device.As<uint16_t>();
      args.k_bank_head_stride = int64_t{codebook.num_k()} * codebook.head_dim();
      args.v_bank_head_stride = int64_t{codebook.num_v()} * codebook.head_dim();
    }
    args.k = kv_out.k;
    args.v = kv_out.v;
    args.head_stride = kv_out.head_stride;
    PKV_RETURN_IF_ERROR(CudaStatus(LaunchLayerDecode(args, stream), "launch decode"));
    return CudaStatus(cudaStreamSynchronize(stream), "decode");
  }

 private:
  const KvShape shape_;
  const CodecParams params_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlockCodec>> MakeBlockCodecCuda(const KvShape& shape,
                                                               const CodecParams& params) {
  int num_devices = 0;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaGetDeviceCount(&num_devices), "count devices"));
  if (num_devices == 0) return absl::FailedPreconditionError("no CUDA device");
  return std::make_unique<BlockCodecCuda>(shape, params);
}

}  // namespace pkv
