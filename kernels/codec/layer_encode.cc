#include "kernels/codec/layer_encode.h"

#include "kernels/codec/key_encoder.h"

namespace pkv {

LayerEncodeArgs EncodeArgsFor(const KvShape& shape, const CodecParams& params) {
  LayerEncodeArgs args;
  args.layout = PayloadLayout::OfBlock(shape, params.encoding);
  args.num_ratios_k = NumKeyRatios(params);
  args.num_ratios_v = params.clip_v == Clip::kSearch ? kNumShrinkRatios : 1;
  args.unbiased_k = params.unbiased_k;
  args.unbiased_v = params.unbiased_v;
  return args;
}

cudaError_t LaunchLayerEncode(const LayerEncodeArgs& args, cudaStream_t stream,
                              cudaStream_t stream_of_v) {
  if (args.num_blocks == 0) return cudaSuccess;
  if (args.layout.encoding.is_fp16()) return LaunchRowCopy(args, stream);
  if (args.num_sinks > 0) {
    if (const cudaError_t error = LaunchRowCopy(args, stream); error != cudaSuccess) return error;
  }
  if (DirectEncodeCovers(args)) return LaunchDirectEncode(args, stream);
  const cudaError_t error =
      KeySearchCovers(args) ? LaunchKeySearch(args, stream) : LaunchPlainKeys(args, stream);
  if (error != cudaSuccess) return error;
  return ValueSearchCovers(args) ? LaunchValueSearch(args, stream_of_v)
                                 : LaunchPlainValues(args, stream_of_v);
}

}  // namespace pkv
