#include "tests/bench/serve/serve_setup.h"

#include <gmock/gmock.h>

#include "tests/support/fake_workers.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;

// Fake workers, and calls of them.
class ServeSetupTest : public ::testing::Test {
 protected:
  FakeWorkers workers_;
  WorkerCalls calls_{{.prefill = {workers_.address()}, .decode = {workers_.address()}}};
};

Workload SomeWorkload() {
  return *Workload::Make({.prompt_tokens = *LengthDistribution::Parse("uniform:10:20"),
                          .output_tokens = *LengthDistribution::Parse("fixed:1")},
                         TokenSource::Random(100), {});
}

TEST_F(ServeSetupTest, ATextBecomesTheTokensOfItsPiecesInOrder) {
  std::string text;
  for (int i = 0; i < 10000; ++i) text.push_back(static_cast<char>('a' + i % 26));
  const auto source = TokenizeText(calls_, text, "fp16");
  ASSERT_THAT(source, IsOk());
  EXPECT_EQ(workers_.num_prefills, 10);  // of 1,024 bytes
  std::vector<int32_t> ids(10000);
  source->Fill(1, ids);
  for (size_t i = 1; i < ids.size(); ++i) {
    // From z the next letter is a; the text begins again after its last letter, a p.
    ASSERT_TRUE(ids[i] == 'a' + (ids[i - 1] - 'a' + 1) % 26 ||
                (ids[i] == 'a' && ids[i - 1] == text.back()));
  }
  source->Begin(ids);
  EXPECT_EQ(ids[0], 1);
}

TEST_F(ServeSetupTest, TicketsAreOfThePromptsInOrder) {
  const Workload workload = SomeWorkload();
  const auto made = MakeTickets(calls_, workload, 9, "fp16");
  ASSERT_THAT(made, IsOk());
  ASSERT_EQ(made->tickets.size(), 9);
  int64_t tokens = 0;
  for (int i = 0; i < 9; ++i) {
    const std::vector<int32_t> prompt = workload.Prompt(i).token_ids;
    EXPECT_THAT(made->tickets[i].token_ids(), testing::ElementsAreArray(prompt));
    tokens += static_cast<int64_t>(prompt.size());
  }
  EXPECT_EQ(made->setup.num_tickets, 9);
  EXPECT_EQ(made->setup.prompt_tokens, tokens);
  EXPECT_EQ(made->setup.num_not_stored, 0);
}

TEST_F(ServeSetupTest, TicketsThatWereNotStoredAreCounted) {
  workers_.on_prefill = [](const v1::PrefillRequest& request, v1::PrefillResponse* response) {
    FakeWorkers::Store(request, response);
    response->mutable_stats()->set_stored(false);
    return grpc::Status::OK;
  };
  EXPECT_EQ(MakeTickets(calls_, SomeWorkload(), 3, "fp16")->setup.num_not_stored, 3);
}

TEST_F(ServeSetupTest, TheFirstErrorEndsIt) {
  std::atomic<int> calls{0};
  workers_.on_prefill = [&calls](const v1::PrefillRequest& request, v1::PrefillResponse* response) {
    if (++calls > 5) return FakeWorkers::Refuse();
    return FakeWorkers::Store(request, response);
  };
  const auto made = MakeTickets(calls_, SomeWorkload(), 100, "fp16");
  EXPECT_THAT(made, StatusIs(absl::StatusCode::kResourceExhausted));
  EXPECT_THAT(std::string(made.status().message()), HasSubstr("before the load"));
  EXPECT_LT(calls, 20);
}

}  // namespace
}  // namespace pkv
