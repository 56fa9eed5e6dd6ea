// Prompts computed on a GPU, stored, and decoded on the CPU from what was stored.

#include "worker/prefill/cuda_prefill_executor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cuda_runtime_api.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "kernels/device/cuda_status.h"
#include "pkv/block/object_view.h"
#include "proto/metrics/metric_registry.h"
#include "tests/support/cuda_fixture.h"
#include "tests/support/fake_cache_client.h"
#include "tests/support/fake_pair_calls.h"
#include "tests/support/novella.h"
#include "tests/support/status_matchers.h"
#include "worker/decode/decode_worker.h"
#include "worker/prefill/cpu_prefill_executor.h"
#include "worker/prefill/direct_store.h"
#include "worker/prefill/prefill_worker.h"

namespace pkv {
namespace {

class CudaPrefillExecutorTest : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    if (IsSkipped()) return;
    auto host = ModelHost::Load(NovellaDirectory(), 2);
    ASSERT_TRUE(host.ok()) << host.status();
    host_ = *std::move(host);
    auto model = CudaModel::Load(NovellaDirectory(), nullptr);
    ASSERT_TRUE(model.ok()) << model.status();
    model_ = *std::move(model);
  }

  std::unique_ptr<PrefillExecutor> MakeExecutor(const std::string& preset, int chunk_tokens = 300) {
    CudaPrefillOptions options;
    options.params = *PresetByName(preset, host_->config().kv_shape());
    options.max_tokens = 2048;
    options.chunk_tokens = chunk_tokens;
    auto executor = MakeCudaPrefillExecutor(model_.get(), options);
    PKV_CHECK(executor.ok(), executor.status().ToString());
    return *std::move(executor);
  }

  absl::StatusOr<v1::PrefillResponse> Prefill(PrefillExecutor& executor, const std::string& preset,
                                              const std::vector<int32_t>& tokens) {
    PrefillWorker worker(host_.get(), &executor, &cache_, &prefill_metrics_);
    v1::PrefillRequest request;
    request.set_preset(preset);
    request.mutable_prompt()->mutable_token_ids()->Add(tokens.begin(), tokens.end());
    return worker.Prefill(request);
  }

  // Greedy tokens after a ticket, on the CPU, from the cache alone.
  std::vector<int32_t> Decode(const v1::HandoffTicket& ticket, int count) {
    DecodeWorker worker(host_.get(), &cache_, &decode_metrics_);
    v1::DecodeRequest request;
    *request.mutable_ticket() = ticket;
    request.mutable_sampling()->set_max_tokens(count);
    request.mutable_sampling()->set_ignore_eos(true);
    request.set_refuse_recompute(true);
    std::vector<int32_t> tokens;
    EXPECT_THAT(worker.Decode(request,
                              [&](const v1::DecodeEvent& event) {
                                if (event.has_token()) tokens.push_back(event.token().token_id());
                                return true;
                              }),
                IsOk());
    return tokens;
  }

  std::unique_ptr<ModelHost> host_;
  std::unique_ptr<CudaModel> model_;
  FakeCacheClient cache_;
  WorkerMetrics prefill_metrics_{"prefill"}, decode_metrics_{"decode"};
};

