#include "tests/bench/report.h"

#include <gmock/gmock.h>

#include <cmath>
#include <fstream>

#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace pkv {
namespace {

using testing::HasSubstr;
using testing::Not;

AttentionRow BelievableRow() {
  AttentionRow row;
  row.attention_case = {.batch = 8, .context_tokens = 32768};
  row.preset = "pkv2";
  row.data = "random";
  row.bytes.blocks = 150'000'000;
  row.bytes.windows = 4'000'000;
  row.bytes.banks = 1'000'000;
  row.operations = 4e9;
  row.us = {20, 38, 40, 42};
  row.relative_error = 1e-3;
  return row;
}

BenchReport SomeReport() {
  BenchReport report;
  report.command_line = "pkv-bench kernels";
  report.data = {"random: clusters"};
  report.device = DeviceInfo{.name = "some GPU", .num_sms = 132, .l2_bytes = 60'000'000};
  report.ceilings = Ceilings{4.4e12, "16-byte loads, 2 CTAs an SM", 4.2e12, "driver"};
  report.attention = {BelievableRow()};
  report.compression = {{.preset = "pkv4",
                         .data = "random",
                         .stage = "encode",
                         .num_tokens = 32768,
                         .moved_bytes = 170'000'000,
                         .us = {20, 49, 50, 51}}};
  report.cpu = {{.preset = "default",
                 .data = "random",
                 .what = "attention",
                 .heads_per_kv = 4,
                 .bytes = 3'000'000'000,
                 .seconds = {5, 1, 1.5, 2}}};
  report.peers = {{"8x32k", {"cudnn", 240}}};
  return report;
}

TEST(AttentionRowTest, RateIsOfCachedBytesAndTheMedian) {
  EXPECT_DOUBLE_EQ(BelievableRow().bytes_per_s(), 154e6 / 40e-6);
  EXPECT_DOUBLE_EQ(BelievableRow().operations_per_s(), 4e9 / 40e-6);
}

TEST(AttentionRowTest, NoMemoryIsQuickerThanFiveTerabytesASecond) {
  AttentionRow row = BelievableRow();
  row.us.min = 30.81;  // 154 MB at 5 TB/s take 30.8
  EXPECT_EQ(row.Fault(), "");
  row.us.min = 30.79;
  EXPECT_THAT(row.Fault(), HasSubstr("the benchmark is lying"));
  row.us.min = std::nan("");
  EXPECT_THAT(row.Fault(), HasSubstr("the benchmark is lying"));
}

TEST(AttentionRowTest, AWrongResultIsAFault) {
  AttentionRow row = BelievableRow();
  row.relative_error = 0.011;
  EXPECT_THAT(row.Fault(), HasSubstr("relative error 0.011"));
  row.relative_error = std::nan("");
  EXPECT_THAT(row.Fault(), HasSubstr("wrong"));
}

TEST(BenchReportTest, IsPlausibleUntilARowIsNot) {
  BenchReport report = SomeReport();
  EXPECT_THAT(report.CheckPlausible(), IsOk());
  report.attention.push_back(BelievableRow());
  report.attention.back().us.min = 1;
  EXPECT_THAT(std::string(report.CheckPlausible().message()), HasSubstr("8x32k pkv2 random"));
  report = SomeReport();
  report.compression[0].wrong_pages = 1;
  EXPECT_THAT(std::string(report.CheckPlausible().message()), HasSubstr("pkv4 encode: 1 pages"));
  report = SomeReport();
  report.compression[0].us.min = 33;  // 170 MB at 5 TB/s take 34
  EXPECT_THAT(std::string(report.CheckPlausible().message()), HasSubstr("pkv4 encode: 33.00 us"));
}

TEST(BenchReportTest, JsonHoldsWhatWasMeasured) {
  const auto json = ToJson(SomeReport());
  EXPECT_EQ(json["version"], PKV_VERSION);
  EXPECT_EQ(json["command_line"], "pkv-bench kernels");
  EXPECT_EQ(json["device"]["num_sms"], 132);
  EXPECT_EQ(json["ceilings"]["read_bytes_per_s"], 4.4e12);
  EXPECT_EQ(json["peers"]["8x32k"]["us"], 240);
  const auto& row = json["attention"][0];
  EXPECT_EQ(row["case"], "8x32k");
  EXPECT_EQ(row["shape"]["context_tokens"], 32768);
  EXPECT_EQ(row["us"]["median"], 40);
  EXPECT_EQ(row["us"]["spread"], 0.1);
  EXPECT_EQ(row["bytes"]["own"], 154'000'000);
  EXPECT_FALSE(row.contains("fault"));
  EXPECT_EQ(json["compression"][0]["stage"], "encode");
  EXPECT_DOUBLE_EQ(json["compression"][0]["bytes_per_s"].get<double>(), 170e6 / 50e-6);
  EXPECT_EQ(json["cpu"][0]["best_bytes_per_s"], 3e9);
  EXPECT_EQ(json["cpu"][0]["median_bytes_per_s"], 2e9);
}

TEST(BenchReportTest, JsonOfARowThatIsWrongSaysSo) {
  BenchReport report = SomeReport();
  report.attention[0].relative_error = std::nan("");
  const auto row = ToJson(report)["attention"][0];
  EXPECT_TRUE(row["relative_error"].is_null());
  EXPECT_THAT(row["fault"].get<std::string>(), HasSubstr("wrong"));
}

TEST(BenchReportTest, TextComparesWithTheCeilingAndThePeer) {
  BenchReport report = SomeReport();
  EXPECT_THAT(ToText(report), HasSubstr("3.850   87.5    6.00  1.00e-03"));
  EXPECT_THAT(ToText(report), HasSubstr("3.400   81.0"));
  report.peers.clear();
  report.ceilings.reset();
  EXPECT_THAT(ToText(report), HasSubstr("3.850      -       -  1.00e-03"));
}

TEST(BenchReportTest, TextLeavesOutWhatWasNotMeasured) {
  EXPECT_EQ(ToText(BenchReport{}), "");
  BenchReport report = SomeReport();
  report.attention.clear();
  EXPECT_THAT(ToText(report), Not(HasSubstr("x peer")));
}

TEST(ReadPeersTest, ReadsTimesByCase) {
  const ScratchFolder scratch;
  const std::string path = scratch.path() + "/peers.json";
  std::ofstream(path)
      << R"({"8x32k": {"name": "cudnn", "us": 241.5}, "1x4k": {"name": "x", "us": 1}})";
  const auto peers = ReadPeers(path);
  ASSERT_THAT(peers, IsOk());
  EXPECT_EQ(peers->size(), 2);
  EXPECT_EQ(peers->at("8x32k").name, "cudnn");
  EXPECT_EQ(peers->at("8x32k").us, 241.5);
}

TEST(ReadPeersTest, RefusesWhatIsNotThat) {
  const ScratchFolder scratch;
  const std::string path = scratch.path() + "/peers.json";
  for (const char* text : {"", "[1]", R"({"8x32k": 241.5})", R"({"8x32k": {"us": 241.5}})",
                           R"({"8x32k": {"name": "cudnn", "us": "241.5"}})"}) {
    std::ofstream(path) << text;
    EXPECT_THAT(ReadPeers(path), StatusIs(absl::StatusCode::kInvalidArgument)) << text;
  }
  EXPECT_THAT(ReadPeers(scratch.path() + "/none"), StatusIs(absl::StatusCode::kInvalidArgument));
}

}  // namespace
}  // namespace pkv
