#ifndef PKV_TESTS_SUPPORT_TINY_WORKER_H_
#define PKV_TESTS_SUPPORT_TINY_WORKER_H_

// A tiny random model with a byte tokenizer, and the two roles around it over a FakeCacheClient.

#include <gtest/gtest.h>

#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "pkv/block/prefix_hash.h"
#include "proto/base/log.h"
#include "proto/metrics/metric_registry.h"
#include "tests/support/fake_cache_client.h"
#include "tests/support/sentencepiece_writer.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tensor_gen.h"
#include "tests/support/tiny_model.h"
#include "worker/decode/decode_worker.h"
#include "worker/prefill/cpu_prefill_executor.h"
#include "worker/prefill/prefill_worker.h"

namespace pkv {

// <unk>, <s>, </s> and the 256 bytes, and a few ids without a text of their own use.
inline constexpr int kTinyVocabulary = 264;

// A model directory on disk.
class TinyModelFolder {
 public:
  explicit TinyModelFolder(TinyModel model = {}) {
    model.vocab_size = kTinyVocabulary;
    model.Write(folder_);
    SentencePieceWriter tokenizer;
    for (int i = 259; i < kTinyVocabulary; ++i) tokenizer.Add(absl::StrCat("piece", i), 0, 1);
    folder_.Write("tokenizer.model", tokenizer.Bytes());
  }
  const std::string& path() const { return folder_.path(); }
  const ScratchFolder& folder() const { return folder_; }

 private:
  ScratchFolder folder_;
};

inline std::unique_ptr<ModelHost> LoadTinyHost(const std::string& path, int num_threads = 2) {
  absl::StatusOr<std::unique_ptr<ModelHost>> host = ModelHost::Load(path, num_threads);
  PKV_CHECK(host.ok(), host.status().ToString());
  return *std::move(host);
}

// Token ids of a prompt that no other seed begins with.
inline std::vector<int32_t> RandomPrompt(uint64_t seed, int num_tokens) {
  TestRandom random(seed);
  std::vector<int32_t> tokens(num_tokens);
  for (int32_t& token : tokens) token = 3 + random.Below(256);
  return tokens;
}

inline v1::PrefillRequest MakePrefill(const std::vector<int32_t>& tokens,
                                      const std::string& preset) {
  v1::PrefillRequest request;
  request.mutable_prompt()->mutable_token_ids()->Add(tokens.begin(), tokens.end());
  request.set_preset(preset);
  return request;
}

inline v1::DecodeRequest MakeDecode(const v1::HandoffTicket& ticket, int max_tokens) {
  v1::DecodeRequest request;
  *request.mutable_ticket() = ticket;
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.mutable_sampling()->set_ignore_eos(true);
  return request;
}

// Log probabilities beside the tokens: they show a difference in the cache long before a token
// does.
struct Continuation {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;

