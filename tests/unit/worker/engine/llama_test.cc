#include "worker/engine/llama.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"
#include "proto/base/thread_pool.h"
#include "tests/support/error_bound.h"
#include "tests/support/llama_reference.h"
#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"
#include "worker/engine/fp16_cache_sink.h"

namespace pkv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// What a forward pass in fp32 may differ from one in exact arithmetic, in logits.
//
// Each of the seven products of a layer and the last one sums `width` terms; rounding errors being
// independent, a sum errs by sqrt(width) units of the norm of its terms (Higham and Mary, SIAM J.
// Sci. Comput. 41(5), 2019), and along the depth they add up at worst.
double ForwardBound(const ModelConfig& config, double largest_logit) {
  const int width = std::max(
      {config.hidden_size, config.intermediate_size, config.num_qo_heads * config.head_dim});
  return (7 * config.num_layers + 1) * std::sqrt(static_cast<double>(width)) * kFloatUnit *
         largest_logit;
}

float LargestMagnitude(const std::vector<float>& values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::abs(value));
  return largest;
}

double LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double largest = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(double{a[i]} - double{b[i]}));
  }
  return largest;
}

// Logits of all `tokens` at positions from 0 on.
std::vector<float> AllLogits(LlamaModel& model, const std::vector<int32_t>& tokens,
                             AttentionSink& sink) {
  std::vector<float> logits(tokens.size() * model.config().vocab_size);
  EXPECT_THAT(model.Forward(tokens, 0, sink, 0, logits.data()), IsOk());
  return logits;
}

Fp16CacheSink CacheFor(const LlamaModel& model, ThreadPool* pool = nullptr) {
  return Fp16CacheSink(model.config().kv_shape(), model.config().num_qo_heads, pool);
}

ReferenceSink ReferenceFor(const LlamaModel& model) {
  return ReferenceSink(model.config().kv_shape(), model.config().num_qo_heads);
}

double MeanNll(const std::vector<float>& logits, const std::vector<int32_t>& tokens, int vocab) {
  double total = 0;
  for (size_t i = 0; i + 1 < tokens.size(); ++i) {
    const float* row = logits.data() + i * vocab;
    const double largest = *std::max_element(row, row + vocab);
    double sum = 0;
    for (int id = 0; id < vocab; ++id) sum += std::exp(row[id] - largest);
    total += largest + std::log(sum) - row[tokens[i + 1]];
  }
  return total / static_cast<double>(tokens.size() - 1);
}

// One prompt of an expected.json: what an independent program computed in fp32.
class TrainedModelCheck {
 public:
  TrainedModelCheck(LlamaModel& model, ThreadPool* pool, const nlohmann::json& expected)
      : model_(model),
        pool_(pool),
        expected_(expected),
        tokens_(expected["token_ids"].get<std::vector<int32_t>>()),
        vocab_(model.config().vocab_size) {}

  void Run() {
    ReferenceSink exact_sink = ReferenceFor(model_);
    Fp16CacheSink sink = CacheFor(model_, pool_);
    const std::vector<float> exact = AllLogits(model_, tokens_, exact_sink);
    const std::vector<float> rounded = AllLogits(model_, tokens_, sink);
    CheckLogits(exact);
    CheckLikelihood(exact);
    CheckLikelihood(rounded);
    CheckGreedy(sink, exact, rounded);
  }

 private:
  // With K and V unrounded only the order of fp32 sums is ours. The file has four decimals.
  void CheckLogits(const std::vector<float>& logits) const {
    const float* last = logits.data() + logits.size() - vocab_;
    const double bound = 0.5e-4 + ForwardBound(model_.config(), LargestMagnitude(logits));
    for (const auto& [id, logit] :
         expected_["top10_last"].get<std::vector<std::pair<int, double>>>()) {
      EXPECT_NEAR(last[id], logit, bound) << "logit of " << id;
    }
  }

