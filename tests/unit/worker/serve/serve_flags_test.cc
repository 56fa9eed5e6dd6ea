#include "worker/serve/serve_flags.h"

#include <gmock/gmock.h>

#include <map>

#include "tests/support/run_binary.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr WorkerRole kPrefill = {.name = "prefill"};
constexpr WorkerRole kDecode = {.name = "decode", .takes_device_frames = true};

class ServeFlagsTest : public testing::Test {
 protected:
  ServeFlagsTest() {
    DeclareServeOptions(table_, flags_);
    DeclarePrefillOptions(table_, flags_);
    DeclareDecodeOptions(table_, flags_);
  }

  absl::Status Set(const std::string& name, const std::string& text) {
    const OptionTable::Option* option = table_.Find(name);
    return option == nullptr ? absl::NotFoundError(name) : option->set(text);
  }

  ServeFlags flags_;
  OptionTable table_;
};

TEST_F(ServeFlagsTest, HasDefaultsForAllButTheModel) {
  EXPECT_EQ(flags_.model.model, "");
  EXPECT_EQ(flags_.model.device, "cpu");
  EXPECT_EQ(flags_.model.preset, "default");
  EXPECT_EQ(flags_.cache, "127.0.0.1:7440");
  EXPECT_EQ(flags_.queue.max_running, 4);
  EXPECT_EQ(flags_.queue.max_waiting, 64);
  EXPECT_EQ(flags_.max_batch, 8);
  EXPECT_EQ(flags_.num_pages, 0) << "as many as fit";
  EXPECT_EQ(flags_.server.drain_timeout, absl::Seconds(10));
  EXPECT_EQ(flags_.put_deadline, absl::Minutes(2));
  EXPECT_FALSE(flags_.server.allow_insecure);
  EXPECT_TRUE(flags_.server.metrics_listen.empty());
}

TEST_F(ServeFlagsTest, TakesEveryOption) {
  const std::map<std::string, std::string> kValues = {{"model", "m"},
                                                      {"cache", "unix:/c"},
                                                      {"transport", "nccl"},
                                                      {"listen", "localhost:1"},
                                                      {"metrics-listen", "localhost:2"},
                                                      {"health-listen", "localhost:3"},
                                                      {"port-file", "p"},
                                                      {"threads", "3"},
                                                      {"device", "cuda"},
                                                      {"shape", "llama-3.2-1b"},
                                                      {"preset", "pkv2"},
                                                      {"max-prompt-tokens", "4096"},
                                                      {"memory-share", "0.5"},
                                                      {"max-running", "5"},
                                                      {"compression-sms", "6"},
                                                      {"max-waiting", "0"},
                                                      {"max-batch", "16"},
                                                      {"pages", "99"},
                                                      {"layer-streaming", "false"},
                                                      {"direct-from", "prefill:7441"},
                                                      {"direct-memory", "1GiB"},
                                                      {"direct-advertise", "10.0.0.7:7441"},
                                                      {"drain-timeout", "1500ms"},
                                                      {"put-deadline", "7s"},
                                                      {"log-format", "json"},
                                                      {"log-level", "error"},
                                                      {"i-understand-insecure", "true"}};
  for (const auto& [name, text] : kValues) EXPECT_THAT(Set(name, text), IsOk()) << name;
  for (const std::string& name : table_.names()) EXPECT_EQ(kValues.count(name), 1u) << name;
  EXPECT_EQ(flags_.model.model, "m");
  EXPECT_EQ(flags_.cache, "unix:/c");
  EXPECT_EQ(flags_.transport, "nccl");
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
  EXPECT_EQ(flags_.model.compression_sms, 6);
  EXPECT_EQ(flags_.queue.max_running, 5);
  EXPECT_EQ(flags_.queue.max_waiting, 0);
  EXPECT_EQ(flags_.max_batch, 16);
  EXPECT_EQ(flags_.num_pages, 99);
  EXPECT_FALSE(flags_.layer_streaming);
  EXPECT_EQ(flags_.server.drain_timeout, absl::Milliseconds(1500));
  EXPECT_EQ(flags_.put_deadline, absl::Seconds(7));
  EXPECT_EQ(flags_.log.format, LogFormat::kJson);
  EXPECT_EQ(flags_.log.level, LogLevel::kError);
  EXPECT_TRUE(flags_.server.allow_insecure);
}

