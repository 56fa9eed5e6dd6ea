#include "worker/batch/cuda_batch_engine.h"

#include <algorithm>
#include <utility>

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"
#include "kernels/device/cuda_status.h"
#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "proto/base/sync.h"
#include "worker/batch/cuda_compute.h"
#include "worker/batch/cuda_decode_step.h"
#include "worker/batch/cuda_pools.h"
#include "worker/batch/cuda_slot.h"
#include "worker/batch/cuda_window_flush.h"
#include "worker/batch/upload_ring.h"
#include "worker/engine/compute_turn.h"

namespace pkv {
namespace {

// Pinned memory of one joining sequence: a layer's frames pass through it.
constexpr size_t kUploadHalfBytes = size_t{32} << 20;

// A first step on its way, beside the batch.
struct Joiner {
  std::unique_ptr<CudaDecodeStep> step;
  std::unique_ptr<UploadRing> ring;
};

class CudaBatchEngine final : public BatchEngine {
 public:
  CudaBatchEngine(const CudaModel* model, const CudaEngineOptions& options, CudaPools pools,
                  Stream stream)
      : model_(*model),
        options_(options),
        profile_(model->profile().ComputeDigest()),
        stream_(std::move(stream)),
        pools_(std::move(pools)),
        slots_(options.num_slots) {}

  // `prefill`: null when no prompts are computed here.
  absl::Status Init(std::unique_ptr<CudaPrefill> prefill);

  EngineLimits limits() const override {
    return {options_.num_slots, options_.num_pages, options_.max_blocks, /*shares_pages=*/true,
            /*takes_device_frames=*/true};
  }
  absl::Status CheckVariant(const CodecParams& params) const override;
  absl::Status Attach(int slot, const CodecParams& params, EnginePrefix prefix) override;
  absl::Status Compute(int slot, const CodecParams& params, std::span<const int32_t> tokens,
                       std::span<const int32_t> pages, const std::function<bool()>& cancelled,
                       std::vector<std::unique_ptr<ObjectBuilder>>* sealed) override;
  absl::Status First(const StepInput& input, const std::function<void()>& on_first_layer,
                     StepOutput& output) override;
  absl::Status Step(std::span<const StepInput> inputs, std::span<StepOutput> outputs) override;
  absl::Status Flush(std::span<const FlushInput> flushes) override;
  int64_t num_tokens(int slot) const override { return slots_[slot].num_tokens(); }
  std::vector<ObjectHeader> block_headers(int slot) const override { return slots_[slot].headers; }
  uint64_t received_bytes(int slot) const override {
    const auto& stream = slots_[slot].prefix.stream;
    return stream == nullptr ? slots_[slot].received_bytes : stream->received_bytes();
  }
  void Release(int slot) override ABSL_LOCKS_EXCLUDED(mu_);

 private:
  DecodeRow RowOf(const StepInput& input) const;
  // What a step left in row `row`, once its token is cached.
  absl::Status TakeOutput(const StepInput& input, int row, CudaDecodeStep& step,
                          StepOutput& output);
  absl::Status fault() const ABSL_LOCKS_EXCLUDED(mu_);
  std::unique_ptr<Joiner> TakeJoiner() ABSL_LOCKS_EXCLUDED(mu_);
  void GiveBack(std::unique_ptr<Joiner> joiner) ABSL_LOCKS_EXCLUDED(mu_);

  const CudaModel& model_;
  const CudaEngineOptions options_;
  const Digest profile_;
  const Stream stream_;  // the pools' memory belongs to it
  CudaPools pools_;
  // Each touched by one thread at a time, as the interface says.
  std::vector<CudaSlot> slots_;
  std::vector<std::vector<float>> logits_;  // by slot, when they were wanted
  // The step thread's.
  std::unique_ptr<CudaDecodeStep> step_;
  std::unique_ptr<CudaWindowFlush> flush_;

  ComputeTurn compute_turn_;
  std::unique_ptr<CudaCompute> compute_ ABSL_PT_GUARDED_BY(compute_turn_);

