#include "worker/eval/evaluation_row.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/status_matchers.h"

namespace pkv {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr KvShape kShape{2, 2, 128};

TEST(EvaluationRowTest, IsThePresetWithoutSettings) {
  const auto row = ParseEvaluationRow("pkv2", kShape);
  ASSERT_THAT(row, IsOk());
  EXPECT_EQ(row->label, "pkv2");
  EXPECT_EQ(row->params.Digest(), PresetByName("pkv2", kShape)->Digest());
}

TEST(EvaluationRowTest, ChangesTheNamedFieldsAndSaysSoInItsLabel) {
  const auto row = ParseEvaluationRow("default:clip_v=none,num_patterns_k=64", kShape);
  ASSERT_THAT(row, IsOk());
  EXPECT_EQ(row->label, "default clip_v=none num_patterns_k=64");
  EXPECT_EQ(row->params.clip_v, Clip::kNone);
  EXPECT_EQ(row->params.num_patterns_k, 64);
  EXPECT_EQ(row->params.num_patterns_v, 32);
  const auto semicolons = ParseEvaluationRow("default:clip_v=none;num_patterns_k=64", kShape);
  ASSERT_THAT(semicolons, IsOk());
  EXPECT_EQ(semicolons->params.Digest(), row->params.Digest());
}

TEST(EvaluationRowTest, RefusesWhatItCannotReadAndNamesIt) {
  const auto refused = [](const char* text, absl::StatusCode code, const char* what) {
    EXPECT_THAT(ParseEvaluationRow(text, kShape), StatusIs(code, HasSubstr(what)));
  };
  refused("kivi3", absl::StatusCode::kNotFound, "kivi3");
  refused("default:clip=none", absl::StatusCode::kNotFound, "clip_v");
  refused("default:clip_v", absl::StatusCode::kInvalidArgument, "key=value");
  refused("default:clip_v=some", absl::StatusCode::kInvalidArgument, "{none, search}");
  refused("default:num_sinks=3", absl::StatusCode::kInvalidArgument, "num_sinks 3");
  refused("kivi2:num_patterns_k=8", absl::StatusCode::kInvalidArgument, "has_patterns");
}

}  // namespace
}  // namespace pkv
