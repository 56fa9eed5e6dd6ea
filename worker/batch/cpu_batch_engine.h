#ifndef PKV_WORKER_BATCH_CPU_BATCH_ENGINE_H_
#define PKV_WORKER_BATCH_CPU_BATCH_ENGINE_H_

#include <memory>
#include <span>
#include <vector>

#include "proto/base/sync.h"
#include "worker/batch/batch_engine.h"
#include "worker/serve/model_host.h"

namespace pkv {

struct CpuEngineOptions {
  int num_slots = 8;
  // Blocks of all sequences together. Only counted, memory is taken as blocks come: 4,096 blocks of
  // `default` take 0.4 GB in a model of 8 layers and 4 kv heads of 64 channels.
  int num_pages = 4096;
};

// A BatchEngine on CPU: a KvSequence a slot, of any preset. Step() runs one sequence after another;
// First() and Compute() run beside it, on activations of their own. Every slot has blocks of its
// own: nothing is shared.
class CpuBatchEngine final : public BatchEngine {
 public:
  // `host` outlives the engine.
  CpuBatchEngine(ModelHost* host, const CpuEngineOptions& options);

  EngineLimits limits() const override;
  absl::Status CheckVariant(const CodecParams& params) const override;
  absl::Status Attach(int slot, const CodecParams& params, EnginePrefix prefix) override;
  absl::Status Compute(int slot, const CodecParams& params, std::span<const int32_t> tokens,
                       std::span<const int32_t> pages, const std::function<bool()>& cancelled,
                       std::vector<std::unique_ptr<ObjectBuilder>>* sealed) override;
  absl::Status First(const StepInput& input, const std::function<void()>& on_first_layer,
                     StepOutput& output) override;
  // Never fails as a whole.
  absl::Status Step(std::span<const StepInput> inputs, std::span<StepOutput> outputs) override;
  // Stops at the first slot that fails.
  absl::Status Flush(std::span<const FlushInput> flushes) override;
  int64_t num_tokens(int slot) const override { return slots_[slot].sequence->num_tokens(); }
  std::vector<ObjectHeader> block_headers(int slot) const override {
    return slots_[slot].sequence->block_headers();
  }
  uint64_t received_bytes(int slot) const override {
    return slots_[slot].sequence->received_bytes();
  }
  void Release(int slot) override { slots_[slot] = {}; }

 private:
  struct Slot {
    std::unique_ptr<KvSequence> sequence;
    int64_t num_prefix_tokens = 0;  // that Attach() or Compute() brings; they come layer by layer
    std::vector<float> logits;      // [vocab_size], of the last step
  };

  // Fills `output` from the slot's logits.
  static void Choose(const StepInput& input, const Slot& slot, StepOutput& output);
  std::unique_ptr<LlamaModel> TakeSidePass() ABSL_LOCKS_EXCLUDED(mu_);

  ModelHost& host_;
  const CpuEngineOptions options_;
  std::vector<Slot> slots_;  // each one's thread is the caller's business
  Mutex mu_;
  std::vector<std::unique_ptr<LlamaModel>> side_passes_ ABSL_GUARDED_BY(mu_);  // unused ones
};

}  // namespace pkv

#endif  // PKV_WORKER_BATCH_CPU_BATCH_ENGINE_H_
