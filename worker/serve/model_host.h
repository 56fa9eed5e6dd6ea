#ifndef PKV_WORKER_SERVE_MODEL_HOST_H_
#define PKV_WORKER_SERVE_MODEL_HOST_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "pkv/v1/worker_service.pb.h"
#include "proto/base/sync.h"
#include "proto/base/thread_pool.h"
#include "worker/engine/llama.h"
#include "worker/engine/tokenizer.h"
#include "worker/sequence/kv_sequence.h"

namespace pkv {

// One loaded model, shared by the requests of a worker: forward passes take turns. A pass that
// waits for the cache keeps its turn, for ClientOptions::get_deadline at most: its layers and
// their arrival overlap. Thread-safe.
class ModelHost {
 public:
  // Loads `directory`. Errors of LlamaModel::Load and Tokenizer::Load. `num_threads` >= 1 for
  // attention and encoding.
  static absl::StatusOr<std::unique_ptr<ModelHost>> Load(const std::string& directory,
                                                         int num_threads);

  // The host of a model that runs elsewhere: for prompts and profiles. Forward() and replicas are
  // not to be called. Without a tokenizer (null) prompts are token ids, and tokens have no text.
  static absl::StatusOr<std::unique_ptr<ModelHost>> WithoutExecutor(
      const ModelConfig& config, const Digest& profile, std::unique_ptr<Tokenizer> tokenizer,
      int num_threads);

  const ModelConfig& config() const { return config_; }
  const Digest& profile() const { return profile_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  ThreadPool* pool() { return &pool_; }

  // As LlamaModel::Forward, one at a time.
  absl::Status Forward(std::span<const int32_t> tokens, int64_t first_token, AttentionSink& sink,
                       int logits_from, float* logits) ABSL_LOCKS_EXCLUDED(mu_);

  // The token ids of a prompt: as given, or its text with BOS.
  //   InvalidArgument  empty, a token id outside the vocabulary, longer than the model's context
  absl::StatusOr<std::vector<int32_t>> ResolvePrompt(const v1::Prompt& prompt) const;
  absl::Status CheckTokens(std::span<const int32_t> tokens) const;

  // An empty sequence for this model.
  absl::StatusOr<std::unique_ptr<KvSequence>> MakeSequence(const CodecParams& params);

  // The same model on the calling thread alone, beside this host's forward passes and those of
  // other replicas; and an empty sequence that stays on the calling thread.
  std::unique_ptr<LlamaModel> MakeReplica() const { return model_->MakeReplica(nullptr); }
  // The same model on this host's threads, beside its forward passes: the same bits come out.
  std::unique_ptr<LlamaModel> MakeSidePass() { return model_->MakeReplica(&pool_); }
  absl::StatusOr<std::unique_ptr<KvSequence>> MakeReplicaSequence(
      const CodecParams& params,
      std::shared_ptr<const std::vector<Codebook>> shared_patterns = nullptr) const;

 private:
  explicit ModelHost(int num_threads) : pool_(num_threads) {}
  KvSequence::Config SequenceConfig(const CodecParams& params) const;

  ThreadPool pool_;
  ModelConfig config_;                    // constant after Load
  std::unique_ptr<Tokenizer> tokenizer_;  // constant after Load
  Digest profile_;                        // constant after Load
  Mutex mu_;                              // held during a forward pass
  // Constant after Load; Forward under mu_. Null without an executor.
  std::unique_ptr<LlamaModel> model_;
};

// Computes tokens [sequence.num_tokens(), tokens.size()) of `tokens` into the sequence, calling
// `on_layer(layer)` after each layer's attention, from this thread; no logits. An error of
// `on_layer` ends the pass and is returned. Nothing to compute is OK and calls nothing.
absl::Status ComputePrefill(ModelHost& host, KvSequence& sequence, std::span<const int32_t> tokens,
                            const std::function<absl::Status(int)>& on_layer);
// The same on a model of the caller's.
absl::Status ComputePrefill(LlamaModel& model, KvSequence& sequence,
                            std::span<const int32_t> tokens,
                            const std::function<absl::Status(int)>& on_layer);

}  // namespace pkv

#endif  // PKV_WORKER_SERVE_MODEL_HOST_H_
