#include "tests/bench/serve/workload.h"

#include <gmock/gmock.h>

#include <cmath>
#include <set>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::ElementsAre;

WorkloadOptions Options(const char* prompt = "uniform:100:400", const char* output = "fixed:8") {
  return {.prompt_tokens = *LengthDistribution::Parse(prompt),
          .output_tokens = *LengthDistribution::Parse(output)};
}

absl::StatusOr<Workload> Make(const WorkloadOptions& options,
                              std::vector<TraceRequest> trace = {}) {
  return Workload::Make(options, TokenSource::Random(8192), std::move(trace));
}

// Three requests; the first two share a block of 512 tokens, then differ.
std::vector<TraceRequest> SomeTrace() {
  return {{0, 600, 10, {7, 8}}, {0.5, 1024, 20, {7, 9}}, {2, 100, 30, {5}}};
}

size_t SharedTokens(const std::vector<int32_t>& a, const std::vector<int32_t>& b) {
  const size_t least = std::min(a.size(), b.size());
  size_t shared = 0;
  while (shared < least && a[shared] == b[shared]) ++shared;
  return shared;
}

TEST(WorkloadTest, SameSeedSameRequestsOtherSeedOthers) {
  WorkloadOptions options = Options();
  options.arrivals = Arrivals::kPoisson;
  options.rate_per_s = 5;
  auto first = Make(options), second = Make(options);
  options.seed = 2;
  auto other = Make(options);
  int num_equal = 0;
  for (int i = 0; i < 20; ++i) {
    const auto a = first->Next(), b = second->Next(), c = other->Next();
    EXPECT_EQ(a->index, i);
    EXPECT_EQ(a->arrival_s, b->arrival_s);
    EXPECT_EQ(a->sampling_seed, b->sampling_seed);
    EXPECT_NE(a->arrival_s, c->arrival_s);
    EXPECT_EQ(first->Prompt(i).token_ids, second->Prompt(i).token_ids);
    num_equal += first->Prompt(i).token_ids == other->Prompt(i).token_ids;
  }
  EXPECT_EQ(num_equal, 0);
}

TEST(WorkloadTest, APromptDoesNotDependOnWhatWasAskedBefore) {
  const auto workload = Make(Options());
  const std::vector<int32_t> ids = workload->Prompt(17).token_ids;
  for (int i = 0; i < 17; ++i) EXPECT_EQ(SharedTokens(workload->Prompt(i).token_ids, ids), 0);
  EXPECT_EQ(workload->Prompt(17).token_ids, ids);
}

TEST(WorkloadTest, LengthsAreOfTheDistributions) {
  auto workload = Make(Options("uniform:100:102", "uniform:3:4"));
  std::set<size_t> prompts;
  std::set<int> outputs;
  for (int i = 0; i < 100; ++i) {
    outputs.insert(workload->Next()->output_tokens);
    prompts.insert(workload->Prompt(i).token_ids.size());
  }
  EXPECT_THAT(prompts, ElementsAre(100, 101, 102));
  EXPECT_THAT(outputs, ElementsAre(3, 4));
}

// Goal: arrivals are a Poisson process. Method: the mean and the variance of the gaps, which are 1
// and 1 over the rate and its square, within five standard errors (that of the variance is
// sqrt(8 / n) for exponential gaps).
TEST(WorkloadTest, PoissonArrivalsHaveTheRate) {
  WorkloadOptions options = Options("fixed:1");
  options.arrivals = Arrivals::kPoisson;
  options.rate_per_s = 4;
  auto workload = Make(options);
  constexpr int kRequests = 20000;
  double last = 0, sum = 0, squares = 0;
  for (int i = 0; i < kRequests; ++i) {
    const double arrival = workload->Next()->arrival_s;
    ASSERT_GE(arrival, last);
    const double gap = options.rate_per_s * (arrival - last);
    sum += gap;
    squares += gap * gap;
    last = arrival;
  }
  const double mean = sum / kRequests;
  EXPECT_NEAR(mean, 1, 5 / std::sqrt(kRequests));
  EXPECT_NEAR(squares / kRequests - mean * mean, 1, 5 * std::sqrt(8.0 / kRequests));
}

