#include "worker/ctl/output.h"

#include <gtest/gtest.h>

#include <cmath>

namespace pkv {
namespace {

TEST(ExitCodeOfTest, TellsScriptsWhatWentWrong) {
  EXPECT_EQ(ExitCodeOf(absl::OkStatus()), 0);
  EXPECT_EQ(ExitCodeOf(absl::InternalError("")), 1);
  EXPECT_EQ(ExitCodeOf(absl::FailedPreconditionError("")), 1);
  EXPECT_EQ(ExitCodeOf(absl::InvalidArgumentError("")), 2);
  EXPECT_EQ(ExitCodeOf(absl::NotFoundError("")), 3);
  EXPECT_EQ(ExitCodeOf(absl::UnavailableError("")), 4);
  EXPECT_EQ(ExitCodeOf(absl::DeadlineExceededError("")), 4);
  EXPECT_EQ(ExitCodeOf(absl::ResourceExhaustedError("")), 4);
  EXPECT_EQ(ExitCodeOf(absl::DataLossError("")), 5);
}

TEST(FormatBytesTest, GivesThreeDigitsInDecimalUnits) {
  EXPECT_EQ(FormatBytes(0), "0 B");
  EXPECT_EQ(FormatBytes(999), "999 B");
  EXPECT_EQ(FormatBytes(1000), "1.00 kB");
  EXPECT_EQ(FormatBytes(12340), "12.3 kB");
  EXPECT_EQ(FormatBytes(123400000), "123 MB");
  EXPECT_EQ(FormatBytes(2500000000000000), "2500 TB");
}

TEST(PrintJsonTest, PrintsWhatIsNoUtf8AsAReplacement) {
  testing::internal::CaptureStdout();
  PrintJson({{"text", "half \xc3"}});
  const std::string printed = testing::internal::GetCapturedStdout();
  EXPECT_EQ(nlohmann::json::parse(printed)["text"], "half \xef\xbf\xbd");
}

TEST(FormatSecondsTest, GivesHoursAndMinutesWhenThereAreSome) {
  EXPECT_EQ(FormatSeconds(0.4), "0 s");
  EXPECT_EQ(FormatSeconds(59.4), "59 s");
  EXPECT_EQ(FormatSeconds(59.6), "1:00");
  EXPECT_EQ(FormatSeconds(125), "2:05");
  EXPECT_EQ(FormatSeconds(3725), "1:02:05");
  EXPECT_EQ(FormatSeconds(-1), "0 s");
  EXPECT_EQ(FormatSeconds(INFINITY), "0 s");
}

TEST(ProgressLineTest, IsSilentWhenStderrIsNoTerminal) {
  testing::internal::CaptureStderr();  // a file
  { ProgressLine("label", true).Update(1, 2); }
  EXPECT_EQ(testing::internal::GetCapturedStderr(), "");
}

TEST(OutputTest, VariantIsItsNameAndSixteenDigits) {
  EXPECT_EQ(VariantText({"default", 0x12ab}), "default:00000000000012ab");
}

}  // namespace
}  // namespace pkv
