#include "worker/batch/cpu_batch_engine.h"

#include <algorithm>
#include <utility>

#include "proto/base/log.h"
#include "proto/base/status_macros.h"
#include "worker/engine/sampler.h"
#include "worker/sequence/window_flush.h"

namespace pkv {
namespace {

// A sealed object of its own: the sequence keeps reading the one it made.
absl::StatusOr<std::unique_ptr<ObjectBuilder>> SealedCopy(const ObjectBuilder& object) {
  PKV_ASSIGN_OR_RETURN(ObjectBuilder copy, ObjectBuilder::Make(object.header()));
  for (int layer = 0; layer < object.header().num_layers; ++layer) {
    const std::span<const std::byte> frame = object.frame(layer);
    std::copy(frame.begin(), frame.end(), copy.frame(layer).begin());
  }
  PKV_RETURN_IF_ERROR(copy.Seal());
  return std::make_unique<ObjectBuilder>(std::move(copy));
}

// What the last FinishBlocks sealed, the table before its blocks.
absl::Status CopyMade(const KvSequence& sequence,
                      std::vector<std::unique_ptr<ObjectBuilder>>* sealed) {
  if (sealed == nullptr) return absl::OkStatus();
  const KvSequence::MadeObjects made = sequence.made_objects();
  if (made.table != nullptr) {
    PKV_ASSIGN_OR_RETURN(sealed->emplace_back(), SealedCopy(*made.table));
  }
  for (const ObjectBuilder* block : made.blocks) {
    PKV_ASSIGN_OR_RETURN(sealed->emplace_back(), SealedCopy(*block));
  }
  return absl::OkStatus();
}

}  // namespace

CpuBatchEngine::CpuBatchEngine(ModelHost* host, const CpuEngineOptions& options)
    : host_(*host), options_(options), slots_(options.num_slots) {}

EngineLimits CpuBatchEngine::limits() const {
  EngineLimits limits;
  limits.num_slots = options_.num_slots;
  limits.num_pages = options_.num_pages;
  limits.max_blocks = host_.config().max_position_embeddings / kBlockTokens;
  limits.shares_pages = false;
  return limits;
}

absl::Status CpuBatchEngine::CheckVariant(const CodecParams& params) const {
  return params.Validate(host_.config().kv_shape());
}

absl::Status CpuBatchEngine::Attach(int slot, const CodecParams& params, EnginePrefix prefix) {
  Slot& own = slots_[slot];
  PKV_CHECK(own.sequence == nullptr, "slot ", slot, " is taken");
  PKV_ASSIGN_OR_RETURN(own.sequence, host_.MakeSequence(params));
  if (prefix.stream == nullptr) return absl::OkStatus();
  PKV_CHECK(prefix.fetched.size() == prefix.pages.size(), prefix.fetched.size(), " of ",
            prefix.pages.size(), " blocks");
  own.num_prefix_tokens = int64_t(prefix.pages.size()) * kBlockTokens + prefix.num_window_tokens;
  return own.sequence->AttachPrefix(std::move(prefix.stream), prefix.num_tables,
                                    prefix.num_window_tokens);
}

absl::Status CpuBatchEngine::Compute(int slot, const CodecParams& params,
                                     std::span<const int32_t> tokens,
                                     std::span<const int32_t> pages,
                                     const std::function<bool()>& cancelled,
                                     std::vector<std::unique_ptr<ObjectBuilder>>* sealed) {
  Slot& own = slots_[slot];
  PKV_CHECK(own.sequence == nullptr, "slot ", slot, " is taken");
  PKV_ASSIGN_OR_RETURN(own.sequence, host_.MakeSequence(params));
  own.num_prefix_tokens = static_cast<int64_t>(tokens.size());
  // Its activations are as large as the prompt: they are not kept.
  const std::unique_ptr<LlamaModel> model = host_.MakeSidePass();
  PKV_RETURN_IF_ERROR(
      ComputePrefill(*model, *own.sequence, tokens, [&cancelled](int) -> absl::Status {
        return cancelled && cancelled() ? absl::CancelledError("the caller went away")
                                        : absl::OkStatus();
      }));
  if (pages.empty()) return absl::OkStatus();
  const int num_blocks = static_cast<int>(pages.size());
  PKV_RETURN_IF_ERROR(EncodeBlocks(num_blocks, Phase::kPrefill, tokens, *own.sequence));
  return CopyMade(*own.sequence, sealed);
}

absl::Status CpuBatchEngine::First(const StepInput& input,
                                   const std::function<void()>& on_first_layer,
                                   StepOutput& output) {
  Slot& own = slots_[input.slot];
  PKV_RETURN_IF_ERROR(own.sequence->WaitForLayer(0));
  if (on_first_layer) on_first_layer();
  own.logits.resize(host_.config().vocab_size);
  std::unique_ptr<LlamaModel> model = TakeSidePass();
  const absl::Status status = model->Forward(std::span(&input.token, 1), own.num_prefix_tokens,
                                             *own.sequence, 0, own.logits.data());
  {
    MutexLock lock(&mu_);
    side_passes_.push_back(std::move(model));
  }
  PKV_RETURN_IF_ERROR(status);
  Choose(input, own, output);
  return absl::OkStatus();
}

absl::Status CpuBatchEngine::Step(std::span<const StepInput> inputs,
                                  std::span<StepOutput> outputs) {
  for (size_t i = 0; i < inputs.size(); ++i) {
    Slot& own = slots_[inputs[i].slot];
    outputs[i].status = host_.Forward(std::span(&inputs[i].token, 1), own.sequence->num_tokens(),
                                      *own.sequence, 0, own.logits.data());
    if (outputs[i].status.ok()) Choose(inputs[i], own, outputs[i]);
  }
  return absl::OkStatus();
}

absl::Status CpuBatchEngine::Flush(std::span<const FlushInput> flushes) {
  for (const FlushInput& flush : flushes) {
    KvSequence& sequence = *slots_[flush.slot].sequence;
    PKV_RETURN_IF_ERROR(EncodeBlocks(1, Phase::kDecode, flush.tokens, sequence));
    PKV_RETURN_IF_ERROR(CopyMade(sequence, flush.sealed));
  }
  return absl::OkStatus();
}

void CpuBatchEngine::Choose(const StepInput& input, const Slot& slot, StepOutput& output) {
  const absl::StatusOr<Sampler> greedy = Sampler::Make({});
  PKV_CHECK(greedy.ok(), greedy.status().ToString());
  const absl::StatusOr<SampledToken> token = Sampler(*greedy).Sample(slot.logits);
  output.status = token.status();
  if (!token.ok()) return;
  output.greedy_token = token->token_id;
  output.greedy_logprob = token->logprob;
  if (input.wants_logits) output.logits = slot.logits;
}

std::unique_ptr<LlamaModel> CpuBatchEngine::TakeSidePass() {
  {
    MutexLock lock(&mu_);
    if (!side_passes_.empty()) {
      std::unique_ptr<LlamaModel> model = std::move(side_passes_.back());
      side_passes_.pop_back();
      return model;
    }
  }
  return host_.MakeSidePass();
}

}  // namespace pkv