  void CheckLikelihood(const std::vector<float>& logits) const {
    constexpr double kPromised = 1e-3;  // deploy/models/novella-14m/README.md
    EXPECT_NEAR(MeanNll(logits, tokens_, vocab_), expected_["mean_nll_of_prompt"].get<double>(),
                kPromised);
  }

  // The executor's own rounding is that of K and V to fp16: it moves the last logits by what is
  // measured here, and two of them apart by twice that. Every margin of the expected continuation
  // must exceed it, so that each token is compared.
  void CheckGreedy(Fp16CacheSink& sink, const std::vector<float>& exact,
                   const std::vector<float>& rounded) {
    std::vector<float> row(rounded.end() - vocab_, rounded.end());
    const double moved =
        LargestDifference(std::vector<float>(exact.end() - vocab_, exact.end()), row);
    ::testing::Test::RecordProperty("fp16_kv_moves_logits_by", absl::StrCat(moved));
    EXPECT_GT(moved, 0);
    EXPECT_GT(expected_["smallest_margin"].get<double>(), 2 * moved);
    int64_t position = static_cast<int64_t>(tokens_.size());
    for (const int32_t wanted : expected_["greedy_48"].get<std::vector<int32_t>>()) {
      const int32_t token =
          static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
      ASSERT_EQ(token, wanted) << "at position " << position;
      ASSERT_THAT(model_.Forward(std::span(&token, 1), position++, sink, 0, row.data()), IsOk());
    }
  }

  LlamaModel& model_;
  ThreadPool* pool_;
  const nlohmann::json& expected_;
  const std::vector<int32_t> tokens_;
  const int vocab_;
};

// novella-14m, and the larger novella-55m where a checkout has it beside it.
TEST(LlamaModelTest, ReproducesTrainedModels) {
  const std::string source = std::getenv("PKV_SOURCE_DIR");
  std::vector<std::string> folders = {source + "/deploy/models/novella-14m"};
  const std::string larger = source + "/../shared/models/novella-55m";
  if (std::filesystem::exists(larger)) folders.push_back(larger);
  ThreadPool pool(2);
  for (const std::string& folder : folders) {
    SCOPED_TRACE(folder);
    auto model = LlamaModel::Load(folder, &pool);
    ASSERT_THAT(model, IsOk());
    const nlohmann::json expected = nlohmann::json::parse(std::ifstream(folder + "/expected.json"));
    ASSERT_EQ(expected["cases"].size(), 2u);
    for (const auto& prompt : expected["cases"]) TrainedModelCheck(**model, &pool, prompt).Run();
  }
}

std::unique_ptr<LlamaModel> LoadTiny(const TinyModel& tiny, ThreadPool* pool = nullptr,
                                     int num_shards = 1) {
  const ScratchFolder folder;
  tiny.Write(folder, num_shards);
  auto model = LlamaModel::Load(folder.path(), pool);
  EXPECT_THAT(model, IsOk());
  return *std::move(model);
}

std::vector<int32_t> SomeTokens(int count) {
  std::vector<int32_t> tokens(count);
  for (int i = 0; i < count; ++i) tokens[i] = (i * 37 + 11) % 64;
  return tokens;
}

// Ties, biases, head counts and head_dim, each against the definition in fp64.
TEST(LlamaModelTest, AgreesWithTheDefinitionInFp64) {
  TinyModel plain, biased, grouped;
  biased.tie_word_embeddings = false;
  biased.attention_bias = biased.mlp_bias = true;
  biased.rope_theta = 500000;
  grouped.hidden_size = 96;
  grouped.intermediate_size = 40;
  grouped.num_qo_heads = 6;
  grouped.num_kv_heads = 2;
  grouped.head_dim = 128;
  const std::vector<int32_t> tokens = SomeTokens(40);
  for (const TinyModel& tiny : {plain, biased, grouped}) {
    const auto model = LoadTiny(tiny);
    ReferenceSink sink = ReferenceFor(*model);
    const std::vector<float> logits = AllLogits(*model, tokens, sink);
    const std::vector<double> expected = LlamaReference(tiny).Logits(tokens);
    const double bound = ForwardBound(model->config(), LargestMagnitude(logits));
    ASSERT_EQ(logits.size(), expected.size());
    for (size_t i = 0; i < logits.size(); ++i) ASSERT_NEAR(logits[i], expected[i], bound) << i;
  }
}

