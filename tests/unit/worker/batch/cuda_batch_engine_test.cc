// The CUDA engine against the CPU's executor and KvSequence, on the trained model: the same
// objects, the same tokens fed, logits compared.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <vector>

#include "pkv/block/prefix_hash.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/device_stream.h"
#include "tests/support/error_bound.h"
#include "tests/support/fake_cache_client.h"
#include "tests/support/novella.h"
#include "tests/support/status_matchers.h"
#include "worker/batch/cuda_batch_engine.h"
#include "worker/engine/llama.h"
#include "worker/sequence/kv_sequence.h"
#include "worker/sequence/window_flush.h"

namespace pkv {
namespace {

// Keys of everything that a prompt was stored as.
struct StoredPrompt {
  std::vector<int32_t> tokens;  // cached ones, then the one that decoding starts with
  std::vector<ObjectKey> keys;  // tables, blocks, window
  int num_tables = 0, num_blocks = 0, num_window_tokens = 0;
};

class CudaBatchEngineTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    auto cpu = LlamaModel::Load(NovellaDirectory(), nullptr);
    ASSERT_TRUE(cpu.ok()) << cpu.status();
    cpu_ = *std::move(cpu);
    auto model = CudaModel::Load(NovellaDirectory(), nullptr);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
    EXPECT_EQ(model_->profile().ComputeDigest(), cpu_->profile().ComputeDigest());
  }

  void MakeEngine(const std::string& preset, int num_slots, int num_pages) {
    params_ = *PresetByName(preset, cpu_->config().kv_shape());
    CudaEngineOptions options;
    options.params = params_;
    options.num_slots = num_slots;
    options.num_pages = num_pages;
    options.max_blocks = 32;
    auto engine = MakeCudaBatchEngine(model_.get(), options);
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  double Bound() const { return kLogitDeviations * LogitDeviation(cpu_->config().num_layers); }

  std::unique_ptr<KvSequence> MakeSequence() {
    KvSequence::Config config;
    config.shape = cpu_->config().kv_shape();
    config.num_qo_heads = cpu_->config().num_qo_heads;
    config.params = params_;
    config.profile = cpu_->profile().ComputeDigest();
    auto sequence = KvSequence::Create(config);
    PKV_CHECK(sequence.ok(), sequence.status().ToString());
    return *std::move(sequence);
  }

  // Prefills all tokens but the last on the CPU and stores what a prefill worker stores.
  StoredPrompt Store(const std::vector<int32_t>& tokens) {
    StoredPrompt stored;
    stored.tokens = tokens;
    const std::span<const int32_t> cached = std::span(tokens).first(tokens.size() - 1);
    const auto sequence = MakeSequence();
    PKV_CHECK(cpu_->Forward(cached, 0, *sequence, static_cast<int>(cached.size()), nullptr).ok());
    stored.num_blocks =
        BlockTokensAfterPrefill(params_, static_cast<int>(cached.size())) / kBlockTokens;
    stored.num_window_tokens = static_cast<int>(cached.size()) - stored.num_blocks * kBlockTokens;
    PKV_CHECK(sequence->StartBlocks(stored.num_blocks, Phase::kPrefill, cached, true).ok());
    for (int layer = 0; layer < cpu_->config().num_layers; ++layer) {
      PKV_CHECK(sequence->EncodeLayer(layer).ok());
    }
    PKV_CHECK(sequence->FinishBlocks().ok());
    const KvSequence::MadeObjects made = sequence->made_objects();
    const auto keep = [&](const ObjectBuilder& builder) {
      cache_.Insert(builder.bytes());
      stored.keys.push_back(builder.header().key());
    };
    if (made.table != nullptr) keep(*made.table);
    stored.num_tables = static_cast<int>(stored.keys.size());
    for (const ObjectBuilder* block : made.blocks) keep(*block);
    if (made.window != nullptr) keep(*made.window);
    return stored;
  }

  // Attaches to a slot; pages [first_page, ..) take the blocks, but for those of `resident`.
  void Attach(int slot, const StoredPrompt& stored, int first_page,
              const std::map<int, int>& resident = {}) {
    EnginePrefix prefix;
    std::vector<ObjectKey> keys(stored.keys.begin(), stored.keys.begin() + stored.num_tables);
    for (int i = 0; i < stored.num_blocks; ++i) {
      const ObjectKey& key = stored.keys[stored.num_tables + i];
      const auto known = resident.find(i);
      prefix.pages.push_back(known == resident.end() ? first_page++ : known->second);
      prefix.resident.emplace_back();
      if (known != resident.end()) prefix.resident.back() = *ParseHeader(cache_.Bytes(key));
      if (known != resident.end() && i > 0) continue;
      prefix.fetched.push_back(i);
      keys.push_back(key);
    }
    if (stored.num_window_tokens > 0) keys.push_back(stored.keys.back());
    prefix.stream = cache_.StartGet(keys);
    if (num_device_layers_ > 0) {
      auto on_device =
          std::make_unique<DeviceStream>(std::move(prefix.stream), num_device_layers_, stream());
      device_stream_ = on_device.get();
      prefix.stream = std::move(on_device);
    }
    prefix.num_tables = stored.num_tables;
    prefix.num_window_tokens = stored.num_window_tokens;
    ASSERT_THAT(engine_->Attach(slot, params_, std::move(prefix)), IsOk());
    EXPECT_EQ(engine_->num_tokens(slot), static_cast<int64_t>(stored.tokens.size()) - 1);
  }

  std::unique_ptr<CudaModel> model_;
  std::unique_ptr<LlamaModel> cpu_;
  std::unique_ptr<BatchEngine> engine_;
  CodecParams params_;
  FakeCacheClient cache_;
  int num_device_layers_ = 0;                    // that later streams bring to device memory
  const DeviceStream* device_stream_ = nullptr;  // the last one
};

// Root mean square of the difference over that of `wanted`.
double Deviation(std::span<const float> wanted, std::span<const float> got) {
  double squares = 0, difference = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    squares += double{wanted[i]} * wanted[i];
    difference += (double{got[i]} - wanted[i]) * (double{got[i]} - wanted[i]);
  }
  return std::sqrt(difference / squares);
}

