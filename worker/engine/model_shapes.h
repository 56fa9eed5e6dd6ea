#ifndef PKV_WORKER_ENGINE_MODEL_SHAPES_H_
#define PKV_WORKER_ENGINE_MODEL_SHAPES_H_

#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "worker/engine/model_config.h"

namespace pkv {

// The configuration of a public model, for throughput work with random weights: llama-3.1-8b,
// llama-3.2-1b, qwen2.5-7b (as their config.json files give it; qwen's output projection gets a
// bias of zeros, which costs nothing).
//   NotFound  no such shape; lists the names
absl::StatusOr<ModelConfig> ModelShapeByName(absl::string_view name);
std::vector<std::string> ModelShapeNames();

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_MODEL_SHAPES_H_
