#include "worker/batch/batch_scheduler.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "tests/support/batch_fixture.h"

namespace pkv {
namespace {

using testing::HasSubstr;

class BatchSchedulerTest : public BatchTest {};

TEST_F(BatchSchedulerTest, ContinuesPromptsOfEveryLength) {
  Start({.num_slots = 2, .num_pages = 16, .max_blocks = 8});
  for (const int num_tokens : {1, 2, 128, 129, 130, 257, 300}) {
    const BatchRequest request = StoredRequest(Prompt(1, num_tokens), 12);
    BatchCaller caller;
    MustSubmit(request, caller);
    const BatchOutcome outcome = caller.WaitForEnd();
    EXPECT_THAT(outcome.status, IsOk());
    EXPECT_EQ(caller.tokens(), Expected(request)) << num_tokens << " tokens";
    EXPECT_EQ(outcome.num_generated, 12);
    EXPECT_EQ(outcome.stats.recomputed_tokens(), 0u);
    EXPECT_EQ(outcome.stats.fetched_bytes() > 0, num_tokens > 1);
    ExpectNothingHeld();
  }
}

TEST_F(BatchSchedulerTest, StopsAtAnEndToken) {
  Start({.num_slots = 1, .num_pages = 4, .max_blocks = 4});
  BatchRequest request = StoredRequest(Prompt(2, 40), 20);
  const std::vector<int32_t> all = Expected(request);
  for (const size_t end : {size_t{0}, size_t{5}}) {
    request.end_tokens = {-1, all[end]};
    BatchCaller caller;
    MustSubmit(request, caller);
    EXPECT_THAT(caller.WaitForEnd().status, IsOk());
    const size_t first = std::find(all.begin(), all.end(), all[end]) - all.begin();
    EXPECT_EQ(caller.tokens(), std::vector<int32_t>(all.begin(), all.begin() + first + 1));
  }
}

TEST_F(BatchSchedulerTest, FlushesByTheRuleOfTheParametersAlsoAfterTheLastStep) {
  Start({.num_slots = 1, .num_pages = 4, .max_blocks = 4});
  // 256 tokens are cached when the last one is sampled: the second block is complete just then.
  for (const int max_tokens : {56, 57, 58}) {
    const BatchRequest request = StoredRequest(Prompt(3, 200), max_tokens);
    ASSERT_EQ(MaxPages(request), max_tokens < 57 ? 1 : 2);
    const BatchOutcome outcome = Run(request);
    EXPECT_THAT(outcome.status, IsOk());
    EXPECT_EQ(outcome.stats.flushed_blocks(), max_tokens < 57 ? 0u : 1u) << max_tokens;
  }
}

TEST_F(BatchSchedulerTest, SamplesFromTheLogitsWhenTheTemperatureIsNotZero) {
  Start({.num_slots = 1, .num_pages = 4, .max_blocks = 4});
  BatchRequest request = StoredRequest(Prompt(4, 10), 30);
  request.sampling = {.temperature = 2, .top_p = 0.9f, .seed = 5};
  BatchCaller caller;
  MustSubmit(request, caller);
  EXPECT_THAT(caller.WaitForEnd().status, IsOk());

  Sampler sampler = *Sampler::Make(request.sampling);
  FakeState state = FakeState::After(
      LastObjectId(Profile(), std::span(request.tokens).first(9), request.num_blocks));
  int32_t next = request.tokens.back();
  std::vector<int32_t> expected;
  for (int i = 0; i < request.max_tokens; ++i) {
    state.Add(next);
    next = sampler.Sample(state.logits())->token_id;
    expected.push_back(next);
  }
  EXPECT_EQ(caller.tokens(), expected);
  EXPECT_NE(expected, Expected(request));
}

TEST_F(BatchSchedulerTest, ARequestJoinsTheOthersBetweenTwoSteps) {
  Start({.num_slots = 3, .num_pages = 16, .max_blocks = 4});
  engine_->HoldSteps();
  BatchCaller first, second;
  const BatchRequest long_one = StoredRequest(Prompt(5, 100), 400);
  MustSubmit(long_one, first);
  engine_->WaitForHeldStep();
  const BatchRequest short_one = StoredRequest(Prompt(6, 150), 3);
  MustSubmit(short_one, second);
  second.WaitForTokens(1);  // while the step of the first one is held
  // Soon it stands among those that are ready, and the next step takes it.
  while (engine_->batch_sizes().empty() || engine_->batch_sizes().back() == 1) {
    ASSERT_FALSE(first.ended());
    engine_->AllowSteps(1);
    engine_->WaitForHeldStep();
  }
  engine_->ReleaseSteps();
  EXPECT_THAT(first.WaitForEnd().status, IsOk());
  EXPECT_THAT(second.WaitForEnd().status, IsOk());
  EXPECT_EQ(first.tokens(), Expected(long_one));
  EXPECT_EQ(second.tokens(), Expected(short_one));
  const std::vector<int> sizes = engine_->batch_sizes();
  EXPECT_EQ(std::count(sizes.begin(), sizes.end(), 2), 2) << "the second's two steps";
  EXPECT_EQ(sizes.size(), 399u) << "as many as the first's";
}

TEST_F(BatchSchedulerTest, AFetchThatHangsDoesNotHoldUpTheOthers) {
  Start({.num_slots = 2, .num_pages = 16, .max_blocks = 4});
  cache_.HoldLayersFrom(0);
  BatchCaller slow, quick;
  const BatchRequest held = StoredRequest(Prompt(7, 200), 5);
  MustSubmit(held, slow);
  cache_.WaitForBlockedReader();
  const BatchRequest alone = StoredRequest(Prompt(8, 1), 50);  // nothing to fetch
  MustSubmit(alone, quick);
  EXPECT_THAT(quick.WaitForEnd().status, IsOk());
  EXPECT_EQ(quick.tokens(), Expected(alone));
  EXPECT_TRUE(slow.tokens().empty());
  cache_.ReleaseLayers();
  EXPECT_THAT(slow.WaitForEnd().status, IsOk());
  EXPECT_EQ(slow.tokens(), Expected(held));
}

// Goal: none overtakes and none starves. Method: the second needs all pages, the third needs one
// and a slot is free, yet it must not start before the second has ended.
TEST_F(BatchSchedulerTest, TheFirstInTheQueueGetsItsPagesFirst) {
  Start({.num_slots = 3, .num_pages = 4, .max_blocks = 4});
  engine_->HoldSteps();
  BatchCaller running, large, little;
  MustSubmit(StoredRequest(Prompt(9, 129), 4), running);
  engine_->WaitForHeldStep();
  MustSubmit(StoredRequest(Prompt(10, 513), 4), large);
  MustSubmit(StoredRequest(Prompt(11, 129), 4), little);
  EXPECT_EQ(Metric("pkv_queue_depth", "queue", "decode"), 2);
  EXPECT_EQ(scheduler_->page_counts().referenced, 1);
  engine_->AllowSteps(3);  // all that the running one needs
  EXPECT_THAT(running.WaitForEnd().status, IsOk());
  large.WaitForTokens(1);
  EXPECT_TRUE(little.tokens().empty());
  engine_->ReleaseSteps();
  EXPECT_THAT(large.WaitForEnd().status, IsOk());
  EXPECT_THAT(little.WaitForEnd().status, IsOk());
  EXPECT_EQ(large.tokens().size(), 4u);
  ExpectNothingHeld();
}

TEST_F(BatchSchedulerTest, RefusesAtOnceWhatCouldNeverRun) {
  Start({.num_slots = 1, .num_pages = 3, .max_blocks = 5});
  BatchCaller caller;
  const std::vector<int32_t> prompt = Prompt(12, 257);
  EXPECT_THAT(Submit(Request(prompt, 256), caller),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("4 blocks for 257 prompt tokens and 256 generated ones; this "
                                 "worker has pages for 3")));
  EXPECT_THAT(Submit(Request(prompt, 512), caller),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("6 blocks for 257 prompt tokens and 512 generated ones; a "
                                 "sequence has at most 5")));
  BatchRequest window = Request(Prompt(13, kMaxWindowTokens + 2), 1);
  window.num_blocks = 0;
  window.num_window_tokens = kMaxWindowTokens + 1;
  EXPECT_THAT(Submit(window, caller),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("4097 tokens; at most 4096")));
  BatchRequest other = Request(prompt, 1);
  other.params = Params("kivi4");
  EXPECT_THAT(Submit(other, caller), StatusIs(absl::StatusCode::kFailedPrecondition));
  BatchRequest hot = Request(prompt, 1);
  hot.sampling.temperature = -1;
  EXPECT_THAT(Submit(hot, caller), StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_FALSE(caller.ended());
  EXPECT_EQ(Metric("pkv_rpc_rejected_total", "reason", "too_large"), 1);
  EXPECT_EQ(Metric("pkv_rpc_rejected_total", "reason", "invalid"), 4);
  // As many tokens as just fit.
  EXPECT_THAT(Run(StoredRequest(prompt, 255)).status, IsOk());
}

