#ifndef PKV_TESTS_BENCH_RANDOM_MODEL_H_
#define PKV_TESTS_BENCH_RANDOM_MODEL_H_

#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"
#include "worker/engine/cuda/cuda_model.h"
#include "worker/engine/model_shapes.h"

namespace pkv {

// Measures each preset on one model of random weights whose sequences have up to num_tokens tokens.
//   NotFound         no such shape
//   InvalidArgument  the shape's context is shorter than that
//   and errors of CudaModel::MakeRandom and of `measure`
inline absl::Status MeasurePresets(
    const std::string& shape, int num_tokens, const std::vector<std::string>& presets,
    const std::function<absl::Status(const CudaModel&, const std::string&)>& measure) {
  PKV_ASSIGN_OR_RETURN(const ModelConfig config, ModelShapeByName(shape));
  if (num_tokens > config.max_position_embeddings) {
    return absl::InvalidArgumentError(
        absl::StrCat(num_tokens, " tokens: ", shape, " reads ", config.max_position_embeddings));
  }
  PKV_ASSIGN_OR_RETURN(const std::unique_ptr<CudaModel> model,
                       CudaModel::MakeRandom(shape, config, WeightType::kBfloat16, /*seed=*/1));
  for (const std::string& preset : presets) PKV_RETURN_IF_ERROR(measure(*model, preset));
  return absl::OkStatus();
}

// Says what went wrong, if anything did; the process's exit code.
inline int BenchExitCode(const absl::Status& status) {
  if (!status.ok()) std::fprintf(stderr, "pkv-bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace pkv

#endif  // PKV_TESTS_BENCH_RANDOM_MODEL_H_
