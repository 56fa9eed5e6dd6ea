#include "tests/bench/serve/worker_calls.h"

#include <gmock/gmock.h>

#include "tests/support/fake_workers.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

WorkerCallsOptions Options(const std::vector<const FakeWorkers*>& workers) {
  WorkerCallsOptions options;
  options.num_channels = 2;
  for (const FakeWorkers* worker : workers) {
    options.prefill.push_back(worker->address());
    options.decode.push_back(worker->address());
  }
  return options;
}

v1::DecodeRequest DecodeOf(uint32_t max_tokens) {
  v1::DecodeRequest request;
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

// Waits for its end.
absl::Status Decode(WorkerCalls& calls, const v1::DecodeRequest& request,
                    std::vector<v1::DecodeEvent>& events) {
  std::promise<absl::Status> ended;
  calls.Decode(
      0, request, [&events](const v1::DecodeEvent& event) { events.push_back(event); },
      [&ended](const absl::Status& status) { ended.set_value(status); });
  return ended.get_future().get();
}

TEST(WorkerCallsTest, GivesAnswersAndEvents) {
  FakeWorkers workers;
  WorkerCalls calls(Options({&workers}));
  v1::PrefillRequest request;
  request.mutable_prompt()->set_text("ab");
  const auto response = calls.PrefillLater(0, request).get();
  ASSERT_THAT(response, IsOk());
  EXPECT_THAT(response->ticket().token_ids(), testing::ElementsAre(1, 'a', 'b'));
  std::vector<v1::DecodeEvent> events;
  EXPECT_THAT(Decode(calls, DecodeOf(3), events), IsOk());
  ASSERT_EQ(events.size(), 4);
  EXPECT_EQ(events[2].token().token_id(), 2);
  EXPECT_TRUE(events[3].has_stats());
}

TEST(WorkerCallsTest, GivesErrorsOfTheWorkers) {
  FakeWorkers workers;
  workers.on_prefill = [](const auto&, auto*) { return FakeWorkers::Refuse(); };
  workers.on_decode = [](const v1::DecodeRequest& request, const FakeWorkers::Emit& emit) {
    FakeWorkers::Answer(request, emit);
    return grpc::Status(grpc::StatusCode::DATA_LOSS, "damaged");
  };
  WorkerCalls calls(Options({&workers}));
  EXPECT_THAT(calls.PrefillLater(0, {}).get(), StatusIs(absl::StatusCode::kResourceExhausted));
  std::vector<v1::DecodeEvent> events;
  EXPECT_THAT(Decode(calls, DecodeOf(1), events), StatusIs(absl::StatusCode::kDataLoss));
  EXPECT_EQ(events.size(), 2);
}

TEST(WorkerCallsTest, AWorkerThatIsAwayIsUnavailable) {
  FakeWorkers workers;
  workers.Stop();
  WorkerCalls calls(Options({&workers}));
  EXPECT_THAT(calls.PrefillLater(0, {}).get(), StatusIs(absl::StatusCode::kUnavailable));
  std::vector<v1::DecodeEvent> events;
  EXPECT_THAT(Decode(calls, DecodeOf(1), events), StatusIs(absl::StatusCode::kUnavailable));
}

TEST(WorkerCallsTest, ACallEndsAtItsDeadline) {
  FakeWorkers workers;
  std::promise<void> over;
  workers.on_prefill = [done = over.get_future().share()](const auto&, auto*) {
    done.wait();
    return grpc::Status::OK;
  };
  WorkerCallsOptions options = Options({&workers});
  options.deadline = absl::Milliseconds(50);
  WorkerCalls calls(options);
  EXPECT_THAT(calls.PrefillLater(0, {}).get(), StatusIs(absl::StatusCode::kDeadlineExceeded));
  over.set_value();
}

// gRPC ends a channel's threads when its last context goes, which must not be in one of them.
TEST(WorkerCallsTest, MayGoAsSoonAsItsLastCallHasEnded) {
  FakeWorkers workers;
  for (int i = 0; i < 100; ++i) {
    EXPECT_THAT(WorkerCalls(Options({&workers})).PrefillLater(0, {}).get(), IsOk());
    WorkerCalls calls(Options({&workers}));
    std::vector<v1::DecodeEvent> events;
    EXPECT_THAT(Decode(calls, DecodeOf(1), events), IsOk());
  }
}

TEST(WorkerCallsTest, WorkersTakeTurns) {
  FakeWorkers first, second;
  WorkerCalls calls(Options({&first, &second}));
  for (int turn = 0; turn < 6; ++turn) EXPECT_THAT(calls.PrefillLater(turn, {}).get(), IsOk());
  EXPECT_EQ(first.num_prefills, 3);
  EXPECT_EQ(second.num_prefills, 3);
}

}  // namespace
}  // namespace pkv
