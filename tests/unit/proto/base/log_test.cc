#include "proto/base/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace pkv {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::IsEmpty;

std::string LoggedWith(LogLevel threshold, LogFormat format, LogLevel level,
                       absl::string_view event, std::initializer_list<LogField> fields) {
  ConfigureLog(threshold, format);
  testing::internal::CaptureStderr();
  Log(level, event, fields);
  return testing::internal::GetCapturedStderr();
}

std::string LoggedText(absl::string_view value) {
  return LoggedWith(LogLevel::kInfo, LogFormat::kText, LogLevel::kInfo, "event",
                    {{"value", value}});
}

// The one field of a JSON line, after a round through a JSON parser.
std::string ParsedJsonValue(absl::string_view value) {
  const std::string line =
      LoggedWith(LogLevel::kInfo, LogFormat::kJson, LogLevel::kInfo, "event", {{"value", value}});
  EXPECT_EQ(line.find('\n'), line.size() - 1) << line;
  const nlohmann::json parsed = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) return "not JSON: " + line;
  return parsed["value"].get<std::string>();
}

TEST(LogTest, TextLineHasTimeLevelEventAndFields) {
  const std::string line = LoggedWith(LogLevel::kInfo, LogFormat::kText, LogLevel::kWarning,
                                      "spill failed", {{"path", "/data/0"}, {"num_bytes", 4096}});
  EXPECT_THAT(line, testing::MatchesRegex("....-..-..T..:..:..\\....Z warning spill failed "
                                          "path=/data/0 num_bytes=4096\n"));
}

TEST(LogTest, TextQuotesValuesThatAreNotPlain) {
  EXPECT_THAT(LoggedText("plain-1.5/x"), EndsWith(" value=plain-1.5/x\n"));
  EXPECT_THAT(LoggedText("two words"), EndsWith(" value=\"two words\"\n"));
  EXPECT_THAT(LoggedText(""), EndsWith(" value=\"\"\n"));
  EXPECT_THAT(LoggedText("a=b"), EndsWith(" value=\"a=b\"\n"));
  EXPECT_THAT(LoggedText("x\n2026-01-01T00:00:00.000Z error forged"),
              EndsWith(" value=\"x\\u000a2026-01-01T00:00:00.000Z error forged\"\n"));
}

TEST(LogTest, JsonLineHasTimeLevelEventAndFields) {
  const std::string line = LoggedWith(LogLevel::kInfo, LogFormat::kJson, LogLevel::kError, "boom",
                                      {{"code", 3}, {"path", "/x"}});
  const nlohmann::json parsed = nlohmann::json::parse(line);
  EXPECT_EQ(parsed["level"], "error");
  EXPECT_EQ(parsed["event"], "boom");
  EXPECT_EQ(parsed["code"], "3");
  EXPECT_EQ(parsed["path"], "/x");
  EXPECT_EQ(parsed["time"].get<std::string>().size(), 24u);  // 2026-01-02T03:04:05.678Z
}

TEST(LogTest, JsonEscapesEveryAsciiByte) {
  for (int c = 0; c < 128; ++c) {
    const std::string value = {'a', static_cast<char>(c), 'z'};
    ASSERT_EQ(ParsedJsonValue(value), value) << c;
  }
}

TEST(LogTest, JsonKeepsUtf8) {
  for (const char* value : {"\u00e9", "\u20ac", "\U0001f600", "\uffff", "\U0010ffff", "\ud7ff"}) {
    EXPECT_EQ(ParsedJsonValue(value), value);
  }
}

TEST(LogTest, JsonReplacesBytesThatAreNotUtf8) {
  const std::string replacement = "\ufffd";
  EXPECT_EQ(ParsedJsonValue("a\xffz"), "a" + replacement + "z");
  EXPECT_EQ(ParsedJsonValue("\x80"), replacement);                    // continuation
  EXPECT_EQ(ParsedJsonValue("\xc3"), replacement);                    // cut short
  EXPECT_EQ(ParsedJsonValue("\xc3(z"), replacement + "(z");           // not continued
  EXPECT_EQ(ParsedJsonValue("\xc0\xaf"), replacement + replacement);  // overlong
  EXPECT_EQ(ParsedJsonValue("\xe0\x9f\xbf"), replacement + replacement + replacement);
  EXPECT_EQ(ParsedJsonValue("\xed\xa0\x80"), replacement + replacement + replacement);  // surrogate
  EXPECT_EQ(ParsedJsonValue("\xf4\x90\x80\x80"),
            replacement + replacement + replacement + replacement);  // above U+10FFFF
}

TEST(LogTest, ValuesAreNoFormatStrings) { EXPECT_THAT(LoggedText("{}%n%s"), HasSubstr("{}%n%s")); }

TEST(LogTest, LevelsBelowTheThresholdAreSilent) {
  const auto logged = [](LogLevel level) {
    return LoggedWith(LogLevel::kWarning, LogFormat::kText, level, "event", {});
  };
  EXPECT_THAT(logged(LogLevel::kDebug), IsEmpty());
  EXPECT_THAT(logged(LogLevel::kInfo), IsEmpty());
  EXPECT_THAT(logged(LogLevel::kWarning), HasSubstr("event"));
  EXPECT_THAT(logged(LogLevel::kError), HasSubstr("event"));
}

TEST(CheckDeathTest, FailedCheckPrintsConditionAndValuesAndAborts) {
  const int used = 5, capacity = 4;
  EXPECT_DEATH(PKV_CHECK(used <= capacity, "used ", used, " capacity ", capacity),
               "log_test.cc:[0-9]+: check failed: used <= capacity used 5 capacity 4");
  EXPECT_DEATH(PKV_CHECK(used < 0), "check failed: used < 0");
}

TEST(CheckTest, HoldingCheckDoesNothingAndDoesNotEvaluateItsValues) {
  int evaluated = 0;
  PKV_CHECK(evaluated == 0, ++evaluated);
  EXPECT_EQ(evaluated, 0);
}

}  // namespace
}  // namespace pkv
