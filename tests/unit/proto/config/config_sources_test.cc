#include "proto/config/config_sources.h"

#include <gmock/gmock.h>

#include "absl/strings/str_cat.h"
#include "proto/config/service_options.h"
#include "proto/config/value_text.h"
#include "tests/support/scratch_folder.h"

namespace pkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

struct Values {
  std::string listen = "127.0.0.1:1";
  uint64_t capacity = 1 << 30;
  absl::Duration drain_timeout = absl::Seconds(30);
  bool reflection = true;
  LogSettings log;

  void Declare(OptionTable& table) {
    table.AddText({.name = "listen", .help = "where"}, listen);
    table.AddSize({.name = "capacity", .help = "how much"}, capacity, {.min = 4096});
    AddDrainTimeout(table, drain_timeout);
    table.AddSwitch({.name = "reflection", .help = "answer | not"}, reflection);
    AddLogOptions(table, log);
  }
};

class ConfigSourcesTest : public testing::Test {
 protected:
  ConfigSourcesTest() { values_.Declare(table_); }

  std::string File(const std::string& text) { return scratch_.Write("pkv.yaml", text); }

  const ScratchFolder scratch_;
  Values values_;
  OptionTable table_;
};

TEST_F(ConfigSourcesTest, FlagIsBeforeEnvironmentBeforeFileBeforeDefault) {
  const std::string file = File("listen: f\ncapacity: 2GiB\nreflection: no\n");
  const LoadedConfig loaded =
      LoadConfig(table_, {.flags = {{"listen", "x"}},
                          .environment = {{"PKV_LISTEN", "e"}, {"PKV_CAPACITY", "3GiB"}},
                          .file = file});
  EXPECT_THAT(loaded.problems, IsEmpty());
  EXPECT_EQ(loaded.file, file);
  EXPECT_EQ(values_.listen, "x");
  EXPECT_EQ(loaded.origins.at("listen"), "flag");
  EXPECT_EQ(values_.capacity, uint64_t{3} << 30);
  EXPECT_EQ(loaded.origins.at("capacity"), "environment PKV_CAPACITY");
  EXPECT_FALSE(values_.reflection);
  EXPECT_EQ(loaded.origins.at("reflection"), absl::StrCat("file ", file, ":3"));
  EXPECT_EQ(values_.drain_timeout, absl::Seconds(30));
  EXPECT_EQ(loaded.origins.at("drain-timeout"), "default");
}

TEST_F(ConfigSourcesTest, AllProblemsOfAllSourcesAreToldAtOnce) {
  const std::string file = File(
      "capasity: 1GiB\n"
      "drain-timeout: 30\n"
      "capacity: 1GiB\n"
      "capacity: 2GiB\n"
      "log-level: inof\n");
  const LoadedConfig loaded = LoadConfig(table_, {.flags = {{"capacity", "much"}},
                                                  .environment = {{"PKV_REFLECTION", "perhaps"}},
                                                  .file = file});
  EXPECT_THAT(
      loaded.problems,
      ElementsAre(absl::StrCat(file, ":1: unknown option 'capasity': did you mean 'capacity'?"),
                  HasSubstr(absl::StrCat(file, ":2: drain-timeout: \"30\" has no unit")),
                  absl::StrCat(file, ":4: 'capacity' is set on line 3 already"),
                  HasSubstr(absl::StrCat(file, ":5: log-level: \"inof\" is none of")),
                  HasSubstr("environment PKV_REFLECTION: \"perhaps\""),
                  HasSubstr("--capacity: \"much\" is no size")));
}

TEST_F(ConfigSourcesTest, AFileThatIsMissingIsAProblemUnlessItMayBe) {
  const std::string missing = scratch_.path() + "/missing";
  EXPECT_THAT(LoadConfig(table_, {.file = missing}).problems, ElementsAre(HasSubstr(missing)));
  const LoadedConfig loaded = LoadConfig(table_, {.file = absl::StrCat("-", missing)});
  EXPECT_THAT(loaded.problems, IsEmpty());
  EXPECT_EQ(loaded.file, "");
  EXPECT_THAT(LoadConfig(table_, {.file = absl::StrCat("-", scratch_.path())}).problems,
              ElementsAre(HasSubstr("cannot be read")))
      << "it is there, and a folder";
  EXPECT_THAT(LoadConfig(table_, {.file = absl::StrCat("-", File("capacity: 1\n"))}).problems,
              ElementsAre(HasSubstr("below 4KiB")));
}