TEST_F(BatchSchedulerTest, RefusesRequestsBeyondTheQueue) {
  BatchOptions options;
  options.max_waiting = 1;
  Start({.num_slots = 1, .num_pages = 8, .max_blocks = 8}, options);
  engine_->HoldSteps();
  BatchCaller running, waiting, refused;
  MustSubmit(StoredRequest(Prompt(14, 50), 4), running);
  MustSubmit(StoredRequest(Prompt(15, 50), 4), waiting);
  EXPECT_THAT(Submit(StoredRequest(Prompt(16, 50), 4), refused),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("1 of 1 slots are taken and 1 of 1 requests are waiting")));
  EXPECT_EQ(Metric("pkv_rpc_rejected_total", "reason", "queue_full"), 1);
  scheduler_->SetMaxWaiting(2);
  BatchCaller taken;
  MustSubmit(StoredRequest(Prompt(17, 50), 4), taken);
  engine_->ReleaseSteps();
  EXPECT_THAT(taken.WaitForEnd().status, IsOk());
  EXPECT_THAT(running.WaitForEnd().status, IsOk());
  EXPECT_THAT(waiting.WaitForEnd().status, IsOk());
  EXPECT_FALSE(refused.ended());
  EXPECT_THAT(Run(StoredRequest(Prompt(16, 50), 4)).status, IsOk());
}