  mutable Mutex mu_;
  absl::Status fault_ ABSL_GUARDED_BY(mu_);  // Internal: pages may be written to at any time
  CondVar joiner_is_idle_;
  std::vector<std::unique_ptr<Joiner>> joiners_ ABSL_GUARDED_BY(mu_);  // idle ones
};

absl::Status CudaBatchEngine::Init(std::unique_ptr<CudaPrefill> prefill) {
  PKV_ASSIGN_OR_RETURN(step_, CudaDecodeStep::Make(&model_, &pools_, options_.params,
                                                   {options_.num_slots, options_.max_blocks}));
  PKV_ASSIGN_OR_RETURN(flush_, CudaWindowFlush::Make(&pools_, options_.params, profile_,
                                                     options_.num_slots, step_->stream()));
  if (prefill != nullptr) {
    PKV_ASSIGN_OR_RETURN(compute_, CudaCompute::Make(std::move(prefill), &pools_, options_.params,
                                                     profile_, options_.max_compute_tokens));
  }
  MutexLock lock(&mu_);
  for (int i = 0; i < options_.num_joining; ++i) {
    auto joiner = std::make_unique<Joiner>();
    PKV_ASSIGN_OR_RETURN(joiner->step, CudaDecodeStep::Make(&model_, &pools_, options_.params,
                                                            {1, options_.max_blocks}));
    PKV_ASSIGN_OR_RETURN(UploadRing ring,
                         UploadRing::Make(kUploadHalfBytes, options_.pool, joiner->step->stream()));
    joiner->ring = std::make_unique<UploadRing>(std::move(ring));
    joiners_.push_back(std::move(joiner));
  }
  logits_.resize(options_.num_slots);
  return stream_.Synchronize();
}

absl::Status CudaBatchEngine::CheckVariant(const CodecParams& params) const {
  const Variant wanted = params.variant(), served = options_.params.variant();
  if (wanted == served) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat("variant '", wanted.name,
                                                    "' is not served here: this worker's pages "
                                                    "hold '",
                                                    served.name, "'"));
}

absl::Status CudaBatchEngine::Attach(int slot, const CodecParams& params, EnginePrefix prefix) {
  PKV_RETURN_IF_ERROR(fault());
  PKV_RETURN_IF_ERROR(CheckVariant(params));
  PKV_CHECK(slots_[slot].num_tokens() == 0, slot);
  return AttachPrefix(std::move(prefix), options_.params, profile_, pools_, slots_[slot]);
}

absl::Status CudaBatchEngine::Compute(int slot, const CodecParams& params,
                                      std::span<const int32_t> tokens,
                                      std::span<const int32_t> pages,
                                      const std::function<bool()>& cancelled,
                                      std::vector<std::unique_ptr<ObjectBuilder>>* sealed) {
  PKV_RETURN_IF_ERROR(fault());
  PKV_RETURN_IF_ERROR(CheckVariant(params));
  PKV_CHECK(slots_[slot].num_tokens() == 0, slot);
  if (!compute_turn_.TakeUnless(cancelled)) return absl::CancelledError("the caller went away");
  const HeldTurn held(&compute_turn_);
  if (compute_ == nullptr || static_cast<int>(tokens.size()) > options_.max_compute_tokens) {
    return absl::FailedPreconditionError(absl::StrCat("this worker computes no prompt of ",
                                                      tokens.size(), " tokens; at most ",
                                                      options_.max_compute_tokens));
  }
  return compute_->Run(slot, tokens, pages, cancelled, sealed, slots_[slot]);
}

absl::Status CudaBatchEngine::fault() const {
  MutexLock lock(&mu_);
  return fault_;
}

void CudaBatchEngine::Release(int slot) {
  absl::Status released;
  if (slots_[slot].prefix.stream != nullptr) {
    released = slots_[slot].prefix.stream->ReleasePlaces();
  }
  slots_[slot] = CudaSlot();
  MutexLock lock(&mu_);
  fault_.Update(released);
}

DecodeRow CudaBatchEngine::RowOf(const StepInput& input) const {
  const CudaSlot& slot = slots_[input.slot];
  DecodeRow row;
  row.slot = input.slot;
  row.token = input.token;
  row.position = static_cast<int32_t>(slot.num_tokens());
  row.num_window_tokens = slot.num_window_tokens;
  row.num_patterns_k = slot.num_patterns_k;
  row.num_patterns_v = slot.num_patterns_v;
  row.pages = slot.prefix.pages;
  return row;
}

absl::Status CudaBatchEngine::TakeOutput(const StepInput& input, int row, CudaDecodeStep& step,
                                         StepOutput& output) {
  output = StepOutput();
  CudaSlot& slot = slots_[input.slot];
  if (step.not_finite(row)) {
    output.status = absl::OutOfRangeError(
        absl::StrCat("K or V of token ", slot.num_tokens(), " is beyond fp16"));
    return absl::OkStatus();
  }
  ++slot.num_window_tokens;
  output.greedy_token = step.greedy_token(row);
  output.greedy_logprob = step.greedy_logprob(row);
  if (!input.wants_logits) return absl::OkStatus();
  std::vector<float>& logits = logits_[input.slot];
  logits.resize(model_.config().vocab_size);
  PKV_RETURN_IF_ERROR(step.CopyLogits(row, logits));
  output.logits = logits;
  return absl::OkStatus();
}

std::unique_ptr<Joiner> CudaBatchEngine::TakeJoiner() {
  MutexLock lock(&mu_);
  while (joiners_.empty()) joiner_is_idle_.Wait(&mu_);
  std::unique_ptr<Joiner> joiner = std::move(joiners_.back());
  joiners_.pop_back();
  return joiner;
}

void CudaBatchEngine::GiveBack(std::unique_ptr<Joiner> joiner) {
  MutexLock lock(&mu_);
  joiners_.push_back(std::move(joiner));
  joiner_is_idle_.Signal();
}

// The frames are on the device: the host's copies go.
void DropStream(CudaSlot& slot) {
  if (slot.prefix.stream == nullptr) return;
  slot.received_bytes = slot.prefix.stream->received_bytes();
  slot.prefix.stream.reset();
}

absl::Status CudaBatchEngine::First(const StepInput& input,
                                    const std::function<void()>& on_first_layer,
                                    StepOutput& output) {
  std::unique_ptr<Joiner> joiner = TakeJoiner();
  const DecodeRow row = RowOf(input);
  absl::Status status = joiner->step->Run(std::span(&row, 1), [&](int layer) -> absl::Status {
    PKV_RETURN_IF_ERROR(LoadLayer(slots_[input.slot], input.slot, layer, pools_, *joiner->ring));
    if (layer == 0 && on_first_layer) on_first_layer();
    return absl::OkStatus();
  });
  if (status.ok()) {
    DropStream(slots_[input.slot]);
    status = TakeOutput(input, 0, *joiner->step, output);
  }
  GiveBack(std::move(joiner));
  return status;
}

absl::Status CudaBatchEngine::Step(std::span<const StepInput> inputs,
                                   std::span<StepOutput> outputs) {
  PKV_RETURN_IF_ERROR(fault());
  PKV_CHECK(inputs.size() == outputs.size(), inputs.size(), " ", outputs.size());
  std::vector<DecodeRow> rows;
  for (const StepInput& input : inputs) rows.push_back(RowOf(input));
  PKV_RETURN_IF_ERROR(step_->Run(rows, nullptr));
  for (size_t i = 0; i < inputs.size(); ++i) {
    PKV_RETURN_IF_ERROR(TakeOutput(inputs[i], static_cast<int>(i), *step_, outputs[i]));
  }
  return absl::OkStatus();
}

absl::Status CudaBatchEngine::Flush(std::span<const FlushInput> flushes) {
  return flush_->Run(flushes, slots_);
}

// Pages for what is left of the device's memory once slots and activations are there.
absl::StatusOr<int> PagesThatFit(const CudaModel& model, const CudaEngineOptions& options) {
  size_t free_bytes = 0, total_bytes = 0;
  PKV_RETURN_IF_ERROR(CudaStatus(cudaMemGetInfo(&free_bytes, &total_bytes), "memory info"));
  const KvShape shape = model.config().kv_shape();
  // Logits are the largest of a step's activations; the others fit into the share that is left.
  const int64_t logits = int64_t{options.num_slots} * model.config().vocab_size * 4;
  const int64_t slots = (options.num_slots + 1) * CudaPools::SlotBytes(shape, options.params);
  const int64_t room =
      static_cast<int64_t>(options.memory_share * static_cast<double>(free_bytes)) - logits - slots;
  const int64_t pages = room / CudaPools::PageBytes(shape, options.params);
  if (pages < 1) {
    return absl::ResourceExhaustedError(
        absl::StrCat(free_bytes, " free bytes of device memory: ", options.num_slots,
                     " slots take ", slots, " and leave no room for pages"));
  }
  return static_cast<int>(std::min<int64_t>(pages, INT32_MAX));
}

}  // namespace