TEST(WorkloadTest, WithoutArrivalsEveryTimeIsZero) {
  auto workload = Make(Options());
  for (int i = 0; i < 3; ++i) EXPECT_EQ(workload->Next()->arrival_s, 0);
}

TEST(WorkloadTest, APromptBeginsWithItsShareOfAPrefix) {
  WorkloadOptions options = Options("fixed:300");
  options.shared_prefix = 0.5;
  const auto workload = Make(options);
  const PlannedPrompt a = workload->Prompt(0), b = workload->Prompt(1);
  EXPECT_EQ(a.num_shared_tokens, 150);
  EXPECT_EQ(SharedTokens(a.token_ids, b.token_ids), 150);
  EXPECT_EQ(SharedTokens(a.token_ids, workload->WarmUpPrompt(0).token_ids), 150);
}

TEST(WorkloadTest, AnAlignedPrefixEndsWithABlock) {
  WorkloadOptions options = Options("fixed:300");
  options.shared_prefix = 0.5;
  options.align_prefix = true;
  const auto workload = Make(options);
  EXPECT_EQ(workload->Prompt(0).num_shared_tokens, 128);
  EXPECT_EQ(SharedTokens(workload->Prompt(0).token_ids, workload->Prompt(1).token_ids), 128);
}

TEST(WorkloadTest, AShareOfOneIsTheWholePromptAndOfNoneNothing) {
  WorkloadOptions options = Options("uniform:100:200");
  options.shared_prefix = 1;
  auto workload = Make(options);
  const PlannedPrompt a = workload->Prompt(0), b = workload->Prompt(1);
  EXPECT_EQ(SharedTokens(a.token_ids, b.token_ids),
            std::min(a.token_ids.size(), b.token_ids.size()));
  options.shared_prefix = 0;
  workload = Make(options);
  EXPECT_EQ(SharedTokens(workload->Prompt(0).token_ids, workload->Prompt(1).token_ids), 0);
}

TEST(WorkloadTest, EveryPrefixIsChosen) {
  WorkloadOptions options = Options("fixed:10");
  options.shared_prefix = 1;
  options.num_prefixes = 5;
  const auto workload = Make(options);
  std::set<std::vector<int32_t>> prompts;
  for (int i = 0; i < 100; ++i) prompts.insert(workload->Prompt(i).token_ids);
  EXPECT_EQ(prompts.size(), 5);
}

TEST(WorkloadTest, DistinctPromptsComeRound) {
  WorkloadOptions options = Options();
  options.num_distinct_prompts = 3;
  auto workload = Make(options);
  std::vector<int64_t> prompts;
  for (int i = 0; i < 7; ++i) prompts.push_back(workload->Next()->prompt_index);
  EXPECT_THAT(prompts, ElementsAre(0, 1, 2, 0, 1, 2, 0));
}

TEST(WorkloadTest, WarmUpPromptsAreNoRequests) {
  const auto workload = Make(Options());
  for (int i = 0; i < 5; ++i) {
    EXPECT_EQ(SharedTokens(workload->Prompt(i).token_ids, workload->WarmUpPrompt(i).token_ids), 0);
  }
  EXPECT_EQ(workload->WarmUp(3).output_tokens, 8);
}

