#include <algorithm>
#include <bit>
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

constexpr int kNarrowHeads = 4;      // query heads a kv head that narrow instances take
constexpr int kPartialPadding = 32;  // floats of a partial result besides its output

DecodeKernelInfo FindKernel(const DecodeAttentionShape& shape) {
  const Encoding& encoding = shape.encoding;
  DecodeKernelKey key;
  key.bits = encoding.bits_k;
  key.head_dim = shape.head_dim;
  key.is_wide = shape.num_qo_heads / shape.num_kv_heads > kNarrowHeads;
  if (encoding.is_fp16()) return FindDecodeKernel16(key);
  key.has_fine = encoding.k_fine_tokens > 0;
  key.is_rotated = encoding.rotated;
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

// What of a device decides about a launch.
struct DeviceLimits {
  int num_sms = 0, shared_bytes = 0;  // of a CTA
};
absl::StatusOr<DeviceLimits> LimitsOfDevice() {
  int device = 0, major = 0, minor = 0;
  DeviceLimits limits;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "the current device"));
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                 "its compute capability"));
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                 "its compute capability"));
  if (major != 9 || minor != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("kTensorCore: built for compute capability 9.0, not ", major, ".", minor));
  }
  PKV_RETURN_IF_ERROR(CudaStatus(
      cudaDeviceGetAttribute(&limits.num_sms, cudaDevAttrMultiProcessorCount, device), "its SMs"));
  PKV_RETURN_IF_ERROR(CudaStatus(
      cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
      "its shared memory"));
  return limits;
}

class DecodeAttentionTensorCore : public DecodeAttention {
 public:
  DecodeAttentionTensorCore(const DecodeAttentionShape& shape, const DecodeKernelInfo& kernel,
                            const DeviceLimits& limits)
      : shape_(shape), kernel_(kernel), limits_(limits) {
    SetLayout(shape, launch_);
    launch_.num_qo_heads = shape.num_qo_heads;
    launch_.num_kv_heads = shape.num_kv_heads;
    launch_.heads_per_kv = shape.num_qo_heads / shape.num_kv_heads;
    launch_.is_rotated = shape.encoding.rotated;
    launch_.overlaps_previous = shape.overlaps_previous;
    launch_.is_bfloat16 = shape.query_type == QueryType::kBfloat16;
    launch_.has_patterns = shape.encoding.has_patterns;
    launch_.rule.tile_shift = std::countr_zero(static_cast<unsigned>(kernel.tile_tokens));
    launch_.head_teams = TeamsOfKvHeads(limits.num_sms, shape.num_kv_heads);
    launch_.rule.units_per_block = shape.encoding.is_fp16() ? kBlockTokens / kernel.tile_tokens : 1;
    launch_.rule.num_sinks = shape.num_sinks;
  }

  // Scratch, and the kernel's leave to use the device's shared memory.
  absl::Status Prepare(void* stream) {
    PKV_RETURN_IF_ERROR(
        CudaStatus(cudaFuncSetAttribute(kernel_.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        limits_.shared_bytes),
                   "decode attention's shared memory"));
    const size_t ctas = limits_.num_sms;
    const size_t heads = ctas * launch_.head_teams.of_cta * kernel_.heads;
    PKV_ASSIGN_OR_RETURN(
        partials_, DeviceBuffer::Make(
                       2 * heads * (shape_.head_dim + kPartialPadding) * sizeof(float), stream));
    PKV_ASSIGN_OR_RETURN(
        warp_parts_,
        DeviceBuffer::Make(2 * ctas * kernel_.warps * kernel_.part_floats * sizeof(float), stream));
    PKV_ASSIGN_OR_RETURN(tickets_, DeviceBuffer::Make(heads * sizeof(uint32_t), stream));
    PKV_ASSIGN_OR_RETURN(plans_,
                         DeviceBuffer::Make(ctas * kernel_.warps * kernel_.plan_bytes, stream));
    launch_.partials = partials_.As<float>();
    launch_.warp_parts = warp_parts_.As<float>();
    launch_.tickets = tickets_.As<uint32_t>();
    launch_.plans = plans_.As<WarpPlan>();
    return CudaStatus(
        cudaMemsetAsync(tickets_.data(), 0, tickets_.size(), static_cast<cudaStream_t>(stream)),
        "clearing tickets");
  }

  absl::Status Plan(const DecodeAttentionArgs& args, const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckDecodeArgs(shape_, args));
    if (args.batch == 0) return absl::OkStatus();
    has_planned_ = true;
    cudaLaunchConfig_t config = Configure(args, ctx);
    config.dynamicSmemBytes = 0;
    void* parameters[] = {&launch_};
    return CudaStatus(cudaLaunchKernelExC(&config, kernel_.plan_kernel, parameters),
                      "plan decode attention");
  }

  absl::Status Run(const DecodeAttentionArgs& args, const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckDecodeArgs(shape_, args));
    if (args.batch == 0) return absl::OkStatus();
    if (args.is_planned && !has_planned_) {
      return absl::FailedPreconditionError("is_planned, and Plan() was never called");
    }
    cudaLaunchConfig_t config = Configure(args, ctx);
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &early;
    config.numAttrs = shape_.overlaps_previous ? 1 : 0;
    void* parameters[] = {&launch_};
    return CudaStatus(cudaLaunchKernelExC(&config, kernel_.kernel, parameters), "decode attention");
  }

 private:
  // Sets launch_, and says on how many CTAs and warps it runs.
  cudaLaunchConfig_t Configure(const DecodeAttentionArgs& args, const ComputeContext& ctx) {
    launch_.args = args;
    const int patterns = launch_.has_patterns ? args.bank_capacity : 0;
    // One id more than there are patterns: that of none.
    launch_.table_ids =
        std::max(kernel_.register_patterns, static_cast<int>(std::bit_ceil(patterns + 1u)));
    launch_.table_bytes = launch_.table_ids * kernel_.id_bytes;
    // What eight ids take is a multiple of what bulk copies want to begin at.
    const int listed = (std::max(patterns - kernel_.register_patterns, 0) + 7) / 8 * 8;
    launch_.warp_bytes = kernel_.warp_bytes + listed * kernel_.id_bytes;
    const int bytes = launch_.table_bytes + launch_.warp_bytes;
    // Lists are aligned to their size.
    const int warps = std::min(kernel_.warps, (limits_.shared_bytes - launch_.table_bytes) / bytes);
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(limits_.num_sms);
    config.blockDim = dim3(32 * warps);
    config.dynamicSmemBytes = warps * bytes + launch_.table_bytes;
    config.stream = static_cast<cudaStream_t>(ctx.stream);
    return config;
  }

  const DecodeAttentionShape shape_;
  const DecodeKernelInfo kernel_;
  const DeviceLimits limits_;
  DeviceBuffer partials_, warp_parts_, tickets_, plans_;
  bool has_planned_ = false;
  DecodeLaunch launch_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DecodeAttention>> MakeDecodeAttentionTensorCore(
    const DecodeAttentionShape& shape, const ComputeContext& ctx) {
  const DecodeKernelInfo kernel = FindKernel(shape);
  if (kernel.kernel == nullptr) {
    return absl::UnimplementedError("kTensorCore: no kernel for this encoding");
  }
  PKV_ASSIGN_OR_RETURN(const DeviceLimits limits, LimitsOfDevice());
  auto attention = std::make_unique<DecodeAttentionTensorCore>(shape, kernel, limits);
  PKV_RETURN_IF_ERROR(attention->Prepare(ctx.stream));
  return attention;
}

}  // namespace pkv