absl::StatusOr<std::unique_ptr<BatchEngine>> MakeCudaBatchEngine(const CudaModel* model,
                                                                 const CudaEngineOptions& given) {
  CudaEngineOptions options = given;
  const KvShape shape = model->config().kv_shape();
  PKV_RETURN_IF_ERROR(options.params.Validate(shape));
  if (options.num_slots < 1 || options.num_slots > 4096 || options.num_joining < 1 ||
      !(options.memory_share > 0 && options.memory_share <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "num_slots ", options.num_slots, " not in [1, 4096], num_joining ", options.num_joining,
        " below 1, or memory_share ", options.memory_share, " not in (0, 1]"));
  }
  if (options.max_blocks == 0) {
    options.max_blocks =
        (model->config().max_position_embeddings + kBlockTokens - 1) / kBlockTokens;
  }
  options.max_compute_tokens =
      std::min(options.max_compute_tokens, model->config().max_position_embeddings);
  // Before the pages, which take what is left.
  std::unique_ptr<CudaPrefill> prefill;
  if (options.max_compute_tokens > 0) {
    CudaPrefill::Options pass;
    pass.max_tokens = (options.max_compute_tokens + kBlockTokens - 1) / kBlockTokens * kBlockTokens;
    pass.priority = Stream::Priority::kNormal;  // running requests step beside it
    PKV_ASSIGN_OR_RETURN(prefill, CudaPrefill::Make(model, options.params, pass));
  }
  if (options.num_pages == 0) {
    PKV_ASSIGN_OR_RETURN(options.num_pages, PagesThatFit(*model, options));
  }
  PKV_ASSIGN_OR_RETURN(Stream stream, Stream::Make());
  PKV_ASSIGN_OR_RETURN(CudaPools pools,
                       CudaPools::Make(shape, options.params,
                                       {options.num_slots, options.num_pages}, stream.handle()));
  auto engine =
      std::make_unique<CudaBatchEngine>(model, options, std::move(pools), std::move(stream));
  PKV_RETURN_IF_ERROR(engine->Init(std::move(prefill)));
  return engine;
}

}  // namespace pkv
