#include "tests/bench/serve/load_runner.h"

#include <gmock/gmock.h>

#include "proto/base/sync.h"
#include "tests/support/fake_workers.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::SizeIs;

constexpr uint32_t kTokens = 3;

// Loads on fake workers.
class LoadRunnerTest : public ::testing::Test {
 protected:
  // Requests 0..count - 1; arrivals of an open loop are `gap_s` apart.
  LoadResult Run(const LoadOptions& options, int64_t count, double gap_s = 0,
                 bool with_prefill = true) {
    int64_t i = 0;
    return RunLoad(options, calls_, [&]() -> std::optional<LoadItem> {
      if (i == count) return std::nullopt;
      LoadItem item = {.index = i, .arrival_s = gap_s * static_cast<double>(i)};
      item.decode.mutable_sampling()->set_max_tokens(kTokens);
      if (with_prefill) {
        item.prefill.emplace().mutable_prompt()->add_token_ids(static_cast<int32_t>(100 + i));
      } else {
        item.decode.mutable_ticket()->add_token_ids(7);
      }
      ++i;
      return item;
    });
  }

  FakeWorkers workers_;
  WorkerCalls calls_{{.prefill = {workers_.address()},
                      .decode = {workers_.address()},
                      .deadline = absl::Minutes(1)}};
};

TEST_F(LoadRunnerTest, EveryRequestIsPrefilledAndDecodedOnce) {
  std::atomic<int64_t> tickets{0};
  workers_.on_decode = [&tickets](const v1::DecodeRequest& request, const FakeWorkers::Emit& emit) {
    tickets += request.ticket().token_ids(0);
    return FakeWorkers::Answer(request, emit);
  };
  const LoadResult load = Run({.concurrency = 4}, 20);
  ASSERT_THAT(load.records, SizeIs(20));
  for (int64_t i = 0; i < 20; ++i) {
    const RequestRecord& record = load.records[i];
    EXPECT_EQ(record.index, i);
    EXPECT_THAT(record.status, IsOk());
    EXPECT_THAT(record.token_s, SizeIs(kTokens));
    EXPECT_EQ(record.asked_tokens, kTokens);
    EXPECT_EQ(record.prefill.prompt_tokens(), 1);
    EXPECT_EQ(record.decode.first_token_seconds(), 0.25);
  }
  EXPECT_EQ(workers_.num_prefills, 20);
  EXPECT_EQ(workers_.num_decodes, 20);
  EXPECT_EQ(tickets, 20 * 100 + 190);
}

TEST_F(LoadRunnerTest, TimesOfARequestAreInTheirOrder) {
  const LoadResult load = Run({.concurrency = 2}, 10);
  for (const RequestRecord& record : load.records) {
    EXPECT_GE(record.sent_s, record.intended_s);
    EXPECT_GT(record.prefilled_s, record.sent_s);
    EXPECT_GT(record.token_s.front(), record.prefilled_s);
    EXPECT_TRUE(std::is_sorted(record.token_s.begin(), record.token_s.end()));
    EXPECT_GE(record.ended_s, record.token_s.back());
    EXPECT_GE(load.ended_s, record.ended_s);
    EXPECT_GE(load.sending_s, record.sent_s);
  }
}

// Goal: a closed loop has exactly its concurrency under way. Method: no decode of the first three
// answers before three are there; a fourth at that time would be seen.
TEST_F(LoadRunnerTest, AClosedLoopKeepsItsSlotsFull) {
  Mutex mu;
  CondVar changed;
  int running = 0, max_running = 0;
  bool was_full = false;
  workers_.on_decode = [&](const v1::DecodeRequest& request, const FakeWorkers::Emit& emit) {
    {
      MutexLock lock(&mu);
      max_running = std::max(max_running, ++running);
      was_full |= running == 3;
      changed.SignalAll();
      while (!was_full) changed.Wait(&mu);
    }
    const grpc::Status status = FakeWorkers::Answer(request, emit);
    MutexLock lock(&mu);
    --running;
    return status;
  };
  const LoadResult load = Run({.concurrency = 3}, 30);
  EXPECT_THAT(load.records, SizeIs(30));
  EXPECT_EQ(load.max_under_way, 3);
  MutexLock lock(&mu);
  EXPECT_EQ(max_running, 3);
}

