#include "proto/config/config_file.h"

#include <gmock/gmock.h>

#include "tests/support/scratch_folder.h"
#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::Field;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

auto Entry(const std::string& key, const std::string& value, int line) {
  return AllOf(Field(&FileEntry::key, key), Field(&FileEntry::value, value),
               Field(&FileEntry::line, line));
}

auto Problem(int line, const std::string& what) {
  return AllOf(Field(&FileProblem::line, line), Field(&FileProblem::what, HasSubstr(what)));
}

TEST(ConfigFileTest, EntriesKeepTheirTextAndLine) {
  const ConfigFile file = ParseConfigFile(
      "# our cache\n"
      "listen: 127.0.0.1:7440\n"
      "\n"
      "capacity: 0x10   # not a number yet\n"
      "'metrics-listen': \"\"\n"
      "reflection: off\n");
  EXPECT_THAT(file.problems, IsEmpty());
  EXPECT_THAT(file.entries,
              ElementsAre(Entry("listen", "127.0.0.1:7440", 2), Entry("capacity", "0x10", 4),
                          Entry("metrics-listen", "", 5), Entry("reflection", "off", 6)));
}

TEST(ConfigFileTest, JsonIsYaml) {
  EXPECT_THAT(ParseConfigFile("{\"capacity\": \"1GiB\", \"reflection\": false}").entries,
              ElementsAre(Entry("capacity", "1GiB", 1), Entry("reflection", "false", 1)));
}

TEST(ConfigFileTest, AFileWithoutSettingsIsEmpty) {
  for (const char* text : {"", "\n\n", "# nothing\n", "---\n", "---\n...\n"}) {
    const ConfigFile file = ParseConfigFile(text);
    EXPECT_THAT(file.entries, IsEmpty()) << text;
    EXPECT_THAT(file.problems, IsEmpty()) << text;
  }
}

TEST(ConfigFileTest, EveryProblemIsToldAndTheRestIsRead) {
  const ConfigFile file = ParseConfigFile(
      "capacity: 1GiB\n"
      "capacity: 2GiB\n"
      "port-file:\n"
      "listen: [a, b]\n"
      "shm: {socket: /x}\n"
      "? [a]\n"
      ": b\n"
      "reflection: true\n");
  EXPECT_THAT(file.problems, ElementsAre(Problem(2, "'capacity' is set on line 1 already"),
                                         Problem(3, "'port-file' has no value"),
                                         Problem(4, "'listen' takes one value, not a list"),
                                         Problem(5, "'shm' takes one value, not a mapping"),
                                         Problem(6, "a key is no option's name")));
  EXPECT_THAT(file.entries,
              ElementsAre(Entry("capacity", "1GiB", 1), Entry("reflection", "true", 8)));
}

TEST(ConfigFileTest, WhatIsNoYamlIsToldWithItsLine) {
  EXPECT_THAT(ParseConfigFile("a: b\nc: [d\n").problems, ElementsAre(Problem(2, "not YAML: ")));
  for (const char* quote : {"'", "\""}) {
    EXPECT_THAT(ParseConfigFile(absl::StrCat("a: b\nc: ", quote, "d\ne: f\n")).problems,
                ElementsAre(Problem(3, "not YAML: ")))
        << "never closed";
  }
  EXPECT_THAT(ParseConfigFile("a: b\n\tc: d\n").problems, ElementsAre(Problem(2, "not YAML: ")));
  EXPECT_THAT(ParseConfigFile("a: *b\n").problems, ElementsAre(Problem(1, "not YAML: ")));
  EXPECT_THAT(ParseConfigFile(std::string(100'000, '[')).problems,
              ElementsAre(Problem(1, "not YAML: ")));
}

TEST(ConfigFileTest, OnlyOneMappingIsAFile) {
  EXPECT_THAT(ParseConfigFile("- a\n- b\n").problems, ElementsAre(Problem(1, "no mapping")));
  EXPECT_THAT(ParseConfigFile("capacity\n").problems, ElementsAre(Problem(1, "no mapping")));
  EXPECT_THAT(ParseConfigFile("a: b\n---\nc: d\n").problems,
              ElementsAre(Problem(2, "a second document")));
  // yaml-cpp 0.7 takes this for documents without end.
  EXPECT_THAT(ParseConfigFile(" ,}---\n").problems, ElementsAre(Problem(1, "a second document")));
}

TEST(ConfigFileTest, FilesAreReadWhole) {
  const ScratchFolder scratch;
  const std::string missing = scratch.path() + "/missing";
  EXPECT_THAT(ReadConfigText(missing), StatusIs(absl::StatusCode::kNotFound, HasSubstr(missing)));
  const std::string longest(kConfigFileBytesMax, '#');
  EXPECT_EQ(ReadConfigText(scratch.Write("longest", longest)).value_or("").size(), longest.size());
  EXPECT_THAT(ReadConfigText(scratch.Write("longer", longest + "#")),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("longer than 1048576")));
  EXPECT_THAT(ReadConfigText(scratch.path()),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("cannot be read")));
}

}  // namespace
}  // namespace pkv
