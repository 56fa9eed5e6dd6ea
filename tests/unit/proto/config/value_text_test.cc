#include "proto/config/value_text.h"

#include <gmock/gmock.h>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::HasSubstr;

auto IsRefused(const std::string& why) {
  return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(why));
}

TEST(ValueTextTest, SizesHaveBinaryAndDecimalUnits) {
  const std::pair<const char*, uint64_t> kSizes[] = {
      {"0", 0},
      {"17", 17},
      {"17B", 17},
      {"4KiB", 4096},
      {"4 kib", 4096},
      {"4GiB", uint64_t{4} << 30},
      {"5Gi", uint64_t{5} << 30},
      {"1TiB", uint64_t{1} << 40},
      {"2kB", 2000},
      {"3MB", 3'000'000},
      {"3GB", 3'000'000'000},
      {"1tb", 1'000'000'000'000},
      {"18446744073709551615", ~uint64_t{0}},
  };
  for (const auto& [text, bytes] : kSizes) EXPECT_THAT(ParseSize(text), IsOkAndHolds(bytes));
}

TEST(ValueTextTest, WhatIsNoSizeIsRefusedWithTheUnits) {
  for (const char* text : {"", "GiB", "-1", "1.5GiB", "4 lightyears", "0x10", " 4", "4GiBs"}) {
    EXPECT_THAT(ParseSize(text), IsRefused("KiB, MiB, GiB, TiB")) << text;
  }
  EXPECT_THAT(ParseSize("4G"), IsRefused("write GiB (powers of 1024) or GB (powers of 1000)"));
  EXPECT_THAT(ParseSize("1k"), IsRefused("write KiB (powers of 1024) or kB"));
  for (const char* text : {"18446744073709551616", "16777216TiB", "99999999999999999999GiB"}) {
    EXPECT_THAT(ParseSize(text), IsRefused("64 bits")) << text;
  }
}

TEST(ValueTextTest, SizesAreReadBack) {
  EXPECT_EQ(SizeText(0), "0");
  EXPECT_EQ(SizeText(1000), "1000");
  EXPECT_EQ(SizeText(4096), "4KiB");
  EXPECT_EQ(SizeText(uint64_t{3} << 30), "3GiB");
  EXPECT_EQ(SizeText(uint64_t{1} << 50), "1024TiB");
  for (const uint64_t bytes : {uint64_t{0}, uint64_t{1}, uint64_t{1025}, uint64_t{5} << 20,
                               (uint64_t{5} << 20) + 1, uint64_t{1} << 63, ~uint64_t{0}}) {
    EXPECT_THAT(ParseSize(SizeText(bytes)), IsOkAndHolds(bytes));
  }
}

TEST(ValueTextTest, DurationsHaveUnits) {
  EXPECT_THAT(ParseDurationText("250ms"), IsOkAndHolds(absl::Milliseconds(250)));
  EXPECT_THAT(ParseDurationText("30s"), IsOkAndHolds(absl::Seconds(30)));
  EXPECT_THAT(ParseDurationText("1.5s"), IsOkAndHolds(absl::Milliseconds(1500)));
  EXPECT_THAT(ParseDurationText("1h30m"), IsOkAndHolds(absl::Minutes(90)));
  EXPECT_THAT(ParseDurationText("0s"), IsOkAndHolds(absl::ZeroDuration()));
}

TEST(ValueTextTest, ANumberAloneIsNoDuration) {
  for (const char* text : {"30", "0", "1.5", "1e3", "-1"}) {
    EXPECT_THAT(ParseDurationText(text), IsRefused("has no unit: ns, us, ms, s, m or h")) << text;
  }
  for (const char* text : {"", "s", "30 s", "5 minutes", "-1s", "inf", "-inf", "1d", "nan"}) {
    EXPECT_THAT(ParseDurationText(text), IsRefused("is no duration")) << text;
  }
}

TEST(ValueTextTest, DurationsAreReadBack) {
  EXPECT_EQ(DurationText(absl::ZeroDuration()), "0s");
  EXPECT_EQ(DurationText(absl::Seconds(90)), "1m30s");
  for (const absl::Duration duration :
       {absl::ZeroDuration(), absl::Nanoseconds(1), absl::Milliseconds(1500), absl::Hours(25)}) {
    EXPECT_THAT(ParseDurationText(DurationText(duration)), IsOkAndHolds(duration));
  }
}

TEST(ValueTextTest, SwitchesHaveFourPairsOfWords) {
  for (const char* text : {"true", "YES", "On", "1"}) {
    EXPECT_THAT(ParseSwitch(text), IsOkAndHolds(true));
  }
  for (const char* text : {"false", "No", "OFF", "0"}) {
    EXPECT_THAT(ParseSwitch(text), IsOkAndHolds(false));
  }
  for (const char* text : {"", "2", "t", "maybe"}) {
    EXPECT_THAT(ParseSwitch(text), IsRefused("neither true nor false")) << text;
  }
}

TEST(ValueTextTest, NumbersAreWholeTexts) {
  EXPECT_THAT(ParseInteger("-12"), IsOkAndHolds(-12));
  for (const char* text : {"", "1.0", "12a", "9223372036854775808"}) {
    EXPECT_THAT(ParseInteger(text), IsRefused("is no whole number")) << text;
  }
  EXPECT_THAT(ParseNumber("0.25"), IsOkAndHolds(0.25));
  for (const char* text : {"", "1x", "inf", "nan"}) {
    EXPECT_THAT(ParseNumber(text), IsRefused("is no number")) << text;
  }
  for (const double number : {0.1, 1.0 / 3, 1e300, -0.0}) {
    EXPECT_THAT(ParseNumber(NumberText(number)), IsOkAndHolds(number));
  }
  EXPECT_EQ(NumberText(0.9), "0.9");
}

}  // namespace
}  // namespace pkv
