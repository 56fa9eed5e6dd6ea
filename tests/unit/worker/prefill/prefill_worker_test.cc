#include "worker/prefill/prefill_worker.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>

#include "pkv/block/object_view.h"
#include "proto/metrics/metric_registry.h"
#include "tests/support/copying_executor.h"
#include "tests/support/fake_cluster.h"
#include "tests/support/fake_pair_calls.h"
#include "tests/support/tiny_worker.h"
#include "worker/prefill/direct_store.h"

namespace pkv {
namespace {

using testing::HasSubstr;

// fp16 bytes of K and V of one token of the tiny model: 2 layers, 1 kv head, head_dim 64.
constexpr uint64_t kTokenBytes = 2 * 2 * 64 * 2;

class PrefillWorkerTest : public TinyWorkersTest {
 protected:
  // A ticket whose cache a decode worker takes without recomputing.
  void ExpectDecodes(const v1::HandoffTicket& ticket) {
    v1::DecodeRequest request = MakeDecode(ticket, 2);
    request.set_refuse_recompute(true);
    EXPECT_THAT(TryDecode(request), IsOk());
  }
  uint64_t StoredBytes(ObjectKind kind) {
    uint64_t bytes = 0;
    for (const ObjectKey& key : cache_.Keys(kind)) bytes += cache_.Bytes(key).size();
    return bytes;
  }
};

// The first tokens of two prompts are equal, the rest is not.
std::vector<int32_t> SharedPrompt(int shared, int num_tokens, uint64_t seed) {
  std::vector<int32_t> tokens = RandomPrompt(100, shared);
  const std::vector<int32_t> rest = RandomPrompt(seed, num_tokens - shared);
  tokens.insert(tokens.end(), rest.begin(), rest.end());
  return tokens;
}

class PrefillWorkerLengthTest : public PrefillWorkerTest,
                                public testing::WithParamInterface<int> {};

INSTANTIATE_TEST_SUITE_P(PromptTokens, PrefillWorkerLengthTest,
                         testing::Values(1, 2, 128, 129, 256, 257));

TEST_P(PrefillWorkerLengthTest, CachesAllTokensButTheLast) {
  const std::vector<int32_t> prompt = RandomPrompt(1, GetParam());
  const uint32_t cached = GetParam() - 1;
  for (const char* preset : {"fp16", "pkv2", "default"}) {
    cache_.Clear();
    const v1::PrefillResponse response = Prefill(prompt, preset);
    const v1::HandoffTicket& ticket = response.ticket();
    const uint32_t block_tokens = BlockTokensAfterPrefill(Params(preset), cached);
    EXPECT_EQ(ticket.num_blocks(), block_tokens / kBlockTokens);
    EXPECT_EQ(ticket.num_window_tokens(), cached - block_tokens);
    EXPECT_EQ(cache_.Keys(ObjectKind::kBlock).size(), ticket.num_blocks());
    EXPECT_EQ(cache_.Keys(ObjectKind::kWindow).size(), ticket.num_window_tokens() > 0 ? 1u : 0u);
    const bool has_table = Params(preset).encoding.has_patterns && ticket.num_blocks() > 0;
    EXPECT_EQ(ticket.table_ids_size(), has_table ? 1 : 0);
    EXPECT_TRUE(response.stats().stored());
    EXPECT_EQ(response.stats().logical_bytes(), cached * kTokenBytes);
    ExpectDecodes(ticket);
  }
}

TEST_F(PrefillWorkerTest, TicketAndStatsNameWhatWasStored) {
  const std::vector<int32_t> prompt = RandomPrompt(2, 300);
  const v1::PrefillResponse response = Prefill(prompt, "pkv2");
  const v1::HandoffTicket& ticket = response.ticket();
  EXPECT_EQ(ticket.profile(), std::string(host_->profile().AsBytes()));
  EXPECT_EQ(ticket.variant().name(), "pkv2");
  EXPECT_EQ(ticket.variant().params_digest(), Params("pkv2").Digest());
  EXPECT_EQ(std::vector<int32_t>(ticket.token_ids().begin(), ticket.token_ids().end()), prompt);
  ASSERT_EQ(ticket.table_ids_size(), 1);
  EXPECT_EQ(ticket.table_ids(0), std::string(cache_.Keys(ObjectKind::kTable).at(0).id.AsBytes()));
  for (int i = 0; i < 2; ++i) EXPECT_FALSE(cache_.Bytes(BlockKey(prompt, i, "pkv2")).empty());

  const v1::PrefillStats& stats = response.stats();
  EXPECT_EQ(stats.prompt_tokens(), 300u);
  EXPECT_EQ(stats.cached_tokens(), 0u);
  EXPECT_EQ(stats.fetched_bytes(), 0u);
  EXPECT_EQ(stats.table_bytes(), StoredBytes(ObjectKind::kTable));
  EXPECT_EQ(stats.window_bytes(), StoredBytes(ObjectKind::kWindow));
  EXPECT_EQ(stats.cache_bytes(), StoredBytes(ObjectKind::kTable) +
                                     StoredBytes(ObjectKind::kWindow) +
                                     StoredBytes(ObjectKind::kBlock));
  EXPECT_EQ(stats.put_bytes(), stats.cache_bytes());
  EXPECT_GT(stats.compute_seconds(), 0);
  EXPECT_EQ(PrefillMetric("pkv_worker_prompt_tokens_total"), 300);
  EXPECT_EQ(PrefillMetric("pkv_codec_output_bytes_total", {{"codec", "pkv2"}}), stats.put_bytes());
  EXPECT_EQ(PrefillMetric("pkv_codec_input_bytes_total"), stats.logical_bytes());
  EXPECT_EQ(PrefillMetric("pkv_codec_duration_seconds", {{"stage", "mine"}}), 1);
  EXPECT_EQ(PrefillMetric("pkv_codec_relative_error", {{"tensor", "v"}}), 1);
  EXPECT_EQ(PrefillMetric(kRecomputes), 0);
}

TEST_F(PrefillWorkerTest, FetchesTheSharedPrefixAndUsesItsTable) {
  for (const char* preset : {"fp16", "pkv2", "default"}) {
    cache_.Clear();
    const v1::PrefillResponse first = Prefill(SharedPrompt(400, 600, 1), preset);
    const v1::PrefillResponse second = Prefill(SharedPrompt(400, 700, 2), preset);
    EXPECT_EQ(second.stats().cached_tokens(), 384u) << preset;
    EXPECT_GT(second.stats().fetched_bytes(), 0u);
    EXPECT_GT(second.stats().fetch_seconds(), 0);
    EXPECT_EQ(second.stats().table_bytes(), first.stats().table_bytes());
    EXPECT_TRUE(second.stats().stored());
    EXPECT_EQ(second.ticket().table_ids_size(), first.ticket().table_ids_size());
    for (int i = 0; i < first.ticket().table_ids_size(); ++i) {
      EXPECT_EQ(second.ticket().table_ids(i), first.ticket().table_ids(i));
    }
    EXPECT_LE(cache_.Keys(ObjectKind::kTable).size(), 1u);
    ExpectDecodes(second.ticket());
  }
}

TEST_F(PrefillWorkerTest, ComputesTheSameTokensFromAnFp16PrefixAsWithout) {
  Prefill(SharedPrompt(400, 600, 3), "fp16");
  const std::vector<int32_t> prompt = SharedPrompt(400, 500, 4);
  const v1::PrefillResponse response = Prefill(prompt, "fp16");
  ASSERT_EQ(response.stats().cached_tokens(), 384u);
  EXPECT_EQ(Decode(MakeDecode(response.ticket(), 20)).continuation, ExactContinuation(prompt, 20));
}

TEST_F(PrefillWorkerTest, AnswersAnIdenticalPromptWithoutComputing) {
  for (const char* preset : {"fp16", "pkv2", "default"}) {
    for (const int num_tokens : {90, 257, 600}) {
      cache_.Clear();
      const std::vector<int32_t> prompt = RandomPrompt(5, num_tokens);
      const v1::PrefillResponse first = Prefill(prompt, preset);
      const int num_puts = cache_.calls(CacheCall::kStartPut);
      const v1::PrefillResponse again = Prefill(prompt, preset);
      EXPECT_EQ(again.stats().cached_tokens(), num_tokens - 1u);
      EXPECT_EQ(again.stats().compute_seconds(), 0);
      EXPECT_EQ(again.stats().cache_bytes(), first.stats().cache_bytes());
      EXPECT_EQ(again.stats().table_bytes(), first.stats().table_bytes());
      EXPECT_EQ(again.stats().window_bytes(), first.stats().window_bytes());
      EXPECT_TRUE(again.stats().stored());
      EXPECT_EQ(cache_.calls(CacheCall::kStartPut), num_puts);
      EXPECT_EQ(again.ticket().SerializeAsString(), first.ticket().SerializeAsString());
      ExpectDecodes(again.ticket());
    }
  }
}

TEST_F(PrefillWorkerTest, ComputesTheRestWhenOnlyTheWindowOrTheTableIsGone) {
  const std::vector<int32_t> prompt = RandomPrompt(6, 300);
  for (const ObjectKind kind : {ObjectKind::kWindow, ObjectKind::kTable}) {
    Prefill(prompt, "pkv2");
    cache_.Erase(cache_.Keys(kind).at(0));
    const v1::PrefillResponse again = Prefill(prompt, "pkv2");
    EXPECT_EQ(again.stats().cached_tokens(), kind == ObjectKind::kWindow ? 256u : 0u);
    EXPECT_TRUE(again.stats().stored()) << again.stats().store_error();
    ExpectDecodes(again.ticket());
  }
}

TEST_F(PrefillWorkerTest, ComputesEverythingWhenToldToIgnoreTheCache) {
  const std::vector<int32_t> prompt = RandomPrompt(7, 300);
  Prefill(prompt, "pkv2");
  v1::PrefillRequest request = MakePrefill(prompt, "pkv2");
  request.set_ignore_cache(true);
  const int num_lookups = cache_.calls(CacheCall::kLookup);
  const auto response = prefill_.Prefill(request);
  ASSERT_THAT(response, IsOk());
  EXPECT_EQ(response->stats().cached_tokens(), 0u);
  EXPECT_EQ(response->stats().put_bytes(), 0u) << "equal bytes are there already";
  EXPECT_TRUE(response->stats().stored());
  EXPECT_EQ(cache_.calls(CacheCall::kLookup), num_lookups);
}

TEST_F(PrefillWorkerTest, AnswersWithoutACacheAndSaysWhyNothingWasStored) {
  cache_.FailAll(absl::UnavailableError("pkvd is gone"));
  const std::vector<int32_t> prompt = RandomPrompt(8, 300);
  const v1::PrefillResponse response = Prefill(prompt, "fp16");
  EXPECT_FALSE(response.stats().stored());
  EXPECT_THAT(response.stats().store_error(), HasSubstr("pkvd is gone"));
  EXPECT_EQ(PrefillMetric(kRecomputes, {{"reason", "UNAVAILABLE"}}), 1);
  EXPECT_EQ(cache_.calls(CacheCall::kLookup), 1) << "asked once";
  const Decoded decoded = Decode(MakeDecode(response.ticket(), 6));
  EXPECT_EQ(decoded.continuation, ExactContinuation(prompt, 6));
}

TEST_F(PrefillWorkerTest, AnswersWhenTheUploadBreaksAtAnyPoint) {
  for (const CacheCall broken :
       {CacheCall::kStartPut, CacheCall::kWriteLayer, CacheCall::kPut, CacheCall::kCommit}) {
    cache_.Clear();
    cache_.set_script([broken](CacheCall call) {
      return call == broken ? absl::DeadlineExceededError("too slow") : absl::OkStatus();
    });
    const v1::PrefillResponse response = Prefill(RandomPrompt(9, 300), "pkv2");
    EXPECT_FALSE(response.stats().stored());
    EXPECT_THAT(response.stats().store_error(), HasSubstr("DEADLINE_EXCEEDED: too slow"));
    EXPECT_TRUE(cache_.Keys(ObjectKind::kBlock).empty());
  }
}

TEST_F(PrefillWorkerTest, SaysThatABlockWasRefused) {
  const std::vector<int32_t> prompt = RandomPrompt(10, 300);
  cache_.Refuse(BlockKey(prompt, 1, "kivi2"), absl::ResourceExhaustedError("full of pins"));
  const v1::PrefillResponse response = Prefill(prompt, "kivi2");
  EXPECT_FALSE(response.stats().stored());
  EXPECT_THAT(response.stats().store_error(), HasSubstr("full of pins"));
}

TEST_F(PrefillWorkerTest, ComputesAPrefixThatArrivesDamaged) {
  for (int layer = 0; layer < shape().num_layers; ++layer) {
    const uint64_t seed = 20 + layer;
    Prefill(RandomPrompt(seed, 300), "fp16");
    std::vector<int32_t> prompt = RandomPrompt(seed, 300);
    prompt.resize(350, 9);
    cache_.Damage(BlockKey(prompt, 0, "fp16"), layer);
    const v1::PrefillResponse response = Prefill(prompt, "fp16");
    EXPECT_EQ(response.stats().cached_tokens(), 0u);
    EXPECT_EQ(PrefillMetric(kRecomputes, {{"reason", "DATA_LOSS"}}), layer + 1);
    // The decode worker meets the same damage, and computes as well.
    EXPECT_EQ(Decode(MakeDecode(response.ticket(), 6)).continuation, ExactContinuation(prompt, 6));
  }
}

TEST_F(PrefillWorkerTest, ComputesAPrefixThatIsEvictedAfterTheLookup) {
  Prefill(SharedPrompt(300, 400, 11), "pkv2");
  cache_.set_script([this](CacheCall call) {
    if (call == CacheCall::kStartGet) cache_.Clear();
    return absl::OkStatus();
  });
  const v1::PrefillResponse response = Prefill(SharedPrompt(300, 400, 12), "pkv2");
  EXPECT_EQ(response.stats().cached_tokens(), 0u);
  EXPECT_TRUE(response.stats().stored());
  EXPECT_EQ(PrefillMetric(kRecomputes, {{"reason", "NOT_FOUND"}}), 1);
  cache_.set_script(nullptr);
  ExpectDecodes(response.ticket());
}

TEST_F(PrefillWorkerTest, ComputesAPrefixWhoseHeadersLie) {
  const std::vector<int32_t> stored = SharedPrompt(300, 400, 13);
  Prefill(stored, "kivi2");
  ObjectHeader header = *ParseHeader(cache_.Bytes(BlockKey(stored, 1, "kivi2")));
  header.num_layers = 1;
  absl::StatusOr<ObjectBuilder> builder = ObjectBuilder::Make(header);
  ASSERT_THAT(builder, IsOk());
  ASSERT_THAT(builder->Seal(), IsOk());
  cache_.Insert(builder->bytes());
  const v1::PrefillResponse response = Prefill(SharedPrompt(300, 400, 14), "kivi2");
  EXPECT_EQ(response.stats().cached_tokens(), 0u);
  EXPECT_EQ(PrefillMetric(kRecomputes, {{"reason", "FAILED_PRECONDITION"}}), 1);
}

TEST_F(PrefillWorkerTest, UsesAnUnbrokenBeginningOfABrokenChain) {
  const std::vector<int32_t> stored = SharedPrompt(500, 600, 15);
  Prefill(stored, "pkv2");
  // Block 2 as if it had been encoded against a bank that had grown meanwhile.
  ObjectHeader header = *ParseHeader(cache_.Bytes(BlockKey(stored, 2, "pkv2")));
  ++header.num_patterns_v;
  absl::StatusOr<ObjectBuilder> builder = ObjectBuilder::Make(header);
  ASSERT_THAT(builder, IsOk());
  ASSERT_THAT(builder->Seal(), IsOk());
  cache_.Insert(builder->bytes());
  EXPECT_EQ(Prefill(SharedPrompt(500, 600, 16), "pkv2").stats().cached_tokens(), 256u);
}

TEST_F(PrefillWorkerTest, ContinuesTheChainOfAPrefillThatWasFirst) {
  const std::vector<int32_t> ours = SharedPrompt(300, 500, 17);
  // Another worker stores its blocks of the shared prefix while this one computes.
  FakeCacheClient elsewhere;
  WorkerMetrics metrics("prefill");
  PrefillWorker other(host_, &executor_, &elsewhere, &metrics);
  ASSERT_THAT(other.Prefill(MakePrefill(SharedPrompt(300, 400, 18), "pkv2")), IsOk());
  std::atomic<bool> raced = false;
  cache_.set_script([&](CacheCall call) {
    if (call != CacheCall::kCommit || raced.exchange(true)) return absl::OkStatus();
    for (const ObjectKind kind : {ObjectKind::kTable, ObjectKind::kBlock}) {
      for (const ObjectKey& key : elsewhere.Keys(kind)) cache_.Insert(elsewhere.Bytes(key));
    }
    return absl::OkStatus();
  });
  const v1::PrefillResponse response = Prefill(ours, "pkv2");
  EXPECT_TRUE(raced);
  EXPECT_TRUE(response.stats().stored()) << response.stats().store_error();
  EXPECT_EQ(response.stats().cached_tokens(), 256u) << "computed again behind the other's blocks";
  EXPECT_EQ(PrefillMetric("pkv_codec_input_bytes_total"),
            response.stats().logical_bytes() / 499 * (499 + 499 - 256))
      << "what was encoded in vain was encoded";
  ASSERT_EQ(response.ticket().table_ids_size(), 1);
  EXPECT_EQ(response.ticket().table_ids(0),
            std::string(elsewhere.Keys(ObjectKind::kTable).at(0).id.AsBytes()));
  ExpectDecodes(response.ticket());
  const v1::PrefillResponse again = Prefill(ours, "pkv2");
  EXPECT_EQ(again.stats().cached_tokens(), 499u);
  ExpectDecodes(again.ticket());
}

TEST_F(PrefillWorkerTest, SaysThatOthersWereFirstWhenTheyAlwaysAre) {
  FakeCacheClient elsewhere;
  WorkerMetrics metrics("prefill");
  PrefillWorker other(host_, &executor_, &elsewhere, &metrics);
  ASSERT_THAT(other.Prefill(MakePrefill(SharedPrompt(128, 300, 21), "pkv2")), IsOk());
  // Its first block is there whenever ours is committed, and gone when we look.
  cache_.set_script([&](CacheCall call) {
    if (call == CacheCall::kLookup) cache_.Clear();
    if (call != CacheCall::kCommit) return absl::OkStatus();
    for (const ObjectKind kind : {ObjectKind::kTable, ObjectKind::kBlock}) {
      for (const ObjectKey& key : elsewhere.Keys(kind)) cache_.Insert(elsewhere.Bytes(key));
    }
    return absl::OkStatus();
  });
  const v1::PrefillResponse response = Prefill(SharedPrompt(128, 300, 22), "pkv2");
  EXPECT_EQ(cache_.calls(CacheCall::kLookup), 3);
  EXPECT_FALSE(response.stats().stored());
  EXPECT_THAT(response.stats().store_error(), HasSubstr("another prefill"));
}

TEST_F(PrefillWorkerTest, ComputesAPromptOnceHoweverManyAskForIt) {
  const std::vector<int32_t> prompt = RandomPrompt(32, 500);
  std::vector<v1::PrefillResponse> responses(4);
  std::vector<std::thread> callers;
  for (v1::PrefillResponse& response : responses) {
    callers.emplace_back([&] { response = Prefill(prompt, "default"); });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(cache_.calls(CacheCall::kStartPut), 1);
  EXPECT_EQ(cache_.Keys(ObjectKind::kTable).size(), 1u);
  for (const v1::PrefillResponse& response : responses) {
    EXPECT_TRUE(response.stats().stored());
    ExpectDecodes(response.ticket());
  }
}

TEST_F(PrefillWorkerTest, EndsAfterALayerWhenTheCallerWentAway) {
  std::atomic<int> asked = 0;
  const auto response =
      prefill_.Prefill(MakePrefill(RandomPrompt(19, 300), "pkv2"), [&] { return ++asked == 2; });
  EXPECT_THAT(response, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(asked, 2);
  EXPECT_TRUE(cache_.Keys(ObjectKind::kBlock).empty());
  EXPECT_EQ(PrefillMetric("pkv_worker_prompt_tokens_total"), 0);
}

TEST_F(PrefillWorkerTest, RunsTwoRequestsAtOnce) {
  const std::vector<int32_t> a = RandomPrompt(30, 300), b = RandomPrompt(31, 400);
  std::thread other([&] { Prefill(a, "pkv2"); });
  const v1::PrefillResponse second = Prefill(b, "fp16");
  other.join();
  EXPECT_EQ(Decode(MakeDecode(second.ticket(), 6)).continuation, ExactContinuation(b, 6));
  EXPECT_EQ(Prefill(a, "pkv2").stats().cached_tokens(), 299u);
}

// An executor whose device is gone.
class LostExecutor final : public PrefillExecutor {
 public:
  absl::Status CheckVariant(const CodecParams&) const override { return absl::OkStatus(); }
  absl::Status Run(KvSequence&, std::span<const int32_t>, const std::function<bool()>&,
                   const std::function<void(int)>&, const DeviceFrames&) override {
    return absl::InternalError("the device is lost");
  }
};

TEST_F(PrefillWorkerTest, TellsThatTheDeviceIsLostWithAndWithoutAPrefix) {
  const std::vector<int32_t> prompt = RandomPrompt(33, 300);
  for (const bool cached : {false, true}) {
    if (cached) Prefill(prompt, "pkv2");
    LostExecutor executor;
    std::vector<absl::Status> failures;
    PrefillWorker worker(host_, &executor, &cache_, &prefill_metrics_,
                         [&](const absl::Status& status) { failures.push_back(status); });
    std::vector<int32_t> longer = prompt;
    longer.resize(500, 7);
    EXPECT_THAT(worker.Prefill(MakePrefill(longer, "pkv2")),
                StatusIs(absl::StatusCode::kInternal, HasSubstr("the device is lost")));
    ASSERT_EQ(failures.size(), 1u);
    EXPECT_THAT(failures[0], StatusIs(absl::StatusCode::kInternal));
  }
}

class PrefillDirectTest : public PrefillWorkerTest {
 protected:
  void Start(uint64_t memory_bytes = uint64_t{8} << 20) {
    store_ = *DirectStore::Make(calls_, memory_bytes, &metrics_);
    worker_ = std::make_unique<PrefillWorker>(host_, &copying_, &cache_, &prefill_metrics_, nullptr,
                                              PrefillWorker::Direct{store_.get(), "10.0.0.7:7441"});
  }
  v1::HandoffTicket Run(const std::vector<int32_t>& prompt, bool ignore_cache = false) {
    v1::PrefillRequest request = MakePrefill(prompt, "pkv2");
    request.set_ignore_cache(ignore_cache);
    const auto response = worker_->Prefill(request);
    EXPECT_THAT(response, IsOk());
    return response.ok() ? response->ticket() : v1::HandoffTicket();
  }
  std::vector<ObjectKey> AllKeys() {
    std::vector<ObjectKey> keys;
    for (const ObjectKind kind : {ObjectKind::kTable, ObjectKind::kBlock, ObjectKind::kWindow}) {
      for (const ObjectKey& key : cache_.Keys(kind)) keys.push_back(key);
    }
    return keys;
  }

  MetricRegistry registry_;
  DirectMetrics metrics_{registry_};
  std::shared_ptr<FakePairCalls> calls_ =
      std::make_shared<FakePairCalls>(std::make_shared<FakeLink>(), nullptr);
  std::unique_ptr<DirectStore> store_;
  CopyingExecutor copying_{&executor_};
  std::unique_ptr<PrefillWorker> worker_;
};

TEST_F(PrefillDirectTest, KeepsWhatItStoresAndTheTicketSaysWhere) {
  Start();
  const std::vector<int32_t> prompt = RandomPrompt(40, 300);
  EXPECT_EQ(Run(prompt).direct_server(), "10.0.0.7:7441");
  const std::vector<ObjectKey> keys = AllKeys();
  ASSERT_EQ(keys.size(), 1u + 2 + 1);
  v1::PairManifest manifest;
  const auto hold = store_->Hold(keys, manifest);
  ASSERT_THAT(hold, IsOk());
  std::vector<std::vector<std::byte>> expected(shape().num_layers), got(shape().num_layers);
  for (size_t i = 0; i < keys.size(); ++i) {
    const std::vector<std::byte> stored = cache_.Bytes(keys[i]);
    const ObjectView view = *ObjectView::Parse(stored);
    const size_t head_bytes = FramesOffset(view.header().num_layers);
    EXPECT_TRUE(std::ranges::equal(std::as_bytes(std::span(manifest.heads(i))),
                                   std::span(stored).first(head_bytes)));
    for (int layer = 0; layer < shape().num_layers; ++layer) {
      const std::span<const std::byte> frame = view.frame(layer);
      expected[layer].insert(expected[layer].end(), frame.begin(), frame.end());
    }
  }
  for (int layer = 0; layer < shape().num_layers; ++layer) {
    for (const DeviceSpan& span : (*hold)->layers()[layer].spans) {
      got[layer].insert(got[layer].end(), span.data, span.data + span.bytes);
    }
  }
  EXPECT_EQ(got, expected);
}

TEST_F(PrefillDirectTest, APromptFromTheCacheIsOfferedAsLongAsItIsHere) {
  Start();
  const std::vector<int32_t> prompt = RandomPrompt(41, 300);
  Run(prompt);
  EXPECT_EQ(Run(prompt).direct_server(), "10.0.0.7:7441");
  EXPECT_EQ(copying_.num_offered, 1) << "not computed again";
  store_->OnDamaged(BlockKey(prompt, 0, "pkv2"));
  EXPECT_EQ(Run(prompt).direct_server(), "");
}

TEST_F(PrefillDirectTest, APrefixThatWasComputedElsewhereIsNotOffered) {
  Start();
  const std::vector<int32_t> shared = SharedPrompt(150, 160, 1);
  Prefill(shared, "pkv2");
  const std::vector<int32_t> longer = SharedPrompt(150, 420, 2);
  EXPECT_EQ(Run(longer).direct_server(), "") << "its first block is pkvd's alone";
  EXPECT_EQ(copying_.num_offered, 1);
  // One that was computed here is.
  Run(shared, /*ignore_cache=*/true);
  EXPECT_EQ(Run(longer).direct_server(), "10.0.0.7:7441");
}

TEST_F(PrefillDirectTest, WithoutRoomItIsAsIfThereWereNoStore) {
  Start(/*memory_bytes=*/1024);
  EXPECT_EQ(Run(RandomPrompt(42, 300)).direct_server(), "");
  EXPECT_EQ(copying_.num_offered, 0);
  EXPECT_EQ(AllKeys().size(), 4u);
}

TEST_F(PrefillDirectTest, WhatPkvdDoesNotTakeIsOfferedAllTheSame) {
  Start();
  cache_.FailAll(absl::UnavailableError("away"));
  const v1::HandoffTicket ticket = Run(RandomPrompt(43, 300));
  EXPECT_EQ(ticket.direct_server(), "10.0.0.7:7441");
  EXPECT_EQ(ticket.table_ids_size(), 1);
}

TEST_F(PrefillDirectTest, AChainBesideTheStoredOneIsNotKept) {
  Start();
  const std::vector<int32_t> prompt = RandomPrompt(44, 300);
  cache_.Refuse(BlockKey(prompt, 0, "pkv2"), absl::AlreadyExistsError("another chain"));
  Run(prompt);
  EXPECT_EQ(MetricSum(registry_, "pkv_direct_resident_bytes"), 0);
}

// Of several outcomes the first error is not the only one that counts.
TEST_F(PrefillDirectTest, AChainBesideTheStoredOneIsNotKeptWhateverFailsBeforeItsConflict) {
  Start();
  const std::vector<int32_t> prompt = RandomPrompt(44, 300);
  cache_.Refuse(BlockKey(prompt, 0, "pkv2"), absl::ResourceExhaustedError("full"));
  cache_.Refuse(BlockKey(prompt, 1, "pkv2"), absl::AlreadyExistsError("another chain"));
  EXPECT_EQ(Run(prompt).direct_server(), "");
  EXPECT_EQ(MetricSum(registry_, "pkv_direct_resident_bytes"), 0);
}

// One that does not get to its first layer, as when it waits for the device's turn.
TEST_F(PrefillDirectTest, APromptThatHasNotBegunTakesNoRoomFromOthers) {
  Start();
  const std::vector<int32_t> prompt = RandomPrompt(46, 300);
  Run(prompt);
  const double bytes = MetricSum(registry_, "pkv_direct_resident_bytes");
  Start(static_cast<uint64_t>(1.5 * bytes));
  Run(prompt, /*ignore_cache=*/true);
  EXPECT_THAT(worker_->Prefill(MakePrefill(RandomPrompt(47, 300), "pkv2"), [] { return true; }),
              StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(Run(prompt).direct_server(), "10.0.0.7:7441");
}

TEST_F(PrefillDirectTest, APrefillThatIsCancelledGivesItsMemoryBack) {
  Start();
  EXPECT_THAT(worker_->Prefill(MakePrefill(RandomPrompt(45, 300), "pkv2"),
                               [asked = 0]() mutable { return ++asked > 1; }),
              StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(MetricSum(registry_, "pkv_direct_resident_bytes"), 0);
}

// Over two servers.
class PrefillClusterTest : public PrefillWorkerTest {
 protected:
  v1::PrefillResponse Run(const std::vector<int32_t>& prompt) {
    const auto response = worker_.Prefill(MakePrefill(prompt, "pkv2"));
    EXPECT_THAT(response, IsOk());
    return response.ok() ? *response : v1::PrefillResponse();
  }
  size_t NumObjects(int server) {
    size_t count = 0;
    for (const ObjectKind kind : {ObjectKind::kTable, ObjectKind::kBlock, ObjectKind::kWindow}) {
      count += cluster_.server(server).Keys(kind).size();
    }
    return count;
  }

  FakeCluster cluster_{2};
  PrefillWorker worker_{host_, &executor_, &cluster_, &prefill_metrics_};
};

TEST_F(PrefillClusterTest, PutsAWholeChainOnTheChosenServerAndTheTicketNamesIt) {
  cluster_.Prefer(1);
  const std::vector<int32_t> prompt = RandomPrompt(30, 300);
  EXPECT_EQ(Run(prompt).ticket().cache_server(), "server1");
  EXPECT_EQ(cluster_.last_chain(),
            PrefixIds(host_->profile(), std::span(prompt).first(2 * kBlockTokens)));
  EXPECT_EQ(NumObjects(0), 0u);
  EXPECT_EQ(NumObjects(1), 4u) << "table, two blocks, window";
  EXPECT_EQ(Run(prompt).stats().cached_tokens(), 299u) << "and finds it there";
}

TEST_F(PrefillClusterTest, PlacesAPromptWithoutABlockByItsWindow) {
  Run(RandomPrompt(31, 20));
  const std::vector<ObjectKey> windows = cluster_.server(0).Keys(ObjectKind::kWindow);
  ASSERT_EQ(windows.size(), 1u);
  EXPECT_EQ(cluster_.last_chain(), std::vector<Digest>{windows[0].id});
}

TEST_F(PrefillClusterTest, ALookupThatFindsNobodyPutsOnTheServerThatStandsIn) {
  cluster_.server(0).set_script([this](CacheCall) {
    cluster_.Prefer(1);  // as a cluster learns of it
    return absl::UnavailableError("gone");
  });
  const v1::PrefillResponse response = Run(RandomPrompt(32, 300));
  EXPECT_TRUE(response.stats().stored());
  EXPECT_EQ(response.ticket().cache_server(), "server1");
  EXPECT_EQ(NumObjects(1), 4u);
}

TEST_F(PrefillClusterTest, APutThatIsRefusedForDrainingGoesToTheServerThatStandsIn) {
  cluster_.server(0).set_script([this](CacheCall call) -> absl::Status {
    if (call != CacheCall::kStartPut) return absl::OkStatus();
    cluster_.Prefer(1);
    return absl::UnavailableError("draining");
  });
  const v1::PrefillResponse response = Run(RandomPrompt(33, 300));
  EXPECT_TRUE(response.stats().stored());
  EXPECT_EQ(response.ticket().cache_server(), "server1");
  EXPECT_EQ(NumObjects(1), 4u);
}

TEST_F(PrefillClusterTest, BlocksWithoutTheirPrefixGoNowhereElse) {
  Run(SharedPrompt(256, 300, 34));
  cluster_.server(0).set_script([this](CacheCall call) -> absl::Status {
    if (call != CacheCall::kStartPut) return absl::OkStatus();
    cluster_.Prefer(1);
    return absl::UnavailableError("draining");
  });
  const v1::PrefillResponse response = Run(SharedPrompt(256, 500, 35));
  EXPECT_EQ(response.stats().cached_tokens(), 256u);
  EXPECT_FALSE(response.stats().stored());
  EXPECT_EQ(NumObjects(1), 0u);
}

TEST_F(PrefillWorkerTest, RefusesWhatItCannotPrefill) {
  EXPECT_THAT(prefill_.Prefill(MakePrefill(RandomPrompt(1, 10), "pkv3")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("kivi2-g64")));
  EXPECT_THAT(prefill_.Prefill(MakePrefill({}, "fp16")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("neither")));
  EXPECT_THAT(prefill_.Prefill(MakePrefill({5, -1}, "fp16")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("token id -1 at position 1")));
  const int limit = host_->config().max_position_embeddings;
  EXPECT_THAT(prefill_.Prefill(MakePrefill(RandomPrompt(1, limit + 1), "fp16")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("at most 1024")));
  EXPECT_THAT(prefill_.Prefill(MakePrefill(RandomPrompt(1, limit), "fp16")), IsOk());
}

}  // namespace
}  // namespace pkv