TEST(WorkloadTest, ATraceGivesTimesLengthsAndWhatIsShared) {
  WorkloadOptions options = Options("trace", "trace");
  options.arrivals = Arrivals::kTrace;
  options.trace_speed = 2;
  auto workload = Make(options, SomeTrace());
  std::vector<double> arrivals;
  std::vector<int> outputs;
  while (const auto request = workload->Next()) {
    arrivals.push_back(request->arrival_s);
    outputs.push_back(request->output_tokens);
  }
  EXPECT_THAT(arrivals, ElementsAre(0, 0.25, 1));
  EXPECT_THAT(outputs, ElementsAre(10, 20, 30));
  const std::vector<int32_t> a = workload->Prompt(0).token_ids, b = workload->Prompt(1).token_ids;
  EXPECT_EQ(a.size(), 600);
  EXPECT_EQ(b.size(), 1024);
  EXPECT_EQ(SharedTokens(a, b), 512);
  EXPECT_EQ(SharedTokens(a, workload->Prompt(2).token_ids), 0);
}

TEST(WorkloadTest, TimesOfATraceGoWithDrawnLengths) {
  WorkloadOptions options = Options("fixed:50", "fixed:5");
  options.arrivals = Arrivals::kTrace;
  auto workload = Make(options, SomeTrace());
  workload->Next();
  const auto second = workload->Next();
  EXPECT_EQ(second->arrival_s, 0.5);
  EXPECT_EQ(second->output_tokens, 5);
  EXPECT_EQ(workload->Prompt(1).token_ids.size(), 50);
}

TEST(WorkloadTest, WarmUpOfATraceHasItsLengthsAndNotItsTokens) {
  const auto workload = Make(Options("trace", "trace"), SomeTrace());
  EXPECT_EQ(workload->WarmUpPrompt(4).token_ids.size(), 1024);
  EXPECT_EQ(workload->WarmUp(4).output_tokens, 20);
  EXPECT_EQ(SharedTokens(workload->WarmUpPrompt(0).token_ids, workload->Prompt(0).token_ids), 0);
}

TEST(WorkloadTest, LongPromptsAreCutAndSaySo) {
  WorkloadOptions options = Options("trace", "trace");
  options.max_prompt_tokens = 600;
  const auto workload = Make(options, SomeTrace());
  EXPECT_FALSE(workload->Prompt(0).cut);
  EXPECT_TRUE(workload->Prompt(1).cut);
  EXPECT_EQ(workload->Prompt(1).token_ids.size(), 600);
  options.prompt_tokens = *LengthDistribution::Parse("fixed:601");
  EXPECT_TRUE(Make(options, SomeTrace())->Prompt(0).cut);
}

TEST(WorkloadTest, RefusesWhatIsNoLoad) {
  const auto refused = [](void (*change)(WorkloadOptions&)) {
    WorkloadOptions options = Options();
    change(options);
    return Make(options).status();
  };
  const auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_THAT(refused([](WorkloadOptions& o) { o.shared_prefix = 1.01; }), StatusIs(kInvalid));
  EXPECT_THAT(refused([](WorkloadOptions& o) { o.shared_prefix = NAN; }), StatusIs(kInvalid));
  EXPECT_THAT(refused([](WorkloadOptions& o) { o.num_prefixes = 0; }), StatusIs(kInvalid));
  EXPECT_THAT(refused([](WorkloadOptions& o) { o.max_prompt_tokens = 0; }), StatusIs(kInvalid));
  EXPECT_THAT(refused([](WorkloadOptions& o) { o.num_distinct_prompts = -1; }), StatusIs(kInvalid));
  EXPECT_THAT(refused([](WorkloadOptions& o) { o.arrivals = Arrivals::kPoisson; }),
              StatusIs(kInvalid));
  EXPECT_THAT(refused([](WorkloadOptions& o) { o.trace_speed = 0; }), StatusIs(kInvalid));
  EXPECT_THAT(refused([](WorkloadOptions& o) { o.arrivals = Arrivals::kTrace; }),
              StatusIs(kInvalid));
  EXPECT_THAT(refused([](WorkloadOptions& o) { o.output_tokens = {}; }), StatusIs(kInvalid));
  EXPECT_THAT(refused([](WorkloadOptions&) {}), IsOk());
}

}  // namespace
}  // namespace pkv
