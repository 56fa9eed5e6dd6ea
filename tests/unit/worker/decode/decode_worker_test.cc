#include "worker/decode/decode_worker.h"

#include <gtest/gtest.h>

#include <limits>
#include <thread>

#include "tests/support/fake_cluster.h"
#include "tests/support/tiny_worker.h"

namespace pkv {
namespace {

using testing::HasSubstr;

class DecodeWorkerTest : public TinyWorkersTest {};

// Prompt lengths about the ends of blocks: cached are all tokens but the last.
class DecodeWorkerLengthTest : public DecodeWorkerTest, public testing::WithParamInterface<int> {};

INSTANTIATE_TEST_SUITE_P(PromptTokens, DecodeWorkerLengthTest,
                         testing::Values(1, 2, 128, 129, 256, 257));

// Without this the comparisons below would prove nothing.
TEST_F(DecodeWorkerTest, TheTinyModelsContinuationDependsOnEveryTokenOfItsPrompt) {
  const std::vector<int32_t> prompt = RandomPrompt(1, 257);
  const Continuation exact = ExactContinuation(prompt, 2);
  for (const int position : {0, 1, 100, 128, 254, 255}) {
    std::vector<int32_t> other = prompt;
    other[position] = other[position] == 5 ? 6 : 5;
    EXPECT_NE(ExactContinuation(other, 2), exact) << position;
  }
}

TEST_P(DecodeWorkerLengthTest, ContinuesAnFp16CacheWithTheUncompressedTokens) {
  const std::vector<int32_t> prompt = RandomPrompt(1, GetParam());
  const v1::PrefillResponse prefilled = Prefill(prompt, "fp16");
  ASSERT_TRUE(prefilled.stats().stored());
  v1::DecodeRequest request = MakeDecode(prefilled.ticket(), 12);
  request.set_refuse_recompute(true);
  const Decoded decoded = Decode(request);
  EXPECT_EQ(decoded.continuation, ExactContinuation(prompt, 12));
  EXPECT_EQ(decoded.stats.recomputed_tokens(), 0u);
  EXPECT_EQ(decoded.stats.fetched_bytes() > 0, GetParam() > 1);
}

TEST_F(DecodeWorkerTest, FlushesTheWindowWithoutATokenOfDifferenceInFp16) {
  const std::vector<int32_t> prompt = RandomPrompt(2, 200);
  const Decoded decoded = Decode(MakeDecode(Prefill(prompt, "fp16").ticket(), 200));
  EXPECT_EQ(decoded.continuation, ExactContinuation(prompt, 200));
  // 399 tokens cached in the end, 128 of them in a block from the start.
  EXPECT_EQ(decoded.stats.flushed_blocks(), 2u);
  EXPECT_EQ(decoded.stats.put_back_blocks(), 0u);
}

TEST_F(DecodeWorkerTest, ComputesThePromptWhenTheCacheIsAway) {
  const std::vector<int32_t> prompt = RandomPrompt(3, 300);
  const v1::HandoffTicket ticket = Prefill(prompt, "fp16").ticket();
  cache_.FailAll(absl::UnavailableError("pkvd is gone"));
  const Decoded decoded = Decode(MakeDecode(ticket, 8));
  EXPECT_EQ(decoded.continuation, ExactContinuation(prompt, 8));
  EXPECT_EQ(decoded.stats.recomputed_tokens(), 299u);
  EXPECT_THAT(decoded.stats.recompute_reason(), HasSubstr("UNAVAILABLE: pkvd is gone"));
  EXPECT_EQ(DecodeMetric(kRecomputes, {{"reason", "UNAVAILABLE"}}), 1);
  EXPECT_EQ(DecodeMetric(kRecomputes), 1);

  v1::DecodeRequest refusing = MakeDecode(ticket, 8);
  refusing.set_refuse_recompute(true);
  EXPECT_THAT(TryDecode(refusing), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(DecodeMetric(kRecomputes), 1) << "refused, not recomputed";
}

TEST_F(DecodeWorkerTest, ComputesThePromptWhenAFrameIsDamagedInAnyLayer) {
  const std::vector<int32_t> prompt = RandomPrompt(4, 300);
  const v1::HandoffTicket ticket = Prefill(prompt, "fp16").ticket();
  for (int layer = 0; layer < shape().num_layers; ++layer) {
    FakeCacheClient damaged;
    for (const ObjectKind kind : {ObjectKind::kBlock, ObjectKind::kWindow}) {
      for (const ObjectKey& key : cache_.Keys(kind)) damaged.Insert(cache_.Bytes(key));
    }
    damaged.Damage(BlockKey(prompt, 1, "fp16"), layer);
    WorkerMetrics metrics("decode");
    DecodeWorker worker(host_, &damaged, &metrics);
    Continuation continuation;
    v1::DecodeStats stats;
    ASSERT_THAT(worker.Decode(MakeDecode(ticket, 8),
                              [&](const v1::DecodeEvent& event) {
                                if (event.has_token()) {
                                  continuation.tokens.push_back(event.token().token_id());
                                  continuation.logprobs.push_back(event.token().logprob());
                                }
                                stats = event.stats();
                                return true;
                              }),
                IsOk());
    EXPECT_EQ(continuation, ExactContinuation(prompt, 8)) << "layer " << layer;
    EXPECT_THAT(stats.recompute_reason(), HasSubstr("DATA_LOSS"));
    EXPECT_EQ(MetricSum(*metrics.registry(), kRecomputes, {{"reason", "DATA_LOSS"}}), 1);
  }
}

TEST_F(DecodeWorkerTest, RecomputesTheVeryCacheThatWasLost) {
  for (const char* preset : {"kivi2", "pkv2", "default"}) {
    const std::vector<int32_t> prompt = RandomPrompt(5, 450);
    const v1::HandoffTicket ticket = Prefill(prompt, preset).ticket();
    const Decoded fetched = Decode(MakeDecode(ticket, 40));
    cache_.Clear();
    const Decoded computed = Decode(MakeDecode(ticket, 40));
    EXPECT_EQ(fetched.stats.recomputed_tokens(), 0u);
    EXPECT_EQ(computed.stats.recomputed_tokens(), 449u);
    EXPECT_THAT(computed.stats.recompute_reason(), HasSubstr("NOT_FOUND"));
    EXPECT_EQ(computed.continuation, fetched.continuation) << preset;
  }
}

TEST_F(DecodeWorkerTest, PutsBackBlocksThatTheNextTurnOfAConversationUses) {
  for (const char* preset : {"fp16", "pkv2", "default"}) {
    std::vector<int32_t> talk = RandomPrompt(6, 300);
    v1::DecodeRequest request = MakeDecode(Prefill(talk, preset).ticket(), 290);
    request.set_put_back(true);
    const Decoded decoded = Decode(request);
    EXPECT_GE(decoded.stats.flushed_blocks(), 2u);
    EXPECT_EQ(decoded.stats.put_back_blocks(), decoded.stats.flushed_blocks());

    talk.insert(talk.end(), decoded.continuation.tokens.begin(), decoded.continuation.tokens.end());
    const std::vector<int32_t> more = RandomPrompt(7, 200);
    talk.insert(talk.end(), more.begin(), more.end());
    const v1::PrefillResponse next = Prefill(talk, preset);
    // 589 tokens were cached: as many as the preset lets leave the window stand in blocks.
    EXPECT_EQ(next.stats().cached_tokens(), BlockTokensAfterPrefill(Params(preset), 589)) << preset;
    v1::DecodeRequest last = MakeDecode(next.ticket(), 8);
    last.set_refuse_recompute(true);
    EXPECT_EQ(Decode(last).stats.recomputed_tokens(), 0u);
  }
}

TEST_F(DecodeWorkerTest, PutsBackWhatItHadToRecomputeUnderTheFlushedBlocks) {
  const std::vector<int32_t> prompt = RandomPrompt(8, 300);
  v1::DecodeRequest request = MakeDecode(Prefill(prompt, "pkv2").ticket(), 140);
  request.set_put_back(true);
  cache_.Clear();
  const Decoded decoded = Decode(request);
  EXPECT_EQ(decoded.stats.recomputed_tokens(), 299u);
  EXPECT_EQ(decoded.stats.flushed_blocks(), 1u);
  EXPECT_EQ(decoded.stats.put_back_blocks(), 3u);
  EXPECT_EQ(cache_.Keys(ObjectKind::kBlock).size(), 3u);
  EXPECT_EQ(cache_.Keys(ObjectKind::kTable).size(), 1u);
}

TEST_F(DecodeWorkerTest, AnswersAllTheSameWhenPutBackIsRefused) {
  v1::DecodeRequest request = MakeDecode(Prefill(RandomPrompt(9, 200), "kivi2").ticket(), 100);
  request.set_put_back(true);
  cache_.set_script([](CacheCall call) {
    return call == CacheCall::kPut ? absl::ResourceExhaustedError("full") : absl::OkStatus();
  });
  const Decoded decoded = Decode(request);
  EXPECT_EQ(decoded.continuation.tokens.size(), 100u);
  EXPECT_EQ(decoded.stats.flushed_blocks(), 1u);
  EXPECT_EQ(decoded.stats.put_back_blocks(), 0u);
}

TEST_F(DecodeWorkerTest, MinesAtTheFirstFlushOfAShortPromptAndPutsTheTableBack) {
  v1::DecodeRequest request = MakeDecode(Prefill(RandomPrompt(10, 30), "pkv2").ticket(), 120);
  request.set_put_back(true);
  const Decoded decoded = Decode(request);
  EXPECT_EQ(decoded.stats.put_back_blocks(), 1u);
  EXPECT_EQ(cache_.Keys(ObjectKind::kTable).size(), 1u);
}

TEST_F(DecodeWorkerTest, StopsWhenNobodyListens) {
  const v1::HandoffTicket ticket = Prefill(RandomPrompt(11, 50), "fp16").ticket();
  int num_events = 0;
  const absl::Status status = decode_.Decode(
      MakeDecode(ticket, 100), [&](const v1::DecodeEvent&) { return ++num_events < 3; });
  EXPECT_THAT(status, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(num_events, 3);
}

TEST_F(DecodeWorkerTest, RunsTwoRequestsAtOnceAsIfEachWereAlone) {
  const std::vector<int32_t> a = RandomPrompt(12, 300), b = RandomPrompt(13, 200);
  const v1::DecodeRequest first = MakeDecode(Prefill(a, "fp16").ticket(), 60);
  const v1::DecodeRequest second = MakeDecode(Prefill(b, "default").ticket(), 60);
  const Continuation first_alone = Decode(first).continuation;
  const Continuation second_alone = Decode(second).continuation;
  Continuation first_beside;
  std::thread other([&] { first_beside = Decode(first).continuation; });
  EXPECT_EQ(Decode(second).continuation, second_alone);
  other.join();
  EXPECT_EQ(first_beside, first_alone);
}

TEST_F(DecodeWorkerTest, TextOfTheEventsAddsUpToTheTokensText) {
  const Decoded decoded = Decode(MakeDecode(Prefill(RandomPrompt(14, 20), "fp16").ticket(), 40));
  const absl::StatusOr<std::string> all = host_->tokenizer().Decode(decoded.continuation.tokens);
  ASSERT_THAT(all, IsOk());
  // A character that is not finished yet is held back.
  EXPECT_EQ(decoded.text, all->substr(0, decoded.text.size()));
}

TEST_F(DecodeWorkerTest, StopsAtTheModelsContext) {
  const int limit = host_->config().max_position_embeddings;
  const v1::HandoffTicket ticket = Prefill(RandomPrompt(15, limit - 2), "kivi2").ticket();
  // The last token may stand just behind the context: it is never computed from.
  EXPECT_EQ(Decode(MakeDecode(ticket, 100)).continuation.tokens.size(), 3u);
}

TEST_F(DecodeWorkerTest, StopsAtTheEndOfSequenceUnlessToldToIgnoreIt) {
  const std::vector<int32_t> prompt = RandomPrompt(16, 40);
  const std::vector<int32_t> exact = ExactContinuation(prompt, 6).tokens;
  TinyModel model;
  model.extra_config = {{"eos_token_id", exact[2]}};
  const TinyModelFolder folder(model);
  const std::unique_ptr<ModelHost> host = LoadTinyHost(folder.path());
  const size_t first_end = std::find(exact.begin(), exact.end(), exact[2]) - exact.begin() + 1;
  CpuPrefillExecutor executor(host.get());
  PrefillWorker prefill(host.get(), &executor, &cache_, &prefill_metrics_);
  DecodeWorker decode(host.get(), &cache_, &decode_metrics_);
  const auto prefilled = prefill.Prefill(MakePrefill(prompt, "fp16"));
  ASSERT_THAT(prefilled, IsOk());
  for (const bool ignore : {false, true}) {
    v1::DecodeRequest request = MakeDecode(prefilled->ticket(), 6);
    request.mutable_sampling()->set_ignore_eos(ignore);
    size_t num_tokens = 0;
    ASSERT_THAT(decode.Decode(request,
                              [&](const v1::DecodeEvent& event) {
                                num_tokens += event.has_token() ? 1 : 0;
                                return true;
                              }),
                IsOk());
    EXPECT_EQ(num_tokens, ignore ? 6 : first_end);
  }
}

TEST_F(DecodeWorkerTest, CountsTokensAndTimes) {
  const Decoded decoded = Decode(MakeDecode(Prefill(RandomPrompt(17, 300), "pkv4").ticket(), 9));
  EXPECT_EQ(DecodeMetric("pkv_worker_generated_tokens_total"), 9);
  EXPECT_EQ(DecodeMetric("pkv_worker_time_to_first_token_seconds"), 1);
  EXPECT_EQ(DecodeMetric("pkv_client_fetch_duration_seconds"), 1);
  EXPECT_GE(decoded.stats.fetch_seconds(), decoded.stats.first_layer_seconds());
  EXPECT_GE(decoded.stats.first_token_seconds(), decoded.stats.fetch_seconds());
}

// A ticket of 300 tokens in two pkv2 blocks and a window, to be spoilt.
class DecodeWorkerTicketTest : public DecodeWorkerTest {
 protected:
  void SetUp() override {
    prompt_ = RandomPrompt(20, 300);
    request_ = MakeDecode(Prefill(prompt_, "pkv2").ticket(), 4);
    request_.set_refuse_recompute(true);
  }
  v1::HandoffTicket& ticket() { return *request_.mutable_ticket(); }
  void ExpectRefused(absl::StatusCode code, const std::string& message) {
    EXPECT_THAT(TryDecode(request_), StatusIs(code, HasSubstr(message)));
  }

  std::vector<int32_t> prompt_;
  v1::DecodeRequest request_;
};

TEST_F(DecodeWorkerTicketTest, IsGoodBeforeItIsSpoilt) {
  EXPECT_EQ(Decode(request_).continuation.tokens.size(), 4u);
}

TEST_F(DecodeWorkerTicketTest, RefusesAnotherModel) {
  ticket().mutable_profile()->front() ^= 1;
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "the ticket is of model");
  ticket().set_profile("short");
  ExpectRefused(absl::StatusCode::kInvalidArgument, "");
}

TEST_F(DecodeWorkerTicketTest, RefusesAVariantThatIsNotServed) {
  ticket().mutable_variant()->set_name("pkv3");
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "pkv3");
}

TEST_F(DecodeWorkerTicketTest, RefusesOtherParametersOfTheVariant) {
  ticket().mutable_variant()->set_params_digest(ticket().variant().params_digest() + 1);
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "params digest");
}

TEST_F(DecodeWorkerTicketTest, RefusesCountsThatDoNotAddUp) {
  const uint32_t blocks = ticket().num_blocks(), window = ticket().num_window_tokens();
  ASSERT_EQ(blocks * kBlockTokens + window, 299u);
  ticket().set_num_window_tokens(window + 1);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "for 299 cached tokens");
  ticket().set_num_window_tokens(window);
  ticket().set_num_blocks(blocks + 1);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "for 299 cached tokens");
  ticket().set_num_blocks(blocks + (1u << 25));  // times 128 it overflows to the same number
  ExpectRefused(absl::StatusCode::kInvalidArgument, "for 299 cached tokens");
}

