#include "proto/config/command_line.h"

#include <gmock/gmock.h>

#include <CLI/CLI.hpp>

#include "proto/config/configuration.h"
#include "proto/config/service_options.h"
#include "tests/support/scratch_folder.h"

namespace pkv {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

struct Settings {
  std::string model;
  bool reflection = true;
  absl::Duration drain_timeout = absl::Seconds(30);
  LogSettings log;
};

void Declare(OptionTable& table, Settings& settings) {
  table.AddPath({.name = "model", .help = "a folder"}, settings.model);
  table.AddSwitch({.name = "reflection", .help = "answer it"}, settings.reflection);
  AddDrainTimeout(table, settings.drain_timeout);
  AddLogOptions(table, settings.log);
}

absl::Status Check(const Settings& settings) {
  if (settings.model == "none") return absl::InvalidArgumentError("--model: there is no such");
  return absl::OkStatus();
}

class CommandLineTest : public testing::Test {
 protected:
  // Starts anew; the exit code, or -1 when the program would serve.
  int Start(std::vector<const char*> arguments, std::vector<const char*> environment = {}) {
    arguments.insert(arguments.begin(), {"/usr/bin/pkv-test", "serve"});
    return StartAt(std::move(arguments), std::move(environment));
  }
  int StartAt(std::vector<const char*> arguments, std::vector<const char*> environment = {}) {
    environment.push_back(nullptr);
    config_.emplace(Declare, Check);
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const std::optional<int> exit_code =
        config_->Start({.name = "pkv-test",
                        .description = "A test.",
                        .version = "pkv-test 1.2.3",
                        .subcommand = "serve",
                        .subcommand_help = "serve it",
                        .footer = "Example: none"},
                       static_cast<int>(arguments.size()), arguments.data(), environment.data());
    out_ = testing::internal::GetCapturedStdout();
    err_ = testing::internal::GetCapturedStderr();
    return exit_code.value_or(-1);
  }
  const Settings& settings() const { return config_->settings(); }

