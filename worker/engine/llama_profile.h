#ifndef PKV_WORKER_ENGINE_LLAMA_PROFILE_H_
#define PKV_WORKER_ENGINE_LLAMA_PROFILE_H_

#include "pkv/block/prefix_hash.h"
#include "worker/engine/model_config.h"
#include "worker/engine/safetensors.h"

namespace pkv {

// Identity of a model for cache keys: shape, rope, the settings that change K and V, and SHA-256 of
// the weight files. The same on every device.
ModelProfile ProfileOf(const ModelConfig& config, const WeightFiles& files);

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_LLAMA_PROFILE_H_