  friend bool operator==(const Continuation&, const Continuation&) = default;
};

inline void PrintTo(const Continuation& continuation, std::ostream* os) {
  for (size_t i = 0; i < continuation.tokens.size(); ++i) {
    *os << " " << continuation.tokens[i] << ":" << continuation.logprobs[i];
  }
}

struct Decoded {
  Continuation continuation;
  std::string text;
  v1::DecodeStats stats;
  bool has_stats = false;
};

// The sum of a counter's or gauge's series, or of a histogram's observations, that have all of
// `labels`.
inline double MetricSum(const prometheus::Collectable& registry, const std::string& name,
                        const std::vector<std::pair<std::string, std::string>>& labels = {}) {
  double sum = 0;
  bool found = false;
  for (const prometheus::MetricFamily& family : registry.Collect()) {
    if (family.name != name) continue;
    for (const prometheus::ClientMetric& metric : family.metric) {
      bool matches = true;
      for (const auto& [key, value] : labels) {
        bool has = false;
        for (const auto& label : metric.label) has |= label.name == key && label.value == value;
        matches &= has;
      }
      if (!matches) continue;
      found = true;
      sum += metric.counter.value + metric.gauge.value +
             static_cast<double>(metric.histogram.sample_count);
    }
  }
  EXPECT_TRUE(found) << "no series " << name;
  return sum;
}

// One worker of each role over one cache, all in this process.
class TinyWorkersTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TinyModelFolder;
    host_ = LoadTinyHost(folder_->path()).release();
  }
  static void TearDownTestSuite() {
    delete host_;
    delete folder_;
  }

  static KvShape shape() { return host_->config().kv_shape(); }
  static CodecParams Params(const std::string& preset) {
    const absl::StatusOr<CodecParams> params = PresetByName(preset, shape());
    PKV_CHECK(params.ok(), params.status().ToString());
    return *params;
  }

  v1::PrefillResponse Prefill(const std::vector<int32_t>& tokens, const std::string& preset) {
    const absl::StatusOr<v1::PrefillResponse> response =
        prefill_.Prefill(MakePrefill(tokens, preset));
    EXPECT_THAT(response, IsOk());
    return response.ok() ? *response : v1::PrefillResponse();
  }

  absl::StatusOr<Decoded> TryDecode(const v1::DecodeRequest& request) {
    Decoded decoded;
    PKV_RETURN_IF_ERROR(decode_.Decode(request, [&](const v1::DecodeEvent& event) {
      EXPECT_FALSE(decoded.has_stats) << "the stats come last";
      if (event.has_token()) {
        decoded.continuation.tokens.push_back(event.token().token_id());
        decoded.continuation.logprobs.push_back(event.token().logprob());
        decoded.text += event.token().text();
      } else {
        decoded.stats = event.stats();
        decoded.has_stats = true;
      }
      return true;
    }));
    EXPECT_TRUE(decoded.has_stats);
    return decoded;
  }
  Decoded Decode(const v1::DecodeRequest& request) {
    absl::StatusOr<Decoded> decoded = TryDecode(request);
    EXPECT_THAT(decoded, IsOk());
    return decoded.ok() ? *std::move(decoded) : Decoded();
  }

  // The greedy continuation with an uncompressed cache and no blocks, in this process.
  static Continuation ExactContinuation(std::vector<int32_t> tokens, int count) {
    const auto sequence = *host_->MakeSequence(Params("fp16"));
    Sampler sampler = *Sampler::Make({});
    EXPECT_THAT(
        ComputePrefill(*host_, *sequence, std::span(tokens).first(tokens.size() - 1), nullptr),
        IsOk());
    Continuation generated;
    std::vector<float> logits(host_->config().vocab_size);
    for (int i = 0; i < count; ++i) {
      const int64_t position = static_cast<int64_t>(tokens.size()) - 1;
      EXPECT_THAT(host_->Forward(std::span(tokens).last(1), position, *sequence, 0, logits.data()),
                  IsOk());
      const SampledToken sampled = *sampler.Sample(logits);
      generated.tokens.push_back(sampled.token_id);
      generated.logprobs.push_back(sampled.logprob);
      tokens.push_back(sampled.token_id);
    }
    return generated;
  }

  double PrefillMetric(const std::string& name,
                       const std::vector<std::pair<std::string, std::string>>& labels = {}) {
    return MetricSum(*prefill_metrics_.registry(), name, labels);
  }
  double DecodeMetric(const std::string& name,
                      const std::vector<std::pair<std::string, std::string>>& labels = {}) {
    return MetricSum(*decode_metrics_.registry(), name, labels);
  }
  static constexpr char kRecomputes[] = "pkv_client_fallback_recompute_total";

  // Key of block `index` of a prompt.
  static ObjectKey BlockKey(const std::vector<int32_t>& tokens, int index,
                            const std::string& preset) {
    return {ObjectKind::kBlock, PrefixIds(host_->profile(), tokens)[index],
            Params(preset).variant()};
  }

  static inline TinyModelFolder* folder_ = nullptr;
  static inline ModelHost* host_ = nullptr;
  FakeCacheClient cache_;
  WorkerMetrics prefill_metrics_{"prefill"}, decode_metrics_{"decode"};
  CpuPrefillExecutor executor_{host_};
  PrefillWorker prefill_{host_, &executor_, &cache_, &prefill_metrics_};
  DecodeWorker decode_{host_, &cache_, &decode_metrics_};
};

}  // namespace pkv

#endif  // PKV_TESTS_SUPPORT_TINY_WORKER_H_
