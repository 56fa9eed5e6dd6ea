#ifndef PKV_KERNELS_CODEC_LAYER_DECODER_BACKENDS_H_
#define PKV_KERNELS_CODEC_LAYER_DECODER_BACKENDS_H_

#include <memory>

#include "pkv/kernels/layer_decoder.h"

namespace pkv {

// REQUIRES: params are valid for shape.
absl::StatusOr<std::unique_ptr<LayerDecoder>> MakeLayerDecoderCuda(const KvShape& shape,
                                                                   const CodecParams& params);

// What Decode() refuses before it enqueues anything.
absl::Status CheckLayerDecode(const KvShape& shape, const CodecParams& params,
                              const LayerDecode& layer);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_LAYER_DECODER_BACKENDS_H_
