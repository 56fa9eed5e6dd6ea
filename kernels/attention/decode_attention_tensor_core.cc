#include <utility>

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/attention/decode_attention_backends.h"
#include "kernels/attention/decode_attention_kernels.h"
#include "kernels/device/cuda_status.h"
#include "kernels/device/device_buffer.h"
#include "proto/base/status_macros.h"
#include "proto/block/payload_layout.h"

namespace pkv {
namespace {

constexpr int kNarrowHeads = 4, kWideHeads = 8;  // query heads a kv head that an instance takes
constexpr int kPartialPadding = 32;              // floats of a partial result besides its output

DecodeKernelInfo FindKernel(const DecodeAttentionShape& shape) {
  const Encoding& encoding = shape.encoding;
  DecodeKernelKey key;
  key.bits = encoding.bits_k;
  key.head_dim = shape.head_dim;
  key.is_wide = shape.num_qo_heads / shape.num_kv_heads > kNarrowHeads;
  if (encoding.is_fp16()) return FindDecodeKernel16(key);
  key.has_fine = encoding.k_fine_tokens > 0;
  key.is_grouped =
      encoding.k_group_tokens < kBlockTokens || encoding.v_group_channels < shape.head_dim;
  return key.bits == 2 ? FindDecodeKernel2(key) : FindDecodeKernel4(key);
}

void SetLayout(const DecodeAttentionShape& shape, DecodeLaunch& launch) {
  const PayloadLayout layout =
      PayloadLayout::OfBlock({1, shape.num_kv_heads, shape.head_dim}, shape.encoding);
  launch.head_bytes = static_cast<int>(layout.head_bytes);
  launch.v_codes = static_cast<int>(layout.v_codes);
  launch.k_scales = static_cast<int>(layout.k_scales);
  launch.k_zeros = static_cast<int>(layout.k_zeros);
  launch.v_scales = static_cast<int>(layout.v_scales);
  launch.v_zeros = static_cast<int>(layout.v_zeros);
  launch.k_ids = static_cast<int>(layout.k_ids);
  launch.v_ids = static_cast<int>(layout.v_ids);
  if (shape.encoding.is_fp16()) return;
  launch.k_groups = layout.k_groups();
  launch.v_groups = layout.v_groups();
}

class DecodeAttentionTensorCore : public DecodeAttention {
 public:
  DecodeAttentionTensorCore(const DecodeAttentionShape& shape, const DecodeKernelInfo& kernel,
                            int num_ctas, DeviceBuffer partials, DeviceBuffer tickets)
      : shape_(shape),
        kernel_(kernel),
        partials_(std::move(partials)),
        tickets_(std::move(tickets)) {
    SetLayout(shape, launch_);
    launch_.num_qo_heads = shape.num_qo_heads;
    launch_.num_kv_heads = shape.num_kv_heads;
    launch_.heads_per_kv = shape.num_qo_heads / shape.num_kv_heads;
    launch_.is_rotated = shape.encoding.rotated;
    launch_.is_bfloat16 = shape.query_type == QueryType::kBfloat16;
    launch_.has_patterns = shape.encoding.has_patterns;
    launch_.rule.tile_tokens = kernel.tile_tokens;
    launch_.rule.units_per_block = shape.encoding.is_fp16() ? kBlockTokens / kernel.tile_tokens : 1;
    launch_.rule.num_sinks = shape.num_sinks;
    launch_.partials = partials_.As<float>();
    launch_.tickets = tickets_.As<uint32_t>();
    launch_.num_ctas = num_ctas;
  }

  absl::Status Run(const DecodeAttentionArgs& args, const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckDecodeArgs(shape_, args));
    if (args.batch == 0) return absl::OkStatus();
    launch_.args = args;
    const bool may_have_many =
        launch_.has_patterns && args.bank_capacity > kernel_.register_patterns;
    const int shared_bytes = kernel_.shared_bytes + (may_have_many ? kernel_.many_bytes : 0);
    void* parameters[] = {&launch_};
    return CudaStatus(
        cudaLaunchKernel(kernel_.kernel, dim3(launch_.num_ctas), dim3(kernel_.threads), parameters,
                         shared_bytes, static_cast<cudaStream_t>(ctx.stream)),
        "decode attention");
  }

 private:
  const DecodeAttentionShape shape_;
  const DecodeKernelInfo kernel_;
  DeviceBuffer partials_, tickets_;
  DecodeLaunch launch_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DecodeAttention>> MakeDecodeAttentionTensorCore(
    const DecodeAttentionShape& shape, const ComputeContext& ctx) {
  const DecodeKernelInfo kernel = FindKernel(shape);
  if (kernel.kernel == nullptr) {
    return absl::UnimplementedError("kTensorCore: no kernel for this encoding");
  }
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaFuncSetAttribute(kernel.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      kernel.shared_bytes + kernel.many_bytes),
                 "decode attention's shared memory"));
  int device = 0, num_sms = 0, ctas_per_sm = 0;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "the current device"));
  PKV_RETURN_IF_ERROR(CudaStatus(
      cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device), "its SMs"));
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&ctas_per_sm, kernel.kernel,
                                                               kernel.threads, kernel.shared_bytes),
                 "decode attention's occupancy"));
  const int num_ctas = num_sms * ctas_per_sm;
  const int heads =
      shape.num_qo_heads / shape.num_kv_heads > kNarrowHeads ? kWideHeads : kNarrowHeads;
  const size_t floats = size_t{2} * num_ctas * heads * (shape.head_dim + kPartialPadding);
  PKV_ASSIGN_OR_RETURN(DeviceBuffer partials,
                       DeviceBuffer::Make(floats * sizeof(float), ctx.stream));
  PKV_ASSIGN_OR_RETURN(DeviceBuffer tickets,
                       DeviceBuffer::Make(num_ctas * sizeof(uint32_t), ctx.stream));
  PKV_RETURN_IF_ERROR(CudaStatus(
      cudaMemsetAsync(tickets.data(), 0, tickets.size(), static_cast<cudaStream_t>(ctx.stream)),
      "clearing tickets"));
  return std::make_unique<DecodeAttentionTensorCore>(shape, kernel, num_ctas, std::move(partials),
                                                     std::move(tickets));
}

}  // namespace pkv