  const ScratchFolder scratch_;
  std::optional<Configuration<Settings>> config_;
  std::string out_, err_;
};

TEST_F(CommandLineTest, EverySourceOfAServiceIsRead) {
  const std::string file = scratch_.Write("pkv.yaml", "drain-timeout: 5s\nlog-level: error\n");
  const std::string variable = "PKV_CONFIG=" + file;
  ASSERT_EQ(Start({"--model", "m", "--no-reflection"}, {"PKV_LOG_LEVEL=debug", variable.c_str()}),
            -1)
      << err_;
  EXPECT_EQ(out_ + err_, "");
  EXPECT_EQ(settings().model, "m");
  EXPECT_FALSE(settings().reflection);
  EXPECT_EQ(settings().drain_timeout, absl::Seconds(5));
  EXPECT_EQ(settings().log.level, LogLevel::kDebug);
}

TEST_F(CommandLineTest, TheFlagNamesTheFileBeforeTheVariable) {
  const std::string file = scratch_.Write("pkv.yaml", "drain-timeout: 5s\n");
  ASSERT_EQ(Start({"--config", file.c_str()}, {"PKV_CONFIG=/nonexistent"}), -1) << err_;
  EXPECT_EQ(settings().drain_timeout, absl::Seconds(5));
  EXPECT_EQ(Start({}, {"PKV_CONFIG=/nonexistent"}), 2);
  EXPECT_THAT(err_, HasSubstr("pkv-test: /nonexistent: cannot be read"));
  EXPECT_EQ(Start({}, {"PKV_CONFIG=-/nonexistent"}), -1);
}

TEST_F(CommandLineTest, SwitchesAreTurnedOffOverTheEnvironment) {
  ASSERT_EQ(Start({"--no-reflection"}, {"PKV_REFLECTION=true"}), -1);
  EXPECT_FALSE(settings().reflection);
  ASSERT_EQ(Start({"--reflection"}, {"PKV_REFLECTION=false"}), -1);
  EXPECT_TRUE(settings().reflection);
  ASSERT_EQ(Start({"--reflection=false"}), -1);
  EXPECT_FALSE(settings().reflection);
}

TEST_F(CommandLineTest, BadUsageIsExitCodeTwo) {
  EXPECT_EQ(StartAt({"pkv-test"}), 2) << "no subcommand";
  EXPECT_EQ(Start({"--model"}), 2) << "no value";
  EXPECT_EQ(Start({"extra"}), 2);
  EXPECT_EQ(Start({"--drain-timeout", "5"}), 2);
  EXPECT_THAT(err_, HasSubstr("pkv-test: --drain-timeout: \"5\" has no unit"));
  EXPECT_EQ(Start({"--drain-timout=5s"}), 2);
  EXPECT_THAT(err_, HasSubstr("did you mean '--drain-timeout'?"));
  EXPECT_EQ(Start({"--xyzzy"}), 2);
  EXPECT_THAT(err_, Not(HasSubstr("did you mean")));
}

TEST_F(CommandLineTest, PrintedConfigurationNamesOrigins) {
  EXPECT_EQ(Start({"--print-config", "--model", "m"}, {"PKV_DRAIN_TIMEOUT=1m"}), 0);
  EXPECT_THAT(out_, AllOf(HasSubstr("model: \"m\"  # flag\n"),
                          HasSubstr("drain-timeout: 1m  # environment PKV_DRAIN_TIMEOUT\n"),
                          HasSubstr("reflection: true  # default\n")));
  EXPECT_EQ(err_, "");
  EXPECT_EQ(Start({"--print-config", "--model", "none"}), 2) << "not one that could be used";
  EXPECT_EQ(out_, "");
}

TEST_F(CommandLineTest, CheckedConfigurationIsSaidOnStderr) {
  EXPECT_EQ(Start({"--check-config"}, {"PKV_DRAIN_TIMEUOT=1m"}), 0);
  EXPECT_EQ(out_, "");
  EXPECT_THAT(
      err_, AllOf(HasSubstr("the configuration is valid"),
                  HasSubstr("PKV_DRAIN_TIMEUOT is not known"), HasSubstr("'PKV_DRAIN_TIMEOUT'?")));
  EXPECT_EQ(Start({"--check-config", "--model", "none"}), 2);
  EXPECT_EQ(err_, "pkv-test: --model: there is no such\n");
}

TEST_F(CommandLineTest, HelpShowsTypesDefaultsAndVariables) {
  EXPECT_EQ(Start({"--help"}), 0);
  EXPECT_THAT(
      out_,
      AllOf(HasSubstr("--drain-timeout DURATION 0s..1h [30s] (Env:PKV_DRAIN_TIMEOUT)"),
            HasSubstr("--model PATH (Env:PKV_MODEL)"), HasSubstr("--config PATH (Env:PKV_CONFIG)"),
            HasSubstr("{text,json} [text] (Env:PKV_LOG_FORMAT)")));
  EXPECT_EQ(StartAt({"pkv-test", "--version"}), 0);
  EXPECT_EQ(out_, "pkv-test 1.2.3\n");
  EXPECT_EQ(Start({"--describe-config"}), 0);
  EXPECT_THAT(out_, HasSubstr("| `model` | `PKV_MODEL` | PATH |  | restart | a folder |"));
}

TEST(SecondsFlagTest, TakesADurationWithItsUnit) {
  for (const auto& [text, expected] :
       {std::pair("250ms", 0.25), std::pair("2m", 120.0), std::pair("2", -1.0),
        std::pair("99ms", -1.0), std::pair("61m", -1.0)}) {
    CLI::App app("A tool", "tool");
    double seconds = 5;
    AddSecondsFlag(app, "wait", seconds, "how long",
                   {.min = absl::Milliseconds(100), .max = absl::Hours(1)});
    EXPECT_THAT(app.help(), HasSubstr("--wait DURATION 100ms..1h [5s]"));
    const char* const arguments[] = {"tool", "--wait", text};
    const std::optional<int> exit_code = ParseCommandLine(app, 3, arguments);
    EXPECT_EQ(exit_code.value_or(0), expected < 0 ? 2 : 0) << text;
    EXPECT_EQ(seconds, expected < 0 ? 5 : expected) << text;
  }
}

TEST_F(CommandLineTest, ReloadTakesTheFileAsItIsThen) {
  const std::string file = scratch_.Write("pkv.yaml", "drain-timeout: 5s\n");
  ASSERT_EQ(Start({"--config", file.c_str(), "--model", "m"}), -1);
  scratch_.Write("pkv.yaml", "drain-timeout: 7s\nmodel: other\n");
  EXPECT_EQ(config_->Reload(), ReloadResult::kSuccess) << "the flag still hides the file's model";
  EXPECT_EQ(settings().drain_timeout, absl::Seconds(7));
  EXPECT_EQ(settings().model, "m");
  scratch_.Write("pkv.yaml", "reflection: false\n");
  EXPECT_EQ(config_->Reload(), ReloadResult::kPartial);
  EXPECT_EQ(settings().drain_timeout, absl::Seconds(30)) << "no longer set: the default";
  EXPECT_TRUE(settings().reflection);
}

TEST_F(CommandLineTest, ReloadOfAnInvalidFileChangesNothing) {
  const std::string file = scratch_.Write("pkv.yaml", "drain-timeout: 5s\n");
  ASSERT_EQ(Start({"--config", file.c_str()}), -1);
  for (const char* text : {"drain-timeout: 7\n", "drain-timeout: 7s\nmodel: none\n", "[\n"}) {
    scratch_.Write("pkv.yaml", text);
    EXPECT_EQ(config_->Reload(), ReloadResult::kFailure) << text;
    EXPECT_EQ(settings().drain_timeout, absl::Seconds(5)) << text;
  }
  std::filesystem::remove(file);
  EXPECT_EQ(config_->Reload(), ReloadResult::kFailure) << "it must be there";
}

}  // namespace
}  // namespace pkv
