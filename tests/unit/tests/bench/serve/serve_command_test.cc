// pkv-bench serve through the real binary: what it refuses before it asks a worker anything, and
// what it says when there is none. tests/integration/e2e runs it against workers.

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "tests/support/run_binary.h"

namespace pkv {
namespace {

using testing::HasSubstr;

// Nobody listens on port 1.
BinaryRun Serve(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(),
                   {"serve", "--prefill", "127.0.0.1:1", "--decode", "127.0.0.1:1"});
  return RunBinary("tests/bench/pkv-bench", std::move(arguments));
}

TEST(ServeCommandTest, RefusesWhatItCannotReadByName) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> refused = {
      {{"--prompt-tokens", "few"}, "'few'"},
      {{"--output-tokens", "fixed:0"}, "'fixed:0'"},
      {{"--prompt-tokens", "trace"}, "need a trace"},
      {{"--concurrency", "1025"}, "--concurrency"},
      {{"--concurrency", "2", "--rate", "1"}, "one of them"},
      {{"--shared-prefix", "2"}, "--shared-prefix"},
      {{"--decode-only", "--ignore-cache"}, "--ignore-cache"},
      {{"--trace", "no-such-file"}, "no-such-file"},
      {{"--text", "no-such-file"}, "no-such-file"},
      {{"--metrics-cache", "nowhere"}, "nowhere"}};
  for (const auto& [arguments, name] : refused) {
    const BinaryRun run = Serve(arguments);
    EXPECT_EQ(run.exit_code, 2) << arguments.back();
    EXPECT_THAT(run.err, HasSubstr(name));
    EXPECT_EQ(run.out, "");
  }
}

TEST(ServeCommandTest, ReportsEveryRequestOfWorkersThatAreAway) {
  const BinaryRun run = Serve(
      {"--num-requests", "3", "--warmup", "1", "--output", "json", "--prompt-tokens", "fixed:10"});
  EXPECT_EQ(run.exit_code, 1);
  EXPECT_THAT(run.err, HasSubstr("a warm-up request failed: UNAVAILABLE"));
  const auto json = nlohmann::json::parse(run.out, nullptr, /*allow_exceptions=*/false);
  EXPECT_EQ(json["requests"]["sent"], 3);
  EXPECT_EQ(json["requests"]["failed"], 3);
  EXPECT_EQ(json["requests"]["errors"][0]["stage"], "prefill");
  EXPECT_EQ(json["requests"]["errors"][0]["code"], "UNAVAILABLE");
  EXPECT_EQ(json["requests"]["errors"][0]["count"], 3);
  EXPECT_TRUE(json["latency_seconds"]["ttft"].is_null());
}

TEST(ServeCommandTest, EndsBeforeTheLoadWhenItsMetricsOrTicketsCannotBeHad) {
  const BinaryRun metrics = Serve({"--metrics-decode", "http://127.0.0.1:1/metrics"});
  EXPECT_EQ(metrics.exit_code, 1);
  EXPECT_THAT(metrics.err, HasSubstr("UNAVAILABLE"));
  EXPECT_EQ(metrics.out, "");
  const BinaryRun tickets = Serve({"--decode-only"});
  EXPECT_EQ(tickets.exit_code, 1);
  EXPECT_THAT(tickets.err, HasSubstr("a prefill before the load"));
}

}  // namespace
}  // namespace pkv
