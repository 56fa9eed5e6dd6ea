#include <cuda.h>
#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/attention/prefill_attention_backends.h"
#include "kernels/attention/prefill_attention_kernels.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

constexpr double kLn2 = 0.69314718055994530942;
constexpr int kPanelChannels = 64;  // 128 bytes, the widest swizzle

using EncodeTensorMap = decltype(&cuTensorMapEncodeTiled);

// The driver's function, found through the runtime: nothing links to the driver.
absl::StatusOr<EncodeTensorMap> FindEncodeTensorMap() {
  constexpr unsigned kSince = 12000;  // CUDA 12.0
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, kSince,
                                                  cudaEnableDefault, &result),
                 "finding cuTensorMapEncodeTiled"));
  if (result != cudaDriverEntryPointSuccess || found == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("the CUDA driver has no cuTensorMapEncodeTiled, result ", int{result}));
  }
  return reinterpret_cast<EncodeTensorMap>(found);
}

absl::Status CheckDevice() {
  int device = 0, major = 0, minor = 0;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaGetDevice(&device), "the current device"));
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
                 "its compute capability"));
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device),
                 "its compute capability"));
  if (major == 9 && minor == 0) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("prefill attention: built for compute capability 9.0, not ", major, ".", minor));
}

class PrefillAttentionCuda : public PrefillAttention {
 public:
  PrefillAttentionCuda(const PrefillAttentionShape& shape, const PrefillKernel& kernel,
                       EncodeTensorMap encode)
      : shape_(shape), kernel_(kernel), encode_(encode) {}

  absl::Status Run(const PrefillAttentionArgs& args, const ComputeContext& ctx) const override {
    PKV_RETURN_IF_ERROR(CheckPrefillArgs(shape_, args));
    if (args.num_queries == 0) return absl::OkStatus();
    PrefillLaunch launch;
    PKV_RETURN_IF_ERROR(Describe(args.kv, args.kv.k, launch.k));
    PKV_RETURN_IF_ERROR(Describe(args.kv, args.kv.v, launch.v));
    launch.q = static_cast<const uint16_t*>(args.q);
    launch.out = static_cast<uint16_t*>(args.out);
    launch.lse = args.lse;
    launch.q_stride = args.q_stride;
    launch.out_stride = args.out_stride;
    launch.num_queries = args.num_queries;
    launch.first_token = args.kv.num_tokens - args.num_queries;
    launch.num_kv_heads = shape_.num_kv_heads;
    launch.group = shape_.num_qo_heads / shape_.num_kv_heads;
    launch.score_scale = static_cast<float>(args.sm_scale / kLn2);
    launch.is_q_bfloat16 = shape_.query_type == QueryType::kBfloat16;
    launch.is_out_bfloat16 = shape_.output_type == QueryType::kBfloat16;
    const int row_tiles = (args.num_queries * launch.group - 1) / kPrefillTileRows + 1;
    void* parameters[] = {&launch};
    return CudaStatus(cudaLaunchKernel(kernel_.kernel, dim3(row_tiles * shape_.num_kv_heads),
                                       dim3(kPrefillThreads), parameters, kernel_.shared_bytes,
                                       static_cast<cudaStream_t>(ctx.stream)),
                      "prefill attention");
  }

 private:
  // K or V, of which boxes of one tile's tokens and one panel's channels are copied.
  absl::Status Describe(const KvTensorView& kv, const uint16_t* data, CUtensorMap& map) const {
    constexpr cuuint64_t kElement = sizeof(uint16_t);
    const cuuint64_t sizes[] = {static_cast<cuuint64_t>(kv.head_dim),
                                static_cast<cuuint64_t>(kv.num_tokens),
                                static_cast<cuuint64_t>(kv.num_kv_heads)};
    const cuuint64_t strides[] = {kv.head_dim * kElement, kv.head_stride * kElement};
    const cuuint32_t box[] = {kPanelChannels, kPrefillTileTokens, 1};
    const cuuint32_t steps[] = {1, 1, 1};
    const CUresult result =
        encode_(&map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 3, const_cast<uint16_t*>(data), sizes,
                strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result == CUDA_SUCCESS) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("cuTensorMapEncodeTiled: CUresult ", int{result}));
  }

  const PrefillAttentionShape shape_;
  const PrefillKernel kernel_;
  const EncodeTensorMap encode_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PrefillAttention>> MakePrefillAttentionCuda(
    const PrefillAttentionShape& shape, const ComputeContext&) {
  PKV_RETURN_IF_ERROR(CheckDevice());
  PKV_ASSIGN_OR_RETURN(const EncodeTensorMap encode, FindEncodeTensorMap());
  const PrefillKernel kernel = FindPrefillKernel(shape.head_dim);
  PKV_RETURN_IF_ERROR(
      CudaStatus(cudaFuncSetAttribute(kernel.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      kernel.shared_bytes),
                 "prefill attention's shared memory"));
  return std::make_unique<PrefillAttentionCuda>(shape, kernel, encode);
}

}  // namespace pkv
