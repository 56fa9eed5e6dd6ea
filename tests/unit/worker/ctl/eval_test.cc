// pkvctl eval through the real binary: what stands on stdout and in its files.

#include <gmock/gmock.h>

#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "tests/support/run_binary.h"
#include "tests/support/tiny_worker.h"
#include "worker/engine/safetensors.h"

namespace pkv {
namespace {

using testing::HasSubstr;

class EvalCommandTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TinyModelFolder;
    TestRandom random(1);
    std::string text;
    for (int i = 0; i < 2000; ++i) text.push_back(static_cast<char>('!' + random.Below(90)));
    folder_->folder().Write("text", text);
  }
  static void TearDownTestSuite() { delete folder_; }

  static std::string Path(const std::string& name) { return folder_->path() + "/" + name; }

  static BinaryRun Eval(const std::vector<std::string>& arguments) {
    std::vector<std::string> all = {"eval",     "--model", folder_->path(), "--text", Path("text"),
                                    "--prefix", "256",     "--score",       "40",     "--passages",
                                    "2"};
    all.insert(all.end(), arguments.begin(), arguments.end());
    return RunBinary("worker/pkvctl", std::move(all));
  }
  static nlohmann::json EvalJson(std::vector<std::string> arguments) {
    arguments.insert(arguments.end(), {"--output", "json"});
    const BinaryRun run = Eval(arguments);
    EXPECT_EQ(run.exit_code, 0) << run.err;
    return nlohmann::json::parse(run.out, nullptr, /*allow_exceptions=*/false);
  }
  static std::vector<std::string> Labels(const nlohmann::json& json) {
    std::vector<std::string> labels;
    for (const auto& row : json["presets"]) labels.push_back(row["preset"]);
    return labels;
  }
  static std::string Read(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  }

  static inline TinyModelFolder* folder_ = nullptr;
};

TEST_F(EvalCommandTest, TakesPresetsWithFieldsChangedInTheOrderGiven) {
  EXPECT_EQ(
      Labels(EvalJson({"--preset", "default:clip_v=none,num_patterns_k=8", "--preset", "pkv2"})),
      (std::vector<std::string>{"default clip_v=none num_patterns_k=8", "pkv2"}));
  EXPECT_EQ(
      Labels(EvalJson({"--presets", "kivi2,default:clip_v=none;num_sinks=4", "--preset", "kivi4"})),
      (std::vector<std::string>{"kivi2", "default clip_v=none num_sinks=4", "kivi4"}));
}

TEST_F(EvalCommandTest, PrintsATableForAllAndForEachText) {
  const BinaryRun run = Eval({"--preset", "pkv2", "--per-text"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(run.out, HasSubstr("prefix protocol"));
  EXPECT_THAT(run.out, HasSubstr(Path("text") + ", uncompressed perplexity"));
}

TEST_F(EvalCommandTest, DecodesInStepsAndRecordsThem) {
  const auto json = EvalJson({"--preset", "kivi2", "--protocol", "decode", "--step", "8"});
  EXPECT_EQ(json["protocol"], "decode");
  EXPECT_EQ(json["step_tokens"], 8);
  EXPECT_GT(json["presets"][0]["kl_mean"], 0);
  EXPECT_THAT(Eval({"--preset", "kivi2", "--protocol", "decode"}).out,
              HasSubstr("by quarter of the scored tokens"));
}

TEST_F(EvalCommandTest, WritesItsReport) {
  const BinaryRun run = Eval({"--preset", "default", "--report", Path("report.html")});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  EXPECT_THAT(Read(Path("report.html")), HasSubstr("What compression costs"));
  const BinaryRun unwritable = Eval({"--preset", "kivi2", "--report", Path("none/report.html")});
  EXPECT_EQ(unwritable.exit_code, 1);
  EXPECT_THAT(unwritable.out, HasSubstr("kivi2")) << "the numbers are not lost with the file";
}

TEST_F(EvalCommandTest, DumpsThePassageAskedFor) {
  const BinaryRun run = Eval({"--dump", Path("dump"), "--dump-passage", "1"});
  EXPECT_EQ(run.exit_code, 0) << run.err;
  const auto file = SafetensorsFile::Open(Path("dump"));
  ASSERT_THAT(file, IsOk());
  EXPECT_EQ((*file)->tensors().at("layers.1.k").shape, (std::vector<int64_t>{1, 296, 64}));
  EXPECT_THAT(Read(Path("dump")).substr(0, 2000), HasSubstr("\"text_sha256\""));
  const BinaryRun beyond = Eval({"--dump", Path("dump"), "--dump-passage", "2"});
  EXPECT_EQ(beyond.exit_code, 2);
  EXPECT_THAT(beyond.err, HasSubstr("--dump-passage 2"));
}

TEST_F(EvalCommandTest, RefusesWhatItCannotReadByName) {
  const BinaryRun unknown = Eval({"--preset", "default:clip=none"});
  EXPECT_EQ(unknown.exit_code, 3);
  EXPECT_THAT(unknown.err, HasSubstr("clip_v"));
  EXPECT_EQ(Eval({"--preset", "default:clip_v=some"}).exit_code, 2);
  EXPECT_EQ(Eval({"--protocol", "other"}).exit_code, 2);
  EXPECT_EQ(Eval({"--step", "129"}).exit_code, 2);
}

}  // namespace
}  // namespace pkv