// Whole prompts, and one behind a cached prefix that another prompt left: the text is that of a
// prompt computed on the CPU.
TEST_F(CudaPrefillExecutorTest, TextAfterAnFp16PrefillIsTheCpus) {
  const std::unique_ptr<PrefillExecutor> executor = MakeExecutor("fp16");
  CpuPrefillExecutor cpu(host_.get());
  for (const int length : {150, 900, 1500}) {
    const std::vector<int32_t> prompt = NovellaPrompt(length);
    const auto computed = Prefill(*executor, "fp16", prompt);
    ASSERT_THAT(computed, IsOk());
    EXPECT_TRUE(computed->stats().stored()) << computed->stats().store_error();
    // 150 tokens leave one block, 900 seven.
    EXPECT_EQ(computed->stats().cached_tokens(), length == 150 ? 0u : length == 900 ? 128u : 896u);
    const std::vector<int32_t> tokens = Decode(computed->ticket(), 24);
    FakeCacheClient others;
    PrefillWorker on_cpu(host_.get(), &cpu, &others, &prefill_metrics_);
    v1::PrefillRequest request;
    request.set_preset("fp16");
    request.mutable_prompt()->mutable_token_ids()->Add(prompt.begin(), prompt.end());
    const auto wanted = on_cpu.Prefill(request);
    ASSERT_THAT(wanted, IsOk());
    DecodeWorker worker(host_.get(), &others, &decode_metrics_);
    v1::DecodeRequest decode;
    *decode.mutable_ticket() = wanted->ticket();
    decode.mutable_sampling()->set_max_tokens(24);
    decode.mutable_sampling()->set_ignore_eos(true);
    std::vector<int32_t> wanted_tokens;
    ASSERT_THAT(worker.Decode(decode,
                              [&](const v1::DecodeEvent& event) {
                                if (event.has_token()) {
                                  wanted_tokens.push_back(event.token().token_id());
                                }
                                return true;
                              }),
                IsOk());
    EXPECT_EQ(tokens, wanted_tokens) << length;
  }
}

TEST_F(CudaPrefillExecutorTest, EveryPresetIsStoredReadAndContinued) {
  for (const std::string& preset : PresetNames()) {
    SCOPED_TRACE(preset);
    cache_.Clear();
    const std::unique_ptr<PrefillExecutor> executor = MakeExecutor(preset);
    const auto first = Prefill(*executor, preset, NovellaPrompt(800));
    ASSERT_THAT(first, IsOk());
    ASSERT_TRUE(first->stats().stored()) << first->stats().store_error();
    EXPECT_EQ(first->stats().cached_tokens(), 0u);
    EXPECT_EQ(Decode(first->ticket(), 4).size(), 4u);
    // The rest of a longer prompt, by the same table.
    const auto longer = Prefill(*executor, preset, NovellaPrompt(1300));
    ASSERT_THAT(longer, IsOk());
    ASSERT_TRUE(longer->stats().stored()) << longer->stats().store_error();
    EXPECT_EQ(longer->stats().cached_tokens(), first->ticket().num_blocks() * kBlockTokens);
    EXPECT_THAT(longer->ticket().table_ids(),
                testing::ElementsAreArray(first->ticket().table_ids()));
    EXPECT_EQ(Decode(longer->ticket(), 4).size(), 4u);
    // A prompt that fills no block: the window alone.
    const auto tiny = Prefill(*executor, preset, NovellaPrompt(40));
    ASSERT_THAT(tiny, IsOk());
    EXPECT_EQ(tiny->ticket().num_blocks(), 0u);
    EXPECT_EQ(Decode(tiny->ticket(), 2).size(), 2u);
  }
}

// Memory of the GPU, without NCCL.
class DeviceCalls final : public FakePairCalls {
 public:
  DeviceCalls() : FakePairCalls(std::make_shared<FakeLink>(), nullptr) {}
  absl::StatusOr<std::byte*> AllocateDevice(uint64_t bytes) override {
    void* data = nullptr;
    PKV_RETURN_IF_ERROR(CudaStatus(cudaMalloc(&data, bytes), "allocate"));
    // What nobody writes shows.
    PKV_RETURN_IF_ERROR(CudaStatus(cudaMemset(data, 0xa5, bytes), "poison"));
    return static_cast<std::byte*>(data);
  }
  void FreeDevice(std::byte* data) override { cudaFree(data); }
};

std::vector<std::byte> Download(const LayerSpans& layer) {
  std::vector<std::byte> bytes;
  for (const DeviceSpan& span : layer.spans) {
    const size_t at = bytes.size();
    bytes.resize(at + span.bytes);
    PKV_CHECK(cudaMemcpy(&bytes[at], span.data, span.bytes, cudaMemcpyDefault) == cudaSuccess);
  }
  return bytes;
}

