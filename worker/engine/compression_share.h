#ifndef PKV_WORKER_ENGINE_COMPRESSION_SHARE_H_
#define PKV_WORKER_ENGINE_COMPRESSION_SHARE_H_

#include "pkv/kernels/codec_params.h"
#include "worker/engine/model_config.h"

namespace pkv {

// Whether `num_sms` of a GPU's `all_sms` multiprocessors compress a layer of a long prompt while
// the others compute the next one. By the model's products alone; attention, which prompts add, is
// the margin. Variants that only the plain encoder covers (kernels/README.md) do not.
bool CompressionKeepsUp(const ModelConfig& config, const CodecParams& params, int num_sms,
                        int all_sms);

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_COMPRESSION_SHARE_H_