TEST(LlamaModelTest, GivesTheSameLogitsInOnePassInPartsAndTokenByToken) {
  const auto model = LoadTiny(TinyModel());
  const std::vector<int32_t> tokens = SomeTokens(50);
  const int vocab = model->config().vocab_size;
  ReferenceSink whole_sink = ReferenceFor(*model);
  const std::vector<float> whole = AllLogits(*model, tokens, whole_sink);
  const double bound = 2 * ForwardBound(model->config(), LargestMagnitude(whole));
  for (const int step : {1, 7, 49}) {
    ReferenceSink sink = ReferenceFor(*model);
    std::vector<float> parts(whole.size());
    for (int first = 0; first < 50; first += step) {
      const int count = std::min(step, 50 - first);
      ASSERT_THAT(model->Forward(std::span(tokens).subspan(first, count), first, sink, 0,
                                 parts.data() + first * vocab),
                  IsOk());
    }
    EXPECT_LE(LargestDifference(parts, whole), bound) << "steps of " << step;
  }
}

TEST(LlamaModelTest, ComputesLogitsOnlyFromTheTokenAskedFor) {
  const auto model = LoadTiny(TinyModel());
  const std::vector<int32_t> tokens = SomeTokens(20);
  const int vocab = model->config().vocab_size;
  ReferenceSink whole_sink = ReferenceFor(*model), sink = ReferenceFor(*model);
  const std::vector<float> whole = AllLogits(*model, tokens, whole_sink);
  std::vector<float> last(3 * vocab + 1, -1.0f);
  ASSERT_THAT(model->Forward(tokens, 0, sink, 17, last.data()), IsOk());
  const std::vector<float> expected(whole.begin() + 17 * vocab, whole.end());
  EXPECT_EQ(last.back(), -1.0f);
  last.pop_back();
  EXPECT_LE(LargestDifference(last, expected),
            2 * ForwardBound(model->config(), LargestMagnitude(whole)));
}

TEST(LlamaModelTest, FillsTheCacheOfEveryLayerWithoutLogits) {
  const auto model = LoadTiny(TinyModel());
  const std::vector<int32_t> tokens = SomeTokens(20);
  Fp16CacheSink sink = CacheFor(*model), complete = CacheFor(*model);
  ASSERT_THAT(model->Forward(tokens, 0, sink, 20, nullptr), IsOk());
  EXPECT_EQ(sink.num_tokens(), 20);
  AllLogits(*model, tokens, complete);
  for (int layer = 0; layer < 2; ++layer) {
    const KvTensorView a = sink.layer(layer), b = complete.layer(layer);
    EXPECT_EQ(std::memcmp(a.k, b.k, 20 * 64 * 2), 0);
    EXPECT_EQ(std::memcmp(a.v, b.v, 20 * 64 * 2), 0);
  }
}

TEST(LlamaModelTest, GivesEqualBitsWithAnyPool) {
  ThreadPool pool(3);
  const auto alone = LoadTiny(TinyModel()), shared = LoadTiny(TinyModel(), &pool);
  const std::vector<int32_t> tokens = SomeTokens(300);
  Fp16CacheSink alone_sink = CacheFor(*alone), shared_sink = CacheFor(*shared, &pool);
  EXPECT_EQ(AllLogits(*alone, tokens, alone_sink), AllLogits(*shared, tokens, shared_sink));
}