// Goal: what a decode worker fetches from this GPU is what it would get from pkvd. Method: a prompt
// and a longer one behind it, of every preset; each object's head and frames, byte for byte.
TEST_F(CudaPrefillExecutorTest, WhatStaysOnTheGpuIsWhatIsStored) {
  MetricRegistry registry;
  DirectMetrics metrics(registry);
  auto store = DirectStore::Make(std::make_shared<DeviceCalls>(), uint64_t{256} << 20, &metrics);
  ASSERT_THAT(store, IsOk());
  for (const std::string& preset : PresetNames()) {
    SCOPED_TRACE(preset);
    cache_.Clear();
    const std::unique_ptr<PrefillExecutor> executor = MakeExecutor(preset);
    PrefillWorker worker(host_.get(), executor.get(), &cache_, &prefill_metrics_, nullptr,
                         {store->get(), "10.0.0.7:7441"});
    for (const int length : {800, 1300, 40}) {
      v1::PrefillRequest request;
      request.set_preset(preset);
      const std::vector<int32_t> tokens = NovellaPrompt(length);
      request.mutable_prompt()->mutable_token_ids()->Add(tokens.begin(), tokens.end());
      const auto response = worker.Prefill(request);
      ASSERT_THAT(response, IsOk());
      EXPECT_EQ(response->ticket().direct_server(), "10.0.0.7:7441") << length;
    }
    std::vector<ObjectKey> keys;
    for (const ObjectKind kind : {ObjectKind::kTable, ObjectKind::kBlock, ObjectKind::kWindow}) {
      for (const ObjectKey& key : cache_.Keys(kind)) keys.push_back(key);
    }
    ASSERT_GT(keys.size(), 10u);
    v1::PairManifest manifest;
    const auto hold = (*store)->Hold(keys, manifest);
    ASSERT_THAT(hold, IsOk());
    const auto stored = cache_.Get(keys);
    ASSERT_THAT(stored, IsOk());
    const std::span<const LayerSpans> layers = (*hold)->layers();
    std::vector<std::vector<std::byte>> expected(layers.size());
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto view = ObjectView::Parse((*stored)[i].span());
      ASSERT_THAT(view, IsOk());
      const std::span<const std::byte> head =
          (*stored)[i].span().first(FramesOffset(view->header().num_layers));
      EXPECT_TRUE(std::ranges::equal(std::as_bytes(std::span(manifest.heads(i))), head)) << i;
      for (size_t layer = 0; layer < layers.size(); ++layer) {
        const std::span<const std::byte> frame = view->frame(static_cast<int>(layer));
        expected[layer].insert(expected[layer].end(), frame.begin(), frame.end());
      }
    }
    for (size_t layer = 0; layer < layers.size(); ++layer) {
      EXPECT_TRUE(Download(layers[layer]) == expected[layer]) << "layer " << layer;
    }
  }
}

TEST_F(CudaPrefillExecutorTest, RefusesWhatItCannotDo) {
  const std::unique_ptr<PrefillExecutor> executor = MakeExecutor("default");
  EXPECT_THAT(Prefill(*executor, "pkv2", NovellaPrompt(200)),
              StatusIs(absl::StatusCode::kFailedPrecondition, testing::HasSubstr("pkv2")));
  EXPECT_THAT(Prefill(*executor, "default", NovellaPrompt(2100)),
              StatusIs(absl::StatusCode::kInvalidArgument, testing::HasSubstr("2048")));
  PrefillWorker worker(host_.get(), executor.get(), &cache_, &prefill_metrics_);
  v1::PrefillRequest request;
  request.set_preset("default");
  const std::vector<int32_t> tokens = NovellaPrompt(500);
  request.mutable_prompt()->mutable_token_ids()->Add(tokens.begin(), tokens.end());
  int asked = 0;
  EXPECT_THAT(worker.Prefill(request, [&] { return ++asked == 4; }),
              StatusIs(absl::StatusCode::kCancelled));
  // What was cut off left nothing behind that disturbs the next one.
  EXPECT_THAT(worker.Prefill(request), IsOk());
}

}  // namespace
}  // namespace pkv