TEST_F(ServeFlagsTest, RefusesValuesOutOfRange) {
  EXPECT_THAT(Set("threads", "1024"), IsOk());
  EXPECT_THAT(Set("max-running", "1"), IsOk());
  const std::pair<const char*, const char*> kRefused[] = {
      {"threads", "1025"},     {"threads", "-1"},
      {"max-running", "0"},    {"max-waiting", "-1"},
      {"max-batch", "0"},      {"pages", "-1"},
      {"device", "tpu"},       {"max-prompt-tokens", "127"},
      {"memory-share", "1.1"}, {"drain-timeout", "3601s"},
      {"drain-timeout", "30"}, {"put-deadline", "0s"},
      {"log-format", "xml"},   {"log-level", "loud"},
      {"transport", "rdma"},   {"compression-sms", "65"}};
  for (const auto& [name, text] : kRefused) {
    EXPECT_THAT(Set(name, text), StatusIs(absl::StatusCode::kInvalidArgument)) << name << text;
  }
}

TEST_F(ServeFlagsTest, ChecksModelAndAddressesTogether) {
  flags_.model.model = "m";
  flags_.server.listen = "127.0.0.1:0";
  EXPECT_THAT(CheckServeFlags(kPrefill, flags_), IsOk());
  flags_.model.shape = "llama-3.2-1b";
  EXPECT_THAT(CheckServeFlags(kPrefill, flags_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--shape")));
  flags_.model.shape = "";
  flags_.model.compression_sms = 3;
  EXPECT_THAT(CheckServeFlags(kPrefill, flags_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--compression-sms 3")));
  flags_.model.compression_sms = 0;
  flags_.server.listen = "0.0.0.0:0";
  EXPECT_THAT(CheckServeFlags(kPrefill, flags_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--i-understand-insecure")));
  flags_.server.allow_insecure = true;
  EXPECT_THAT(CheckServeFlags(kPrefill, flags_), IsOk());
  flags_.server.metrics_listen = "unix:/m";
  EXPECT_THAT(CheckServeFlags(kPrefill, flags_),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("unix:/m")));
}

TEST_F(ServeFlagsTest, BringsFramesToAGpuOnlyWhereTheRoleTakesThemAndTheModelRuns) {
  const auto transport_is_wrong =
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--transport nccl"));
  flags_.model.model = "m";
  flags_.server.listen = "127.0.0.1:0";
  flags_.transport = "nccl";
  EXPECT_THAT(CheckServeFlags(kDecode, flags_), transport_is_wrong) << "on the CPU";
  // Without CUDA in this build it is --device that is wrong.
  flags_.model.device = "cuda";
  EXPECT_THAT(CheckServeFlags(kDecode, flags_), Not(transport_is_wrong));
  flags_.model.device = "cpu";
  flags_.transport = "auto";
  EXPECT_THAT(CheckServeFlags(kDecode, flags_), IsOk());
  EXPECT_THAT(CheckServeFlags(kPrefill, flags_), IsOk());
}

// In a build without CUDA --device is wrong first.
TEST_F(ServeFlagsTest, OffersPromptsDirectlyOnlyFromAGpuAndByAnAddressThatCanBeDialled) {
  const auto is_wrong = StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--direct-memory"));
  flags_.model.model = "m";
  flags_.server.listen = "127.0.0.1:7441";
  flags_.direct_memory = 1 << 20;
  EXPECT_THAT(CheckServeFlags(kPrefill, flags_), is_wrong) << "on the CPU";
  flags_.model.device = "cuda";
  EXPECT_THAT(CheckServeFlags(kPrefill, flags_), Not(is_wrong));
  EXPECT_EQ(flags_.direct_address(), "127.0.0.1:7441");
  if (!WorkerModel::Check(flags_.model).ok()) return;  // built without CUDA
  flags_.server.allow_insecure = true;
  for (const char* wildcard : {"0.0.0.0:7441", "127.0.0.1:0", "unix:/run/prefill.sock"}) {
    flags_.server.listen = wildcard;
    EXPECT_THAT(CheckServeFlags(kPrefill, flags_), is_wrong) << wildcard;
    flags_.direct_advertise = "10.0.0.7:7441";
    EXPECT_THAT(CheckServeFlags(kPrefill, flags_), IsOk()) << wildcard;
    EXPECT_EQ(flags_.direct_address(), "10.0.0.7:7441");
    flags_.direct_advertise = "";
  }
  for (const char* none :
       {"0.0.0.0:7441", "[0:0:0:0:0:0:0:0]:7441", "fd00::7:7441", "[fd00::7:7441", "10.0.0.7:07441",
        "10.0.0.7:+7441", "10.0.0.7: 7441", "10.0.0.7", "a:1,b:1"}) {
    flags_.direct_advertise = none;
    EXPECT_THAT(CheckServeFlags(kPrefill, flags_), is_wrong) << none;
  }
}

TEST_F(ServeFlagsTest, TicketsHaveTheSpellingOfAnAddressThatDecodeWorkersCompareWith) {
  flags_.direct_advertise = "[FD00:0:0::7]:7441";
  EXPECT_EQ(flags_.direct_address(), "[fd00::7]:7441");
  flags_.direct_advertise = "prefill-0.prefill:7441";
  EXPECT_EQ(flags_.direct_address(), "prefill-0.prefill:7441");
}

TEST_F(ServeFlagsTest, AdvertisesNothingWithoutMemoryForIt) {
  flags_.model.model = "m";
  flags_.server.listen = "127.0.0.1:7441";
  flags_.direct_advertise = "10.0.0.7:7441";
  EXPECT_THAT(
      CheckServeFlags(kPrefill, flags_),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--direct-advertise 10.0.0.7:7441")));
}

TEST_F(ServeFlagsTest, AsksPrefillWorkersOnlyForFramesThatComeToAGpu) {
  const auto is_wrong = StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("--direct-from"));
  flags_.model.model = "m";
  flags_.server.listen = "127.0.0.1:0";
  flags_.direct_from = "prefill:7441";
  EXPECT_THAT(CheckServeFlags(kDecode, flags_), is_wrong) << "on the CPU";
  flags_.model.device = "cuda";
  if (!WorkerModel::Check(flags_.model).ok()) return;  // built without CUDA
  EXPECT_THAT(CheckServeFlags(kDecode, flags_), IsOk());
  flags_.transport = "shm";
  EXPECT_THAT(CheckServeFlags(kDecode, flags_), is_wrong);
  flags_.transport = "nccl";
  EXPECT_THAT(CheckServeFlags(kDecode, flags_), is_wrong) << "nothing would finish what breaks";
  flags_.transport = "auto";
  flags_.direct_from = "prefill";
  EXPECT_THAT(CheckServeFlags(kDecode, flags_), is_wrong);
}

TEST(WorkerMainTest, RefusesATransportThatItsRoleCannotUse) {
  for (const char* binary : {"worker/pkv-prefill", "worker/pkv-decode"}) {
    const BinaryRun run =
        RunBinary(binary, {"serve", "--model", "m", "--transport", "nccl", "--check-config"});
    EXPECT_EQ(run.exit_code, 2) << binary;
    EXPECT_THAT(run.err, HasSubstr("--transport nccl")) << binary;
  }
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
