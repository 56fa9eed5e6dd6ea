// What generate, compare, lookup and eval refuse, through the real binary: tests/integration/e2e
// has them succeed.

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "tests/support/run_binary.h"
#include "tests/support/tiny_worker.h"

namespace pkv {
namespace {

using testing::HasSubstr;

class GenerationCommandsTest : public testing::Test {
 protected:
  static void SetUpTestSuite() { folder_ = new TinyModelFolder; }
  static void TearDownTestSuite() { delete folder_; }

  static BinaryRun Ctl(std::vector<std::string> arguments) {
    return RunBinary("worker/pkvctl", std::move(arguments));
  }
  static inline TinyModelFolder* folder_ = nullptr;
};

TEST_F(GenerationCommandsTest, NeedExactlyOnePrompt) {
  for (const std::vector<std::string>& prompt :
       {std::vector<std::string>{}, {"--prompt", "a", "--token-ids", "1,2"}}) {
    for (const char* command : {"generate", "compare", "lookup"}) {
      std::vector<std::string> arguments = {command, "--model", folder_->path()};
      arguments.insert(arguments.end(), prompt.begin(), prompt.end());
      const BinaryRun run = Ctl(arguments);
      EXPECT_EQ(run.exit_code, 2) << command;
      EXPECT_THAT(run.err, HasSubstr("exactly one is needed")) << command;
    }
  }
}

TEST_F(GenerationCommandsTest, DoNotFindPromptFilesAndModels) {
  EXPECT_EQ(Ctl({"generate", "--prompt-file", "/nonexistent"}).exit_code, 3);
  EXPECT_EQ(Ctl({"generate", "--prompt-file", "/tmp"}).exit_code, 3) << "a folder";
  EXPECT_EQ(Ctl({"generate", "--prompt", "a", "--local", "--model", "/nonexistent"}).exit_code, 3);
  EXPECT_EQ(Ctl({"lookup", "--prompt", "a", "--model", "/nonexistent"}).exit_code, 3);
  EXPECT_EQ(Ctl({"compare", "--prompt", "a", "--model", "/nonexistent"}).exit_code, 3);
  EXPECT_EQ(Ctl({"eval", "--text", "a", "--model", "/nonexistent"}).exit_code, 3);
}

TEST_F(GenerationCommandsTest, RefuseValuesOutOfRange) {
  EXPECT_EQ(Ctl({"generate", "--prompt", "a", "--max-tokens", "0"}).exit_code, 2);
  EXPECT_EQ(Ctl({"generate", "--prompt", "a", "--deadline", "0s"}).exit_code, 2);
  EXPECT_EQ(Ctl({"generate", "--token-ids", "1,x"}).exit_code, 2);
  EXPECT_EQ(Ctl({"generate", "--prompt", "a", "--local"}).exit_code, 2) << "--local needs --model";
  const std::string& model = folder_->path();
  EXPECT_EQ(Ctl({"compare", "--prompt", "a"}).exit_code, 2) << "no model";
  EXPECT_EQ(Ctl({"compare", "--prompt", "a", "--model", model, "--prompt-tokens", "-1"}).exit_code,
            2);
  EXPECT_EQ(Ctl({"eval", "--model", model}).exit_code, 2) << "no text";
  EXPECT_EQ(Ctl({"eval", "--model", model, "--text", "a", "--passages", "0"}).exit_code, 2);
  EXPECT_EQ(Ctl({"eval", "--model", model, "--text", "a", "--prefix", "0"}).exit_code, 2);
  EXPECT_EQ(Ctl({"eval", "--model", model, "--text", "a", "--prefix", "2147483647"}).exit_code, 2);
}

TEST_F(GenerationCommandsTest, SayThatNoWorkerOrServerIsThere) {
  const BinaryRun run = Ctl({"generate", "--prompt", "a", "--prefill", "unix:/nonexistent/worker"});
  EXPECT_EQ(run.exit_code, 4);
  EXPECT_THAT(run.err, HasSubstr("prefill worker: "));
  std::string ids = "3";
  for (int i = 1; i < 200; ++i) ids += ",3";
  EXPECT_EQ(Ctl({"--cache", "unix:/nonexistent/pkvd", "lookup", "--model", folder_->path(),
                 "--token-ids", ids})
                .exit_code,
            4);
}

TEST_F(GenerationCommandsTest, RefuseUnknownPresets) {
  const std::string& model = folder_->path();
  EXPECT_EQ(Ctl({"lookup", "--model", model, "--prompt", "a", "--preset", "pkv3"}).exit_code, 3);
  const std::string text = folder_->folder().Write("text", std::string(600, 'x'));
  const BinaryRun run = Ctl({"eval", "--model", model, "--text", text, "--prefix", "128", "--score",
                             "2", "--passages", "1", "--presets", "pkv3"});
  EXPECT_EQ(run.exit_code, 3);
  EXPECT_THAT(run.err, HasSubstr("pkv3"));
}

TEST_F(GenerationCommandsTest, PrintOneJsonDocument) {
  const std::string& model = folder_->path();
  const BinaryRun generated = Ctl({"--output", "json", "generate", "--local", "--model", model,
                                   "--token-ids", "5,6,7", "--max-tokens", "4"});
  EXPECT_EQ(generated.exit_code, 0) << generated.err;
  const auto generation = nlohmann::json::parse(generated.out, nullptr, false);
  ASSERT_TRUE(generation.is_object()) << generated.out;
  EXPECT_EQ(generation["prompt_token_ids"], (std::vector<int>{5, 6, 7}));
  EXPECT_GE(generation["token_ids"].size(), 1u);

  const std::string text = folder_->folder().Write("text", std::string(600, 'x'));
  const BinaryRun evaluated =
      Ctl({"--output", "json", "eval", "--model", model, "--text", text, "--prefix", "128",
           "--score", "2", "--passages", "1", "--presets", "fp16,kivi2"});
  EXPECT_EQ(evaluated.exit_code, 0) << evaluated.err;
  const auto report = nlohmann::json::parse(evaluated.out, nullptr, false);
  ASSERT_TRUE(report.is_object()) << evaluated.out;
  EXPECT_EQ(report["presets"].size(), 2u);
  EXPECT_EQ(report["presets"][0]["kl_mean"], 0);
  EXPECT_EQ(evaluated.err, "") << "no progress line off a terminal";
}

TEST_F(GenerationCommandsTest, NamesTokenIdsOutsideTheVocabulary) {
  const BinaryRun run =
      Ctl({"generate", "--local", "--model", folder_->path(), "--token-ids", "5,264"});
  EXPECT_EQ(run.exit_code, 2);
  EXPECT_THAT(run.err, HasSubstr("token id 264 at position 1"));
}

}  // namespace
}  // namespace pkv