TEST_F(LoadRunnerTest, WithATicketOnlyDecodeIsCalled) {
  const LoadResult load = Run({}, 3, 0, /*with_prefill=*/false);
  EXPECT_EQ(workers_.num_prefills, 0);
  for (const RequestRecord& record : load.records) {
    EXPECT_THAT(record.status, IsOk());
    EXPECT_FALSE(record.has_prefill_stats);
    EXPECT_GE(record.prefilled_s, record.sent_s);
  }
}

TEST_F(LoadRunnerTest, AnOpenLoopSendsNothingBeforeItsTime) {
  const LoadResult load = Run({.open_loop = true, .concurrency = 100}, 20, 0.005);
  ASSERT_THAT(load.records, SizeIs(20));
  for (const RequestRecord& record : load.records) {
    EXPECT_EQ(record.intended_s, 0.005 * static_cast<double>(record.index));
    EXPECT_GE(record.sent_s, record.intended_s);
  }
  EXPECT_EQ(load.num_held_back, 0);
}

// The first request is refused six times, so that the second is there before it has ended.
TEST_F(LoadRunnerTest, AnOpenLoopAtItsLimitHoldsBackAndSaysSo) {
  workers_.on_prefill = [this](const v1::PrefillRequest& request, v1::PrefillResponse* response) {
    return workers_.num_prefills <= 6 ? FakeWorkers::Refuse()
                                      : FakeWorkers::Store(request, response);
  };
  const LoadResult load = Run({.open_loop = true,
                               .concurrency = 1,
                               .num_retries_max = 6,
                               .first_backoff = absl::Milliseconds(2)},
                              5);
  EXPECT_EQ(load.max_under_way, 1);
  EXPECT_GE(load.num_held_back, 1);
  EXPECT_LE(load.num_held_back, 4);
  for (size_t i = 1; i < load.records.size(); ++i) {
    EXPECT_EQ(load.records[i].intended_s, 0);
    EXPECT_GE(load.records[i].sent_s, load.records[i - 1].ended_s);
  }
}

TEST_F(LoadRunnerTest, NothingIsSentAfterTheDuration) {
  // The second arrives in a week, and is not waited for.
  const LoadResult load =
      Run({.open_loop = true, .concurrency = 2, .duration = absl::Seconds(100)}, 2, 604800);
  EXPECT_THAT(load.records, SizeIs(1));
  EXPECT_THAT(Run({.duration = absl::Milliseconds(100)}, 1 << 30).records,
              Each(testing::Field(&RequestRecord::sent_s, testing::Lt(5.0))));
}

TEST_F(LoadRunnerTest, ARefusalIsCountedAndNotTriedAgainUnlessAsked) {
  workers_.on_prefill = [](const auto&, auto*) { return FakeWorkers::Refuse(); };
  const LoadResult load = Run({}, 2);
  for (const RequestRecord& record : load.records) {
    EXPECT_THAT(record.status, StatusIs(absl::StatusCode::kResourceExhausted));
    EXPECT_EQ(record.failed_stage, Stage::kPrefill);
    EXPECT_EQ(record.num_refusals, 1);
    EXPECT_EQ(record.num_retries, 0);
  }
  EXPECT_EQ(workers_.num_prefills, 2);
}

