#include "worker/serve/serve_flags.h"

#include <gmock/gmock.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>

#include "tests/support/run_binary.h"

namespace pkv {
namespace {

using testing::HasSubstr;

class ServeFlagsTest : public testing::Test {
 protected:
  // Parses "--model m" and `arguments`; false on a usage error.
  bool Parse(std::vector<std::string> arguments) {
    CLI::App app;
    flags_ = ServeFlags();
    AddServeFlags(app, flags_);
    AddPrefillFlags(app, flags_);
    AddDecodeFlags(app, flags_);
    arguments.insert(arguments.begin(), {"--model", "m"});
    std::reverse(arguments.begin(), arguments.end());  // CLI11 takes them from the end
    try {
      app.parse(arguments);
    } catch (const CLI::ParseError&) {
      return false;
    }
    return true;
  }

  ServeFlags flags_;
};

TEST_F(ServeFlagsTest, HasDefaultsForAllButTheModel) {
  ASSERT_TRUE(Parse({}));
  EXPECT_EQ(flags_.model.model, "m");
  EXPECT_EQ(flags_.model.device, "cpu");
  EXPECT_EQ(flags_.model.preset, "default");
  EXPECT_EQ(flags_.cache, "127.0.0.1:7440");
  EXPECT_EQ(flags_.queue.max_running, 4);
  EXPECT_EQ(flags_.queue.max_waiting, 64);
  EXPECT_EQ(flags_.max_batch, 8);
  EXPECT_EQ(flags_.num_pages, 0) << "as many as fit";
  EXPECT_FALSE(flags_.server.allow_insecure);
  EXPECT_TRUE(flags_.server.metrics_listen.empty());
}

TEST_F(ServeFlagsTest, TakesEveryOption) {
  ASSERT_TRUE(Parse({"--cache",
                     "unix:/c",
                     "--listen",
                     "localhost:1",
                     "--metrics-listen",
                     "localhost:2",
                     "--health-listen",
                     "localhost:3",
                     "--port-file",
                     "p",
                     "--threads",
                     "3",
                     "--device",
                     "cuda",
                     "--shape",
                     "llama-3.2-1b",
                     "--preset",
                     "pkv2",
                     "--max-prompt-tokens",
                     "4096",
                     "--memory-share",
                     "0.5",
                     "--max-running",
                     "5",
                     "--max-waiting",
                     "0",
                     "--max-batch",
                     "16",
                     "--pages",
                     "99",
                     "--drain-timeout",
                     "1.5",
                     "--put-deadline",
                     "7",
                     "--log-format",
                     "json",
                     "--log-level",
                     "error",
                     "--i-understand-insecure"}));
  EXPECT_EQ(flags_.cache, "unix:/c");
  EXPECT_EQ(flags_.server.listen, "localhost:1");
  EXPECT_EQ(flags_.server.metrics_listen, "localhost:2");
  EXPECT_EQ(flags_.health_listen, "localhost:3");
  EXPECT_EQ(flags_.server.port_file, "p");
  EXPECT_EQ(flags_.model.threads, 3);
  EXPECT_EQ(flags_.model.device, "cuda");
  EXPECT_EQ(flags_.model.shape, "llama-3.2-1b");
  EXPECT_EQ(flags_.model.preset, "pkv2");
  EXPECT_EQ(flags_.model.max_prompt_tokens, 4096);
  EXPECT_EQ(flags_.model.memory_share, 0.5);
  EXPECT_EQ(flags_.queue.max_running, 5);
  EXPECT_EQ(flags_.queue.max_waiting, 0);
  EXPECT_EQ(flags_.max_batch, 16);
  EXPECT_EQ(flags_.num_pages, 99);
  EXPECT_EQ(flags_.drain_timeout_s, 1.5);
  EXPECT_EQ(flags_.put_deadline_s, 7);
  EXPECT_EQ(flags_.log_format, "json");
  EXPECT_EQ(flags_.log_level, "error");
  EXPECT_TRUE(flags_.server.allow_insecure);
}

TEST_F(ServeFlagsTest, RefusesValuesOutOfRange) {
  EXPECT_TRUE(Parse({"--threads", "1024"}));
  EXPECT_FALSE(Parse({"--threads", "1025"}));
  EXPECT_FALSE(Parse({"--threads", "-1"}));
  EXPECT_TRUE(Parse({"--max-running", "1"}));
  EXPECT_FALSE(Parse({"--max-running", "0"}));
  EXPECT_FALSE(Parse({"--max-waiting", "-1"}));
  EXPECT_TRUE(Parse({"--max-batch", "1024"}));
  EXPECT_FALSE(Parse({"--max-batch", "0"}));
  EXPECT_FALSE(Parse({"--pages", "-1"}));
  EXPECT_FALSE(Parse({"--device", "tpu"}));
  EXPECT_FALSE(Parse({"--max-prompt-tokens", "127"}));
  EXPECT_FALSE(Parse({"--memory-share", "1.1"}));
  EXPECT_FALSE(Parse({"--drain-timeout", "3601"}));
  EXPECT_FALSE(Parse({"--put-deadline", "0"}));
  EXPECT_FALSE(Parse({"--log-format", "xml"}));
  EXPECT_FALSE(Parse({"--log-level", "loud"}));
  EXPECT_FALSE(Parse({"--no-such-option"}));
}

TEST_F(ServeFlagsTest, TakesOptionsFromTheEnvironmentToo) {
  ASSERT_EQ(::setenv("PKV_MAX_RUNNING", "9", 1), 0);
  EXPECT_TRUE(Parse({}));
  EXPECT_EQ(flags_.queue.max_running, 9);
  EXPECT_TRUE(Parse({"--max-running", "2"}));
  EXPECT_EQ(flags_.queue.max_running, 2) << "the command line wins";
  ::unsetenv("PKV_MAX_RUNNING");
  ASSERT_EQ(::setenv("PKV_MAX_BATCH", "7", 1), 0);
  EXPECT_TRUE(Parse({}));
  EXPECT_EQ(flags_.max_batch, 7);
  ::unsetenv("PKV_MAX_BATCH");
}

TEST(WorkerMainTest, TakesTheOptionsOfItsRoleAlone) {
  for (const auto& [binary, option] : {std::pair("worker/pkv-prefill", "--max-batch"),
                                       std::pair("worker/pkv-decode", "--max-running")}) {
    const BinaryRun run = RunBinary(binary, {"serve", "--model", "m", option, "1"});
    EXPECT_EQ(run.exit_code, 2) << option;
    EXPECT_THAT(run.err, HasSubstr(option));
  }
}

TEST(WorkerMainTest, ExitsWithTwoOnBadUsageAndOneOnFailure) {
  for (const char* binary : {"worker/pkv-prefill", "worker/pkv-decode"}) {
    EXPECT_EQ(RunBinary(binary, {}).exit_code, 2) << "no subcommand";
    const BinaryRun no_model = RunBinary(binary, {"serve"});
    EXPECT_EQ(no_model.exit_code, 2);
    EXPECT_THAT(no_model.err, HasSubstr("--model"));
    const BinaryRun missing = RunBinary(binary, {"serve", "--model", "/nonexistent"});
    EXPECT_EQ(missing.exit_code, 1);
    EXPECT_THAT(missing.err, HasSubstr("/nonexistent"));
  }
}

TEST(WorkerMainTest, ShowsAnExampleAndTheVersion) {
  const BinaryRun run = RunBinary("worker/pkv-prefill", {"--help"});
  EXPECT_EQ(run.exit_code, 0);
  EXPECT_THAT(run.out, HasSubstr("pkv-prefill serve --model"));
  const BinaryRun version = RunBinary("worker/pkv-decode", {"--version"});
  EXPECT_EQ(version.exit_code, 0);
  EXPECT_THAT(version.out, HasSubstr(PKV_VERSION));
}

}  // namespace
}  // namespace pkv