// A sequence on the CPU beside a slot of the engine: both are fed the CPU's greedy tokens.
struct Twin {
  std::unique_ptr<KvSequence> cpu;
  std::vector<int32_t> tokens;  // cached, then the next one to feed
  std::vector<float> logits;    // of the CPU's last step
  int steps = 0, same_tokens = 0;
  double deviation = 0;  // largest of a step: rms of the difference over rms of the logits
  int next_page = 0;

  void Step(LlamaModel& model) {
    logits.resize(model.config().vocab_size);
    ASSERT_THAT(model.Forward(std::span(tokens).last(1), int64_t(tokens.size()) - 1, *cpu, 0,
                              logits.data()),
                IsOk());
  }
  // Compares the engine's answer to the CPU's and feeds the CPU's token next.
  void Compare(const StepOutput& output) {
    ASSERT_THAT(output.status, IsOk());
    ASSERT_EQ(output.logits.size(), logits.size());
    const auto best =
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    deviation = std::max(deviation, Deviation(logits, output.logits));
    const auto own = std::max_element(output.logits.begin(), output.logits.end());
    EXPECT_EQ(output.greedy_token, own - output.logits.begin());
    double sum = 0;
    for (const float logit : output.logits) sum += std::exp(double{logit} - *own);
    EXPECT_NEAR(output.greedy_logprob, -std::log(sum),
                ReductionBound(static_cast<int>(logits.size())));
    ++steps;
    same_tokens += output.greedy_token == best ? 1 : 0;
    tokens.push_back(best);
  }
};

