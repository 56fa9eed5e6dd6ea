// pkv-bench kernels through the real binary, without a GPU: what it plans, measures and refuses.

#include <gmock/gmock.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/support/run_binary.h"

namespace pkv {
namespace {

using testing::HasSubstr;

BinaryRun Kernels(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "kernels");
  return RunBinary("tests/bench/pkv-bench", std::move(arguments));
}

TEST(KernelsCommandTest, PlansTheUsualTable) {
  const BinaryRun run = Kernels({"--plan"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  const auto plan = nlohmann::json::parse(run.out, nullptr, /*allow_exceptions=*/false);
  EXPECT_EQ(plan.size(), 8);
  EXPECT_EQ(plan["8x32k"]["context_tokens"], 32768);
}

TEST(KernelsCommandTest, PlansTheCasesGiven) {
  const BinaryRun run = Kernels({"--plan", "--case", "2x1000,mixed", "--case", "1x4k,d=64"});
  const auto plan = nlohmann::json::parse(run.out, nullptr, /*allow_exceptions=*/false);
  EXPECT_EQ(plan.size(), 2);
  EXPECT_EQ(plan["2x1000,mixed"]["mixed"], true);
  EXPECT_EQ(plan["1x4k,d=64"]["head_dim"], 64);
}

TEST(KernelsCommandTest, WritesWhatOneCoreDoes) {
  const ScratchFolder scratch;
  const std::string path = scratch.path() + "/report.json";
  const BinaryRun run =
      Kernels({"--cpu", "--quick", "--preset", "pkv4", "--case", "1x1k,d=64", "--json", path});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("one core"));
  std::ifstream file(path);
  const auto json = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  std::vector<std::string> measured;
  for (const auto& row : json["cpu"]) {
    measured.push_back(row["what"]);
    EXPECT_GT(row["best_bytes_per_s"], 0) << row;
  }
  EXPECT_THAT(measured,
              testing::ElementsAre("assign", "encode", "attention", "attention", "attention"));
  EXPECT_THAT(json["command_line"].get<std::string>(), HasSubstr("--preset pkv4"));
}

TEST(KernelsCommandTest, RefusesWhatItCannotReadByName) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> refused = {
      {{"--case", "8x"}, "context ''"},
      {{"--cpu", "--quick", "--preset", "none"}, "none"},
      {{"--cpu", "--data", "no-such-file"}, "no-such-file"},
      {{"--cpu", "--quick", "--peers", "no-such-file"}, "no-such-file"},
      {{"--section", "network"}, "--section"}};
  for (const auto& [arguments, name] : refused) {
    const BinaryRun run = Kernels(arguments);
    EXPECT_EQ(run.exit_code, 2) << arguments.back();
    EXPECT_THAT(run.err, HasSubstr(name));
  }
}

}  // namespace
}  // namespace pkv
