#include "proto/config/completion.h"

#include <gmock/gmock.h>

#include <CLI/CLI.hpp>

#include "tests/support/child_process.h"
#include "tests/support/scratch_folder.h"

namespace pkv {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

class CompletionTest : public testing::Test {
 protected:
  CompletionTest() {
    std::string text;
    app_.add_option("--cache", text, "the 'cache' [host:port]");
    app_.add_flag("--quiet")->description("say \"nothing\"");
    app_.add_option("--secret", text)->group("");
    CLI::App* serve = app_.add_subcommand("serve", "it's a service");
    serve->add_option("-l,--log-format", text)->check(CLI::IsMember({"text", "json"}));
    serve->add_option("--device", text)->option_text("{cpu,cuda} [cpu]");
    app_.add_subcommand("stop", "end it");
  }

  // What bash offers for the last of `words`.
  std::vector<std::string> Complete(const std::string& words) {
    const std::string script =
        absl::StrCat(CompletionScript(app_, "bash"), "COMP_WORDS=(", words,
                     ")\nCOMP_CWORD=$((${#COMP_WORDS[@]} - 1))\n_pkv_test\n"
                     "[ ${#COMPREPLY[@]} -eq 0 ] || printf '%s\\n' \"${COMPREPLY[@]}\"\n");
    return Lines(Bash(script));
  }
  std::string Bash(const std::string& script) {
    ChildProcess bash({"/bin/bash", "--norc", "-u", scratch_.Write("script", script)},
                      scratch_.path() + "/bash");
    EXPECT_EQ(bash.Wait(std::chrono::seconds(60)), 0);
    EXPECT_EQ(bash.err(), "");
    return bash.out();
  }
  static std::vector<std::string> Lines(const std::string& text) {
    std::istringstream in(text);
    std::vector<std::string> lines;
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
  }

  const ScratchFolder scratch_;
  CLI::App app_{"A test", "pkv-test"};
};

TEST_F(CompletionTest, BashRegistersTheCommand) {
  EXPECT_EQ(Bash(CompletionScript(app_, "bash") + "complete -p pkv-test\n"),
            "complete -o bashdefault -o default -F _pkv_test pkv-test\n");
}

TEST_F(CompletionTest, BashOffersWhatFitsWhereTheLineIs) {
  EXPECT_THAT(Complete("pkv-test ''"),
              UnorderedElementsAre("-h", "--help", "--cache", "--quiet", "serve", "stop"));
  EXPECT_THAT(Complete("pkv-test s"), ElementsAre("serve", "stop"));
  EXPECT_THAT(Complete("pkv-test serve --"),
              UnorderedElementsAre("--help", "--log-format", "--device"));
  EXPECT_THAT(Complete("pkv-test --quiet stop -"), UnorderedElementsAre("-h", "--help"));
}

TEST_F(CompletionTest, BashOffersTheValuesOfAnOption) {
  EXPECT_THAT(Complete("pkv-test serve --log-format ''"), ElementsAre("text", "json"));
  EXPECT_THAT(Complete("pkv-test serve -l j"), ElementsAre("json"));
  EXPECT_THAT(Complete("pkv-test serve --device = cu"), ElementsAre("cuda"));
  EXPECT_THAT(Complete("pkv-test serve --device ="), ElementsAre("cpu", "cuda"));
  EXPECT_THAT(Complete("pkv-test --cache ''"), IsEmpty()) << "files";
}

TEST_F(CompletionTest, ZshAndFishHaveTheSameOptionsQuoted) {
  const std::string zsh = CompletionScript(app_, "zsh");
  EXPECT_THAT(zsh, testing::StartsWith("#compdef pkv-test\n"));
  EXPECT_THAT(zsh,
              HasSubstr("'--cache=[the '\\''cache'\\'' \\[host\\:port\\]]:value:_files' \\\n"));
  EXPECT_THAT(zsh, HasSubstr("'--log-format=[]:value:(text json)'"));
  EXPECT_THAT(zsh, HasSubstr("serve\\:\"it'\\''s a service\""));
  const std::string fish = CompletionScript(app_, "fish");
  EXPECT_THAT(fish, HasSubstr("-l cache -r -d 'the \\'cache\\' [host:port]'\n"));
  EXPECT_THAT(fish, HasSubstr("-n '__fish_seen_subcommand_from serve' -l device -x -a 'cpu cuda'"));
  EXPECT_THAT(fish, HasSubstr("-f -a stop -d 'end it'\n"));
}

TEST_F(CompletionTest, HiddenOptionsStayHidden) {
  for (const std::string& shell : CompletionShells()) {
    EXPECT_THAT(CompletionScript(app_, shell), Not(HasSubstr("secret"))) << shell;
  }
}

}  // namespace
}  // namespace pkv