TEST_F(DecodeWorkerTicketTest, RefusesTokensOutsideTheVocabulary) {
  ticket().set_token_ids(7, kTinyVocabulary);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "token id 264 at position 7");
  ticket().clear_token_ids();
  ExpectRefused(absl::StatusCode::kInvalidArgument, "no tokens");
}

TEST_F(DecodeWorkerTicketTest, DoesNotFindBlocksOfOtherTokens) {
  ticket().set_token_ids(7, prompt_[7] == 5 ? 6 : 5);
  ExpectRefused(absl::StatusCode::kNotFound, "");
}

TEST_F(DecodeWorkerTicketTest, RefusesBlocksWithoutTheirTable) {
  ticket().clear_table_ids();
  ExpectRefused(absl::StatusCode::kFailedPrecondition, "pattern table");
}

TEST_F(DecodeWorkerTicketTest, TakesATableThatIsNamedTwice) {
  ticket().add_table_ids(ticket().table_ids(0));
  request_.mutable_sampling()->set_max_tokens(100);
  EXPECT_EQ(Decode(request_).stats.flushed_blocks(), 1u);
}

TEST_F(DecodeWorkerTicketTest, RefusesSamplingOutOfRange) {
  request_.mutable_sampling()->set_max_tokens(0);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "max_tokens 0");
  request_.mutable_sampling()->set_max_tokens(1);
  request_.mutable_sampling()->set_temperature(std::numeric_limits<float>::quiet_NaN());
  ExpectRefused(absl::StatusCode::kInvalidArgument, "temperature");
  request_.mutable_sampling()->set_temperature(0);
  request_.mutable_sampling()->set_top_p(1.5f);
  ExpectRefused(absl::StatusCode::kInvalidArgument, "top_p");
}

