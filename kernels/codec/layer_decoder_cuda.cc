#include "kernels/codec/layer_decoder_backends.h"
#include "kernels/codec/layer_decoder_kernels.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

class LayerDecoderCuda final : public LayerDecoder {
 public:
  LayerDecoderCuda(const KvShape& shape, const CodecParams& params)
      : shape_(shape), params_(params), layout_(PayloadLayout::OfBlock(shape, params.encoding)) {}

  absl::Status Decode(const LayerDecode& layer, const ComputeContext& ctx) const override {
    PKV_RETURN_IF_ERROR(CheckLayerDecode(shape_, params_, layer));
    LayerDecodeArgs args;
    args.layout = layout_;
    args.num_blocks = layer.num_blocks;
    args.num_sinks = params_.num_sinks;
    args.rotate = params_.encoding.rotated;
    args.pages = layer.pages;
    args.page_stride = layer.page_stride;
    args.page_ids = layer.page_ids;
    args.sinks = layer.sinks;
    if (params_.encoding.has_patterns) {
      const int64_t head_elements = int64_t{layer.bank->capacity} * shape_.head_dim;
      args.k_patterns = layer.bank->patterns;
      args.v_patterns = layer.bank->patterns + shape_.num_kv_heads * head_elements;
      args.k_bank_head_stride = args.v_bank_head_stride = head_elements;
    }
    args.k = layer.out.k;
    args.v = layer.out.v;
    args.head_stride = layer.out.head_stride;
    return CudaStatus(LaunchLayerDecode(args, static_cast<cudaStream_t>(ctx.stream)),
                      "launch layer decoder");
  }

 private:
  const KvShape shape_;
  const CodecParams params_;
  const PayloadLayout layout_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<LayerDecoder>> MakeLayerDecoderCuda(const KvShape& shape,
                                                                   const CodecParams& params) {
  int num_devices = 0;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaGetDeviceCount(&num_devices), "count devices"));
  if (num_devices == 0) return absl::FailedPreconditionError("no CUDA device");
  return std::make_unique<LayerDecoderCuda>(shape, params);
}

}  // namespace pkv
