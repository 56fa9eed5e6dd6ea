#ifndef PKV_KERNELS_CODEC_LAYER_COMPRESSOR_BACKENDS_H_
#define PKV_KERNELS_CODEC_LAYER_COMPRESSOR_BACKENDS_H_

#include <memory>

#include "pkv/kernels/layer_compressor.h"

namespace pkv {

// REQUIRES: params are valid for shape.
absl::StatusOr<std::unique_ptr<LayerCompressor>> MakeLayerCompressorCuda(const KvShape& shape,
                                                                         const CodecParams& params,
                                                                         int max_tokens,
                                                                         const ComputeContext& ctx);

// What Compress() and Flush() refuse before they enqueue anything.
absl::Status CheckLayer(const KvShape& shape, const CodecParams& params, int max_tokens,
                        const LayerCompression& layer);
absl::Status CheckFlush(const KvShape& shape, const CodecParams& params, const WindowFlush& flush);

}  // namespace pkv

#endif  // PKV_KERNELS_CODEC_LAYER_COMPRESSOR_BACKENDS_H_
