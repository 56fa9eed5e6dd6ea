#include "worker/serve/worker_model.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "worker/batch/cpu_batch_engine.h"
#include "worker/engine/model_shapes.h"
#include "worker/prefill/cpu_prefill_executor.h"

#ifdef PKV_WITH_CUDA
#include "worker/batch/cuda_batch_engine.h"
#include "worker/engine/cuda/cuda_model.h"
#include "worker/prefill/cuda_prefill_executor.h"
#endif

namespace pkv {
namespace {

int NumThreads(const ModelFlags& flags) {
  return flags.threads > 0 ? flags.threads : std::max(1u, std::thread::hardware_concurrency());
}

class CpuWorkerModel final : public WorkerModel {
 public:
  explicit CpuWorkerModel(std::unique_ptr<ModelHost> host) : WorkerModel(std::move(host)) {}

  absl::StatusOr<std::unique_ptr<PrefillExecutor>> MakeExecutor() override {
    return std::make_unique<CpuPrefillExecutor>(&host());
  }
  absl::StatusOr<std::unique_ptr<BatchEngine>> MakeEngine(int num_slots, int num_pages) override {
    CpuEngineOptions options;
    options.num_slots = num_slots;
    if (num_pages > 0) options.num_pages = num_pages;
    return std::make_unique<CpuBatchEngine>(&host(), options);
  }

  static absl::StatusOr<std::unique_ptr<WorkerModel>> Load(const ModelFlags& flags) {
    PKV_ASSIGN_OR_RETURN(std::unique_ptr<ModelHost> host,
                         ModelHost::Load(flags.model, NumThreads(flags)));
    return std::make_unique<CpuWorkerModel>(std::move(host));
  }
};

#ifdef PKV_WITH_CUDA
class CudaWorkerModel final : public WorkerModel {
 public:
  CudaWorkerModel(std::unique_ptr<ModelHost> host, std::unique_ptr<CudaModel> model,
                  const CodecParams& params, const ModelFlags& flags)
      : WorkerModel(std::move(host)), model_(std::move(model)), params_(params), flags_(flags) {}

  absl::StatusOr<std::unique_ptr<PrefillExecutor>> MakeExecutor() override {
    CudaPrefillOptions options;
    options.params = params_;
    options.max_tokens =
        std::min(flags_.max_prompt_tokens, model_->config().max_position_embeddings);
    options.compression_sms = flags_.compression_sms;
    options.pool = host().pool();
    return MakeCudaPrefillExecutor(model_.get(), options);
  }
  absl::StatusOr<std::unique_ptr<BatchEngine>> MakeEngine(int num_slots, int num_pages) override {
    CudaEngineOptions options;
    options.params = params_;
    options.num_slots = num_slots;
    options.num_pages = num_pages;
    options.memory_share = flags_.memory_share;
    options.max_compute_tokens = flags_.max_prompt_tokens;
    options.pool = host().pool();
    return MakeCudaBatchEngine(model_.get(), options);
  }

  static absl::StatusOr<std::unique_ptr<WorkerModel>> Load(const ModelFlags& flags) {
    ThreadPool pool(NumThreads(flags));
    // A wrong preset is told before minutes of loading.
    absl::StatusOr<ModelConfig> config =
        flags.shape.empty() ? ReadModelConfig(flags.model) : ModelShapeByName(flags.shape);
    PKV_RETURN_IF_ERROR(config.status());
    PKV_ASSIGN_OR_RETURN(const CodecParams params, PresetByName(flags.preset, config->kv_shape()));
    std::unique_ptr<CudaModel> model;
    std::unique_ptr<Tokenizer> tokenizer;
    if (flags.shape.empty()) {
      PKV_ASSIGN_OR_RETURN(tokenizer, Tokenizer::Load(flags.model));
      PKV_ASSIGN_OR_RETURN(model, CudaModel::Load(flags.model, &pool));
    } else {
      PKV_ASSIGN_OR_RETURN(
          model, CudaModel::MakeRandom(flags.shape, *config, WeightType::kBfloat16, /*seed=*/1));
    }
    PKV_ASSIGN_OR_RETURN(
        std::unique_ptr<ModelHost> host,
        ModelHost::WithoutExecutor(model->config(), model->profile().ComputeDigest(),
                                   std::move(tokenizer), NumThreads(flags)));
    return std::make_unique<CudaWorkerModel>(std::move(host), std::move(model), params, flags);
  }

 private:
  const std::unique_ptr<CudaModel> model_;
  const CodecParams params_;
  const ModelFlags flags_;
};
#endif

}  // namespace

absl::Status WorkerModel::Check(const ModelFlags& flags) {
  if (flags.model.empty() == flags.shape.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--model '", flags.model, "', --shape '", flags.shape, "': give one of them"));
  }
  if (flags.compression_sms % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--compression-sms ", flags.compression_sms, " is odd"));
  }
  if (flags.device == "cpu") {
    if (flags.shape.empty()) return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("shape '", flags.shape, "': random weights are for --device cuda"));
  }
  if (flags.device != "cuda") {
    return absl::InvalidArgumentError(
        absl::StrCat("device '", flags.device, "' not in {cpu, cuda}"));
  }
#ifdef PKV_WITH_CUDA
  return absl::OkStatus();
#else
  return absl::UnimplementedError("device 'cuda': this build has no CUDA");
#endif
}

absl::StatusOr<std::unique_ptr<WorkerModel>> WorkerModel::Load(const ModelFlags& flags) {
  PKV_RETURN_IF_ERROR(Check(flags));
#ifdef PKV_WITH_CUDA
  if (flags.device == "cuda") return CudaWorkerModel::Load(flags);
#endif
  return CpuWorkerModel::Load(flags);
}

}  // namespace pkv