// Over two servers, each prompt stored on the second, of which the cluster prefers the first.
class DecodeClusterTest : public DecodeWorkerTest {
 protected:
  v1::HandoffTicket StoreOnSecond(const std::vector<int32_t>& prompt) {
    cluster_.Prefer(1);
    const auto response = prefill_worker_.Prefill(MakePrefill(prompt, "pkv2"));
    EXPECT_THAT(response, IsOk());
    cluster_.Prefer(0);
    return response.ok() ? response->ticket() : v1::HandoffTicket();
  }
  v1::DecodeStats Run(const v1::DecodeRequest& request) {
    v1::DecodeStats stats;
    EXPECT_THAT(worker_.Decode(request,
                               [&stats](const v1::DecodeEvent& event) {
                                 if (event.has_stats()) stats = event.stats();
                                 return true;
                               }),
                IsOk());
    return stats;
  }

  FakeCluster cluster_{2};
  PrefillWorker prefill_worker_{host_, &executor_, &cluster_, &prefill_metrics_};
  DecodeWorker worker_{host_, &cluster_, &decode_metrics_};
};

TEST_F(DecodeClusterTest, GetsFromTheServerThatTheTicketNames) {
  const std::vector<int32_t> prompt = RandomPrompt(50, 300);
  const v1::HandoffTicket ticket = StoreOnSecond(prompt);
  EXPECT_EQ(Run(MakeDecode(ticket, 2)).recomputed_tokens(), 0u);
  EXPECT_EQ(cluster_.last_chain(),
            PrefixIds(host_->profile(), std::span(prompt).first(2 * kBlockTokens)));
}

TEST_F(DecodeClusterTest, ComputesWhatIsNotWhereItLooks) {
  v1::HandoffTicket ticket = StoreOnSecond(RandomPrompt(51, 300));
  ticket.set_cache_server("nobody:1");
  EXPECT_EQ(Run(MakeDecode(ticket, 2)).recomputed_tokens(), 299u);
}

TEST_F(DecodeClusterTest, PutsBackWhereThePrefixIsOrWhereItIsLookedForNext) {
  v1::DecodeRequest request = MakeDecode(StoreOnSecond(RandomPrompt(52, 300)), 150);
  request.set_put_back(true);
  EXPECT_EQ(Run(request).put_back_blocks(), 1u);
  EXPECT_EQ(cluster_.server(1).Keys(ObjectKind::kBlock).size(), 3u);
  cluster_.server(1).FailAll(absl::UnavailableError("gone"));
  EXPECT_EQ(Run(request).put_back_blocks(), 3u);
  EXPECT_EQ(cluster_.server(0).Keys(ObjectKind::kBlock).size(), 3u);
}

}  // namespace
}  // namespace pkv
