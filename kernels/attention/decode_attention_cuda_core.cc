#include "kernels/attention/decode_attention_backends.h"
#include "kernels/attention/decode_attention_cuda_core_kernels.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// Without scratch: one CTA sees all tokens of a query head.
class DecodeAttentionCudaCore final : public DecodeAttention {
 public:
  explicit DecodeAttentionCudaCore(const DecodeAttentionShape& shape) : shape_(shape) {}

  // There is nothing to plan.
  absl::Status Plan(const DecodeAttentionArgs& args, const ComputeContext&) override {
    return CheckDecodeArgs(shape_, args);
  }

  absl::Status Run(const DecodeAttentionArgs& args, const ComputeContext& ctx) override {
    PKV_RETURN_IF_ERROR(CheckDecodeArgs(shape_, args));
    if (args.batch == 0) return absl::OkStatus();
    const KvShape kv = {1, shape_.num_kv_heads, shape_.head_dim};
    const CudaCoreLaunch launch = {.args = args,
                                   .page = PayloadLayout::OfBlock(kv, shape_.encoding),
                                   .num_qo_heads = shape_.num_qo_heads,
                                   .num_sinks = shape_.num_sinks,
                                   .query_type = shape_.query_type};
    return CudaStatus(LaunchDecodeAttentionCudaCore(launch, static_cast<cudaStream_t>(ctx.stream)),
                      "launch decode attention");
  }

 private:
  const DecodeAttentionShape shape_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DecodeAttention>> MakeDecodeAttentionCudaCore(
    const DecodeAttentionShape& shape, const ComputeContext&) {
  int num_devices = 0;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaGetDeviceCount(&num_devices), "count devices"));
  if (num_devices == 0) return absl::FailedPreconditionError("no CUDA device");
  return std::make_unique<DecodeAttentionCudaCore>(shape);
}

}  // namespace pkv
