#include "worker/serve/model_host.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/base/status_macros.h"

namespace pkv {
namespace {

// Passes attention through and tells when a layer is done.
class LayerHookSink final : public AttentionSink {
 public:
  LayerHookSink(AttentionSink& sink, const std::function<absl::Status(int)>& on_layer)
      : sink_(sink), on_layer_(on_layer) {}

  absl::Status Attend(const LayerQkv& qkv, float* out) override {
    PKV_RETURN_IF_ERROR(sink_.Attend(qkv, out));
    return on_layer_ ? on_layer_(qkv.layer) : absl::OkStatus();
  }

 private:
  AttentionSink& sink_;
  const std::function<absl::Status(int)>& on_layer_;
};

// Of a model that comes without text.
class TextlessTokenizer final : public Tokenizer {
 public:
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view, bool) const override {
    return absl::FailedPreconditionError("this model has no tokenizer: give token ids");
  }
  absl::StatusOr<std::string> Decode(std::span<const int32_t>) const override {
    return std::string();
  }
};

absl::Status CheckThreads(int num_threads) {
  if (num_threads >= 1 && num_threads <= 1024) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("threads ", num_threads, " not in [1, 1024]"));
}

// Both a ModelHost and a LlamaModel have Forward().
template <typename Model>
absl::Status PrefillOn(Model& model, KvSequence& sequence, std::span<const int32_t> tokens,
                       const std::function<absl::Status(int)>& on_layer) {
  const int64_t cached = sequence.num_tokens();
  if (cached >= static_cast<int64_t>(tokens.size())) return absl::OkStatus();
  const std::span<const int32_t> rest = tokens.subspan(cached);
  LayerHookSink sink(sequence, on_layer);
  return model.Forward(rest, cached, sink, static_cast<int>(rest.size()), nullptr);
}

}  // namespace

absl::StatusOr<std::unique_ptr<ModelHost>> ModelHost::Load(const std::string& directory,
                                                           int num_threads) {
  PKV_RETURN_IF_ERROR(CheckThreads(num_threads));
  auto host = std::unique_ptr<ModelHost>(new ModelHost(num_threads));
  PKV_ASSIGN_OR_RETURN(host->model_, LlamaModel::Load(directory, &host->pool_));
  PKV_ASSIGN_OR_RETURN(host->tokenizer_, Tokenizer::Load(directory));
  host->profile_ = host->model_->profile().ComputeDigest();
  host->config_ = host->model_->config();
  return host;
}

absl::StatusOr<std::unique_ptr<ModelHost>> ModelHost::WithoutExecutor(
    const ModelConfig& config, const Digest& profile, std::unique_ptr<Tokenizer> tokenizer,
    int num_threads) {
  PKV_RETURN_IF_ERROR(CheckThreads(num_threads));
  auto host = std::unique_ptr<ModelHost>(new ModelHost(num_threads));
  host->config_ = config;
  host->profile_ = profile;
  host->tokenizer_ =
      tokenizer != nullptr ? std::move(tokenizer) : std::make_unique<TextlessTokenizer>();
  return host;
}

absl::Status ModelHost::Forward(std::span<const int32_t> tokens, int64_t first_token,
                                AttentionSink& sink, int logits_from, float* logits) {
  MutexLock lock(&mu_);
  return model_->Forward(tokens, first_token, sink, logits_from, logits);
}

absl::Status ModelHost::CheckTokens(std::span<const int32_t> tokens) const {
  if (tokens.empty()) return absl::InvalidArgumentError("the prompt has no tokens");
  if (static_cast<int64_t>(tokens.size()) > config().max_position_embeddings) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt has ", tokens.size(),
                                                   " tokens; this model reads at most ",
                                                   config().max_position_embeddings));
  }
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= config().vocab_size) {
      return absl::InvalidArgumentError(absl::StrCat("token id ", tokens[i], " at position ", i,
                                                     " not in [0, ", config().vocab_size, ")"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> ModelHost::ResolvePrompt(const v1::Prompt& prompt) const {
  std::vector<int32_t> tokens(prompt.token_ids().begin(), prompt.token_ids().end());
  if (tokens.empty()) {
    if (prompt.text().empty()) {
      return absl::InvalidArgumentError("the prompt has neither token ids nor text");
    }
    PKV_ASSIGN_OR_RETURN(tokens, tokenizer_->Encode(prompt.text(), /*add_bos=*/true));
  }
  PKV_RETURN_IF_ERROR(CheckTokens(tokens));
  return tokens;
}

KvSequence::Config ModelHost::SequenceConfig(const CodecParams& params) const {
  KvSequence::Config sequence;
  sequence.shape = config().kv_shape();
  sequence.num_qo_heads = config().num_qo_heads;
  sequence.params = params;
  sequence.profile = profile_;
  return sequence;
}

absl::StatusOr<std::unique_ptr<KvSequence>> ModelHost::MakeSequence(const CodecParams& params) {
  KvSequence::Config sequence = SequenceConfig(params);
  sequence.ctx.pool = &pool_;
  sequence.encode_ctx.pool = &pool_;
  return KvSequence::Create(sequence);
}

absl::StatusOr<std::unique_ptr<KvSequence>> ModelHost::MakeReplicaSequence(
    const CodecParams& params, std::shared_ptr<const std::vector<Codebook>> shared_patterns) const {
  KvSequence::Config sequence = SequenceConfig(params);
  sequence.shared_patterns = std::move(shared_patterns);
  return KvSequence::Create(sequence);
}

absl::Status ComputePrefill(ModelHost& host, KvSequence& sequence, std::span<const int32_t> tokens,
                            const std::function<absl::Status(int)>& on_layer) {
  return PrefillOn(host, sequence, tokens, on_layer);
}

absl::Status ComputePrefill(LlamaModel& model, KvSequence& sequence,
                            std::span<const int32_t> tokens,
                            const std::function<absl::Status(int)>& on_layer) {
  return PrefillOn(model, sequence, tokens, on_layer);
}

}  // namespace pkv
