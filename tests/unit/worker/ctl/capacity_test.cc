// pkvctl capacity through the real binary, and the page that shows its output.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/str_split.h"
#include "tests/support/run_binary.h"

namespace pkv {
namespace {

using testing::HasSubstr;

BinaryRun Capacity(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "capacity");
  return RunBinary("worker/pkvctl", std::move(arguments));
}

nlohmann::json Json(std::vector<std::string> arguments) {
  arguments.insert(arguments.end(), {"--output", "json"});
  const BinaryRun run = Capacity(std::move(arguments));
  EXPECT_EQ(run.exit_code, 0) << run.err;
  return nlohmann::json::parse(run.out, nullptr, /*allow_exceptions=*/false);
}

// A line of arithmetic that a person can check: 32 layers, 8 heads of 128, K and V, 2 bytes.
TEST(CapacityTest, AnFp16BlockHasTheModelsOwnBytesAndALittleMore) {
  const nlohmann::json document = Json({"--shape", "llama-3.1-8b", "--preset", "fp16"});
  EXPECT_EQ(document["fp16_bytes_per_token"], 32 * 8 * 128 * 2 * 2);
  const nlohmann::json& row = document["presets"][0];
  const uint64_t payload_bytes = uint64_t{131072} * 128;
  EXPECT_GT(row["block_bytes"], payload_bytes);
  EXPECT_LT(row["block_bytes"], payload_bytes + 1024);
  EXPECT_EQ(row["request"]["blocks"], 256);
  EXPECT_DOUBLE_EQ(row["handoff_seconds"].get<double>(),
                   row["request"]["bytes"].get<double>() * 8 / 100e9);
}

TEST(CapacityTest, FewerBitsHoldMoreTokens) {
  const nlohmann::json rows =
      Json({"--shape", "qwen2.5-7b", "--preset", "default,default4,fp16"})["presets"];
  ASSERT_EQ(rows.size(), 3u);
  for (const char* place : {"/pkvd/tokens", "/pkvd/requests", "/decode/sequences"}) {
    const nlohmann::json::json_pointer at(place);
    EXPECT_GT(rows[0][at], rows[1][at]) << place;
    EXPECT_GT(rows[1][at], rows[2][at]) << place;
  }
}

TEST(CapacityTest, WhatIsGivenScalesWhatFits) {
  const auto row = [](const char* option, const char* value) {
    return Json({"--shape", "llama-3.2-1b", "--preset", "default", option, value})["presets"][0];
  };
  // Of ten times the memory, ten times what fits, and less than ten more.
  const int64_t blocks = row("--pkvd", "10")["pkvd"]["tokens"].get<int64_t>() / 128;
  const int64_t more_blocks = row("--pkvd", "100")["pkvd"]["tokens"].get<int64_t>() / 128;
  EXPECT_GE(more_blocks, 10 * blocks);
  EXPECT_LT(more_blocks, 10 * (blocks + 1));
  const int64_t sequences = row("--pool", "10")["decode"]["sequences"];
  EXPECT_GE(row("--pool", "100")["decode"]["sequences"], 10 * sequences);
  EXPECT_LT(row("--pool", "100")["decode"]["sequences"], 10 * (sequences + 1));
  EXPECT_DOUBLE_EQ(row("--link", "100")["handoff_seconds"].get<double>(),
                   row("--link", "200")["handoff_seconds"].get<double>() * 2);
}

TEST(CapacityTest, RefusesWhatMakesNoSense) {
  EXPECT_EQ(Capacity({}).exit_code, 2);
  EXPECT_EQ(Capacity({"--shape", "llama-3.1-8b", "--model", "x"}).exit_code, 2);
  EXPECT_EQ(Capacity({"--shape", "llama-3.1-8b", "--tokens", "0"}).exit_code, 2);
  EXPECT_EQ(Capacity({"--shape", "llama-3.1-8b", "--link", "0"}).exit_code, 2);
  const BinaryRun run = Capacity({"--shape", "gpt-5"});
  EXPECT_EQ(run.exit_code, 3);
  EXPECT_THAT(run.err, HasSubstr("llama-3.1-8b")) << "lists the names";
  EXPECT_EQ(Capacity({"--shape", "llama-3.1-8b", "--preset", "kivi3"}).exit_code, 3);
}

// Every block of deploy/CAPACITY.md that begins with a command shows what the command prints.
TEST(CapacityPageTest, ShowsWhatTheCommandPrints) {
  std::istringstream page(ChildProcess::Read(SourcePath("deploy/CAPACITY.md")));
  const std::string prompt = "$ pkvctl capacity ";
  int num_blocks = 0;
  for (std::string line; std::getline(page, line);) {
    if (line.rfind(prompt, 0) != 0) continue;
    ++num_blocks;
    const BinaryRun run = Capacity(absl::StrSplit(line.substr(prompt.size()), ' '));
    std::string shown;
    for (std::string row; std::getline(page, row) && row != "```";) shown += row + "\n";
    EXPECT_EQ(shown, run.out) << line;
  }
  EXPECT_GE(num_blocks, 3);
}

}  // namespace
}  // namespace pkv
