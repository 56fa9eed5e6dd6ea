#ifndef PKV_WORKER_ENGINE_CUDA_CUDA_MODEL_H_
#define PKV_WORKER_ENGINE_CUDA_CUDA_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <cuda_runtime_api.h>

#include "absl/status/statusor.h"
#include "kernels/device/device_buffer.h"
#include "pkv/block/prefix_hash.h"
#include "worker/engine/cuda/layer_math_kernels.h"
#include "worker/engine/model_config.h"

namespace pkv {

class ThreadPool;

// y = x weight^T + bias.
struct DeviceLinear {
  int in = 0, out = 0;
  DeviceBuffer weight;  // [out, in] of the model's type
  DeviceBuffer bias;    // [out] fp32, or empty
};

struct DeviceLayer {
  DeviceBuffer attention_norm, mlp_norm;  // [hidden] fp32
  DeviceLinear qkv;                       // out: q, k, v heads
  DeviceLinear o;
  DeviceLinear gate_up;  // out: gate, up
  DeviceLinear down;
};

// The weights of a Llama-family model on one GPU, and its rotary table. Constant after creation:
// any number of passes (layer_pass.h) may share it. Thread-safe.
class CudaModel {
 public:
  // Loads a Hugging Face directory as LlamaModel::Load does, whose errors it has; bf16 files stay
  // bf16, others become fp16.
  //   Unimplemented       hidden_size is no multiple of 4 or above kNormDimMax, or
  //   intermediate_size
  //                       is no multiple of 8
  //   OutOfRange          a weight is beyond fp16
  //   ResourceExhausted   the model does not fit in device memory
  //   FailedPrecondition  no CUDA device
  static absl::StatusOr<std::unique_ptr<CudaModel>> Load(const std::string& directory,
                                                         ThreadPool* pool);
  // Random weights of the scale of a trained model's, a function of `seed` alone: for throughput
  // work. `name` enters the profile.
  static absl::StatusOr<std::unique_ptr<CudaModel>> MakeRandom(const std::string& name,
                                                               const ModelConfig& config,
                                                               WeightType type, uint64_t seed);

  const ModelConfig& config() const { return config_; }
  // Equal to that of the model on a CPU.
  const ModelProfile& profile() const { return profile_; }
  WeightType type() const { return type_; }

  const DeviceBuffer& embedding() const { return embedding_; }  // [vocab, hidden]
  const DeviceLayer& layer(int index) const { return layers_[index]; }
  const DeviceBuffer& final_norm() const { return final_norm_; }  // [hidden] fp32
  // [vocab, hidden]
  const std::byte* lm_head() const {
    return (config_.tie_word_embeddings ? embedding_ : lm_head_).data();
  }
  const float2* cos_sin() const {  // [max_position_embeddings][head_dim / 2]
    return reinterpret_cast<const float2*>(cos_sin_.data());
  }
  // Device memory of weights and table.
  int64_t weight_bytes() const;

 private:
  friend class CudaModelLoader;
  CudaModel(const ModelConfig& config, WeightType type) : config_(config), type_(type) {}
  absl::Status FillRotaryTable();

  const ModelConfig config_;
  const WeightType type_;
  ModelProfile profile_;
  DeviceBuffer embedding_, final_norm_, lm_head_, cos_sin_;
  std::vector<DeviceLayer> layers_;
};

}  // namespace pkv

#endif  // PKV_WORKER_ENGINE_CUDA_CUDA_MODEL_H_