TEST(LlamaModelTest, ReplicasGiveTheSameLogitsSideBySideAndOutliveTheOriginal) {
  auto original = LoadTiny(TinyModel());
  const std::vector<int32_t> tokens = SomeTokens(100);
  Fp16CacheSink sink = CacheFor(*original);
  const std::vector<float> expected = AllLogits(*original, tokens, sink);
  const auto replica = original->MakeReplica(nullptr), other = original->MakeReplica(nullptr);
  EXPECT_EQ(replica->profile().ComputeDigest(), original->profile().ComputeDigest());
  original.reset();
  Fp16CacheSink replica_sink = CacheFor(*replica), other_sink = CacheFor(*other);
  std::vector<float> beside;
  std::thread thread([&] { beside = AllLogits(*other, tokens, other_sink); });
  EXPECT_EQ(AllLogits(*replica, tokens, replica_sink), expected);
  thread.join();
  EXPECT_EQ(beside, expected);
}

TEST(LlamaModelTest, LoadsShardsAndEveryWeightType) {
  const TinyModel tiny;
  const std::vector<int32_t> tokens = SomeTokens(10);
  const auto single = LoadTiny(tiny), sharded = LoadTiny(tiny, nullptr, 3);
  Fp16CacheSink sink = CacheFor(*single), sharded_sink = CacheFor(*sharded);
  const std::vector<float> logits = AllLogits(*single, tokens, sink);
  EXPECT_EQ(AllLogits(*sharded, tokens, sharded_sink), logits);

  std::vector<StoredTensor> tensors = tiny.Tensors();
  for (StoredTensor& tensor : tensors) {
    std::vector<uint16_t> bits(tensor.bytes.size() / 2);
    std::memcpy(bits.data(), tensor.bytes.data(), tensor.bytes.size());
    tensor.dtype = "F32";
    tensor.bytes.clear();
    for (const uint16_t b : bits) {
      const float value = Float16ToFloat(b);
      tensor.bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
  }
  const ScratchFolder folder;
  folder.Write("config.json", tiny.Config().dump());
  folder.Write("model.safetensors", SafetensorsBytes(tensors));
  const auto wide = LlamaModel::Load(folder.path(), nullptr);
  ASSERT_THAT(wide, IsOk());
  Fp16CacheSink wide_sink = CacheFor(**wide);
  EXPECT_EQ(AllLogits(**wide, tokens, wide_sink), logits);
}

// Answers with zeros, keeps the layers it was asked for, and fails at one of them.
class RecordingSink final : public AttentionSink {
 public:
  explicit RecordingSink(int failing_layer = -1) : failing_layer_(failing_layer) {}

  absl::Status Attend(const LayerQkv& qkv, float* out) override {
    calls.push_back(qkv);
    if (qkv.layer == failing_layer_) return absl::ResourceExhaustedError("no page left");
    std::fill_n(out, qkv.num_tokens * 2 * 64, 0.0f);
    return absl::OkStatus();
  }

  std::vector<LayerQkv> calls;

 private:
  const int failing_layer_;
};

TEST(LlamaModelTest, CallsTheSinkOnceALayerInOrder) {
  const auto model = LoadTiny(TinyModel());
  RecordingSink sink;
  ASSERT_THAT(model->Forward(SomeTokens(5), 100, sink, 5, nullptr), IsOk());
  ASSERT_EQ(sink.calls.size(), 2u);
  for (int layer = 0; layer < 2; ++layer) {
    EXPECT_EQ(sink.calls[layer].layer, layer);
    EXPECT_EQ(sink.calls[layer].num_tokens, 5);
    EXPECT_EQ(sink.calls[layer].first_token, 100);
  }
}

TEST(LlamaModelTest, ReturnsAnErrorOfTheSinkAtOnce) {
  const auto model = LoadTiny(TinyModel());
  RecordingSink sink(/*failing_layer=*/0);
  EXPECT_THAT(model->Forward(SomeTokens(5), 0, sink, 5, nullptr),
              StatusIs(absl::StatusCode::kResourceExhausted, HasSubstr("no page left")));
  EXPECT_EQ(sink.calls.size(), 1u);
}

TEST(LlamaModelTest, RefusesTokensAndPositionsOutOfRange) {
  const auto model = LoadTiny(TinyModel());
  RecordingSink sink;
  const auto forward = [&](const std::vector<int32_t>& tokens, int64_t first, int logits_from) {
    return model->Forward(tokens, first, sink, logits_from, nullptr);
  };
  for (const int32_t id : {-1, 64}) {
    EXPECT_THAT(forward({1, id}, 0, 2), StatusIs(absl::StatusCode::kInvalidArgument,
                                                 HasSubstr(absl::StrCat("token 1 has id ", id))));
  }
  for (const int64_t first : {int64_t{-1}, int64_t{1023}, INT64_MAX}) {
    EXPECT_THAT(forward({1, 2}, first, 2), StatusIs(absl::StatusCode::kInvalidArgument,
                                                    HasSubstr("max_position_embeddings 1024")));
  }
  for (const int logits_from : {-1, 3}) {
    EXPECT_THAT(forward({1, 2}, 0, logits_from),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("logits_from")));
  }
  EXPECT_TRUE(sink.calls.empty());
  EXPECT_THAT(forward({63, 0}, 1022, 2), IsOk());
  EXPECT_EQ(sink.calls.size(), 2u);
}