TEST_F(LoadRunnerTest, ARefusedStageIsTriedAgainAlone) {
  const auto every_third = [](int call) { return call % 3 == 0; };
  workers_.on_prefill = [&](const v1::PrefillRequest& request, v1::PrefillResponse* response) {
    if (!every_third(workers_.num_prefills)) return FakeWorkers::Refuse();
    return FakeWorkers::Store(request, response);
  };
  workers_.on_decode = [&](const v1::DecodeRequest& request, const FakeWorkers::Emit& emit) {
    if (!every_third(workers_.num_decodes)) return FakeWorkers::Refuse();
    return FakeWorkers::Answer(request, emit);
  };
  const LoadResult load = Run({.num_retries_max = 4, .first_backoff = absl::Milliseconds(1)}, 2);
  for (const RequestRecord& record : load.records) {
    EXPECT_THAT(record.status, IsOk());
    EXPECT_EQ(record.num_refusals, 4);
    EXPECT_EQ(record.num_retries, 4);
    EXPECT_LE(record.sent_s, record.prefilled_s);
  }
  EXPECT_EQ(workers_.num_prefills, 6);
  EXPECT_EQ(workers_.num_decodes, 6);
}

TEST_F(LoadRunnerTest, RetriesEndAtTheirLimit) {
  workers_.on_decode = [](const auto&, const auto&) { return FakeWorkers::Refuse(); };
  const LoadResult load = Run({.num_retries_max = 3, .first_backoff = absl::Milliseconds(1)}, 1);
  EXPECT_THAT(load.records[0].status, StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(load.records[0].failed_stage, Stage::kDecode);
  EXPECT_EQ(load.records[0].num_refusals, 4);
  EXPECT_EQ(load.records[0].num_retries, 3);
}

TEST_F(LoadRunnerTest, ARefusalAfterTokensIsNotTriedAgain) {
  workers_.on_decode = [](const v1::DecodeRequest& request, const FakeWorkers::Emit& emit) {
    FakeWorkers::Answer(request, emit);
    return FakeWorkers::Refuse();
  };
  const LoadResult load = Run({.num_retries_max = 3}, 1);
  EXPECT_EQ(workers_.num_decodes, 1);
  EXPECT_THAT(load.records[0].status, StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(load.records[0].token_s, SizeIs(kTokens));
}

TEST_F(LoadRunnerTest, AFailureInEitherStageEndsOnlyItsRequest) {
  workers_.on_prefill = [](const v1::PrefillRequest& request, v1::PrefillResponse* response) {
    if (request.prompt().token_ids(0) == 101) {
      return grpc::Status(grpc::StatusCode::INVALID_ARGUMENT, "no prompt");
    }
    return FakeWorkers::Store(request, response);
  };
  workers_.on_decode = [](const v1::DecodeRequest& request, const FakeWorkers::Emit& emit) {
    if (request.ticket().token_ids(0) == 102) {
      return grpc::Status(grpc::StatusCode::NOT_FOUND, "gone");
    }
    return FakeWorkers::Answer(request, emit);
  };
  const LoadResult load = Run({.concurrency = 2}, 4);
  std::vector<absl::StatusCode> codes;
  for (const RequestRecord& record : load.records) codes.push_back(record.status.code());
  EXPECT_THAT(codes, ElementsAre(absl::StatusCode::kOk, absl::StatusCode::kInvalidArgument,
                                 absl::StatusCode::kNotFound, absl::StatusCode::kOk));
  EXPECT_EQ(load.records[1].failed_stage, Stage::kPrefill);
  EXPECT_LT(load.records[1].prefilled_s, 0);
  EXPECT_EQ(load.records[2].failed_stage, Stage::kDecode);
}

TEST_F(LoadRunnerTest, WorkersThatAreAwayFailEveryRequest) {
  workers_.Stop();
  const LoadResult load = Run({.concurrency = 2}, 4);
  EXPECT_THAT(load.records, SizeIs(4));
  for (const RequestRecord& record : load.records) {
    EXPECT_THAT(record.status, StatusIs(absl::StatusCode::kUnavailable));
  }
}

TEST_F(LoadRunnerTest, HundredsOfStreamsAtOnceAreServed) {
  const LoadResult load = Run({.concurrency = 256}, 600);
  EXPECT_THAT(load.records, SizeIs(600));
  for (const RequestRecord& record : load.records) EXPECT_THAT(record.status, IsOk());
}

TEST_F(LoadRunnerTest, OfNothingIsNothing) { EXPECT_THAT(Run({}, 0).records, testing::IsEmpty()); }

}  // namespace
}  // namespace pkv
