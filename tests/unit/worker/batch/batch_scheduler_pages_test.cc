// How a BatchScheduler hands out pages: sharing, eviction, computing again, putting back. The fake
// engine checks at every step that each sequence's pages hold its own blocks.

#include <gmock/gmock.h>

#include <algorithm>
#include <memory>
#include <thread>

#include "tests/support/batch_fixture.h"
#include "worker/batch/batch_scheduler.h"

namespace pkv {
namespace {

using testing::HasSubstr;

constexpr EngineLimits kShared = {
    .num_slots = 4, .num_pages = 16, .max_blocks = 8, .shares_pages = true};

class BatchSchedulerPagesTest : public BatchTest {
 protected:
  // `prompt` and more tokens.
  static std::vector<int32_t> Longer(std::vector<int32_t> prompt, uint64_t seed, int num_tokens) {
    const std::vector<int32_t> more = Prompt(seed, num_tokens);
    prompt.insert(prompt.end(), more.begin(), more.end());
    return prompt;
  }
  void ExpectGood(const BatchRequest& request, uint32_t resident_blocks) {
    BatchCaller caller;
    MustSubmit(request, caller);
    const BatchOutcome outcome = caller.WaitForEnd();
    EXPECT_THAT(outcome.status, IsOk());
    EXPECT_EQ(caller.tokens(), Expected(request));
    EXPECT_EQ(outcome.stats.resident_blocks(), resident_blocks);
    EXPECT_EQ(outcome.stats.recomputed_tokens(), 0u);
  }
  BatchRequest& Refusing(BatchRequest& request) {
    request.refuse_recompute = true;
    return request;
  }
};

TEST_F(BatchSchedulerPagesTest, ASecondRequestFindsTheBlocksOfTheFirst) {
  Start(kShared);
  const std::vector<int32_t> prefix = Prompt(1, 384);
  const BatchRequest first = StoredRequest(Longer(prefix, 2, 10), 5);
  ExpectGood(first, 0);
  EXPECT_EQ(scheduler_->page_counts().cached, 3);
  const BatchRequest second = StoredRequest(Longer(prefix, 3, 150), 5);
  ExpectGood(second, 3);
  EXPECT_EQ(scheduler_->page_counts().cached, 4);
  EXPECT_EQ(Metric("pkv_decode_shared_pages_total"), 3);
  // Blocks that are in pages need not be stored any more, but for the first: its sinks are the
  // slot's own.
  for (const int block : {1, 2}) cache_.Erase(first.keys[block]);
  BatchRequest third = StoredRequest(Longer(prefix, 4, 20), 5);
  for (const int block : {1, 2}) cache_.Erase(first.keys[block]);
  ExpectGood(Refusing(third), 3);
  ExpectNothingHeld();
}

TEST_F(BatchSchedulerPagesTest, TwoThatFetchTheSameBlocksAtOnceKeepOneCopy) {
  Start(kShared);
  engine_->HoldSteps();
  const BatchRequest request = StoredRequest(Prompt(5, 300), 5);
  BatchCaller first, second;
  cache_.HoldLayersFrom(0);
  MustSubmit(request, first);
  MustSubmit(request, second);
  EXPECT_EQ(scheduler_->page_counts().referenced, 4) << "none is there to be found yet";
  cache_.ReleaseLayers();
  engine_->ReleaseSteps();
  EXPECT_THAT(first.WaitForEnd().status, IsOk());
  EXPECT_THAT(second.WaitForEnd().status, IsOk());
  EXPECT_EQ(first.tokens(), Expected(request));
  EXPECT_EQ(second.tokens(), Expected(request));
  EXPECT_EQ(scheduler_->page_counts().cached, 2);
  ExpectNothingHeld();
}

TEST_F(BatchSchedulerPagesTest, SharesNothingOfAnEngineThatDoesNot) {
  EngineLimits limits = kShared;
  limits.shares_pages = false;
  Start(limits);
  const BatchRequest request = StoredRequest(Prompt(6, 300), 5);
  ExpectGood(request, 0);
  ExpectGood(request, 0);
  EXPECT_EQ(scheduler_->page_counts().cached, 0);
  EXPECT_EQ(scheduler_->page_counts().free, limits.num_pages);
}

TEST_F(BatchSchedulerPagesTest, VariantsDoNotShareBlocks) {
  Start(kShared);
  const std::vector<int32_t> prompt = Prompt(7, 300);
  ExpectGood(StoredRequest(prompt, 5), 0);
  ExpectGood(StoredRequest(prompt, 5, {.preset = "kivi2"}), 0);
  ExpectGood(StoredRequest(prompt, 5, {.preset = "kivi2"}), 2);
}

TEST_F(BatchSchedulerPagesTest, ABlockThatAppendsPatternsIsNotShared) {
  Start(kShared);
  const StoredPrefix prefix = {.preset = "pkv2", .appends_at = 1};
  const BatchRequest request = StoredRequest(Prompt(8, 400), 5, prefix);
  ExpectGood(request, 0);
  EXPECT_EQ(scheduler_->page_counts().cached, 2);
  ExpectGood(request, 2);
}

TEST_F(BatchSchedulerPagesTest, BlocksMadeWhileDecodingAreNotShared) {
  Start(kShared);
  const BatchRequest request = StoredRequest(Prompt(9, 100), 400);
  ExpectGood(request, 0);
  EXPECT_EQ(scheduler_->page_counts().cached, 0);
}

TEST_F(BatchSchedulerPagesTest, EvictsUnderPressureAndFetchesAgain) {
  EngineLimits limits = kShared;
  limits.num_pages = 3;
  Start(limits);
  const BatchRequest first = StoredRequest(Prompt(10, 300), 5);
  const BatchRequest other = StoredRequest(Prompt(11, 300), 5);
  ExpectGood(first, 0);
  ExpectGood(first, 2);
  ExpectGood(other, 0);  // takes a free page and the first one's second block
  EXPECT_EQ(Metric("pkv_evictions_total", "tier", "page"), 1);
  ExpectGood(first, 1);
  ExpectNothingHeld();
}

TEST_F(BatchSchedulerPagesTest, DoesNotEvictWhatRuns) {
  EngineLimits limits = kShared;
  limits.num_pages = 4;
  Start(limits);
  engine_->HoldSteps();
  const BatchRequest running = StoredRequest(Prompt(12, 300), 20);
  const BatchRequest large = StoredRequest(Prompt(13, 400), 5);
  BatchCaller first, second;
  MustSubmit(running, first);
  engine_->WaitForHeldStep();
  MustSubmit(large, second);
  EXPECT_EQ(Metric("pkv_queue_depth", "queue", "decode"), 1) << "3 pages of 2 free ones";
  engine_->ReleaseSteps();
  EXPECT_THAT(first.WaitForEnd().status, IsOk());
  EXPECT_THAT(second.WaitForEnd().status, IsOk());
  EXPECT_EQ(first.tokens(), Expected(running));
  EXPECT_EQ(second.tokens(), Expected(large));
}

TEST_F(BatchSchedulerPagesTest, AResidentBlockOfAnotherTableIsFetchedInstead) {
  Start(kShared);
  const std::vector<int32_t> prompt = Prompt(14, 300);
  const StoredPrefix old = {.preset = "pkv2", .table = 1}, again = {.preset = "pkv2", .table = 2};
  ExpectGood(StoredRequest(prompt, 5, old), 0);
  // Evicted from the cache and prefilled anew, against other patterns.
  BatchRequest request = StoredRequest(prompt, 5, again);
  ExpectGood(Refusing(request), 0);
  EXPECT_EQ(cache_.calls(CacheCall::kStartGet), 2) << "known without trying";
  ExpectGood(Refusing(request), 2);  // the later ones have the name now
  ExpectNothingHeld();
}

TEST_F(BatchSchedulerPagesTest, FetchesAllWhenTheResidentBlocksDoNotBelongToTheStoredOnes) {
  Start(kShared);
  const std::vector<int32_t> prompt = Prompt(15, 500);
  ExpectGood(StoredRequest(prompt, 5, {.preset = "pkv2", .appends_at = 1}), 0);
  EXPECT_EQ(scheduler_->page_counts().cached, 2);
  // Stored again, by a prefill whose second block appends nothing: the third block, which a page
  // holds, speaks of a pattern that is not there.
  BatchRequest request = StoredRequest(prompt, 5, {.preset = "pkv2"});
  const int num_gets = cache_.calls(CacheCall::kStartGet);
  ExpectGood(Refusing(request), 0);
  EXPECT_EQ(cache_.calls(CacheCall::kStartGet), num_gets + 2);
  ExpectGood(Refusing(request), 3);
  ExpectNothingHeld();
}

TEST_F(BatchSchedulerPagesTest, ComputesIntoPagesOfItsOwn) {
  Start(kShared);
  engine_->HoldSteps();
  const std::vector<int32_t> prefix = Prompt(16, 384);
  const BatchRequest running = StoredRequest(Longer(prefix, 17, 10), 30);
  BatchCaller first, second;
  MustSubmit(running, first);
  engine_->WaitForHeldStep();
  // Its blocks are in pages of the running one, its window is gone.
  const BatchRequest computed = Request(Longer(prefix, 18, 20), 5);
  MustSubmit(computed, second);
  second.WaitForTokens(1);
  engine_->ReleaseSteps();
  const BatchOutcome outcome = second.WaitForEnd();
  EXPECT_THAT(outcome.status, IsOk());
  EXPECT_EQ(second.tokens(), Expected(computed));
  EXPECT_EQ(outcome.stats.recomputed_tokens(), 403u);
  EXPECT_THAT(outcome.stats.recompute_reason(), HasSubstr("NOT_FOUND"));
  EXPECT_EQ(outcome.stats.resident_blocks(), 0u);
  EXPECT_EQ(Metric("pkv_client_fallback_recompute_total", "reason", "NOT_FOUND"), 1);
  EXPECT_THAT(first.WaitForEnd().status, IsOk());
  EXPECT_EQ(first.tokens(), Expected(running));
  EXPECT_EQ(scheduler_->page_counts().cached, 3) << "computed blocks are not shared";
  ExpectNothingHeld();
}

// With shared pages it had room; for pages of its own it must wait, before those behind it.
TEST_F(BatchSchedulerPagesTest, WhatMustComputeWaitsForItsPagesAsTheFirst) {
  EngineLimits limits = kShared;
  limits.num_pages = 5;
  Start(limits);
  engine_->HoldSteps();
  const std::vector<int32_t> prefix = Prompt(19, 384);
  const BatchRequest running = StoredRequest(Longer(prefix, 20, 10), 6);
  const BatchRequest computed = Request(Longer(prefix, 21, 20), 5);  // its window is not stored
  const BatchRequest behind = StoredRequest(Prompt(22, 400), 5);
  BatchCaller first, second, third;
  MustSubmit(running, first);
  engine_->WaitForHeldStep();
  TestGate gate;
  cache_.set_script([&gate](CacheCall call) {
    if (call == CacheCall::kStartGet) gate.Pass();
    return absl::OkStatus();
  });
  MustSubmit(computed, second);
  gate.WaitForArrivals(1);
  MustSubmit(behind, third);
  gate.Open();
  engine_->AllowSteps(5);  // all that the running one needs
  EXPECT_THAT(first.WaitForEnd().status, IsOk());
  second.WaitForTokens(1);
  EXPECT_TRUE(third.tokens().empty());
  engine_->ReleaseSteps();
  EXPECT_THAT(second.WaitForEnd().status, IsOk());
  EXPECT_EQ(second.tokens(), Expected(computed));
  EXPECT_THAT(third.WaitForEnd().status, IsOk());
  EXPECT_EQ(third.tokens(), Expected(behind));
  ExpectNothingHeld();
}

TEST_F(BatchSchedulerPagesTest, DrainingFinishesWhatMustCompute) {
  Start(kShared);
  TestGate gate;
  cache_.set_script([&gate](CacheCall call) {
    if (call == CacheCall::kStartGet) gate.Pass();
    return absl::OkStatus();
  });
  const BatchRequest request = Request(Prompt(28, 300), 5);  // not stored
  BatchCaller caller;
  MustSubmit(request, caller);
  gate.WaitForArrivals(1);
  scheduler_->Drain();
  gate.Open();
  EXPECT_THAT(caller.WaitForEnd().status, IsOk());
  EXPECT_EQ(caller.tokens(), Expected(request));
}

TEST_F(BatchSchedulerPagesTest, RefusesToComputeWhenToldTo) {
  Start(kShared);
  BatchRequest request = Request(Prompt(23, 300), 5);
  EXPECT_THAT(Run(Refusing(request)).status, StatusIs(absl::StatusCode::kNotFound));
  cache_.FailAll(absl::UnavailableError("pkvd is gone"));
  EXPECT_THAT(Run(Refusing(request)).status,
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("pkvd is gone")));
  ExpectNothingHeld();
}

TEST_F(BatchSchedulerPagesTest, GivesItsPlaceOnBeforeItPutsBack) {
  EngineLimits limits = kShared;
  limits.num_slots = 1;
  limits.num_pages = 4;
  Start(limits);
  BatchRequest request = StoredRequest(Prompt(24, 200), 200);
  request.put_back = true;
  const BatchRequest next = StoredRequest(Prompt(25, 400), 10);
  TestGate gate;
  cache_.set_script([&gate](CacheCall call) {
    if (call == CacheCall::kPut) gate.Pass();
    return absl::OkStatus();
  });
  BatchCaller first, second;
  MustSubmit(request, first);
  gate.WaitForArrivals(1);
  EXPECT_EQ(first.tokens().size(), 200u) << "the answer is given";
  MustSubmit(next, second);
  EXPECT_THAT(second.WaitForEnd().status, IsOk());
  EXPECT_FALSE(first.ended());
  gate.Open();
  const BatchOutcome outcome = first.WaitForEnd();
  EXPECT_THAT(outcome.status, IsOk());
  EXPECT_EQ(outcome.stats.flushed_blocks(), 2u);
  EXPECT_EQ(outcome.stats.put_back_blocks(), 2u);
  EXPECT_EQ(cache_.Keys(ObjectKind::kBlock).size(), 1u + 3u + 2u);
}

TEST_F(BatchSchedulerPagesTest, PutsBackWhatItComputedBeforeWhatItFlushed) {
  Start(kShared);
  BatchRequest request = Request(Prompt(26, 300), 140);
  request.put_back = true;
  const BatchOutcome outcome = Run(request);
  EXPECT_EQ(outcome.stats.put_back_blocks(), 3u);
  // The whole chain is there for the next turn.
  std::vector<int32_t> turn = request.tokens;
  const std::vector<int32_t> answer = Expected(request);
  turn.insert(turn.end(), answer.begin(), answer.end());
  for (const Digest& id : PrefixIds(Profile(), std::span(turn).first(384))) {
    EXPECT_FALSE(cache_.Bytes({ObjectKind::kBlock, id, request.params.variant()}).empty());
  }
}

TEST_F(BatchSchedulerPagesTest, PutsNothingBackOfARequestThatFailed) {
  Start(kShared);
  BatchRequest request = StoredRequest(Prompt(27, 200), 200);
  request.put_back = true;
  BatchCaller caller;
  caller.LeaveAfter(150);
  MustSubmit(request, caller);
  EXPECT_THAT(caller.WaitForEnd().status, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(cache_.calls(CacheCall::kPut), 0);
}

// Goal: whatever happens to the others, each request gets the tokens that it has alone, and at the
// end nothing is held. Method: seeded prompts over a few prefixes, in a pool that is too small for
// all, some not stored, some cancelled or left by their callers at any time.
class BatchSchedulerTrafficTest : public BatchSchedulerPagesTest,
                                  public testing::WithParamInterface<int> {};

INSTANTIATE_TEST_SUITE_P(Seeds, BatchSchedulerTrafficTest, testing::Range(0, 24));

TEST_P(BatchSchedulerTrafficTest, GivesEveryRequestTheTokensThatItHasAlone) {
  TestRandom random(uint64_t(GetParam()) + 1000);
  EngineLimits limits = {.num_slots = 1 + random.Below(5),
                         .num_pages = 6 + random.Below(12),
                         .max_blocks = 6,
                         .shares_pages = GetParam() % 2 == 0};
  BatchOptions options;
  options.max_waiting = 1000;
  options.num_fetch_threads = 1 + random.Below(4);
  Start(limits, options);

  constexpr int kRequests = 60;
  std::vector<BatchRequest> requests;
  for (int i = 0; i < kRequests; ++i) {
    std::vector<int32_t> prompt = Prompt(100 + random.Below(3), 384);
    prompt.resize(random.Below(385));
    prompt = Longer(prompt, 200 + uint64_t(i), 1 + random.Below(60));
    const char* presets[] = {"fp16", "kivi2", "pkv2"};
    const StoredPrefix prefix = {.preset = presets[random.Below(3)]};
    requests.push_back(Request(prompt, 1 + random.Below(200), prefix));
    if (random.Below(4) != 0) Store(requests.back(), prefix);
    requests.back().put_back = random.Below(4) == 0;
  }
  std::vector<std::unique_ptr<BatchCaller>> callers;
  std::vector<uint64_t> ids;
  for (const BatchRequest& request : requests) {
    callers.push_back(std::make_unique<BatchCaller>());
    if (random.Below(6) == 0) callers.back()->LeaveAfter(1 + random.Below(50));
    ids.push_back(MustSubmit(request, *callers.back()));
    if (random.Below(4) == 0) scheduler_->Cancel(ids[random.Below(int(ids.size()))]);
    if (random.Below(3) == 0) callers[random.Below(int(callers.size()))]->WaitForEnd();
  }
  for (int i = 0; i < kRequests; ++i) {
    const BatchOutcome outcome = callers[i]->WaitForEnd();
    const std::vector<int32_t> expected = Expected(requests[i]), got = callers[i]->tokens();
    if (outcome.status.ok()) {
      EXPECT_EQ(got, expected) << "request " << i;
    } else {
      EXPECT_THAT(outcome.status, StatusIs(absl::StatusCode::kCancelled));
      ASSERT_LE(got.size(), expected.size());
      EXPECT_TRUE(std::equal(got.begin(), got.end(), expected.begin())) << "request " << i;
    }
  }
  ExpectNothingHeld();
}

}  // namespace
}  // namespace pkv