TEST_F(BatchSchedulerTest, ACancelledRequestLeavesTheQueueAtOnce) {
  Start({.num_slots = 1, .num_pages = 8, .max_blocks = 8});
  engine_->HoldSteps();
  BatchCaller running, waiting;
  MustSubmit(StoredRequest(Prompt(17, 200), 4), running);
  const uint64_t id = MustSubmit(StoredRequest(Prompt(18, 200), 4), waiting);
  scheduler_->Cancel(id);
  ASSERT_TRUE(waiting.ended());
  EXPECT_THAT(waiting.WaitForEnd().status, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(Metric("pkv_queue_depth", "queue", "decode"), 0);
  engine_->ReleaseSteps();
  EXPECT_THAT(running.WaitForEnd().status, IsOk());
  scheduler_->Cancel(id);  // once more: nothing happens
  ExpectNothingHeld();
}

TEST_F(BatchSchedulerTest, CancellingTheFirstInTheQueueLetsTheNextIn) {
  Start({.num_slots = 2, .num_pages = 4, .max_blocks = 4});
  engine_->HoldSteps();
  BatchCaller running, large, little;
  MustSubmit(StoredRequest(Prompt(19, 129), 4), running);
  const uint64_t id = MustSubmit(StoredRequest(Prompt(20, 513), 4), large);
  MustSubmit(StoredRequest(Prompt(21, 129), 4), little);
  scheduler_->Cancel(id);
  little.WaitForTokens(1);
  engine_->ReleaseSteps();
  EXPECT_THAT(little.WaitForEnd().status, IsOk());
  EXPECT_THAT(running.WaitForEnd().status, IsOk());
}

TEST_F(BatchSchedulerTest, CancelEndsAFetchThatHangs) {
  Start({.num_slots = 1, .num_pages = 8, .max_blocks = 8});
  cache_.HoldLayersFrom(0);
  BatchCaller caller;
  const uint64_t id = MustSubmit(StoredRequest(Prompt(22, 300), 4), caller);
  cache_.WaitForBlockedReader();
  EXPECT_EQ(Metric("pkv_decode_sequences", "state", "fetching"), 1);
  scheduler_->Cancel(id);
  EXPECT_THAT(caller.WaitForEnd().status, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_EQ(Metric("pkv_client_fallback_recompute_total", "reason", "UNKNOWN"), 0);
  EXPECT_TRUE(caller.tokens().empty());
  ExpectNothingHeld();
  EXPECT_EQ(Metric("pkv_decode_sequences", "state", "fetching"), 0);
}

TEST_F(BatchSchedulerTest, CancelEndsAComputationOfThePrompt) {
  Start({.num_slots = 1, .num_pages = 8, .max_blocks = 8});
  TestGate gate;
  FakeBatchEngine::Script script;
  script.compute = [&gate] {
    gate.Pass();
    return absl::OkStatus();
  };
  engine_->set_script(script);
  BatchCaller caller;
  const uint64_t id = MustSubmit(Request(Prompt(23, 300), 4), caller);  // not stored
  gate.WaitForArrivals(1);
  scheduler_->Cancel(id);
  gate.Open();
  EXPECT_THAT(caller.WaitForEnd().status, StatusIs(absl::StatusCode::kCancelled));
  ExpectNothingHeld();
}

TEST_F(BatchSchedulerTest, CancelEndsARunningRequestAndLeavesTheOthers) {
  Start({.num_slots = 2, .num_pages = 16, .max_blocks = 8});
  engine_->HoldSteps();
  BatchCaller cancelled, other;
  const BatchRequest request = StoredRequest(Prompt(24, 300), 20);
  const uint64_t id = MustSubmit(StoredRequest(Prompt(25, 200), 200), cancelled);
  MustSubmit(request, other);
  cancelled.WaitForTokens(1);
  other.WaitForTokens(1);
  scheduler_->Cancel(id);
  engine_->ReleaseSteps();
  EXPECT_THAT(cancelled.WaitForEnd().status, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_LE(cancelled.tokens().size(), 2u) << "the step that was under way may end";
  EXPECT_THAT(other.WaitForEnd().status, IsOk());
  EXPECT_EQ(other.tokens(), Expected(request));
  ExpectNothingHeld();
}

TEST_F(BatchSchedulerTest, ACallerThatRefusesATokenGetsNoMore) {
  Start({.num_slots = 1, .num_pages = 8, .max_blocks = 8});
  for (const int count : {1, 3}) {
    BatchCaller caller;
    caller.LeaveAfter(count);
    MustSubmit(StoredRequest(Prompt(26, 140), 30), caller);
    EXPECT_THAT(caller.WaitForEnd().status,
                StatusIs(absl::StatusCode::kCancelled, HasSubstr("had enough")));
    EXPECT_EQ(caller.tokens().size(), size_t(count));
    ExpectNothingHeld();
  }
}

TEST_F(BatchSchedulerTest, AnErrorOfOneSequenceEndsItAlone) {
  Start({.num_slots = 2, .num_pages = 16, .max_blocks = 8});
  FakeBatchEngine::Script script;
  script.slot_step = [](int64_t num_tokens) {
    return num_tokens == 203 ? absl::OutOfRangeError("beyond fp16") : absl::OkStatus();
  };
  engine_->set_script(script);
  engine_->HoldSteps();
  BatchCaller broken, whole;
  const BatchRequest request = StoredRequest(Prompt(27, 30), 20);
  MustSubmit(StoredRequest(Prompt(28, 200), 20), broken);
  MustSubmit(request, whole);
  broken.WaitForTokens(1);
  whole.WaitForTokens(1);
  engine_->ReleaseSteps();
  EXPECT_THAT(broken.WaitForEnd().status, StatusIs(absl::StatusCode::kOutOfRange));
  EXPECT_EQ(broken.tokens().size(), 4u);
  EXPECT_THAT(whole.WaitForEnd().status, IsOk());
  EXPECT_EQ(whole.tokens(), Expected(request));
  ExpectNothingHeld();
}

TEST_F(BatchSchedulerTest, AnErrorOfAFlushEndsThoseThatWereFlushed) {
  Start({.num_slots = 2, .num_pages = 16, .max_blocks = 8});
  FakeBatchEngine::Script script;
  script.flush = [] { return absl::InvalidArgumentError("no such pattern"); };
  engine_->set_script(script);
  BatchCaller flushed, other;
  const BatchRequest request = StoredRequest(Prompt(29, 30), 20);
  MustSubmit(StoredRequest(Prompt(30, 250), 20), flushed);
  MustSubmit(request, other);
  EXPECT_THAT(flushed.WaitForEnd().status, StatusIs(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(flushed.tokens().size(), 6u);
  EXPECT_THAT(other.WaitForEnd().status, IsOk());
  EXPECT_EQ(other.tokens(), Expected(request));
  ExpectNothingHeld();
}

TEST_F(BatchSchedulerTest, DrainingEndsWhatWaitsAndFinishesWhatRuns) {
  Start({.num_slots = 1, .num_pages = 8, .max_blocks = 8});
  engine_->HoldSteps();
  BatchCaller running, waiting, late;
  const BatchRequest request = StoredRequest(Prompt(31, 200), 9);
  MustSubmit(request, running);
  MustSubmit(StoredRequest(Prompt(32, 200), 9), waiting);
  scheduler_->Drain();
  EXPECT_THAT(waiting.WaitForEnd().status,
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("draining")));
  EXPECT_THAT(Submit(request, late), StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_EQ(Metric("pkv_rpc_rejected_total", "reason", "draining"), 2);
  EXPECT_FALSE(running.ended());
  engine_->ReleaseSteps();
  EXPECT_THAT(running.WaitForEnd().status, IsOk());
  EXPECT_EQ(running.tokens(), Expected(request));
}

TEST_F(BatchSchedulerTest, DestructionCancelsWhatHasNotEnded) {
  Start({.num_slots = 2, .num_pages = 8, .max_blocks = 8});
  engine_->HoldSteps();
  BatchCaller running, fetching, waiting;
  MustSubmit(StoredRequest(Prompt(33, 100), 900), running);
  running.WaitForTokens(1);
  cache_.HoldLayersFrom(0);
  MustSubmit(StoredRequest(Prompt(34, 100), 4), fetching);
  cache_.WaitForBlockedReader();
  MustSubmit(StoredRequest(Prompt(35, 100), 4), waiting);
  std::thread stepping([&] {
    waiting.WaitForEnd();
    engine_->ReleaseSteps();
  });
  scheduler_.reset();
  stepping.join();
  EXPECT_THAT(fetching.WaitForEnd().status, StatusIs(absl::StatusCode::kCancelled));
  EXPECT_THAT(waiting.WaitForEnd().status, StatusIs(absl::StatusCode::kUnavailable));
  EXPECT_TRUE(running.ended());
}

TEST_F(BatchSchedulerTest, CountsStepsAndTimes) {
  Start({.num_slots = 2, .num_pages = 8, .max_blocks = 8});
  EXPECT_EQ(Metric("pkv_decode_pages", "state", "free"), 8);
  const BatchOutcome outcome = Run(StoredRequest(Prompt(36, 300), 9));
  EXPECT_EQ(Metric("pkv_decode_steps_total"), 8) << "the first token has no step";
  EXPECT_EQ(Metric("pkv_decode_batch_size"), 8);
  EXPECT_EQ(Metric("pkv_decode_step_duration_seconds"), 8);
  EXPECT_EQ(Metric("pkv_decode_inter_token_seconds"), 8);
  EXPECT_EQ(Metric("pkv_queue_wait_seconds", "queue", "decode"), 1);
  EXPECT_EQ(Metric("pkv_decode_sequences", "state", "running"), 0);
  EXPECT_GT(outcome.stats.queue_seconds(), 0);
  EXPECT_GE(outcome.stats.first_layer_seconds(), outcome.stats.queue_seconds());
  EXPECT_GE(outcome.stats.fetch_seconds(), outcome.stats.first_layer_seconds());
  EXPECT_GE(outcome.stats.first_token_seconds(), outcome.stats.fetch_seconds());
}

TEST_F(BatchSchedulerTest, WaitsForAllLayersWhenNothingIsStreamed) {
  BatchOptions options;
  options.layer_streaming = false;
  Start({.num_slots = 1, .num_pages = 8, .max_blocks = 8}, options);
  std::atomic<bool> began = false;
  FakeBatchEngine::Script script;
  script.first = [&began] { return began = true, absl::OkStatus(); };
  engine_->set_script(script);
  cache_.HoldLayersFrom(0);
  BatchCaller caller;
  MustSubmit(StoredRequest(Prompt(37, 200), 2), caller);
  cache_.WaitForBlockedReader();
  EXPECT_FALSE(began);
  cache_.ReleaseLayers();
  EXPECT_THAT(caller.WaitForEnd().status, IsOk());
  EXPECT_TRUE(began);
}

TEST_F(BatchSchedulerTest, FetchesToTheHostForAnEngineThatTakesFramesThereAlone) {
  Start({.num_slots = 1, .num_pages = 8, .max_blocks = 8});
  EXPECT_THAT(Run(StoredRequest(Prompt(38, 200), 2)).status, IsOk());
  EXPECT_EQ(cache_.calls(CacheCall::kStartGet), 1);
  EXPECT_EQ(cache_.calls(CacheCall::kStartDeviceGet), 0);
}

TEST_F(BatchSchedulerTest, FetchesToTheGpuForAnEngineThatTakesFramesThere) {
  Start({.num_slots = 1, .num_pages = 8, .max_blocks = 8, .takes_device_frames = true});
  BatchRequest request = StoredRequest(Prompt(39, 200), 2);
  request.direct_server = "10.0.0.7:7441";
  BatchCaller caller;
  MustSubmit(request, caller);
  EXPECT_THAT(caller.WaitForEnd().status, IsOk());
  EXPECT_EQ(caller.tokens(), Expected(request));
  EXPECT_EQ(cache_.calls(CacheCall::kStartDeviceGet), 1);
  EXPECT_EQ(cache_.last_direct_server(), "10.0.0.7:7441");
  EXPECT_EQ(cache_.calls(CacheCall::kStartGet), 0);
}

// An engine whose device is lost: nothing of it is of use any more.
class BatchSchedulerFailureTest : public BatchSchedulerTest {
 protected:
  void SetUp() override {
    BatchOptions options;
    options.on_engine_failure = [this](const absl::Status& status) {
      ++num_failures_;
      failure_ = status;
    };
    Start({.num_slots = 3, .num_pages = 32, .max_blocks = 8}, options);
  }
  static std::function<absl::Status()> Lost() {
    return [] { return absl::InternalError("the device is lost"); };
  }
  void ExpectFailed(BatchCaller& caller) {
    EXPECT_THAT(caller.WaitForEnd().status,
                StatusIs(absl::StatusCode::kInternal, HasSubstr("the device is lost")));
  }
  void ExpectOutOfService() {
    BatchCaller late;
    EXPECT_THAT(Submit(StoredRequest(Prompt(99, 10), 1), late),
                StatusIs(absl::StatusCode::kInternal, HasSubstr("the device is lost")));
    EXPECT_EQ(Metric("pkv_rpc_rejected_total", "reason", "failed"), 1);
    scheduler_.reset();  // joins the thread that reports
    EXPECT_EQ(num_failures_, 1);
    EXPECT_THAT(failure_, StatusIs(absl::StatusCode::kInternal));
  }
  // A request joins while another one runs, and `script` fails it.
  void ExpectEndsWithOneThatRuns(const FakeBatchEngine::Script& script,
                                 const BatchRequest& request) {
    engine_->HoldSteps();
    BatchCaller running, joining;
    MustSubmit(StoredRequest(Prompt(46, 10), 900), running);
    engine_->WaitForHeldStep();
    engine_->set_script(script);
    MustSubmit(request, joining);
    ExpectFailed(joining);
    engine_->ReleaseSteps();
    ExpectFailed(running);
    ExpectOutOfService();
  }

  int num_failures_ = 0;
  absl::Status failure_;
};

TEST_F(BatchSchedulerFailureTest, AFailedStepEndsEveryRequest) {
  engine_->HoldSteps();
  BatchCaller first, second, fetching, waiting;
  MustSubmit(StoredRequest(Prompt(40, 200), 30), first);
  MustSubmit(StoredRequest(Prompt(41, 100), 30), second);
  first.WaitForTokens(1);
  second.WaitForTokens(1);
  cache_.HoldLayersFrom(0);
  MustSubmit(StoredRequest(Prompt(42, 200), 30), fetching);
  cache_.WaitForBlockedReader();
  MustSubmit(StoredRequest(Prompt(43, 200), 30), waiting);
  FakeBatchEngine::Script script;
  script.step = Lost();
  engine_->set_script(script);
  engine_->ReleaseSteps();
  for (BatchCaller* caller : {&first, &second, &fetching, &waiting}) ExpectFailed(*caller);
  EXPECT_TRUE(fetching.tokens().empty());
  ExpectOutOfService();
}

TEST_F(BatchSchedulerFailureTest, AFailedFlushEndsEveryRequest) {
  FakeBatchEngine::Script script;
  script.flush = Lost();
  engine_->set_script(script);
  engine_->HoldSteps();
  BatchCaller flushed, other;
  MustSubmit(StoredRequest(Prompt(44, 10), 900), other);
  MustSubmit(StoredRequest(Prompt(45, 250), 30), flushed);
  engine_->ReleaseSteps();
  ExpectFailed(flushed);
  ExpectFailed(other);
  ExpectOutOfService();
}

TEST_F(BatchSchedulerFailureTest, AFailedFirstStepEndsEveryRequest) {
  FakeBatchEngine::Script script;
  script.first = Lost();
  ExpectEndsWithOneThatRuns(script, StoredRequest(Prompt(48, 200), 30));
}

TEST_F(BatchSchedulerFailureTest, AnInternalErrorOfTheCacheIsNotTheEngines) {
  const BatchRequest request = StoredRequest(Prompt(50, 200), 5);
  cache_.set_script([](CacheCall call) {
    return call == CacheCall::kStartGet ? absl::InternalError("stream reset") : absl::OkStatus();
  });
  BatchCaller caller;
  MustSubmit(request, caller);
  EXPECT_THAT(caller.WaitForEnd().status, IsOk());
  EXPECT_EQ(caller.tokens().size(), 5u);
}

TEST_F(BatchSchedulerFailureTest, AFailedComputationEndsEveryRequest) {
  FakeBatchEngine::Script script;
  script.compute = Lost();
  ExpectEndsWithOneThatRuns(script, Request(Prompt(47, 200), 30));  // not stored
}

}  // namespace
}  // namespace pkv