// Steps every twin `count` times, all in one batch, after a first step each.
void RunTwins(BatchEngine& engine, LlamaModel& model, const CodecParams& params, int count,
              std::map<int, Twin>& twins) {
  for (auto& [slot, twin] : twins) {
    StepOutput output;
    twin.Step(model);
    bool told = false;
    ASSERT_THAT(engine.First(
                    {slot, twin.tokens.back(), true}, [&] { told = true; }, output),
                IsOk());
    EXPECT_TRUE(told);
    twin.Compare(output);
  }
  for (int i = 0; i < count; ++i) {
    std::vector<FlushInput> flushes;
    for (auto& [slot, twin] : twins) {
      const auto cached = std::span(twin.tokens).first(twin.tokens.size() - 1);
      const auto flushed = FlushWindow(cached, *twin.cpu);
      ASSERT_THAT(flushed.status(), IsOk());
      const int in_blocks = static_cast<int>(engine.block_headers(slot).size()) * kBlockTokens;
      const bool due = BlockTokensAfterDecodeStep(params, static_cast<int>(engine.num_tokens(slot)),
                                                  in_blocks) > in_blocks;
      EXPECT_EQ(due, *flushed);
      if (due) flushes.push_back({slot, twin.next_page++, cached, nullptr});
    }
    ASSERT_THAT(engine.Flush(flushes), IsOk());
    std::vector<StepInput> inputs;
    for (auto& [slot, twin] : twins) {
      inputs.push_back({slot, twin.tokens.back(), true});
      twin.Step(model);
    }
    std::vector<StepOutput> outputs(inputs.size());
    ASSERT_THAT(engine.Step(inputs, outputs), IsOk());
    int row = 0;
    for (auto& [slot, twin] : twins) {
      twin.Compare(outputs[row++]);
      EXPECT_EQ(engine.num_tokens(slot), twin.cpu->num_tokens());
    }
  }
}

class CudaBatchEnginePresetTest : public CudaBatchEngineTest,
                                  public testing::WithParamInterface<const char*> {};

TEST_P(CudaBatchEnginePresetTest, StepsOverEqualBlocksGiveTheCpusLogits) {
  MakeEngine(GetParam(), 4, 64);
  std::map<int, Twin> twins;
  int page = 0;
  for (const auto& [slot, length] : {std::pair(2, 700), {0, 257}, {1, 1300}}) {
    const StoredPrompt stored = Store(NovellaPrompt(length));
    Twin& twin = twins[slot];
    twin.tokens = stored.tokens;
    twin.cpu = MakeSequence();
    ASSERT_THAT(twin.cpu->AttachPrefix(cache_.StartGet(stored.keys), stored.num_tables,
                                       stored.num_window_tokens),
                IsOk());
    Attach(slot, stored, page);
    page += stored.num_blocks;
    twin.next_page = 32 + 8 * slot;
  }
  // Until the first window is flushed the blocks are equal.
  RunTwins(*engine_, *cpu_, params_, 20, twins);
  for (const auto& [slot, twin] : twins) {
    std::printf("%s slot %d: %d of %d tokens the same, deviation %.5f\n", GetParam(), slot,
                twin.same_tokens, twin.steps, twin.deviation);
    EXPECT_LE(twin.deviation, Bound()) << GetParam() << " slot " << slot;
    EXPECT_EQ(twin.same_tokens, twin.steps);
  }
}

TEST_F(CudaBatchEngineTest, GreedyTextWithAnFp16CacheIsTheCpus) {
  MakeEngine("fp16", 2, 64);
  const StoredPrompt stored = Store(NovellaPrompt(900));
  std::map<int, Twin> twins;
  Twin& twin = twins[1];
  twin.tokens = stored.tokens;
  twin.cpu = MakeSequence();
  ASSERT_THAT(twin.cpu->AttachPrefix(cache_.StartGet(stored.keys), stored.num_tables,
                                     stored.num_window_tokens),
              IsOk());
  Attach(1, stored, 0);
  twin.next_page = 32;
  // Several flushes of the window: blocks of fp16 lose nothing.
  RunTwins(*engine_, *cpu_, params_, 400, twins);
  EXPECT_EQ(twin.same_tokens, twin.steps);
  EXPECT_LE(twin.deviation, Bound());
}