TEST(LlamaModelTest, DoesNothingWithoutTokens) {
  const auto model = LoadTiny(TinyModel());
  RecordingSink sink;
  EXPECT_THAT(model->Forward({}, 1024, sink, 0, nullptr), IsOk());
  EXPECT_TRUE(sink.calls.empty());
}

TEST(LlamaModelTest, ReportsWhatIsNotThere) {
  const ScratchFolder folder;
  EXPECT_THAT(LlamaModel::Load(folder.path() + "/none", nullptr),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("none")));
  EXPECT_THAT(LlamaModel::Load(folder.path(), nullptr),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("config.json")));
  TinyModel refused;
  refused.extra_config = {{"hidden_act", "gelu"}};
  folder.Write("config.json", refused.Config().dump());
  EXPECT_THAT(LlamaModel::Load(folder.path(), nullptr),
              StatusIs(absl::StatusCode::kUnimplemented, HasSubstr("hidden_act 'gelu'")));
  folder.Write("config.json", TinyModel().Config().dump());
  EXPECT_THAT(LlamaModel::Load(folder.path(), nullptr),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("model.safetensors")));
}

TEST(LlamaModelTest, NamesEachTensorThatIsMissing) {
  TinyModel tiny;
  tiny.num_layers = 1;
  tiny.tie_word_embeddings = false;
  tiny.attention_bias = tiny.mlp_bias = true;
  const std::vector<StoredTensor> tensors = tiny.Tensors();
  ASSERT_EQ(tensors.size(), 19u);
  for (size_t i = 0; i < tensors.size(); ++i) {
    std::vector<StoredTensor> rest = tensors;
    rest.erase(rest.begin() + static_cast<int64_t>(i));
    const ScratchFolder folder;
    folder.Write("config.json", tiny.Config().dump());
    folder.Write("model.safetensors", SafetensorsBytes(rest));
    EXPECT_THAT(LlamaModel::Load(folder.path(), nullptr),
                StatusIs(absl::StatusCode::kDataLoss,
                         HasSubstr(absl::StrCat("tensor ", tensors[i].name, " is missing"))));
  }
}

TEST(LlamaModelTest, NamesATensorOfAnotherShape) {
  const TinyModel tiny;
  TinyModel wider = tiny;
  wider.intermediate_size = 200;
  const ScratchFolder folder;
  tiny.Write(folder);
  folder.Write("config.json", wider.Config().dump());
  EXPECT_THAT(LlamaModel::Load(folder.path(), nullptr),
              StatusIs(absl::StatusCode::kDataLoss,
                       AllOf(HasSubstr("model.layers.0.mlp.gate_proj.weight"),
                             HasSubstr("[192, 128]"), HasSubstr("[200, 128]"))));
}

}  // namespace
}  // namespace pkv
