#include "tests/bench/serve/request_trace.h"

#include <gmock/gmock.h>

#include <fstream>
#include <sstream>

#include "tests/support/status_matchers.h"
#include "tests/support/tiny_model.h"

namespace pkv {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

absl::StatusOr<std::vector<TraceRequest>> Parse(const std::string& text) {
  std::istringstream lines(text);
  return ParseTrace(lines);
}

// The first and a later line of conversation_trace.jsonl, shortened.
constexpr const char* kTwoRequests =
    R"({"timestamp": 1000, "input_length": 1025, "output_length": 500, "hash_ids": [0, 1, 2]}
{"timestamp": 4500, "input_length": 512, "output_length": 1, "hash_ids": [0]}
)";

TEST(ParseTraceTest, ReadsRequestsWithTimesFromTheFirst) {
  const auto trace = Parse(kTwoRequests);
  ASSERT_THAT(trace, IsOk());
  ASSERT_EQ(trace->size(), 2);
  EXPECT_EQ((*trace)[0].arrival_s, 0);
  EXPECT_EQ((*trace)[0].prompt_tokens, 1025);
  EXPECT_EQ((*trace)[0].output_tokens, 500);
  EXPECT_THAT((*trace)[0].block_ids, ElementsAre(0, 1, 2));
  EXPECT_EQ((*trace)[1].arrival_s, 3.5);
}

TEST(ParseTraceTest, NamesTheLineThatIsNoRequest) {
  const std::pair<const char*, const char*> wrong[] = {
      {"{", "JSON"},
      {"[1]", "JSON"},
      {R"({"timestamp": -1, "input_length": 1, "output_length": 1, "hash_ids": [0]})", "timestamp"},
      {R"({"timestamp": 5000, "output_length": 1, "hash_ids": [0]})", "input_length"},
      {R"({"timestamp": 5000, "input_length": 0, "output_length": 1, "hash_ids": [0]})",
       "input_length"},
      {R"({"timestamp": 5000, "input_length": 1, "output_length": 2000000, "hash_ids": [0]})",
       "output_length"},
      {R"({"timestamp": 5000, "input_length": 1, "output_length": 1, "hash_ids": 0})", "hash_ids"},
      {R"({"timestamp": 5000, "input_length": 1, "output_length": 1, "hash_ids": [-1]})", "no id"},
      {R"({"timestamp": 5000, "input_length": 513, "output_length": 1, "hash_ids": [0]})",
       "1 hash_ids for 513 tokens, 2 are needed"},
      {R"({"timestamp": 4499, "input_length": 1, "output_length": 1, "hash_ids": [0]})", "before"}};
  for (const auto& [line, reason] : wrong) {
    const auto trace = Parse(std::string(kTwoRequests) + line);
    EXPECT_THAT(trace, StatusIs(absl::StatusCode::kInvalidArgument)) << line;
    EXPECT_THAT(std::string(trace.status().message()), HasSubstr("line 3")) << line;
    EXPECT_THAT(std::string(trace.status().message()), HasSubstr(reason)) << line;
  }
  EXPECT_THAT(Parse(""), StatusIs(absl::StatusCode::kInvalidArgument));
}

TEST(ReadTraceTest, ReadsAFileAndNamesOneThatIsNotThere) {
  const ScratchFolder scratch;
  const std::string path = scratch.path() + "/trace.jsonl";
  std::ofstream(path) << kTwoRequests;
  EXPECT_EQ(ReadTrace(path)->size(), 2);
  const auto missing = ReadTrace(scratch.path() + "/none");
  EXPECT_THAT(missing, StatusIs(absl::StatusCode::kNotFound));
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("/none"));
}

}  // namespace
}  // namespace pkv
