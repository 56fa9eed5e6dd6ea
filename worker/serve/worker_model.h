#ifndef PKV_WORKER_SERVE_WORKER_MODEL_H_
#define PKV_WORKER_SERVE_WORKER_MODEL_H_

#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "worker/batch/batch_engine.h"
#include "worker/prefill/prefill_executor.h"
#include "worker/serve/model_host.h"

namespace pkv {

// Which model a worker serves, and where.
struct ModelFlags {
  std::string model;           // a Hugging Face directory
  std::string device = "cpu";  // or "cuda"
  // cuda: a named shape with random weights in place of a directory (model_shapes.h).
  std::string shape;
  // cuda: the preset of every sequence: the pages of one pool have one encoding.
  std::string preset = "default";
  int threads = 0;  // 0: one per CPU
  // cuda, prefill: the longest prompt; decode: the longest that is computed when the cache does not
  // deliver. Takes device memory in proportion.
  int max_prompt_tokens = 32768;
  double memory_share = 0.9;  // cuda, decode: of the free device memory, for pages
  // cuda, prefill: multiprocessors that compress long prompts while the others compute, even; 0:
  // all do both.
  int compression_sms = 4;
};

// A worker's model on its device, and the two things that are made of it.
class WorkerModel {
 public:
  // What Load would refuse by the flags alone.
  //   InvalidArgument  neither a model nor a shape, both, or a shape on the CPU; an odd number of
  //                    multiprocessors
  //   Unimplemented    cuda in a build without CUDA
  static absl::Status Check(const ModelFlags& flags);
  //   NotFound         no such shape or preset
  //   and errors of Check, of ModelHost::Load and CudaModel::Load
  static absl::StatusOr<std::unique_ptr<WorkerModel>> Load(const ModelFlags& flags);
  virtual ~WorkerModel() = default;

  ModelHost& host() { return *host_; }
  // Of a prefill worker.
  virtual absl::StatusOr<std::unique_ptr<PrefillExecutor>> MakeExecutor() = 0;
  // Of a decode worker. num_pages 0: as many as fit; on the CPU that is a generous number.
  virtual absl::StatusOr<std::unique_ptr<BatchEngine>> MakeEngine(int num_slots, int num_pages) = 0;

 protected:
  explicit WorkerModel(std::unique_ptr<ModelHost> host) : host_(std::move(host)) {}

 private:
  const std::unique_ptr<ModelHost> host_;
};

}  // namespace pkv

#endif  // PKV_WORKER_SERVE_WORKER_MODEL_H_