TEST_F(ConfigSourcesTest, WhatIsPrintedIsReadBack) {
  const std::string odd = "a \"b\" \\ # c: \t'd'\x01 \xc3\xa4";
  const LoadedConfig loaded = LoadConfig(
      table_, {.flags = {{"listen", odd}, {"drain-timeout", "1h"}, {"reflection", "false"}}});
  const std::string yaml = ConfigYaml(table_, loaded.origins);
  EXPECT_THAT(yaml, HasSubstr("capacity: 1GiB  # default\n"));
  EXPECT_THAT(yaml, HasSubstr("drain-timeout: 1h  # flag\n"));
  Values again;
  OptionTable table;
  again.Declare(table);
  EXPECT_THAT(LoadConfig(table, {.file = File(yaml)}).problems, IsEmpty());
  EXPECT_EQ(again.listen, odd);
  for (const OptionTable::Option& option : table_.options()) {
    EXPECT_EQ(table.Find(option.info.name)->text(), option.text()) << option.info.name;
  }
}

TEST_F(ConfigSourcesTest, EveryOptionHasARowInTheReference) {
  const std::string rows = ConfigTableMarkdown(table_);
  EXPECT_THAT(rows, HasSubstr("| `drain-timeout` | `PKV_DRAIN_TIMEOUT` | DURATION 0s..1h | `30s` | "
                              "SIGHUP | "));
  EXPECT_THAT(rows, HasSubstr("| `reflection` | `PKV_REFLECTION` | true\\|false | `true` | restart "
                              "| answer \\| not |\n"));
}

TEST_F(ConfigSourcesTest, HashIsOfTheValuesAndNotOfWhereTheyCameFrom) {
  const uint32_t hash = ConfigHash(table_);
  LoadConfig(table_, {.environment = {{"PKV_CAPACITY", "2GiB"}}});
  const uint32_t changed = ConfigHash(table_);
  EXPECT_NE(changed, hash);
  values_.capacity = 1 << 30;
  EXPECT_EQ(ConfigHash(table_), hash);
  LoadConfig(table_, {.flags = {{"capacity", "2048MiB"}}});
  EXPECT_EQ(ConfigHash(table_), changed);
}

class TakeOverTest : public ConfigSourcesTest {
 protected:
  TakeOverTest() { fresh_.Declare(fresh_table_); }

  ReloadResult TakeOverChecked() {
    return TakeOver(table_, fresh_table_, [this] {
      return values_.drain_timeout > absl::Minutes(10)
                 ? absl::InvalidArgumentError("drain-timeout is not with capacity")
                 : absl::OkStatus();
    });
  }

  Values fresh_;
  OptionTable fresh_table_;
};

TEST_F(TakeOverTest, ReloadableOptionsChange) {
  fresh_.drain_timeout = absl::Seconds(5);
  fresh_.log.level = LogLevel::kWarning;
  testing::internal::CaptureStderr();
  EXPECT_EQ(TakeOverChecked(), ReloadResult::kSuccess);
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, HasSubstr("setting changed option=drain-timeout from=30s to=5s"));
  EXPECT_THAT(log, HasSubstr("option=log-level from=info to=warning"));
  EXPECT_EQ(values_.drain_timeout, absl::Seconds(5));
  EXPECT_EQ(values_.log.level, LogLevel::kWarning);
}

TEST_F(TakeOverTest, TheOthersAreToldAndKept) {
  fresh_.capacity = 8192;
  fresh_.drain_timeout = absl::Seconds(5);
  testing::internal::CaptureStderr();
  EXPECT_EQ(TakeOverChecked(), ReloadResult::kPartial);
  EXPECT_THAT(testing::internal::GetCapturedStderr(),
              HasSubstr("needs a restart, kept option=capacity kept=1GiB file=8KiB"));
  EXPECT_EQ(values_.capacity, uint64_t{1} << 30);
  EXPECT_EQ(values_.drain_timeout, absl::Seconds(5));
}

TEST_F(TakeOverTest, NothingChangesWhenTheWholeIsInvalid) {
  fresh_.drain_timeout = absl::Minutes(11);
  fresh_.log.level = LogLevel::kDebug;
  testing::internal::CaptureStderr();
  EXPECT_EQ(TakeOverChecked(), ReloadResult::kFailure);
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_THAT(log, HasSubstr("drain-timeout is not with capacity"));
  EXPECT_THAT(log, Not(HasSubstr("setting changed")));
  EXPECT_EQ(values_.drain_timeout, absl::Seconds(30));
  EXPECT_EQ(values_.log.level, LogLevel::kInfo);
}

TEST_F(TakeOverTest, TheSameIsASuccess) { EXPECT_EQ(TakeOverChecked(), ReloadResult::kSuccess); }

}  // namespace
}  // namespace pkv
