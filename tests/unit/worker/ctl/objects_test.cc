// pkvctl put, get, stat, rm, inspect, stats and drain through the real binary.

#include <gmock/gmock.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/support/run_binary.h"

namespace pkv {
namespace {

using testing::HasSubstr;

BinaryRun Ctl(std::vector<std::string> arguments) {
  return RunBinary("worker/pkvctl", std::move(arguments));
}

std::string Golden(const std::string& name) { return SourcePath("tests/golden/v2/" + name); }

TEST(InspectTest, PrintsAndVerifiesEveryGoldenObject) {
  int num_objects = 0;
  for (const auto& entry : std::filesystem::directory_iterator(SourcePath("tests/golden/v2"))) {
    if (entry.path().extension() != ".bin") continue;
    ++num_objects;
    const BinaryRun run = Ctl({"--output", "json", "inspect", entry.path()});
    EXPECT_EQ(run.exit_code, 0) << entry.path() << run.err;
    const auto document = nlohmann::json::parse(run.out, nullptr, /*allow_exceptions=*/false);
    ASSERT_TRUE(document.is_object()) << run.out;
    EXPECT_EQ(document["verified"], "ok");
    EXPECT_EQ(document["object_bytes"], entry.file_size());
    EXPECT_EQ(document["frame_crc32c"].size(), document["layers"].get<size_t>());
    const std::string name = entry.path().filename();
    EXPECT_EQ(document["kind"], name.substr(0, name.find('-')));
  }
  EXPECT_GT(num_objects, 5);
}

TEST(InspectTest, PrintsTextByDefault) {
  const BinaryRun run = Ctl({"inspect", Golden("table-d128.bin")});
  EXPECT_EQ(run.exit_code, 0);
  EXPECT_THAT(run.out, testing::ContainsRegex("kind +table\n"));
  EXPECT_THAT(run.out, testing::ContainsRegex("verified +ok\n"));
}

TEST(InspectTest, CallsAFlippedBitAnIntegrityFailure) {
  const ScratchFolder scratch;
  const std::string whole = ChildProcess::Read(Golden("block-4bit-d64.bin"));
  for (const size_t at : {size_t{130}, size_t{257}, whole.size() - 1}) {  // header, table, frame
    std::string damaged = whole;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x10);
    const BinaryRun run = Ctl({"inspect", scratch.Write("damaged", damaged)});
    EXPECT_EQ(run.exit_code, 5) << at;
    EXPECT_THAT(run.err, HasSubstr("DATA_LOSS"));
  }
  EXPECT_EQ(Ctl({"inspect", scratch.Write("cut", whole.substr(0, 100))}).exit_code, 5);
  EXPECT_EQ(Ctl({"inspect", scratch.Write("empty", "")}).exit_code, 5);
}

TEST(InspectTest, DoesNotFindWhatIsNoFile) {
  EXPECT_EQ(Ctl({"inspect", "/nonexistent"}).exit_code, 3);
  EXPECT_EQ(Ctl({"inspect", "/tmp"}).exit_code, 3) << "a folder";
}

TEST(ObjectCommandsTest, RefuseBadUsage) {
  const std::string id(64, 'a');
  EXPECT_EQ(Ctl({}).exit_code, 2);
  EXPECT_EQ(Ctl({"frobnicate"}).exit_code, 2);
  EXPECT_EQ(Ctl({"inspect"}).exit_code, 2);
  EXPECT_EQ(Ctl({"put"}).exit_code, 2);
  EXPECT_EQ(Ctl({"--output", "xml", "stats"}).exit_code, 2);
  EXPECT_EQ(Ctl({"stat", "--id", id}).exit_code, 2) << "no variant";
  EXPECT_EQ(Ctl({"stat", "--id", "abc", "--variant", "fp16:0"}).exit_code, 2);
  EXPECT_EQ(Ctl({"stat", "--id", id, "--variant", "fp16"}).exit_code, 2);
  EXPECT_EQ(Ctl({"stat", "--id", id, "--variant", "fp16:xyz"}).exit_code, 2);
  EXPECT_EQ(Ctl({"stat", "--kind", "page", "--id", id, "--variant", "fp16:0"}).exit_code, 2);
}

TEST(ObjectCommandsTest, SayThatNoServerIsThere) {
  const std::string id(64, 'a');
  const std::vector<std::vector<std::string>> commands = {
      {"stats"},
      {"drain"},
      {"put", Golden("table-d128.bin")},
      {"get", "--id", id, "--variant", "fp16:0", "--out", "/dev/null"},
      {"stat", "--id", id, "--variant", "fp16:0"},
      {"rm", "--id", id, "--variant", "fp16:0"}};
  for (std::vector<std::string> command : commands) {
    command.insert(command.begin(), {"--cache", "unix:/nonexistent/pkvd"});
    const BinaryRun run = Ctl(command);
    EXPECT_EQ(run.exit_code, 4) << command[2] << ": " << run.err;
  }
}

TEST(ObjectCommandsTest, NameTheFileThatIsNoObject) {
  const ScratchFolder scratch;
  const std::string path = scratch.Write("text", "not an object");
  const BinaryRun run = Ctl({"put", path});
  EXPECT_EQ(run.exit_code, 5);
  EXPECT_THAT(run.err, HasSubstr(path));
  EXPECT_EQ(Ctl({"put", "/nonexistent"}).exit_code, 3);
}

TEST(PkvctlTest, ListsCommandsExitCodesAndExamples) {
  const BinaryRun run = Ctl({"--help"});
  EXPECT_EQ(run.exit_code, 0);
  for (const char* text : {"Examples:", "5 integrity", "generate", "compare", "eval", "lookup",
                           "put", "get", "stat", "inspect", "rm", "stats", "drain"}) {
    EXPECT_THAT(run.out, HasSubstr(text));
  }
  EXPECT_EQ(Ctl({"--version"}).exit_code, 0);
}

}  // namespace
}  // namespace pkv
