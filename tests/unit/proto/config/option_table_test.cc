#include "proto/config/option_table.h"

#include <gmock/gmock.h>

#include "proto/config/service_options.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

auto IsRefused(const std::string& why) {
  return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why));
}

struct Values {
  std::string text = "a", path;
  bool on = true;
  int count = 4;
  double share = 0.5;
  uint64_t size = 1 << 20;
  absl::Duration wait = absl::Seconds(2);
  std::string word = "grpc";
  LogSettings log;
};

class OptionTableTest : public testing::Test {
 protected:
  OptionTableTest() {
    table_.AddText({.name = "text", .help = ""}, values_.text);
    table_.AddPath({.name = "path", .help = ""}, values_.path);
    table_.AddSwitch({.name = "on", .help = ""}, values_.on);
    table_.AddInteger({.name = "count", .help = ""}, values_.count, {.min = 1, .max = 8});
    table_.AddNumber({.name = "share", .help = ""}, values_.share, {.max = 1.0});
    table_.AddSize({.name = "size", .help = ""}, values_.size, {.min = 4096});
    table_.AddDuration({.name = "some-wait", .help = ""}, values_.wait,
                       {.min = absl::Seconds(1), .max = absl::Hours(1)});
    table_.AddWord({.name = "word", .help = ""}, values_.word, {"grpc", "shm"});
    AddLogOptions(table_, values_.log);
  }
  absl::Status Set(const std::string& name, const std::string& text) {
    return table_.Find(name)->set(text);
  }

  Values values_;
  OptionTable table_;
};

TEST_F(OptionTableTest, DefaultsAreTheValuesOfTheStruct) {
  std::vector<std::string> defaults;
  for (const OptionTable::Option& option : table_.options()) {
    defaults.push_back(option.default_text);
    EXPECT_EQ(option.text(), option.default_text) << option.info.name;
    EXPECT_THAT(option.set(option.default_text), IsOk()) << option.info.name;
    EXPECT_EQ(option.text(), option.default_text) << option.info.name;
  }
  EXPECT_THAT(defaults,
              ElementsAre("a", "", "true", "4", "0.5", "1MiB", "2s", "grpc", "info", "text"));
}

TEST_F(OptionTableTest, TextsSetTheStruct) {
  EXPECT_THAT(Set("text", "b c"), IsOk());
  EXPECT_THAT(Set("path", "/p"), IsOk());
  EXPECT_THAT(Set("on", "no"), IsOk());
  EXPECT_THAT(Set("count", "8"), IsOk());
  EXPECT_THAT(Set("share", "-3.5"), IsOk());
  EXPECT_THAT(Set("size", "2GiB"), IsOk());
  EXPECT_THAT(Set("some-wait", "90s"), IsOk());
  EXPECT_THAT(Set("word", "shm"), IsOk());
  EXPECT_THAT(Set("log-level", "error"), IsOk());
  EXPECT_THAT(Set("log-format", "json"), IsOk());
  EXPECT_EQ(values_.text, "b c");
  EXPECT_EQ(values_.path, "/p");
  EXPECT_FALSE(values_.on);
  EXPECT_EQ(values_.count, 8);
  EXPECT_EQ(values_.share, -3.5);
  EXPECT_EQ(values_.size, uint64_t{2} << 30);
  EXPECT_EQ(values_.wait, absl::Seconds(90));
  EXPECT_EQ(values_.word, "shm");
  EXPECT_EQ(values_.log.level, LogLevel::kError);
  EXPECT_EQ(values_.log.format, LogFormat::kJson);
  EXPECT_EQ(table_.Find("some-wait")->text(), "1m30s");
  EXPECT_EQ(table_.Find("some-wait")->default_text, "2s");
}

TEST_F(OptionTableTest, RefusedTextsChangeNothing) {
  EXPECT_THAT(Set("on", "perhaps"), IsRefused("perhaps"));
  EXPECT_THAT(Set("count", "0"), IsRefused("0 is below 1"));
  EXPECT_THAT(Set("count", "9"), IsRefused("9 is above 8"));
  EXPECT_THAT(Set("count", "4294967300"), IsRefused("32 bits"));
  EXPECT_THAT(Set("count", "four"), IsRefused("whole number"));
  EXPECT_THAT(Set("share", "1.01"), IsRefused("1.01 is above 1"));
  EXPECT_THAT(Set("size", "4095"), IsRefused("4095 is below 4KiB"));
  EXPECT_THAT(Set("some-wait", "999ms"), IsRefused("999ms is below 1s"));
  EXPECT_THAT(Set("some-wait", "61m"), IsRefused("1h1m is above 1h"));
  EXPECT_THAT(Set("some-wait", "2"), IsRefused("no unit"));
  EXPECT_THAT(Set("word", "rdma"), IsRefused("\"rdma\" is none of grpc, shm"));
  EXPECT_THAT(Set("log-level", "warn"), IsRefused("none of debug, info, warning, error"));
  for (const OptionTable::Option& option : table_.options()) {
    EXPECT_EQ(option.text(), option.default_text) << option.info.name;
  }
}

TEST_F(OptionTableTest, TypesShowUnitsRangesAndChoices) {
  std::vector<std::string> types;
  for (const OptionTable::Option& option : table_.options()) types.push_back(option.type);
  EXPECT_THAT(types, ElementsAre("TEXT", "PATH", "true|false", "INTEGER 1..8", "NUMBER ..1",
                                 "SIZE 4KiB..", "DURATION 1s..1h", "{grpc,shm}",
                                 "{debug,info,warning,error}", "{text,json}"));
  EXPECT_EQ(table_.Find("some-wait")->variable, "PKV_SOME_WAIT");
  EXPECT_EQ(table_.Find("no-such"), nullptr);
}

using OptionTableDeathTest = OptionTableTest;

TEST_F(OptionTableDeathTest, NamesAreCheckedWhenTheyAreDeclared) {
  const auto add = [this](const char* name) {
    table_.AddSwitch({.name = name, .help = ""}, values_.on);
  };
  EXPECT_DEATH(add("text"), "there already");
  EXPECT_DEATH(add("Text"), "check failed");
  EXPECT_DEATH(add(""), "check failed");
  EXPECT_DEATH(add("health-port"), "a Service may set PKV_HEALTH_PORT");
  EXPECT_DEATH(table_.AddWord({.name = "w", .help = ""}, values_.text, {"x"}), "is no choice");
}

}  // namespace
}  // namespace pkv