TEST_F(CudaBatchEngineTest, FlushedBlocksAreSealedAndCanBeAttached) {
  MakeEngine("pkv2", 2, 64);
  const StoredPrompt stored = Store(NovellaPrompt(300));
  Attach(0, stored, 0);
  std::vector<int32_t> tokens = stored.tokens;
  StepOutput output;
  ASSERT_THAT(engine_->First({0, tokens.back(), false}, nullptr, output), IsOk());
  std::vector<std::unique_ptr<ObjectBuilder>> sealed;
  StoredPrompt longer = stored;
  int page = 40;
  while (longer.num_blocks < stored.num_blocks + 3) {
    tokens.push_back(output.greedy_token);
    const int in_blocks = longer.num_blocks * kBlockTokens;
    if (BlockTokensAfterDecodeStep(params_, static_cast<int>(engine_->num_tokens(0)), in_blocks) >
        in_blocks) {
      const FlushInput flush = {0, page++, tokens, &sealed};
      ASSERT_THAT(engine_->Flush(std::span(&flush, 1)), IsOk());
      ++longer.num_blocks;
    }
    const StepInput input = {0, tokens.back(), false};
    ASSERT_THAT(engine_->Step(std::span(&input, 1), std::span(&output, 1)), IsOk());
  }
  ASSERT_EQ(sealed.size(), 3u);
  // The window that the slot has now, by way of the CPU: recompute nothing, attach blocks alone.
  if (stored.num_window_tokens > 0) longer.keys.pop_back();
  for (const auto& block : sealed) {
    cache_.Insert(block->bytes());
    longer.keys.push_back(block->header().key());
    EXPECT_NE(block->header().flags & kFlagAppendsK, 0);
  }
  longer.num_window_tokens = 0;
  longer.tokens.assign(tokens.begin(), tokens.begin() + longer.num_blocks * kBlockTokens + 1);
  Attach(1, longer, 10);
  const std::unique_ptr<KvSequence> cpu = MakeSequence();
  ASSERT_THAT(cpu->AttachPrefix(cache_.StartGet(longer.keys), longer.num_tables, 0), IsOk());
  std::vector<float> logits(cpu_->config().vocab_size);
  ASSERT_THAT(cpu_->Forward(std::span(longer.tokens).last(1), int64_t(longer.tokens.size()) - 1,
                            *cpu, 0, logits.data()),
              IsOk());
  ASSERT_THAT(engine_->First({1, longer.tokens.back(), true}, nullptr, output), IsOk());
  EXPECT_LE(Deviation(logits, output.logits), Bound());
}

// A prompt computed on the device costs no more accuracy than one compressed on the CPU.
TEST_P(CudaBatchEnginePresetTest, ComputedPromptsDecodeLikeTheCpus) {
  MakeEngine(GetParam(), 2, 64);
  const std::vector<int32_t> tokens = NovellaPrompt(1500);
  const std::span<const int32_t> cached = std::span(tokens).first(tokens.size() - 1);
  const int num_blocks =
      BlockTokensAfterPrefill(params_, static_cast<int>(cached.size())) / kBlockTokens;
  std::vector<int32_t> pages;
  for (int i = 0; i < num_blocks; ++i) pages.push_back(40 - 2 * i);
  std::vector<std::unique_ptr<ObjectBuilder>> sealed;
  ASSERT_THAT(engine_->Compute(1, params_, cached, pages, nullptr, &sealed), IsOk());
  EXPECT_EQ(engine_->num_tokens(1), static_cast<int64_t>(cached.size()));
  EXPECT_EQ(sealed.size(), pages.size() + (params_.encoding.has_patterns ? 1 : 0));
  StepOutput output;
  ASSERT_THAT(engine_->First({1, tokens.back(), true}, nullptr, output), IsOk());

  // What the CPU makes of it, compressed and not.
  const auto logits_of = [&](const CodecParams& params) {
    params_ = params;
    const StoredPrompt stored = Store(tokens);
    const std::unique_ptr<KvSequence> sequence = MakeSequence();
    PKV_CHECK(sequence
                  ->AttachPrefix(cache_.StartGet(stored.keys), stored.num_tables,
                                 stored.num_window_tokens)
                  .ok());
    std::vector<float> logits(cpu_->config().vocab_size);
    PKV_CHECK(cpu_->Forward(std::span(tokens).last(1), int64_t(tokens.size()) - 1, *sequence, 0,
                            logits.data())
                  .ok());
    return logits;
  };
  const std::vector<float> compressed = logits_of(params_);
  const std::vector<float> exact = logits_of(*PresetByName("fp16", cpu_->config().kv_shape()));
  const double cpu_loss = Deviation(exact, compressed), loss = Deviation(exact, output.logits);
  std::printf("%s: deviation from exact logits %.5f, the CPU's %.5f\n", GetParam(), loss, cpu_loss);
  EXPECT_LE(loss, 1.5 * cpu_loss + Bound());
}

INSTANTIATE_TEST_SUITE_P(Presets, CudaBatchEnginePresetTest,
                         testing::Values("fp16", "kivi2", "kivi4", "pkv2", "pkv4", "default",
                                         "default4"));

TEST_F(CudaBatchEngineTest, PagesOfAnotherSlotServeASharedPrefix) {
  MakeEngine("default", 3, 16);
  const StoredPrompt stored = Store(NovellaPrompt(800));
  Attach(0, stored, 0);
  StepOutput alone, shared;
  ASSERT_THAT(engine_->First({0, stored.tokens.back(), true}, nullptr, alone), IsOk());
  const std::vector<float> logits(alone.logits.begin(), alone.logits.end());
  std::map<int, int> resident;
  for (int i = 0; i + 1 < stored.num_blocks; ++i) resident[i] = i;
  const uint64_t all_bytes = engine_->received_bytes(0);
  Attach(1, stored, 12, resident);
  ASSERT_THAT(engine_->First({1, stored.tokens.back(), true}, nullptr, shared), IsOk());
  EXPECT_LT(engine_->received_bytes(1), all_bytes);
  EXPECT_THAT(shared.logits, testing::ElementsAreArray(logits));
  // The first one leaves; its pages are still read.
  engine_->Release(0);
  const StepInput input = {1, shared.greedy_token, false};
  ASSERT_THAT(engine_->Step(std::span(&input, 1), std::span(&shared, 1)), IsOk());
}

TEST_F(CudaBatchEngineTest, FramesThatComeToDeviceMemoryGiveTheSameLogits) {
  for (const char* preset : {"default", "fp16"}) {
    MakeEngine(preset, 3, 32);
    const StoredPrompt stored = Store(NovellaPrompt(800));
    Attach(0, stored, 0);
    StepOutput output;
    ASSERT_THAT(engine_->First({0, stored.tokens.back(), true}, nullptr, output), IsOk());
    const std::vector<float> logits(output.logits.begin(), output.logits.end());
    const int num_layers = cpu_->config().num_layers;
    // All layers, and as when a pair breaks half way.
    for (const int layers : {num_layers, num_layers / 2}) {
      num_device_layers_ = layers;
      Attach(1, stored, 16);
      // A block whose frame is a page comes there: not block 0 of `default`, which has sinks.
      const int in_place = stored.num_blocks - (params_.encoding.is_fp16() ? 0 : 1);
      EXPECT_EQ(device_stream_->num_placed(), in_place * layers) << preset;
      EXPECT_GT(device_stream_->num_elsewhere(), 0) << preset;
      ASSERT_THAT(engine_->First({1, stored.tokens.back(), true}, nullptr, output), IsOk());
      EXPECT_THAT(output.logits, testing::ElementsAreArray(logits)) << preset << " " << layers;
      engine_->Release(1);
    }
    num_device_layers_ = 0;
  }
}

TEST_F(CudaBatchEngineTest, WhatDoesNotFitTheSequenceIsRefused) {
  MakeEngine("default", 2, 16);
  EXPECT_THAT(engine_->CheckVariant(*PresetByName("pkv2", cpu_->config().kv_shape())),
              StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr("pkv2")));
  const StoredPrompt stored = Store(NovellaPrompt(600));
  EnginePrefix prefix;
  // Blocks 1 and 2 as blocks 0 and 1.
  std::vector<ObjectKey> keys(stored.keys.begin(), stored.keys.begin() + 1);
  keys.insert(keys.end(), stored.keys.begin() + 2, stored.keys.begin() + 4);
  prefix.stream = cache_.StartGet(keys);
  prefix.num_tables = 1;
  prefix.pages = {0, 1};
  prefix.resident.resize(2);
  prefix.fetched = {0, 1};
  EXPECT_THAT(engine_->Attach(0, params_, std::move(prefix)),
              StatusIs(absl::StatusCode::kFailedPrecondition));
  engine_->Release(0);
  cache_.Damage(stored.keys[2], 3);
  Attach(0, stored, 0);
  StepOutput output;
  EXPECT_THAT(engine_->First({0, stored.tokens.back(), false}, nullptr, output),
              StatusIs(absl::StatusCode::kDataLoss));
}

}  // namespace
}  // namespace pkv
